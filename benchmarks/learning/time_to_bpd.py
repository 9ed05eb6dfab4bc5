"""Is a start by parts better than none? Bits/dim against images, wall-clock and bytes.

    python -m benchmarks.learning.time_to_bpd [--quick] [--jobs 2] [--json FILE] [--png FILE]      (hours; digits)
    python -m benchmarks.learning.time_to_bpd --data cifar10_jpeg --root DIR …       (the unpacked folder, not CIFAR-10)
    python -m benchmarks.learning.time_to_bpd --data fashion_mnist --root DIR …

All recipes draw equally many images; they differ in how long, and in which schedule, they train by parts before they
train end to end: two thirds of the images (the paper's share) in each schedule, and simultaneous with all, five sixths
or one third of them. A sweep first finds the best learning rate, clipping and cooling of each recipe (sweep.py; on
shorter runs unless the data are digits). Against images they run in one process: by parts that is the same to the last
bit as in many, end to end up to the order of sums.

Then time and bytes: the best settings again, alone on the machine, compared on equally many devices; a device is a
core. On one, one process; on as many as there are parts, a process per part, compared with N processes with one model
(DDP) and with one process with so many threads. Wall-clock is that of training, without start and evaluations.
`--skip-times` leaves that out. The runs stay in --runs: a sweep that was interrupted goes on.
"""

import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.learning.curves import Result, columns
from benchmarks.learning.recipe import Recipe, Task
from benchmarks.learning.runs import add_options, runs_directory, train_all
from benchmarks.learning.sweep import Tried, best_of, final
from benchmarks.learning.tasks import LARGE, digits, large
from benchmarks.lib.results import about, axes, keep, make_parser, table

THIRD = 1 / 3
RECIPES = (
    Recipe("end_to_end", 1.0),
    *(Recipe(schedule, THIRD) for schedule in ("simultaneous", "alternate", "sequential")),
    *(Recipe("simultaneous", tail) for tail in (0.0, THIRD / 2, 2 * THIRD)),
)
TIMED = ("end to end", "simultaneous, tail 0.33", "alternate, tail 0.33", "simultaneous, tail 0")


def main() -> None:
    names = [recipe.name for recipe in RECIPES]
    parser = make_parser(__doc__)
    parser.add_argument("--data", choices=["digits", *LARGE], default="digits")
    parser.add_argument("--root", type=Path, help="where the images are, unless digits")
    parser.add_argument("--images", type=int, help="that a run draws, unless digits")
    parser.add_argument("--hidden", type=int, help="width of the networks, unless digits")
    parser.add_argument("--parts", type=int, choices=(2, 3), default=2, help="and devices")
    parser.add_argument("--seeds", type=int, help="seeds per figure; 3 by default for digits, else 1")
    parser.add_argument("--recipes", nargs="+", choices=names, metavar="NAME", default=names, help=f"some of {names}")
    parser.add_argument("--lr", type=float, help="take this learning rate for all recipes, without a sweep")
    parser.add_argument("--clip", type=float, help="with --lr: the largest norm of a gradient")
    add_options(parser)
    parser.add_argument("--skip-times", action="store_true", help="bits/dim against images only")
    args = parser.parse_args()
    if args.data == "digits":
        title, (task, grid) = "digits", digits(args.parts, args.quick)
        short = task
    elif args.root is None:
        parser.error(f"--root is missing: where {args.data} is.")
    else:
        title = LARGE[args.data].title
        task, short, grid = large(args.data, args.parts, args.root, args.images, args.hidden)
    runs = runs_directory(args)
    recipes = [recipe for recipe in RECIPES if recipe.name in args.recipes][: 2 if args.quick else None]
    seeds = range(1 if args.quick else args.seeds or (3 if args.data == "digits" else 1))
    tried = best_of(recipes, short, grid, runs, args.jobs) if args.lr is None else {}
    without_sweep = {recipe.name: recipe.but(lr=args.lr, clip=args.clip) for recipe in recipes}
    best = {name: found[0].recipe for name, found in tried.items()} or without_sweep
    by_recipe = task.train(best, seeds, runs, args.jobs)
    print(bits_table(by_recipe, best, tried))
    timed = [] if args.skip_times else times(task, best, args.parts, runs / "alone")
    if timed:
        print("\n" + times_table(timed, task))
    config = {"data": title, "parts": args.parts, "steps": task.steps, "batch": task.batch}
    config["words"] = " ".join(task.words)
    searched = {
        name: [{**vars(one.recipe), "bits_per_dim": one.bits} for one in found] for name, found in tried.items()
    }
    result = {**about(config), "best": {k: vars(v) for k, v in best.items()}, "sweep": searched, "runs": by_recipe}
    figure = draw(by_recipe, timed, title, task.train_images)
    keep(f"time_to_bpd_{args.data}", {**result, "alone": timed}, args, figure)


def bits_table(by_recipe: dict[str, list[Result]], best: dict[str, Recipe], tried: dict[str, list[Tried]]) -> str:
    """Test bits/dim of each recipe, and how much worse than the first (end to end alone), seed by seed."""
    reference = next(iter(by_recipe))
    alone = [final(result) for result in by_recipe[reference]]
    rows = []
    for name, results in by_recipe.items():
        bits = [final(result) for result in results]
        lowest = mean(result.get("best", float("inf")) for result in results)
        gaps = [mine - theirs for mine, theirs in zip(bits, alone, strict=True)]
        recipe = best[name]
        chosen = f"lr {recipe.lr:g}, clip {recipe.clip}, cool {recipe.cool}"
        rows.append(
            [name, f"{mean(bits):.4f}", _spread(bits), f"{lowest:.4f}", f"{mean(gaps):+.4f}", _spread(gaps), chosen]
        )
    heads = ["test bits/dim at equal images", "final", "sd", "lowest", f"to {reference}", "sd", "settings"]
    spent = sum(len(found) for found in tried.values())
    return f"{table(heads, rows)}\n({len(alone)} seeds; {spent} settings were tried for all recipes on other seeds)"


def times(task: Task, best: dict[str, Recipe], parts: int, directory: Path) -> list[Result]:
    """The best settings, one run at a time, on one device and on as many as there are parts."""
    chosen = [best[name] for name in TIMED if name in best]
    runs = [task.run(recipe) for recipe in chosen]
    runs += [task.run(recipe, processes=parts) for recipe in chosen]
    runs += [task.run(recipe, threads=parts) for recipe in chosen[:1]]
    return train_all(runs, directory)


def times_table(timed: list[Result], task: Task) -> str:
    """Seconds and bytes for the same images, and seconds until what the first run reaches with half of them."""
    curve = next(result["curve"] for result in timed if "curve" in result)
    target = next(point["bits_per_dim"] for point in curve if point["images"] >= task.steps * task.batch / 2)
    rows: list[list[Any]] = []
    for result in timed:
        if "failed" in result:
            rows.append([title(result), *[None] * 6])
            continue
        last, hit = result["curve"][-1], crossing(result["curve"], target)
        sizes = [last["bytes"] / 2**20, result["measured_bytes"] / 2**20]
        rate = f"{last['images'] / last['seconds']:.0f}"
        rows.append([title(result), result["processes"] * result["threads"], f"{result['final']:.4f}"])
        rows[-1] += [f"{last['seconds']:.1f}", rate, hit and f"{hit:.1f}", *(f"{size:.1f}" for size in sizes)]
    heads = ["devices", "final", "seconds", "images/s", f"s to {target:.3f}", "MiB", "MiB measured"]
    return table(["alone on the machine", *heads], rows)


def crossing(curve: list[dict[str, Any]], target: float) -> float | None:
    """Seconds until the bits/dim first fall to a target, between two evaluations by a straight line."""
    before: tuple[float, float] | None = None
    for point in curve:
        bits, seconds = point["bits_per_dim"], point["seconds"]
        if bits is None:
            continue
        if bits <= target:
            if before is None or before[0] <= bits:
                return float(seconds)
            return float(before[1] + (seconds - before[1]) * (before[0] - target) / (before[0] - bits))
        before = bits, seconds
    return None


def title(result: Result) -> str:
    """A run with its processes: "end to end, 2 processes (DDP)"."""
    many, threads = result["processes"], result["threads"]
    how = f"{many} processes" if many > 1 else f"1 process, {threads} thread{'s' * (threads > 1)}"
    return f"{result['name']}, {how}{' (DDP)' if many > 1 and result['name'] == 'end to end' else ''}"


def draw(by_recipe: dict[str, list[Result]], timed: list[Result], data: str, train: int) -> Any:
    """Held-out bits/dim against epochs (bands: spread over seeds) and, where it was timed, seconds and bytes."""
    count = 3 if timed else 1
    figure, panels = axes(1, count, figsize=(1 + 16 * count / 3, 5), sharey=True, squeeze=False)
    images = panels[0][0]
    for name, results in by_recipe.items():
        curves = [result["curve"] for result in results if "curve" in result]
        points = [group for group in zip(*curves, strict=True) if group[0]["bits_per_dim"] is not None]
        epochs = [group[0]["images"] / train for group in points]
        bits = [[point["bits_per_dim"] for point in group] for group in points]
        (line,) = images.plot(epochs, [mean(group) for group in bits], label=name)
        images.fill_between(epochs, [min(g) for g in bits], [max(g) for g in bits], alpha=0.2, color=line.get_color())
    seeds = len(next(iter(by_recipe.values())))
    images.set(xlabel="epochs (images drawn)", ylabel="held-out bits/dim")
    images.set_title(f"{data}, {seeds} seed{'s' * (seeds > 1)}")
    if timed:
        _draw_timed(timed, *panels[0][1:])
    for axis in panels[0]:
        axis.legend(fontsize=7)
    return figure


def _draw_timed(timed: list[Result], seconds: Any, sent: Any) -> None:
    for result in (result for result in timed if "curve" in result):
        style = {"linestyle": "--" if result["processes"] * result["threads"] == 1 else "-", "label": title(result)}
        took, moved, bits = columns(result, "seconds", "bytes", "bits_per_dim")
        seconds.plot(took, bits, **style)
        if result["processes"] > 1:
            sent.plot([size / 2**20 for size in moved], bits, label=title(result))
    seconds.set(xlabel="seconds of training", title="alone on the machine; dashed: one core")
    sent.set(xlabel="MiB between processes, computed", xscale="log")


def _spread(values: list[float]) -> str | None:
    return f"{stdev(values):.4f}" if len(values) > 1 and all(map(math.isfinite, values)) else None


if __name__ == "__main__":
    main()
