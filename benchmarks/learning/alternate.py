"""The paper's figure: loss against epoch, while parts learn in turns and then the model end to end.

    python -m benchmarks.learning.alternate --root DIR [--quick] [--json FILE] [--png FILE]        (hours)

DIR is the unpacked CIFAR-10 (JPEG), which is smoother than CIFAR-10: its bits/dim are no bits/dim of CIFAR-10. A Glow
in 3 parts, cut across blocks; turns of an epoch, two thirds of the epochs; then end to end, at a quarter of the rate
and with a warm-up: at the full rate and without one, the model diverged within 20 steps of the switch. A turn of a part
shows in its own loss, and in those of the parts after it, which see other latents when their turn comes. `--quick` does
it on the digits. The run stays in --runs: one that was interrupted goes on.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.recipe import Recipe
from benchmarks.learning.runs import add_options, runs_directory, train_all
from benchmarks.learning.tasks import LARGE, digits, large, portable
from benchmarks.lib.results import about, axes, keep, make_parser, table
from pipeflow.reporting import read_run

BINS = 300
WARM_UP = 50  # updates at the switch


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--root", type=Path, help="the unpacked CIFAR-10 (JPEG)")
    add_options(parser)
    parser.add_argument("--epochs", type=int, default=9, help="in all; a third of them end to end")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    if not args.quick and args.root is None:
        parser.error("--root is missing: the folder of CIFAR-10 (JPEG).")
    if args.quick:
        task = replace(digits(3, quick=True)[0], steps=90, turn_steps=10, points=3)
    else:
        task = large("cifar10_jpeg", 3, args.root)[0]
        epoch = math.ceil(task.train_images / task.batch)
        task = replace(task, steps=epoch * args.epochs, turn_steps=epoch, points=args.epochs * 3)
    run = task.run(Recipe("alternate", 1 / 3, args.lr))
    run = replace(run, phases=(*run.phases[:-1], {**run.phases[-1], "warmup_steps": WARM_UP}))
    runs = runs_directory(args)
    result = train_all([run], runs)[0]
    if "failed" in result:
        raise SystemExit(result["failed"])
    streams = losses(runs / run.directory, task.batch / task.train_images)
    parts = max(len(point["truncated"]) for point in result["curve"])  # early on, not all have begun to learn
    names = [f"after part {number}" for number in range(1, parts + 1)]
    rows = [[point["images"] / task.train_images, *point["truncated"]] for point in result["curve"]]
    print(table(["epoch", *names], [row + [None] * (len(names) + 1 - len(row)) for row in rows]))
    figure, (training, test) = axes(1, 2, figsize=(12, 4), sharey=True)
    for stream in streams:
        drawn = [[math.nan if value is None else value for value in stream[key]] for key in ("epoch", "bits_per_dim")]
        training.plot(*drawn, label=stream["name"], linewidth=1)
    for number in range(len(names)):
        drawn = [(row[0], row[number + 1]) for row in rows if len(row) > number + 1]
        test.plot(*zip(*drawn, strict=True), marker=".", label=f"truncated after part {number + 1}")
    for axis, title in ((training, "training loss of the part whose turn it is"), (test, "test")):
        axis.set(xlabel="epochs", title=title)
        axis.legend()
    training.set_ylabel("bits/dim")
    data = "digits" if args.quick else LARGE["cifar10_jpeg"].title
    figure.suptitle(f"Turns of one part each, then end to end: {data}")
    settings = {"data": data, "lr": args.lr, "words": portable(run.words, args.root), "phases": run.phases}
    keep("alternate", {**about(settings), "curve": result["curve"], "training": streams}, args, figure)


def losses(directory: Path, epoch: float) -> list[dict[str, Any]]:
    """Training bits/dim of each part and of end to end, averaged over bins; None while it did not learn."""
    history = read_run(directory)
    steps = int(history.steps[-1])
    bins = min(BINS, steps)
    found = []
    for stream in history.streams:
        learned = np.stack([stream.step, stream.bits], 1)[stream.learn]
        bin_of = (learned[:, 0] - 1) * bins // steps
        means = [learned[bin_of == one].mean(0).tolist() if one in bin_of else None for one in range(bins)]
        epochs, bits = ([point and point[column] for point in means] for column in (0, 1))
        found.append({"name": stream.name, "epoch": [step and step * epoch for step in epochs], "bits_per_dim": bits})
    return found


if __name__ == "__main__":
    main()
