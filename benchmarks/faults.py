"""How much time does a fault cost, when all processes restart from the last checkpoint?

    python benchmarks/faults.py [--quick] [--json FILE]

Trains by parts in 3 processes on the digits under `torchrun --max-restarts=1`. One run is left alone; in each of the
others one process meets its fault half-way between two checkpoints, and everything goes on without a person. What it
cost is the difference of the runs' lengths; of that, the steps done twice are the work lost, and the rest is noticing,
ending, starting and loading. Restarting only the process that was lost is not built yet, so there is nothing to compare
with. Needs /proc.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FAULTS = {
    "SIGKILL, head": (0, signal.SIGKILL),
    "SIGKILL, middle": (1, signal.SIGKILL),
    "SIGKILL, tail": (2, signal.SIGKILL),
    "SIGTERM, middle": (1, signal.SIGTERM),
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


def train(run: Path, steps: int, every: int, hidden: int, fault: tuple[int, signal.Signals] | None) -> dict[str, Any]:
    phases = json.dumps([{"schedule": "simultaneous", "steps": steps}])
    began = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", "--max-restarts=1"),
            *("-m", "pipeflow.train", "--", "--run", str(run), "--phases", phases, "--checkpoint.every", str(every)),
            *("--glow.hidden", str(hidden), "--eval_every", "1e9", "--device", "cpu"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if fault:
        saved = every * (steps // every // 2)
        while reached(run) < saved and process.poll() is None:
            time.sleep(0.05)
        lines = (run / "metrics" / "part-3.jsonl").read_text().splitlines()
        times = [json.loads(line)["time"] for line in lines[-20:]]
        time.sleep((times[-1] - times[0]) / (len(times) - 1) * every / 2)  # half-way to the next checkpoint
        os.kill(worker(run, fault[0]), fault[1])
    out, errors = process.communicate()
    if process.returncode:
        sys.exit(errors)
    seconds = time.monotonic() - began
    again = re.findall(r"^goes on from .*step-(\d+)$", out, re.MULTILINE)
    said = [line.removeprefix("pipeflow: ") for line in errors.splitlines() if line.startswith("pipeflow: ")]
    if bool(fault) != bool(again):
        sys.exit(f"the fault did not restart the run once: {out}{errors}")
    return {"seconds": seconds, "from_step": int(again[0]) if again else None, "said": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, short, one fault: to see that it works")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    steps, every, hidden = (600, 200, 8) if args.quick else (400, 100, 128)
    faults = dict(list(FAULTS.items())[1:2]) if args.quick else FAULTS
    with tempfile.TemporaryDirectory() as directory:
        rows = {"none": train(Path(directory) / "none", steps, every, hidden, None)}
        for number, (name, fault) in enumerate(faults.items()):
            rows[name] = train(Path(directory) / str(number), steps, every, hidden, fault)
    alone = rows["none"]["seconds"]
    print(f"{steps} steps, a checkpoint every {every}, 3 processes: {alone:.1f} s undisturbed")
    for name, row in rows.items():
        if name != "none":
            row["lost_s"] = row["seconds"] - alone
            print(f"  {name:<16} {row['lost_s']:5.1f} s lost, from step {row['from_step']}: {row['said'][0][:80]}")
    if args.json:
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "torch": version("torch"),
            "settings": {"steps": steps, "every": every, "hidden": hidden, "processes": 3},
            "runs": rows,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
