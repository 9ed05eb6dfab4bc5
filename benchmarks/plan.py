"""How near is a plan? Images/s predicted beside images/s achieved, for every schedule, by 1, 2 and 3 processes.

    python benchmarks/plan.py [--quick] [--json FILE] [--any.setting VALUE]

For each number of processes `pipeflow.plan` measures the steps of the quickstart's flow (or of the one that settings
describe), and `pipeflow.train` then trains three parts on this machine, a phase a schedule. Both figures are those of
`result.json`. The plan is made anew each time, in turns with the training, and all is repeated: what a machine does at
one moment or another shows as the spread. Needs a machine that is otherwise idle.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results_file import about, keep, make_parser

SCHEDULES = ("simultaneous", "alternate", "sequential", "end_to_end")


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def both(directory: Path, processes: int, steps: int, settings: list[str]) -> list[dict[str, Any]]:
    """A plan and its run: a row a phase."""
    phases = [
        {"schedule": name, "steps": steps, **({"turn_steps": max(1, steps // 9)} if name == "alternate" else {})}
        for name in SCHEDULES
    ]
    words = [
        "--run_dir",
        str(directory),
        "--phases",
        json.dumps(phases),
        "--eval_every",
        "1e9",
        "--device",
        "cpu",
        *settings,
    ]
    run("-m", "pipeflow.plan", *words)
    plan = json.loads((directory / "plan.json").read_text())
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    run(*start, "-m", "pipeflow.train", "--", *words)
    return [
        {
            "schedule": phase["schedule"],
            "predicted": phase["predicted_images_per_s"],
            "achieved": phase["images_per_s"],
            "busy": plan["busy"],
        }
        for phase in json.loads((directory / "result.json").read_text())["phases"]
    ]


def main() -> None:
    parser = make_parser(__doc__)
    args, settings = parser.parse_known_args()
    steps, repeats = (9, 1) if args.quick else (120, 3)
    measured: dict[tuple[int, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for repeat in range(repeats):
            for processes in (1, 2, 3):
                for row in both(Path(directory) / f"{processes}-{repeat}", processes, steps, settings):
                    measured.setdefault((processes, row["schedule"]), []).append(row)
    ratio = "predicted / achieved: median, range"
    print(f"{'processes':<10} {'schedule':<13} {'predicted':>10} {'achieved':>10} {ratio:>36}")
    rows = []
    for (processes, schedule), found in measured.items():
        ratios = sorted(row["predicted"] / row["achieved"] for row in found)
        predicted, achieved = (statistics.median(row[name] for row in found) for name in ("predicted", "achieved"))
        span = f"{statistics.median(ratios):.3f}, {ratios[0]:.3f} … {ratios[-1]:.3f}"
        print(f"{processes:<10} {schedule:<13} {predicted:10.1f} {achieved:10.1f} {span:>36}")
        rows.append({"processes": processes, "schedule": schedule, "runs": found})
    busiest = max(row["busy"] for found in measured.values() for row in found)
    print(f"Something else had the CPU for at most {100 * busiest:.0f} % of the measuring.")
    config = {"steps": steps, "repeats": repeats, "words": settings}
    keep("plan", {**about(config), "rows": rows}, args)


if __name__ == "__main__":
    main()
