"""What do checkpoints cost while training goes on, and how long does it take to go on from one?

    python -m benchmarks.robustness.checkpoint [--quick] [--json FILE]        (4 minutes)

Trains by parts in 3 processes on the digits, alternately with a checkpoint every few steps and with none, and reads
from the metrics of the runs: the stall per checkpoint (the loop waits for the copy to host memory, and for the previous
checkpoint if that is still being written), its bytes, the seconds that writing takes beside the loop, and the time of a
step. Then the last run is resumed: seconds from the command to the first new step, compared with those of a fresh run.
Only the copy should hold training up; with no more cores than processes writing takes its share of them too, which is
why the time of a step is also compared between the two kinds of run.
"""

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.results import about, keep, make_parser
from benchmarks.lib.torchrun import run

PROCESSES = 3


def train(directory: Path, steps: int, every: int | None, hidden: int, *words: str) -> float:
    """Seconds from the command to the first step of part 1."""
    phases = json.dumps([{"schedule": "simultaneous", "steps": steps}])
    settings = ["--run_dir", str(directory), "--phases", phases, "--eval_every", "1e9", "--device", "cpu"]
    settings += ["--checkpoint.every", "null" if every is None else str(every), "--glow.hidden", str(hidden)]
    start = time.time()
    run("pipeflow.train", [*settings, *words], PROCESSES)
    return next(line["time"] for line in lines(directory, "part-1") if line["time"] >= start) - start


def lines(directory: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a metrics stream."""
    return [json.loads(line) for line in (directory / "metrics" / f"{name}.jsonl").read_text().splitlines()]


def main() -> None:
    args = make_parser(__doc__).parse_args()
    steps, every, hidden, repeats = (40, 10, 16, 1) if args.quick else (400, 20, 128, 3)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    starts, checkpoints = [], []
    with tempfile.TemporaryDirectory() as parent:
        for number in range(repeats):
            for kind, interval in (("with", every), ("without", None)):
                directory = Path(parent) / f"{kind}-{number}"
                starts.append(train(directory, steps, interval, hidden))
                times = [line["time"] for line in lines(directory, "part-3")]
                seconds[kind].append((times[-1] - times[0]) / (len(times) - 1))
            checkpoints += lines(Path(parent) / f"with-{number}", "checkpoints")[:-1]  # the last is the phase's end
        directory = Path(parent) / f"with-{repeats - 1}"
        resumes = []
        for _ in range(repeats):
            (directory / "result.json").unlink()  # as if it had been interrupted before its last checkpoint
            shutil.rmtree(directory / "checkpoints" / f"step-{steps}")
            resumes.append(train(directory, steps, every, hidden, "--resume", "auto"))
    step = statistics.median(seconds["without"])
    result = {
        **about({"steps": steps, "every": every, "hidden": hidden, "repeats": repeats, "processes": PROCESSES}),
        "step_s": {kind: statistics.median(values) for kind, values in seconds.items()},
        "checkpoints": len(checkpoints),
        "bytes": checkpoints[0]["bytes"],
        "stall_s": statistics.median(line["stall_s"] for line in checkpoints),
        "stall_s_worst": max(line["stall_s"] for line in checkpoints),
        "write_s": statistics.median(line["write_s"] for line in checkpoints),
        "stall_in_steps": statistics.median(line["stall_s"] for line in checkpoints) / step,
        "first_step_s": {"fresh": statistics.median(starts), "resumed": statistics.median(resumes)},
    }
    size = f"{result['bytes'] / 2**20:.1f} MiB"
    print(f"{len(checkpoints)} checkpoints of {size}, every {every} steps, {PROCESSES} processes")
    print(f"  step:  {1e3 * step:.1f} ms without checkpoints, {1e3 * result['step_s']['with']:.1f} ms with them")
    stall, worst, write = (1e3 * result[name] for name in ("stall_s", "stall_s_worst", "write_s"))
    print(f"  stall: median {stall:.1f} ms ({result['stall_in_steps']:.2f} of a step), worst {worst:.1f} ms")
    print(f"  writing, beside the loop: {write:.0f} ms")
    first = result["first_step_s"]
    print(f"  to the first step: {first['fresh']:.1f} s fresh, {first['resumed']:.1f} s resumed")
    keep("checkpoint", result, args)


if __name__ == "__main__":
    main()
