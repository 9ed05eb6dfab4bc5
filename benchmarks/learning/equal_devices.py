"""On two devices, how long until a flow is as good as end to end makes it, and how many bytes does that take?

    python -m benchmarks.learning.equal_devices [--seeds 3] [--lr 0.032] [--quick] [--json FILE]     (6 minutes)

The digits, Glow 2 × 4 × 32 in 2 parts, each run alone on the machine: by parts behind heads that start as the model
goes on, without and with the last tenth of the images end to end (by DDP, or through the pipeline), against DDP, 1F1B
with 2 and 4 micro-batches, and one process with two threads. A device is a core. All draw the same images in as many
steps, at one learning rate, which benchmarks.learning.heads chose for end to end and for heads alike.

The mark is what end to end in one process ends at, seed by seed, plus 0.02 bits/dim, on training images that are held
out; between two evaluations the curve is a straight line. Seconds are those of training, without start and evaluations.
"MiB computed" are latents by parts and gradients under DDP until the end of the run; "MiB measured" is what the sockets
of all processes sent, evaluations included.
"""

from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.learning.curves import Result
from benchmarks.learning.recipe import Recipe, Task
from benchmarks.learning.runs import TrainingRun, add_options, runs_directory, train_all
from benchmarks.learning.tasks import digits
from benchmarks.learning.time_to_bpd import crossing
from benchmarks.lib.results import about, keep, make_parser, table

MARGIN, TAIL, ONE = 0.02, 0.1, "end to end, one process"
HEAD = ("--cut.provisional_prior", "flow", "--cut.head.start", "model")
PIPELINE = ("--end_to_end.engine", "pipeline", "--end_to_end.micro_batches")


def ways(lr: float) -> dict[str, tuple[Recipe, dict[str, int]]]:
    """Name → recipe, and on how many processes and threads; the first sets the mark."""
    by_parts = Recipe("simultaneous", 0.0, lr, cool=0.1, words=HEAD)
    end_to_end = Recipe("simultaneous", 1.0, lr, cool=0.1)
    two = {"processes": 2}
    return {
        ONE: (end_to_end, {}),
        "by parts": (by_parts, two),
        "by parts, last tenth DDP": (by_parts.but(tail=TAIL), two),
        "by parts, last tenth pipeline": (by_parts.but(tail=TAIL, words=(*HEAD, *PIPELINE, "2")), two),
        "DDP": (end_to_end, two),
        "1F1B, 2 micro-batches": (end_to_end.but(words=(*PIPELINE, "2")), two),
        "1F1B, 4 micro-batches": (end_to_end.but(words=(*PIPELINE, "4")), two),
        "end to end, two threads": (end_to_end, {"threads": 2}),
    }


def measure(task: Task, lr: float, seeds: int, directory: Path) -> dict[str, list[Result]]:
    """Name → a result per seed; seed after seed, so that whatever else the machine does meets all of them."""
    wanted: list[tuple[str, TrainingRun]] = [
        (name, task.run(recipe, seed, **spread)) for seed in range(seeds) for name, (recipe, spread) in ways(lr).items()
    ]
    found: dict[str, list[Result]] = {name: [] for name in ways(lr)}
    for (name, _), result in zip(wanted, train_all([run for _, run in wanted], directory), strict=True):
        found[name].append(result)
    return found


def rows(found: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """A row per way: means over seeds; of the mark every seed's seconds, None where it was never reached."""
    marks = [result["validation"] + MARGIN for result in found[ONE]]
    made = []
    for name, results in found.items():
        sent = [result["curve"][-1]["bytes"] for result in results]
        made.append(
            {
                "way": name,
                "held_out": mean(result["validation"] for result in results),
                "test": mean(result["final"] for result in results),
                "seconds": mean(result["curve"][-1]["seconds"] for result in results),
                "seconds_to_mark": [crossing(one["curve"], mark) for one, mark in zip(results, marks, strict=True)],
                "computed_bytes": mean(sent) if None not in sent else None,
                "measured_bytes": mean(result["measured_bytes"] for result in results),
            }
        )
    return made


def show(made: list[dict[str, Any]]) -> None:
    cells = []
    for row in made:
        sizes = [row[kind] and row[kind] / 2**20 for kind in ("computed_bytes", "measured_bytes")]
        mark = ", ".join("–" if hit is None else f"{hit:.1f}" for hit in row["seconds_to_mark"])
        bits = [f"{row[split]:.3f}" for split in ("held_out", "test")]
        cells.append([row["way"], *bits, f"{row['seconds']:.2f}", mark, *sizes])
    heads = ["held out", "test", "seconds", "s to the mark, by seed", "MiB computed", "MiB measured"]
    print(table(["two devices; means over seeds", *heads], cells))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.032)
    add_options(parser)
    args = parser.parse_args()
    task, _ = digits(2, args.quick)
    task = replace(task, points=2 if args.quick else 24)
    seeds = 1 if args.quick else args.seeds
    found = measure(task, args.lr, seeds, runs_directory(args))
    made = rows(found)
    show(made)
    config = {"words": " ".join(task.words), "steps": task.steps, "batch": task.batch, "lr": args.lr, "seeds": seeds}
    keep("equal_devices", {**about(config), "rows": made, "runs": found}, args)


if __name__ == "__main__":
    main()
