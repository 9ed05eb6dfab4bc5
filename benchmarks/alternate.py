"""The paper's figure: loss against epoch, when parts learn in turns and the whole model end to end behind them.

    python benchmarks/alternate.py --root DIR [--quick] [--json FILE] [--png FILE]

DIR is the unpacked CIFAR-10 (JPEG), which is smoother than CIFAR-10: its bits/dim are no bits/dim of CIFAR-10. A Glow
in 3 parts, cut across blocks; turns of an epoch, two thirds of the epochs; then end to end, at a quarter of the rate
and with a warm-up: at the full rate and without one, the whole model diverged within 20 steps of the switch. A turn of
a part shows in its own loss, and in those of the parts behind it, which see other latents when their turn comes.
`--quick` does it on the digits. The run stays in --runs: one that was interrupted goes on.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from arm import Arm, add_options, carry_out, place
from recipe import Recipe, Subject
from results_file import about, axes, keep, make_parser, table
from subjects import LARGE, digits, large

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
        subject, _ = digits(3, quick=True)
        subject = Subject(subject.words, subject.train, subject.batch, steps=90, turn_steps=10, points=3)
    else:
        epoch = math.ceil(50_000 / 48)
        subject = large("cifar10_jpeg", 3, args.root)[0]
        subject = Subject(subject.words, 50_000, 48, epoch * args.epochs, epoch, args.epochs * 3)
    arm = subject.arm(Recipe("alternate", 1 / 3, args.lr))
    arm = replace(arm, phases=(*arm.phases[:-1], {**arm.phases[-1], "warmup_steps": WARM_UP}))
    runs = place(args)
    outcome = carry_out([arm], runs)[0]
    if "failed" in outcome:
        raise SystemExit(outcome["failed"])
    streams = losses(runs / arm.directory, arm, subject.batch / subject.train)
    parts = max(len(point["truncated"]) for point in outcome["curve"])  # early on, not all have begun to learn
    names = [f"behind part {number}" for number in range(1, parts + 1)]
    rows = [[point["images"] / subject.train, *point["truncated"]] for point in outcome["curve"]]
    print(table(["epoch", *names], [row + [None] * (len(names) + 1 - len(row)) for row in rows]))
    figure, (training, test) = axes(1, 2, figsize=(12, 4), sharey=True)
    for stream in streams:
        drawn = [[math.nan if value is None else value for value in stream[key]] for key in ("epoch", "bits_per_dim")]
        training.plot(*drawn, label=stream["name"], linewidth=1)
    for number in range(len(names)):
        drawn = [(row[0], row[number + 1]) for row in rows if len(row) > number + 1]
        test.plot(*zip(*drawn, strict=True), marker=".", label=f"truncated behind part {number + 1}")
    for axis, title in ((training, "training loss of the part whose turn it is"), (test, "test")):
        axis.set(xlabel="epochs", title=title)
        axis.legend()
    training.set_ylabel("bits/dim")
    data = "digits" if args.quick else LARGE["cifar10_jpeg"].title
    figure.suptitle(f"Turns of one part each, then end to end: {data}")
    settings = {"data": data, "lr": args.lr, "words": _portable(arm.words, args.root), "phases": arm.phases}
    keep("alternate", {**about(settings), "curve": outcome["curve"], "training": streams}, args, figure)


def losses(run: Path, arm: Arm, epoch: float) -> list[dict[str, Any]]:
    """Training bits/dim against epochs where a part (or the whole) learned, averaged over bins; None between turns."""
    steps = sum(phase["steps"] for phase in arm.phases)
    bins = min(BINS, steps)
    found = []
    for stream in sorted((run / "metrics").glob("*[0-9d].jsonl"), key=lambda path: (path.stem[0] == "e", path.stem)):
        lines = [json.loads(text) for text in stream.read_text().splitlines()]
        told = np.array([(line["step"], line["bits_per_dim"]) for line in lines if line["learn"]], ndmin=2)
        places = (told[:, 0] - 1) * bins // steps
        means = [told[places == place].mean(0).tolist() if place in places else None for place in range(bins)]
        found.append(
            {
                "name": stream.stem.replace("-", " ").replace("_", " "),
                "epoch": [point and point[0] * epoch for point in means],
                "bits_per_dim": [point and point[1] for point in means],
            }
        )
    return found


def _portable(words: tuple[str, ...], root: Path | None) -> str:
    """Settings without the place of the images on this machine."""
    return " ".join(words).replace(str(root.resolve()), "DIR") if root else " ".join(words)


if __name__ == "__main__":
    main()
