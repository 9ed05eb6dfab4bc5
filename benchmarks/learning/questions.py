"""What the paper leaves open about training by parts: the schedule, the learning rate of each part, what stabilises it.

    python -m benchmarks.learning.questions [--quick] [--jobs 2] [--json FILE] [--png FILE]    (hours; digits)
    python -m benchmarks.learning.questions --root DIR       (and whether that holds on CIFAR-10 (JPEG), unpacked there)

A Glow in 3 parts, cut across blocks; two thirds of the images by parts, one third end to end; the same number of images
for every recipe, three seeds each, in one process (the same to the last bit as in three, while by parts).

1. Sequential, alternate and simultaneous, each over a range of learning rates: the final bits/dim, those at the switch
   to end to end, the worst training loss of a part after its first 100 updates, and how many seeds diverged.
2. In the best schedule at its best learning rate: the rate of one part at a time, multiplied by a factor.
3. There, and at four times that learning rate, one change at a time: warm-up, clipping, from how many images and when
   ActNorm starts, learned provisional priors.
4. The changes that are better than none by more than their standard error, together: the recipe. Of so many changes
   some are better by chance, so it is then compared with no change on seeds that were not used to choose.
5. On CIFAR-10 (JPEG), one seed: the recipe, the other schedules, and the changes that were worse on the digits.

Changes are compared with no change seed by seed. Settings are chosen by the test split: there is no validation split.
The runs stay in --runs: one that was interrupted goes on.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.learning.comparison import TAIL, Found, Recipes, bits, gaps, helps, summary
from benchmarks.learning.curves import columns
from benchmarks.learning.recipe import Recipe, Task
from benchmarks.learning.runs import add_options, runs_directory
from benchmarks.learning.sweep import final
from benchmarks.learning.tasks import digits, large
from benchmarks.lib.results import about, axes, keep, make_parser

SCHEDULES = ("sequential", "alternate", "simultaneous")
LRS = (8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128)
FACTORS = (0.25, 0.5, 2.0, 4.0)
HOT = 4.0
SHOWN = (-0.2, 0.4)
LEARNED = ("--cut.provisional_prior", "learned")


def schedules(lrs: Sequence[float]) -> Recipes:
    """Question 1."""
    return {f"{name}, lr {lr:g}": Recipe(name, TAIL, lr) for name in SCHEDULES for lr in lrs}


def by_schedule(recipes: Recipes) -> dict[str, list[str]]:
    """The names of the recipes of each schedule."""
    return {schedule: [name for name, one in recipes.items() if one.schedule == schedule] for schedule in SCHEDULES}


def rates(base: Recipe) -> Recipes:
    """Question 2: the learning rate of one part, the others unchanged."""
    recipes = {}
    for part in range(3):
        for factor in FACTORS:
            ones = [1.0, 1.0, 1.0]
            ones[part] = factor
            recipes[f"part {part + 1}: lr × {factor:g}"] = base.but(parts=tuple(ones))
    return recipes


def changes(base: Recipe, steps: int) -> Recipes:
    """Question 3: one change at a time."""
    found = {f"warm-up {updates}": base.but(warmup_steps=updates) for updates in (0, steps // 3)}
    found |= {f"clip {norm:g}": base.but(clip=norm) for norm in (0.3, 1.0, 10.0)}
    for images in (48, 1200):
        found[f"ActNorm from {images} images"] = base.but(words=("--data.init_batch", str(images)))
    if base.schedule == "simultaneous":
        found["ActNorm when the parts before have learned"] = base.but(first=("sequential", max(3, steps // 20)))
    else:
        found["ActNorm of all parts at the outset"] = base.but(first=("simultaneous", 1))
    return found | {"learned provisional priors": base.but(words=LEARNED)}


def together(base: Recipe, better: Recipes) -> Recipe:
    """The changes of several recipes in one; of two that change the same, the first."""
    recipe = base
    for change in better.values():
        for key, value in vars(change).items():
            if key == "words":
                if set(value).isdisjoint(recipe.words):
                    recipe = recipe.but(words=(*recipe.words, *value))
            elif key == "parts" and value and recipe.parts:
                pairs = zip(recipe.parts, value, strict=True)
                recipe = recipe.but(parts=tuple(old if old != 1 else new for old, new in pairs))
            elif value != getattr(base, key) and getattr(recipe, key) == getattr(base, key):
                recipe = recipe.but(**{key: value})
    return recipe


def alternatives(recipe: Recipe, best: Sequence[Recipe]) -> Recipes:
    """Question 5: the recipe, then the best of the other schedules, then the changes that were worse on the digits."""
    others = {one.schedule: recipe.but(schedule=one.schedule, lr=one.lr) for one in best}
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
    parser.add_argument("--images", type=int, default=96_000, help="that a run draws there")
    parser.add_argument(
        "--cifar-lr", type=float, default=4e-3, help="learning rate of the recipe there; others in proportion"
    )
    parser.add_argument("--seeds", type=int, default=3)
    add_options(parser)
    args = parser.parse_args()
    runs = runs_directory(args)
    task, _ = digits(3, args.quick)
    seeds = range(1 if args.quick else args.seeds)

    def train(title: str, recipes: Recipes, base: str | None, on: Task = task, seeds: Sequence[int] = seeds) -> Found:
        found = on.train(recipes, seeds, runs, args.jobs)
        if recipes:
            print(f"\n{title}\n{summary(found, base)}")
        return found

    candidates = schedules(LRS[1:2] if args.quick else LRS)
    first = train("1. schedules", candidates, None)
    base = candidates[min(first, key=lambda name: bits(first[name]))]
    unchanged = {"no change": base}
    name = f"{base.schedule}, lr {base.lr:g}"
    of_parts = {} if args.quick else rates(base)
    second = train(f"2. a learning rate per part: {name}", unchanged | of_parts, "no change")
    others = changes(base, task.steps)
    others = dict(list(others.items())[-1:]) if args.quick else others
    third = train(f"3. one change at a time: {name}", unchanged | others, "no change")
    hot = base.but(lr=base.lr * HOT)
    hot_changes = {} if args.quick else {"no change": hot} | changes(hot, task.steps)
    fourth = train(f"3. one change at a time: {base.schedule}, lr {hot.lr:g}", hot_changes, "no change")
    better = {name: one for name, one in (of_parts | others).items() if helps((second | third)[name], second)}
    better = dict(sorted(better.items(), key=lambda item: bits((second | third)[item[0]])))
    recipe = together(base, better)
    pair = {"no change": base, "recipe": recipe}
    last = train(f"4. together: {', '.join(better) or 'nothing helps'}", pair, "no change")
    fresh = range(len(seeds), 3 * len(seeds))
    confirmed = train(f"4. on seeds {fresh[0]} to {fresh[-1]}", pair, "no change", seeds=fresh)
    result = {"schedules": first, "rates": second, "changes": third, "changes_hot": fourth, "recipe": last}
    result["recipe_on_fresh_seeds"] = confirmed
    settings: dict[str, Any] = {"words": " ".join(task.words), "steps": task.steps, "batch": task.batch}
    settings |= {"base": vars(base), "hot": vars(hot), "better": list(better), "recipe": vars(recipe)}
    if args.root:
        best = [
            candidates[min(names, key=lambda name: bits(first[name]))] for names in by_schedule(candidates).values()
        ]
        factor = args.cifar_lr / recipe.lr
        scaled = {name: one.but(lr=factor * one.lr) for name, one in alternatives(recipe, best).items()}
        cifar = large("cifar10_jpeg", 3, args.root, args.images)[0]
        result["cifar10_jpeg"] = train("5. CIFAR-10 (JPEG), one seed", scaled, "recipe", cifar, [0])
    figure = draw(first, candidates, second, third, fourth, task.train_images)
    keep("questions", {**about(settings), **result}, args, figure)


def draw(first: Found, recipes: Recipes, second: Found, third: Found, fourth: Found, train: int) -> Any:
    """Curves of the schedules, and the final bits/dim of each recipe."""
    figure, ((curves, lrs), (parts, changed)) = axes(2, 2, figsize=(14, 9))
    for schedule, names in by_schedule(recipes).items():
        best = min(names, key=lambda name: bits(first[name]))
        line = curves.plot([], [], label=best)[0]
        for result in (result for result in first[best] if "curve" in result):
            images, values = columns(result, "images", "bits_per_dim")
            curves.plot([count / train for count in images], values, color=line.get_color(), linewidth=1)
        finals = {recipes[name].lr: [final(one) for one in first[name] if "final" in one] for name in names}
        _bars(lrs, {lr: values for lr, values in finals.items() if values}, schedule)
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
    curves.set(xlabel="epochs", ylabel="test bits/dim", title="schedules at their best lr, a line per seed")
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


def _bars(axis: Any, bits: dict[float, list[float]], label: str) -> None:
    sds = [stdev(values) if len(values) > 1 else 0 for values in bits.values()]
    axis.errorbar(list(bits), [mean(values) for values in bits.values()], yerr=sds, marker=".", capsize=3, label=label)


if __name__ == "__main__":
    main()
