"""Is a start by parts better than none? Bits/dim against images, wall-clock and bytes.

    python benchmarks/time_to_bpd.py [--quick] [--jobs 2] [--json FILE] [--png FILE]
    python benchmarks/time_to_bpd.py --data cifar10_jpeg --root DIR [--jobs 2] …     (the unpacked folder, not CIFAR-10)
    python benchmarks/time_to_bpd.py --data fashion_mnist --root DIR …

All arms draw equally many images; they differ in how long, and in which schedule, they learn by parts before the end
to end tail: two thirds of the images (the paper's share) in each schedule, and simultaneously all, five sixths or one
third of them. Each arm first gets its own best learning rate, clipping and cooling (sweep.py), but for digits on
shorter runs. Against images the arms run in one process: by parts that is the same to the last bit as in many, end to
end up to the order of sums.

Then time and bytes: the best settings again, alone on the machine, with equal devices beside each other; a device is a
core. On one, one process; on as many as there are parts, a process a part, of which N processes with one model (DDP)
are the rival, and one process with so many threads. Wall-clock is that of training, without start and evaluations.
`--skip-times` leaves that out. The runs stay in --runs: a sweep that was interrupted goes on.
"""

import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from arm import add_options, carry_out, place
from outcome import Outcome
from recipe import Recipe, Subject
from results_file import about, axes, keep, make_parser, table
from subjects import LARGE, digits, large
from sweep import Tried, best_of, final

THIRD = 1 / 3
ARMS = (
    Recipe("end_to_end", 1.0),
    *(Recipe(schedule, THIRD) for schedule in ("simultaneous", "alternate", "sequential")),
    *(Recipe("simultaneous", tail) for tail in (0.0, THIRD / 2, 2 * THIRD)),
)
TIMED = ("end to end", "simultaneous, tail 0.33", "alternate, tail 0.33", "simultaneous, tail 0")


def main() -> None:
    names = [recipe.name for recipe in ARMS]
    parser = make_parser(__doc__)
    parser.add_argument("--data", choices=["digits", *LARGE], default="digits")
    parser.add_argument("--root", type=Path, help="where the images are, but for digits")
    parser.add_argument("--images", type=int, help="that an arm draws, but for digits")
    parser.add_argument("--hidden", type=int, help="width of the networks, but for digits")
    parser.add_argument("--parts", type=int, choices=(2, 3), default=2, help="and devices")
    parser.add_argument("--seeds", type=int, help="seeds a figure; 3 by default for digits, else 1")
    parser.add_argument("--arms", nargs="+", choices=names, metavar="ARM", default=names, help=f"some of {names}")
    parser.add_argument("--lr", type=float, help="take this learning rate for all arms, without a sweep")
    parser.add_argument("--clip", type=float, help="with --lr: the largest norm of a gradient")
    add_options(parser)
    parser.add_argument("--skip-times", action="store_true", help="bits/dim against images only")
    args = parser.parse_args()
    if args.data == "digits":
        title, (subject, grid) = "digits", digits(args.parts, args.quick)
        short = subject
    elif args.root is None:
        parser.error(f"--root is missing: where {args.data} is.")
    else:
        title, (subject, short, grid) = (
            LARGE[args.data].title,
            large(args.data, args.parts, args.root, args.images, args.hidden),
        )
    runs = place(args)
    recipes = [recipe for recipe in ARMS if recipe.name in args.arms][: 2 if args.quick else None]
    seeds = range(1 if args.quick else args.seeds or (3 if args.data == "digits" else 1))
    tried = best_of(recipes, short, grid, runs, args.jobs) if args.lr is None else {}
    given = {recipe.name: recipe.but(lr=args.lr, clip=args.clip) for recipe in recipes}
    best = {name: found[0].recipe for name, found in tried.items()} or given
    arms = [subject.arm(recipe, seed) for recipe in best.values() for seed in seeds]
    outcomes = carry_out(arms, runs, args.jobs)
    by_arm = {name: outcomes[at * len(seeds) :][: len(seeds)] for at, name in enumerate(best)}
    print(settled(by_arm, best, tried))
    timed = [] if args.skip_times else times(subject, best, args.parts, runs / "alone")
    if timed:
        print("\n" + timings(timed, subject))
    config = {"data": title, "parts": args.parts, "steps": subject.steps, "batch": subject.batch}
    config["words"] = " ".join(subject.words).replace(str(args.root and args.root.resolve()), "DIR")
    searched = {
        name: [{**vars(one.recipe), "bits_per_dim": one.bits} for one in found] for name, found in tried.items()
    }
    result = {**about(config), "best": {k: vars(v) for k, v in best.items()}, "sweep": searched, "arms": by_arm}
    figure = draw(by_arm, timed, title, subject.train)
    keep(f"time_to_bpd_{args.data}", {**result, "alone": timed}, args, figure)


def settled(by_arm: dict[str, list[Outcome]], best: dict[str, Recipe], tried: dict[str, list[Tried]]) -> str:
    """The answer as a table: test bits/dim of each arm, and how much worse than end to end alone, seed by seed."""
    reference = next(iter(by_arm))
    alone = [final(outcome) for outcome in by_arm[reference]]
    rows = []
    for name, outcomes in by_arm.items():
        bits = [final(outcome) for outcome in outcomes]
        lowest = mean(outcome.get("best", float("inf")) for outcome in outcomes)
        gaps = [mine - theirs for mine, theirs in zip(bits, alone, strict=True)]
        recipe = best[name]
        chosen = f"lr {recipe.lr:g}, clip {recipe.clip}, cool {recipe.cool}"
        rows.append(
            [name, f"{mean(bits):.4f}", _spread(bits), f"{lowest:.4f}", f"{mean(gaps):+.4f}", _spread(gaps), chosen]
        )
    heads = ["test bits/dim at equal images", "final", "sd", "lowest", f"to {reference}", "sd", "settings"]
    spent = sum(len(found) for found in tried.values())
    return f"{table(heads, rows)}\n({len(alone)} seeds; {spent} settings were tried for all arms on other seeds)"


def times(subject: Subject, best: dict[str, Recipe], parts: int, runs: Path) -> list[Outcome]:
    """The best settings, one run at a time, on one device and on as many as there are parts."""
    chosen = [best[name] for name in TIMED if name in best]
    arms = [subject.arm(recipe) for recipe in chosen]
    arms += [subject.arm(recipe, processes=parts) for recipe in chosen]
    arms += [subject.arm(recipe, threads=parts) for recipe in chosen[:1]]
    return carry_out(arms, runs)


def timings(timed: list[Outcome], subject: Subject) -> str:
    """Seconds and bytes for the same images, and until what the first arm on one device reaches with half of them."""
    told = next(outcome["curve"] for outcome in timed if "curve" in outcome)
    target = next(p["bits_per_dim"] for p in told if p["images"] >= subject.steps * subject.batch / 2)
    rows = []
    for outcome in timed:
        if "failed" in outcome:
            rows.append([title(outcome), *[None] * 6])
            continue
        last, hit = outcome["curve"][-1], crossing(outcome["curve"], target)
        sizes = [last["bytes"] / 2**20, outcome["measured_bytes"] / 2**20]
        rate = f"{last['images'] / last['seconds']:.0f}"
        rows.append([title(outcome), outcome["processes"] * outcome["threads"], f"{outcome['final']:.4f}"])
        rows[-1] += [f"{last['seconds']:.1f}", rate, hit and f"{hit:.1f}", *(f"{size:.1f}" for size in sizes)]
    heads = [
        "alone on the machine",
        "devices",
        "final",
        "seconds",
        "images/s",
        f"s to {target:.3f}",
        "MiB",
        "MiB measured",
    ]
    return table(heads, rows)


def crossing(curve: list[dict[str, Any]], target: float) -> float | None:
    """Seconds until the test bits/dim first fall to a target, between two evaluations by a straight line."""
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


def title(outcome: Outcome) -> str:
    """An arm with its processes: "end to end, 2 processes (DDP)"."""
    many, threads = outcome["processes"], outcome["threads"]
    how = f"{many} processes" if many > 1 else f"1 process, {threads} thread{'s' * (threads > 1)}"
    return f"{outcome['name']}, {how}{' (DDP)' if many > 1 and outcome['name'] == 'end to end' else ''}"


def draw(by_arm: dict[str, list[Outcome]], timed: list[Outcome], data: str, train: int) -> Any:
    """Bits/dim against epochs (the band is the spread over seeds) and, where it was timed, seconds and bytes."""
    count = 3 if timed else 1
    figure, panels = axes(1, count, figsize=(1 + 16 * count / 3, 5), sharey=True, squeeze=False)
    images = panels[0][0]
    for name, outcomes in by_arm.items():
        curves = [outcome["curve"] for outcome in outcomes if "curve" in outcome]
        points = [group for group in zip(*curves, strict=True) if group[0]["bits_per_dim"] is not None]
        epochs = [group[0]["images"] / train for group in points]
        bits = [[point["bits_per_dim"] for point in group] for group in points]
        (line,) = images.plot(epochs, [mean(group) for group in bits], label=name)
        images.fill_between(epochs, [min(g) for g in bits], [max(g) for g in bits], alpha=0.2, color=line.get_color())
    seeds = len(next(iter(by_arm.values())))
    images.set(xlabel="epochs (images drawn)", ylabel="test bits/dim", title=f"{data}, {seeds} seed{'s' * (seeds > 1)}")
    if timed:
        _draw_timed(timed, *panels[0][1:])
    for axis in panels[0]:
        axis.legend(fontsize=7)
    return figure


def _draw_timed(timed: list[Outcome], seconds: Any, sent: Any) -> None:
    for outcome in (outcome for outcome in timed if "curve" in outcome):
        points = [point for point in outcome["curve"] if point["bits_per_dim"] is not None]
        bits = [point["bits_per_dim"] for point in points]
        style = {"linestyle": "--" if outcome["processes"] * outcome["threads"] == 1 else "-", "label": title(outcome)}
        seconds.plot([point["seconds"] for point in points], bits, **style)
        if outcome["processes"] > 1:
            sent.plot([point["bytes"] / 2**20 for point in points], bits, label=title(outcome))
    seconds.set(xlabel="seconds of training", title="alone on the machine; dashed: one core")
    sent.set(xlabel="MiB between processes, computed", xscale="log")


def _spread(values: list[float]) -> str | None:
    return f"{stdev(values):.4f}" if len(values) > 1 and all(map(math.isfinite, values)) else None


if __name__ == "__main__":
    main()
