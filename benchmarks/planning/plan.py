"""How accurate is a plan? Images/s predicted and images/s achieved, for every schedule, with 1, 2 and 3 processes.

    python -m benchmarks.planning.plan [--quick] [--json FILE] [--any.setting VALUE]       (4 minutes)

For each number of processes `pipeflow.plan` measures the steps of the quickstart's flow (or of the one that settings
describe), and `pipeflow.train` then trains three parts on this machine, a phase per schedule. Predicted is what
`plan.json` says of so many processes on this machine, achieved is what `result.json` says. The plan is made anew each
time, alternating with the training, and all is repeated: what else the machine does at times shows as the spread. Needs
a machine that is otherwise idle.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lib.results import about, keep, make_parser, table
from benchmarks.lib.torchrun import run

SCHEDULES = ("simultaneous", "alternate", "sequential", "end_to_end")


def plan_and_train(directory: Path, processes: int, steps: int, settings: list[str]) -> list[dict[str, Any]]:
    """Makes a plan and trains by it; returns a row per phase."""
    phases = [
        {"schedule": name, "steps": steps, **({"turn_steps": max(1, steps // 9)} if name == "alternate" else {})}
        for name in SCHEDULES
    ]
    words = ["--run_dir", str(directory), "--phases", json.dumps(phases), "--eval_every", "1e9", "--device", "cpu"]
    run("pipeflow.plan", [*words, "--hosts", "1", "--gpus-per-host", str(processes), *settings])
    plan = json.loads((directory / "plan.json").read_text())
    run("pipeflow.train", [*words, *settings], processes)
    result = json.loads((directory / "result.json").read_text())
    return [
        {
            "schedule": phase["schedule"],
            "predicted": list(planned["images_per_s"].values())[-1],  # of these processes, on the cores that there are
            "achieved": phase["images_per_s"],
            "busy": plan["busy"],
        }
        for planned, phase in zip(plan["phases"], result["phases"], strict=True)
    ]


def main() -> None:
    parser = make_parser(__doc__)
    args, settings = parser.parse_known_args()
    steps, repeats = (9, 1) if args.quick else (120, 3)
    measured: dict[tuple[int, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for repeat in range(repeats):
            for processes in (1, 2, 3):
                for row in plan_and_train(Path(directory) / f"{processes}-{repeat}", processes, steps, settings):
                    measured.setdefault((processes, row["schedule"]), []).append(row)
    shown, rows = [], []
    for (processes, schedule), found in measured.items():
        ratios = sorted(row["predicted"] / row["achieved"] for row in found)
        predicted, achieved = (statistics.median(row[name] for row in found) for name in ("predicted", "achieved"))
        span = f"{ratios[0]:.3f} … {ratios[-1]:.3f}"
        shown.append([processes, schedule, predicted, achieved, statistics.median(ratios), span])
        rows.append({"processes": processes, "schedule": schedule, "runs": found})
    print(table(["processes", "schedule", "predicted", "achieved", "predicted / achieved", "range"], shown))
    busiest = max(row["busy"] for found in measured.values() for row in found)
    print(f"Something else had the CPU for at most {100 * busiest:.0f} % of the measuring.")
    config = {"steps": steps, "repeats": repeats, "words": settings}
    keep("plan", {**about(config), "rows": rows}, args)


if __name__ == "__main__":
    main()
