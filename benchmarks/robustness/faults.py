"""How much time does a fault cost: when all processes restart from the last checkpoint, and when only one does?

    python -m benchmarks.robustness.faults [--quick] [--json FILE]       (4 minutes)

Trains by parts in 3 processes on the digits, once under `torchrun --max-restarts=1`, where a fault restarts all, and
once with an agent per process and `parallel.rejoin_s`, where the others stay alive. Of each kind one run is left
undisturbed; in the others one process is killed half-way between two checkpoints, and training goes on by itself. The
cost is the difference between the durations; part of it are the steps done twice, the rest is noticing, ending,
starting and loading. Needs /proc.
"""

import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib.results import about, keep, make_parser
from benchmarks.lib.torchrun import PIPES, free_port, start, torchrun, wait

FAULTS = {
    "SIGKILL, head": (0, signal.SIGKILL),
    "SIGKILL, middle": (1, signal.SIGKILL),
    "SIGKILL, tail": (2, signal.SIGKILL),
}


def reached(run: Path) -> int:
    """The newest checkpoint's step; 0 where there is none."""
    steps = [
        int(path.name[5:]) for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)
    ]
    return max(steps, default=0)


def worker(run: Path, rank: int) -> int:
    """Process id of a rank."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            variables = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words and f"RANK={rank}".encode() in variables:
            return int(directory.name)
    sys.exit(f"there is no rank {rank}")


def agents(mode: str, restarts: int = 1) -> list[list[str]]:
    """The command of each torchrun agent, without the module that it runs."""
    often = f"--max-restarts={restarts}"
    if mode == "all":
        return [torchrun(often, "--standalone", "--nproc_per_node=3")]
    static = torchrun(often, "--rdzv-backend=static", "--nnodes=3", "--nproc-per-node=1")
    static += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    return [[*static, f"--node-rank={rank}"] for rank in range(3)]


class Kill(NamedTuple):
    """A signal for a rank, half-way between two checkpoints; `saved` is the step of the first of them."""

    rank: int
    signal: signal.Signals
    saved: int


def train(mode: str, run: Path, steps: int, every: int, hidden: int, kills: Sequence[Kill] = ()) -> dict[str, Any]:
    """Trains, with faults or without; returns how long it took, the step it last went on from, and messages."""
    phases = json.dumps([{"schedule": "simultaneous", "steps": steps}])
    words = [
        *("-m", "pipeflow.train", "--", "--run_dir", str(run), "--phases", phases, "--checkpoint.every", str(every)),
        *("--glow.hidden", str(hidden), "--eval_every", "1e9", "--device", "cpu"),
        *("--parallel.rejoin_s", "0" if mode == "all" else "120"),
    ]
    began = time.monotonic()
    processes = [start([*agent, *words], **PIPES) for agent in agents(mode, max(1, len(kills)))]
    for kill in kills:
        while reached(run) < kill.saved and all(process.poll() is None for process in processes):
            time.sleep(0.05)
        time.sleep(seconds_per_step(run) * every / 2)  # half-way to the next checkpoint
        os.kill(worker(run, kill.rank), kill.signal)
    out, errors = wait(*processes)
    seconds = time.monotonic() - began
    again = re.findall(r"goes on from .*step[- ](\d+)$", out, re.MULTILINE)
    messages = [line.removeprefix("pipeflow: ") for line in errors.splitlines() if line.startswith("pipeflow: ")]
    if bool(kills) != bool(again):
        sys.exit(f"the faults did not restart the run: {out}{errors}")
    return {"seconds": seconds, "from_step": int(again[-1]) if again else None, "messages": messages}


def seconds_per_step(run: Path) -> float:
    """Mean of the last steps of the last part that are whole in its metrics."""
    lines = (run / "metrics" / "part-3.jsonl").read_text().splitlines()
    times = [json.loads(line)["time"] for line in lines[-20:]]
    return float(times[-1] - times[0]) / (len(times) - 1)


def main() -> None:
    args = make_parser(__doc__).parse_args()
    steps, every, hidden = (600, 200, 8) if args.quick else (400, 100, 128)
    faults = dict(list(FAULTS.items())[1:2]) if args.quick else FAULTS
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    print(f"{steps} steps, a checkpoint every {every}, 3 processes; seconds lost:")
    for mode in ("all", "one"):
        with tempfile.TemporaryDirectory() as directory:
            rows = runs[mode] = {"none": train(mode, Path(directory) / "none", steps, every, hidden)}
            alone = rows["none"]["seconds"]
            print(f"restart of {mode}: {alone:.1f} s undisturbed", flush=True)
            for number, (name, fault) in enumerate(faults.items()):
                kill = Kill(*fault, saved=every * (steps // every // 2))
                row = rows[name] = train(mode, Path(directory) / str(number), steps, every, hidden, [kill])
                row["lost_s"] = row["seconds"] - alone
                print(f"  {name:<16} {row['lost_s']:5.1f} s lost, from step {row['from_step']}", flush=True)
    config = {"steps": steps, "every": every, "hidden": hidden, "processes": 3}
    keep("faults", {**about(config), "runs": runs}, args)


if __name__ == "__main__":
    main()
