"""What do checkpoints cost while training goes on, and how long does it take to go on from one?

    python benchmarks/checkpoint.py [--quick] [--json FILE]

Trains by parts in 3 processes on the digits, in turns with a checkpoint every few steps and with none, and reads from
the runs' own records: the stall per checkpoint (the loop waits for the copy to host memory, and for the checkpoint
before if that is still being written), its bytes, the seconds that writing takes beside the loop, and the time of a
step. Then the last run is taken up again: seconds from the command to the first new step, against those of a fresh
run. Only the copy is meant to hold training up; on as many cores as processes, writing takes its share of them too,
which is why the two kinds of run are also compared as wholes.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results_file import about, keep, make_parser


def command(run: Path, *words: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    return [*torchrun, "-m", "pipeflow.train", "--", "--run_dir", str(run), *words]


def train(run: Path, steps: int, every: int | None, hidden: int, *words: str) -> float:
    """Seconds from the command to the first step of part 1."""
    phases = json.dumps([{"schedule": "simultaneous", "steps": steps}])
    settings = ["--phases", phases, "--checkpoint.every", "null" if every is None else str(every)]
    settings += ["--glow.hidden", str(hidden), "--eval_every", "1e9", "--device", "cpu"]
    began = time.time()
    done = subprocess.run(
        command(run, *settings, *words),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return next(line["time"] for line in lines(run, "part-1") if line["time"] >= began) - began


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics" / f"{name}.jsonl").read_text().splitlines()]


def main() -> None:
    args = make_parser(__doc__).parse_args()
    steps, every, hidden, repeats = (40, 10, 16, 1) if args.quick else (400, 20, 128, 3)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    starts, checkpoints = [], []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(repeats):
            for kind, interval in (("with", every), ("without", None)):
                run = Path(directory) / f"{kind}-{number}"
                starts.append(train(run, steps, interval, hidden))
                times = [line["time"] for line in lines(run, "part-3")]
                seconds[kind].append((times[-1] - times[0]) / (len(times) - 1))
            checkpoints += lines(Path(directory) / f"with-{number}", "checkpoints")[:-1]  # the last is the phase's end
        run = Path(directory) / f"with-{repeats - 1}"
        resumes = []
        for _ in range(repeats):
            (run / "result.json").unlink()  # as if it had been interrupted before its last checkpoint
            shutil.rmtree(run / "checkpoints" / f"step-{steps}")
            resumes.append(train(run, steps, every, hidden, "--resume", "auto"))
    step = statistics.median(seconds["without"])
    result = {
        **about({"steps": steps, "every": every, "hidden": hidden, "repeats": repeats, "processes": 3}),
        "step_s": {kind: statistics.median(values) for kind, values in seconds.items()},
        "checkpoints": len(checkpoints),
        "bytes": checkpoints[0]["bytes"],
        "stall_s": statistics.median(line["stall_s"] for line in checkpoints),
        "stall_s_worst": max(line["stall_s"] for line in checkpoints),
        "write_s": statistics.median(line["write_s"] for line in checkpoints),
        "stall_in_steps": statistics.median(line["stall_s"] for line in checkpoints) / step,
        "first_step_s": {"fresh": statistics.median(starts), "resumed": statistics.median(resumes)},
    }
    print(
        f"checkpoints of {result['bytes'] / 2**20:.1f} MiB every {every} steps, {len(checkpoints)} of them, 3 processes"
    )
    print(f"  step:  {1e3 * step:.1f} ms without checkpoints, {1e3 * result['step_s']['with']:.1f} ms with them")
    stall, worst, write = (1e3 * result[name] for name in ("stall_s", "stall_s_worst", "write_s"))
    print(f"  stall: median {stall:.1f} ms ({result['stall_in_steps']:.2f} of a step), worst {worst:.1f} ms")
    print(f"  writing, beside the loop: {write:.0f} ms")
    first = result["first_step_s"]
    print(f"  to the first step: {first['fresh']:.1f} s fresh, {first['resumed']:.1f} s resumed")
    keep("checkpoint", result, args)


if __name__ == "__main__":
    main()
