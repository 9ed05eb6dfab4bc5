"""Does a run of many packets stay as large as it is after a while: memory, open files, threads, disk?

    python -m benchmarks.robustness.long_run [--quick] [--json FILE]     (10 minutes; --quick: half a minute)

Trains a very small Glow by parts in 3 processes, with evaluations, checkpoints, metrics, TensorBoard and, time and
again, a report. Every process is looked at from outside, in /proc: resident memory, open descriptors, threads; and so
is what the run directory holds. What was reached after the first tenth of the packets is compared with the end. Metrics
and TensorBoard grow by so many bytes per packet; checkpoints are kept to a number. A time is not measured.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.lib.results import about, keep, make_parser, table
from benchmarks.lib.torchrun import PIPES, command, environment, start, wait
from benchmarks.robustness.faults import reached, worker

PROCESSES, KEEP = 3, 3
MIB = 2**20
MORE_MIB = 8.0  # resident memory that a process may have more at the end; a float lost per packet and pixel is 12


def descriptors(process: Path) -> int:
    return len(list((process / "fd").iterdir()))


def threads(process: Path) -> int:
    return len(list((process / "task").iterdir()))


def resident(process: Path) -> float:
    """In MiB."""
    return int((process / "statm").read_text().split()[1]) * resource.getpagesize() / MIB


LOOKS: dict[str, Callable[[Path], float]] = {"memory_mib": resident, "open_files": descriptors, "threads": threads}


def disk(run: Path) -> dict[str, int]:
    """Bytes below each folder of a run, and how many checkpoints there are."""
    sizes = {}
    for name in ("checkpoints", "metrics", "tensorboard", "samples", "report"):
        sizes[name] = 0
        for here, _, files in os.walk(run / name):
            for file in files:
                with suppress(FileNotFoundError):  # of a checkpoint that was removed, or has just got its name
                    sizes[name] += Path(here, file).stat().st_size
    return sizes | {"kept": len(list((run / "checkpoints").glob("step-*[0-9]")))}


def train(run: Path, steps: int, every: int) -> list[dict[str, Any]]:
    """Trains, and looks at everything again and again; returns what it saw, in order."""
    phases = json.dumps([{"schedule": "simultaneous", "steps": steps, "lr": 1e-5}])
    words = ["--run_dir", str(run), "--phases", phases, "--data.batch", "4", "--device", "cpu", "--glow.hidden", "4"]
    words += ["--glow.levels", "1", "--glow.steps", "3", "--cut.scheme", "explicit", "--cut.at", "[1, 2]"]
    words += ["--checkpoint.every", str(every), "--checkpoint.keep", str(KEEP), "--eval_every", str(every * 4 / 1500)]
    seen: list[dict[str, Any]] = []
    report: subprocess.Popen[str] | None = None
    with tempfile.TemporaryFile("w+") as output:
        launched = subprocess.Popen(
            command("pipeflow.train", words, PROCESSES), env=environment(), stdout=output, stderr=subprocess.STDOUT
        )  # output that nobody reads would fill a pipe
        while launched.poll() is None and not reached(run):
            time.sleep(0.1)
        pids = {"torchrun": launched.pid}
        pids |= {f"rank {rank}": worker(run, rank) for rank in range(PROCESSES) if launched.poll() is None}
        while launched.poll() is None:
            time.sleep(1 if steps > 10_000 else 0.1)
            try:
                found = {
                    who: {name: look(Path(f"/proc/{pid}")) for name, look in LOOKS.items()} for who, pid in pids.items()
                }
            except OSError:  # a process that has come to its end
                continue
            seen.append({"packets": reached(run), "processes": found, "disk": disk(run)})
            if report is None or (report.poll() is not None and len(seen) % 50 == 0):
                report = start([sys.executable, "-m", "pipeflow.report", str(run)], **PIPES)
        assert report
        wait(report)
        output.seek(0)
        if launched.returncode:
            sys.exit(output.read())
    return seen


def compared(seen: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """What each process had after the first tenth and in the last: memory in the median, all else at the least.

    While a checkpoint is written, a thread and a file more are there.
    """
    early = [one for one in seen if 0.1 * steps <= one["packets"] < 0.25 * steps] or seen[:5]
    late = [one for one in seen if one["packets"] >= 0.85 * steps] or seen[-5:]
    processes = {}
    for who in seen[0]["processes"]:
        of = {}
        for name in LOOKS:
            over = statistics.median if name == "memory_mib" else min
            first, last = (over([one["processes"][who][name] for one in some]) for some in (early, late))
            of[name] = {
                "early": round(first, 2),
                "late": round(last, 2),
                "most": max(o["processes"][who][name] for o in seen),
            }
        processes[who] = of
    apart = late[-1]["packets"] - early[0]["packets"]
    grown = {name: (late[-1]["disk"][name] - early[0]["disk"][name]) / apart for name in ("metrics", "tensorboard")}
    return {
        "processes": processes,
        "bytes_per_packet": {name: round(size, 1) for name, size in grown.items()},
        "most_checkpoints": max(one["disk"]["kept"] for one in seen),
        "checkpoint_bytes": {"early": early[0]["disk"]["checkpoints"], "late": late[-1]["disk"]["checkpoints"]},
    }


def is_flat(found: dict[str, Any]) -> bool:
    """Whether no process has more at the end, and no more checkpoints are there than are kept."""
    for of in found["processes"].values():
        more = {name: figures["late"] - figures["early"] for name, figures in of.items()}
        if more["memory_mib"] > MORE_MIB or more["open_files"] > 0 or more["threads"] > 0:
            return False
    return bool(found["most_checkpoints"] <= KEEP + 2)  # the best one, and one that is about to go


def main() -> None:
    args = make_parser(__doc__).parse_args()
    steps, every = (2_000, 100) if args.quick else (50_000, 1_000)
    with tempfile.TemporaryDirectory() as parent:
        seen = train(Path(parent) / "run", steps, every)
    found = compared(seen, steps)
    rows = [
        [f"{who}: {name}", of[name]["early"], of[name]["late"], of[name]["most"]]
        for who, of in found["processes"].items()
        for name in LOOKS
    ]
    print(table(["", "after a tenth", "in the last tenth", "most"], rows))
    print(f"bytes on disk per packet: {found['bytes_per_packet']}; most checkpoints: {found['most_checkpoints']}")
    result = about({"packets": steps, "every": every, "keep": KEEP, "processes": PROCESSES})
    result |= {**found, "flat": is_flat(found), "seen": seen[:: max(1, len(seen) // 50)]}
    keep("long_run", result, args)
    if not result["flat"]:
        sys.exit("something grows")


if __name__ == "__main__":
    main()
