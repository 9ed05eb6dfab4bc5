"""The paper's table in small: minutes and bits/dim by parts ÷ end to end, for its two pairs, over seeds.

    python -m benchmarks.learning.paper_table --data digits --out FILE                          (minutes; digits)
    python -m benchmarks.learning.paper_table --data cifar10_jpeg --root DIR --out FILE [--minutes M]
    python -m benchmarks.learning.paper_table --table FILE      (only the table; benchmarks/results/paper_table.json)

The pairs are those of `configs/cifar10_across2.yaml` and `configs/cifar10_across3.yaml` on a small Glow: end to end,
against turns of one part each for two thirds of the images and end to end for the rest; a turn is a ninetieth of the
images, as the paper's is one of 90 epochs. Both arms of a pair have one learning rate, without cooling; that of across3
is a tenth of that of across2. Two more arms have heads behind the borders (1 × half the width): with the same phases,
and with every part learning from every batch, to the end. All arms draw equally many images.

Minutes are those of training, without evaluations, all parts in one process of one thread: leave --jobs at 1 or far
below the number of cores. The test split is read once per run.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.learning.comparison import (
    Line,
    about_runs,
    by_seed,
    grouped,
    markdown,
    mean_error,
    number,
    paired,
    read_files,
    without_curves,
)
from benchmarks.learning.recipe import Recipe
from benchmarks.learning.runs import Job, train_in_order
from benchmarks.learning.tasks import add_study_options, chosen_task, study_file, task_labels
from benchmarks.lib.results import axes, keep, make_parser

PAIRS = {"across2": 2, "across3": 3}
LRS = {"digits": (4e-3, 4e-4), "cifar10_jpeg": (1e-3, 1e-4), "fashion_mnist": (1e-3, 1e-4)}
ACROSS = ("--cut.scheme", "across_blocks", "--cut.at", "null", "--cut.provisional_prior", "standard")
HEAD = ("--cut.provisional_prior", "flow")
END_TO_END = "end to end"
ARMS = {
    END_TO_END: Recipe("end_to_end", 1.0),
    "by parts, last third end to end": Recipe("alternate", 1 / 3),
    "the same with heads": Recipe("alternate", 1 / 3, words=HEAD),
    "all parts at once to the end, with heads": Recipe("simultaneous", 0.0, words=HEAD),
}


def pair_jobs(args: argparse.Namespace) -> list[Job]:
    """Every arm of both pairs with every seed, seed by seed."""
    jobs = []
    for seed in range(args.seeds):
        for (pair, parts), lr in zip(PAIRS.items(), args.lrs or LRS[args.data], strict=True):
            for arm, recipe in ARMS.items():
                task = chosen_task(args, 1 if arm == END_TO_END else parts)
                task = replace(task, turn_steps=max(1, round(task.steps / 90)))
                words = (*ACROSS, *recipe.words)
                run = task.run(recipe.but(lr=lr, cool=1.0, warmup_steps=0, words=words), seed)
                labels = {**task_labels(args, task), "pair": pair, "arm": arm, "lr": lr}
                name = f"{args.data}, {pair}, {arm}"
                jobs.append(Job(replace(run, name=name), labels, parts))
    return jobs


def pair_rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """A row per pair and arm; ratios and differences are to end to end, seed by seed."""
    rows = []
    for (data, steps, pair), ours in grouped(lines, "data", "steps", "pair").items():
        arms = {arm: runs for (arm,), runs in grouped(ours, "arm").items()}
        base = by_seed(arms.get(END_TO_END, []), "seconds")
        for arm in [arm for arm in ARMS if arm in arms]:
            runs = arms[arm]
            seconds, test = by_seed(runs, "seconds"), list(by_seed(runs).values())
            apart = mean_error(paired(runs, arms.get(END_TO_END, [])))
            ratios = [seconds[seed] / base[seed] for seed in seconds.keys() & base.keys()]
            row: dict[str, Any] = {"data": data, "steps": steps, "pair": pair, "arm": arm, "lr": runs[0]["lr"]}
            row |= {"minutes": mean(seconds.values()) / 60 if seconds else None, "test": mean(test) if test else None}
            row |= {"minutes_ratio": mean(ratios) if ratios else None, "minus_end_to_end": apart and apart[0]}
            row |= {"standard_error": apart and apart[1], "seeds": len(test), "diverged": len(runs) - len(test)}
            rows.append(row)
    return rows


def pair_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    cells = [["pair", "arm", "lr", "minutes", "÷ end to end", "test bits/dim", "minus end to end", "seeds"]]
    for row in rows:
        apart = f"{row['minus_end_to_end']:+.3f} ± {row['standard_error']:.3f}" if row["minus_end_to_end"] else ""
        figures = (row["minutes"], row["minutes_ratio"], row["test"])
        minutes, ratio, test = (number(value, form) for value, form in zip(figures, (".2f", ".2f", ".3f"), strict=True))
        diverged = f" ({row['diverged']} diverged)" * bool(row["diverged"])
        name = f"{row['data']}, {row['pair']}"
        cells.append([name, row["arm"], f"{row['lr']:g}", minutes, ratio, test, apart, f"{row['seeds']}{diverged}"])
    return markdown(cells)


def draw(lines: Sequence[Line]) -> Any:
    """Held-out bits/dim of the model against the images drawn, a line per run."""
    runs = [line for line in lines if line.get("curve")]
    groups = grouped(runs, "data", "pair")
    figure, panels = axes(1, max(1, len(groups)), figsize=(2 + 5 * len(groups), 4.5), squeeze=False)
    for (key, ours), panel in zip(groups.items(), panels[0], strict=False):
        for place, ((arm,), of_arm) in enumerate(grouped(ours, "arm").items()):
            for at, run in enumerate(of_arm):
                points = [point for point in run["curve"] if point[1] is not None]
                label = arm if at == 0 else None
                panel.plot(*zip(*points, strict=True), color=f"C{place}", linewidth=1, label=label)
        panel.set(xlabel="images drawn", ylabel="held-out bits/dim", title=", ".join(key))
        panel.legend(fontsize=7)
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    add_study_options(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lrs", type=float, nargs=2, help="learning rates of across2 and of across3")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only make the table of such files")
    args = parser.parse_args()
    if args.quick:
        args.seeds = 1
    if args.table:
        lines = read_files(args.table)
    else:
        file = study_file(args, parser)
        lines = train_in_order(lambda done: pair_jobs(args), file, args.jobs, args.minutes)
    rows = pair_rows(lines)
    print(pair_table(rows))
    if args.table or args.quick:
        result = {**about_runs(lines), "rows": rows, "runs": without_curves(lines)}
        keep("paper_table", result, args, draw(lines))


if __name__ == "__main__":
    main()
