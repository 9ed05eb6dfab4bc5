"""What the paper leaves open about training by parts: which schedule, what learning rate for which part, what steadies.

    python benchmarks/questions.py [--quick] [--jobs 2] [--json FILE] [--png FILE]                 (digits)
    python benchmarks/questions.py --root DIR             (and whether that holds on CIFAR-10 (JPEG), unpacked there)

A Glow in 3 parts, cut across blocks; two thirds of the images by parts, one third end to end; equally many images for
every arm, three seeds each, in one process (the same to the last bit as in three, while by parts).

1. sequential, alternate and simultaneous, each over a range of learning rates: the final bits/dim, those when the parts
   hand over, the worst training loss of a part behind its first 100 updates, and how many seeds diverged.
2. In the best schedule at its best learning rate, that of one part at a time multiplied: which part wants what?
3. There, and at four times that learning rate, one change at a time: warm-up, clipping, from how many images and when
   ActNorm starts, learned provisional priors.
4. The changes that are better than none by more than their standard error, together: the recipe. Of so many changes
   some are better by chance, so it is then compared with no change on seeds that chose nothing.
5. On CIFAR-10 (JPEG), one seed: the recipe beside the other schedules and beside what the digits advise against.

Changes are compared with no change seed by seed. Settings are chosen by the test split: there is no validation split.
The runs stay in --runs: one that was interrupted goes on.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from answers import TAIL, Arms, Found, bits, gaps, helps, summary
from arm import add_options, carry_out, place
from recipe import Recipe, Subject
from results_file import about, axes, keep, make_parser
from subjects import digits, large
from sweep import final

SCHEDULES = ("sequential", "alternate", "simultaneous")
LRS = (8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128)
FACTORS = (0.25, 0.5, 2.0, 4.0)
HOT = 4.0
SHOWN = (-0.2, 0.4)
LEARNED = ("--cut.provisional_prior", "learned")


def schedules(lrs: Sequence[float]) -> Arms:
    """Question 1."""
    return {f"{name}, lr {lr:g}": Recipe(name, TAIL, lr) for name in SCHEDULES for lr in lrs}


def by_schedule(arms: Arms) -> dict[str, list[str]]:
    """The names of arms, schedule by schedule."""
    return {schedule: [name for name, arm in arms.items() if arm.schedule == schedule] for schedule in SCHEDULES}


def rates(base: Recipe) -> Arms:
    """Question 2: the rate of one part, the others as they are."""
    arms = {}
    for part in range(3):
        for factor in FACTORS:
            ones = [1.0, 1.0, 1.0]
            ones[part] = factor
            arms[f"part {part + 1}: lr × {factor:g}"] = base.but(parts=tuple(ones))
    return arms


def changes(base: Recipe, steps: int) -> Arms:
    """Question 3: one change at a time."""
    arms = {f"warm-up {updates}": base.but(warmup_steps=updates) for updates in (0, steps // 3)}
    arms |= {f"clip {norm:g}": base.but(clip=norm) for norm in (0.3, 1.0, 10.0)}
    arms |= {
        f"ActNorm from {images} images": base.but(words=("--data.init_batch", str(images))) for images in (48, 1200)
    }
    if base.schedule == "simultaneous":
        arms["ActNorm when the parts before have learned"] = base.but(first=("sequential", max(3, steps // 20)))
    else:
        arms["ActNorm of all parts at the outset"] = base.but(first=("simultaneous", 1))
    return arms | {"learned provisional priors": base.but(words=LEARNED)}


def together(base: Recipe, better: Arms) -> Recipe:
    """The changes of several arms in one; of two that change the same, the one that is named first."""
    recipe = base
    for arm in better.values():
        for key, value in vars(arm).items():
            if key == "words":
                recipe = recipe.but(
                    words=(*recipe.words, *value) if set(value).isdisjoint(recipe.words) else recipe.words
                )
            elif key == "parts" and value and recipe.parts:
                pairs = zip(recipe.parts, value, strict=True)
                recipe = recipe.but(parts=tuple(old if old != 1 else new for old, new in pairs))
            elif value != getattr(base, key) and getattr(recipe, key) == getattr(base, key):
                recipe = recipe.but(**{key: value})
    return recipe


def contested(recipe: Recipe, best: Sequence[Recipe]) -> Arms:
    """Question 5: the recipe first, then the best arms of the other schedules, then what costs on digits."""
    others = {arm.schedule: recipe.but(schedule=arm.schedule, lr=arm.lr) for arm in best}
    others.pop(recipe.schedule, None)
    against = {
        "without warm-up": {"warmup_steps": 0},
        "clip 1": {"clip": 1.0},
        "part 1: lr × 0.5": {"parts": (0.5, 1, 1)},
    }
    return {"recipe": recipe, **others, **{name: recipe.but(**change) for name, change in against.items()}}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--root", type=Path, help="CIFAR-10 (JPEG), unpacked: does the recipe hold there?")
    parser.add_argument("--images", type=int, default=96_000, help="that an arm draws there")
    parser.add_argument(
        "--cifar-lr", type=float, default=4e-3, help="learning rate of the recipe there; others in proportion"
    )
    parser.add_argument("--seeds", type=int, default=3)
    add_options(parser)
    args = parser.parse_args()
    runs = place(args)
    subject, _ = digits(3, args.quick)
    seeds = range(1 if args.quick else args.seeds)

    def carry(arms: Arms, on: Subject = subject, numbers: Sequence[int] = seeds) -> Found:
        outcomes = carry_out([on.arm(arm, seed) for arm in arms.values() for seed in numbers], runs, args.jobs)
        return {name: outcomes[at * len(numbers) :][: len(numbers)] for at, name in enumerate(arms)}

    arms = schedules(LRS[1:2] if args.quick else LRS)
    first = carry(arms)
    print(f"\n1. schedules\n{summary(first, arms, None)}")
    base = arms[min(first, key=lambda name: bits(first[name]))]
    base_found = carry({"no change": base})
    asked = {} if args.quick else rates(base)
    second = base_found | carry(asked)
    print(f"\n2. a learning rate a part: {base.schedule}, lr {base.lr:g}\n{summary(second, asked, 'no change')}")
    others = changes(base, subject.steps)
    others = dict(list(others.items())[-1:]) if args.quick else others
    third = base_found | carry(others)
    print(f"\n3. one change at a time: {base.schedule}, lr {base.lr:g}\n{summary(third, others, 'no change')}")
    hot = base.but(lr=base.lr * HOT)
    heated = {} if args.quick else {"no change": hot} | changes(hot, subject.steps)
    fourth = carry(heated)
    if heated:
        print(f"\n3. one change at a time: {base.schedule}, lr {hot.lr:g}\n{summary(fourth, heated, 'no change')}")
    better = {name: arm for name, arm in (asked | others).items() if helps((second | third)[name], base_found)}
    better = dict(sorted(better.items(), key=lambda item: bits((second | third)[item[0]])))
    recipe = together(base, better)
    pair = {"no change": base, "recipe": recipe}
    last = carry(pair)
    print(f"\n4. together: {', '.join(better) or 'nothing helps'}\n{summary(last, pair, 'no change')}")
    fresh = range(len(seeds), 3 * len(seeds))
    confirmed = carry(pair, subject, fresh)
    print(f"\n4. on seeds {fresh[0]} to {fresh[-1]}\n{summary(confirmed, pair, 'no change')}")
    result = {"schedules": first, "rates": second, "changes": third, "changes_hot": fourth, "recipe": last}
    result["recipe_on_fresh_seeds"] = confirmed
    settings: dict[str, Any] = {"words": " ".join(subject.words), "steps": subject.steps, "batch": subject.batch}
    settings |= {"base": vars(base), "hot": vars(hot), "better": list(better), "recipe": vars(recipe)}
    if args.root:
        there = large("cifar10_jpeg", 3, args.root, args.images)[0]
        best = [arms[min(mine, key=lambda name: bits(first[name]))] for mine in by_schedule(arms).values()]
        asked = {name: arm.but(lr=args.cifar_lr * arm.lr / recipe.lr) for name, arm in contested(recipe, best).items()}
        result["cifar10_jpeg"] = carry(asked, there, [0])
        print(f"\n5. CIFAR-10 (JPEG), one seed\n{summary(result['cifar10_jpeg'], asked, 'recipe')}")
    figure = draw(first, arms, second, third, fourth, subject.train)
    keep("questions", {**about(settings), **result}, args, figure)


def draw(first: Found, arms: Arms, second: Found, third: Found, fourth: Found, train: int) -> Any:
    """Curves of the schedules, and what became of each arm."""
    figure, ((curves, lrs), (parts, changed)) = axes(2, 2, figsize=(14, 9))
    for schedule, names in by_schedule(arms).items():
        mine = {name: first[name] for name in names}
        best = min(mine, key=lambda name: bits(mine[name]))
        shape = curves.plot([], [], label=best)[0]
        for outcome in (outcome for outcome in mine[best] if "curve" in outcome):
            told = [point for point in outcome["curve"] if point["bits_per_dim"] is not None]
            x = [point["images"] / train for point in told]
            curves.plot(x, [point["bits_per_dim"] for point in told], color=shape.get_color(), linewidth=1)
        ends = {arms[name].lr: [final(o) for o in outcomes if "final" in o] for name, outcomes in mine.items()}
        _bars(lrs, {lr: values for lr, values in ends.items() if values}, schedule)
    for part in range(1, 4):
        named = {factor: f"part {part}: lr × {factor:g}" for factor in FACTORS}
        apart = {factor: gaps(second[name], second["no change"]) for factor, name in named.items() if name in second}
        _bars(parts, dict(sorted({1.0: [0.0], **{k: v for k, v in apart.items() if v}}.items())), f"part {part}")
    for shift, (label, found) in ((-0.2, ("best lr", third)), (0.2, ("hot", fourth))):
        named = {n: gaps(o, found["no change"]) for n, o in found.items() if n != "no change"} if found else {}
        names = [name for name, values in named.items() if values]
        rows = [list(third).index(name) + shift for name in names if name in third]
        values = [named[name] for name in names if name in third]
        for row, beyond in zip(rows, map(mean, values), strict=True):
            if not SHOWN[0] < beyond < SHOWN[1]:
                changed.text(SHOWN[1], row, f"{label}: {beyond:+.1f} → ", ha="right", va="center", fontsize=7)
        sds = [stdev(v) if len(v) > 1 else 0 for v in values]
        changed.errorbar([mean(v) for v in values], rows, xerr=sds, fmt="o", label=label)
    changed.set_yticks(range(1, len(third)), list(third)[1:], fontsize=7)
    changed.axvline(0, color="black", linewidth=0.5)
    curves.set(xlabel="epochs", ylabel="test bits/dim", title="schedules at their best lr, a line a seed")
    lrs.set(xlabel="lr", xscale="log", ylabel="final test bits/dim", title="1. schedules")
    parts.set(
        xlabel="lr of one part, × that of the others", xscale="log", ylabel="bits/dim to no change", title="2. parts"
    )
    factors = sorted((1.0, *FACTORS))
    parts.set_xticks(factors, [f"{factor:g}" for factor in factors])
    parts.minorticks_off()
    changed.set(xlabel="bits/dim to no change (left is better)", title="3. one change at a time", xlim=SHOWN)
    for axis in (curves, lrs, parts, changed):
        axis.legend(fontsize=8)
    return figure


def _bars(axis: Any, ends: dict[float, list[float]], label: str) -> None:
    sds = [stdev(values) if len(values) > 1 else 0 for values in ends.values()]
    axis.errorbar(list(ends), [mean(values) for values in ends.values()], yerr=sds, marker=".", capsize=3, label=label)


if __name__ == "__main__":
    main()
