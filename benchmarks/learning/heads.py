"""Can the end-to-end epochs go? Ways to train by parts against end to end, at equal images, over seeds.

    python -m benchmarks.learning.heads --data digits --parts 2 3 4 --seeds 6 --jobs 16 --out FILE
    python -m benchmarks.learning.heads --data cifar10_jpeg --root DIR --parts 2 4 --minutes 9 --jobs 16 --out FILE
    python -m benchmarks.learning.heads --data digits --flow jet --parts 2 3 --seeds 3 --out FILE
    python -m benchmarks.learning.heads --table FILE ...   (tables and a figure; benchmarks/results/heads.json and .png)

Arms: end to end; by parts with a standard normal behind every border, with a learned normal, or with a head (1 × half:
one flow step per remaining level, half as wide as the model), which starts at random or like the model goes on; the
best of the former with the last images end to end; and the paper's recipe, turns of one part each for two thirds of the
images, then end to end. Larger heads are trained where --arms names them (`like_2_half_deep`, of a transformer: two
couplings or blocks, half as wide as the model, with as many layers, that start like it). All arms draw equally many
images, warm up over 50 updates, and take a tenth of their learning rate for the last third of the images.

Each arm gets its own learning rate: the first two seeds train at every rate of a grid, which grows once by a factor of
2 where its edge is best; the other seeds train at the rate whose bits/dim on held-out training images are lowest. The
test split is read once per run, at its end, and chooses nothing.

Runs go side by side, one process and one thread each, the most informative first; --out gets a line per finished run
(FILE may hold several data sets), and the same command goes on where it stopped. Seconds are those of training without
evaluations, all parts in one process; where runs share a core or a GPU they measure nothing. Bytes are computed, for a
process per part.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from benchmarks.learning.comparison import Line, about_runs, draw, read_files, rows, tables, without_curves
from benchmarks.learning.recipe import Recipe, Task
from benchmarks.learning.runs import Job, train_in_order
from benchmarks.learning.tasks import add_study_options, chosen_task, layers, study_file, task_labels, width
from benchmarks.lib.results import keep, make_parser
from pipeflow.model import FAMILIES

E2E = "end_to_end"
HEADS = {"head_1_half": (1, 2), "head_1_quarter": (1, 4), "head_1_full": (1, 1), "head_2_half": (2, 2)}
LIKE_MODEL = {"like_1_half": (1, 2), "like_1_full": (1, 1), "like_2_full": (2, 1)}
ALL = 99  # steps, which are at most those that remain
LARGER = {
    "head_2_half_deep": (2, 2),
    "head_4_half": (4, 2),
    "like_2_half": (2, 2),
    "like_4_half": (4, 2),
    "like_all_half": (ALL, 2),
    "like_4_full": (4, 1),
    "like_all_full": (ALL, 1),
    "like_1_full_deep": (1, 1),
    "like_2_half_deep": (2, 2),
    "like_2_full_deep": (2, 1),
    "like_all_half_deep": (ALL, 2),
    "like_all_full_deep": (ALL, 1),
}
"""Trained where --arms names them; "deep": transformers of as many layers as the model's."""
SIZES = HEADS | LIKE_MODEL | LARGER
TAILS = {"tail_5": 0.05, "tail_10": 0.1, "tail_20": 0.2, "tail_33": 1 / 3}
TIERS = (
    (E2E, "by_parts", "head_1_half"),
    ("paper", "learned", *(h for h in HEADS if h != "head_1_half"), *LIKE_MODEL, *LARGER),
    tuple(TAILS),
)
ARMS = tuple(arm for tier in TIERS for arm in tier if arm not in LARGER)
LRS = {"digits": (8e-3, 1.6e-2, 3.2e-2), "cifar10_jpeg": (2e-3, 4e-3, 8e-3), "fashion_mnist": (1e-3, 2e-3, 4e-3)}
TRANSFORMER_LRS = (1e-3, 2e-3, 4e-3)


@dataclass(frozen=True)
class Study:
    """What is compared on one data set.

    Attributes:
        tasks: number of parts → what is trained; 1 for end to end, which no cut changes.
        hidden: width of the model.
        labels: of every run.
        arms: names out of ARMS.
        lrs: the grid of learning rates; of one alone nothing is chosen.
        seeds: how many, from 0.
        searched: seeds that train at every rate of the grid.
        clip: of every run.
        depth: layers of the model's transformers; 1 of a Glow.
    """

    tasks: dict[int, Task]
    hidden: int
    labels: dict[str, str | int | float]
    arms: Sequence[str] = ARMS
    lrs: tuple[float, ...] = LRS["digits"]
    seeds: int = 6
    searched: int = 2
    clip: str | None = None
    depth: int = 1

    def wanted(self, done: Mapping[str, Line]) -> list[Job]:
        """The runs that are known to be wanted after those that are done, the most informative first."""
        jobs: list[Job] = []
        for tier in TIERS:
            pairs = [(parts, arm) for parts in self.tasks for arm in tier if arm in self.arms]
            pairs = [(parts, arm) for parts, arm in pairs if (arm == E2E) == (parts == 1)]
            found = [(parts, arm, *self.search(parts, arm, done)) for parts, arm in pairs]
            for parts, arm, tried, _ in found:
                jobs += [self.job(parts, arm, one, seed) for seed in range(self.searched) for one in tried]
            for parts, arm, _, chosen in found:
                jobs += [self.job(parts, arm, chosen, seed) for seed in range(self.seeds) if chosen]
        return jobs

    def search(self, parts: int, arm: str, done: Mapping[str, Line]) -> tuple[list[Recipe], Recipe | None]:
        """An arm at every learning rate to be tried, and at the best of them once all are known."""
        base = self.recipe(parts, arm, done)
        if base is None:
            return [], None
        lrs = [base.lr * factor for factor in (0.5, 1, 2)] if arm in TAILS and len(self.lrs) > 1 else list(self.lrs)
        for grown in (False, True):
            tried = [base.but(lr=lr) for lr in lrs]
            bits = [self.validation(parts, arm, one, self.searched, done) for one in tried]
            if math.nan in bits:
                return tried, None
            best = min(range(len(lrs)), key=bits.__getitem__)
            if grown or len(lrs) == 1 or best not in (0, len(lrs) - 1):
                break
            lrs = [*lrs, lrs[-1] * 2] if best else [lrs[0] / 2, *lrs]
        return tried, tried[best] if math.isfinite(bits[best]) else None

    def recipe(self, parts: int, arm: str, done: Mapping[str, Line]) -> Recipe | None:
        """An arm, at a learning rate yet to be chosen; None if it waits for the best head."""
        base = Recipe("simultaneous", 0.0, self.lrs[0], clip=self.clip, cool=0.1)
        if arm in SIZES:
            steps, share = SIZES[arm]
            size = ("--cut.head.steps", str(steps), "--cut.head.hidden", str(max(1, self.hidden // share)))
            begin = ("--cut.head.start", "model" if arm.startswith("like") else "random")
            deep = ("--cut.head.depth", str(self.depth)) if arm.endswith("deep") else ()
            return base.but(words=("--cut.provisional_prior", "flow", *size, *begin, *deep))
        if arm == "learned":
            return base.but(words=("--cut.provisional_prior", "learned"))
        if arm in TAILS:
            head = self.best_head(parts, done)
            return head and head.but(tail=TAILS[arm])
        return {E2E: base.but(tail=1.0), "by_parts": base, "paper": base.but(schedule="alternate", tail=1 / 3)}[arm]

    def best_head(self, parts: int, done: Mapping[str, Line]) -> Recipe | None:
        """The head with the lowest held-out bits/dim over all seeds; None until all are known."""
        heads = {arm: self.search(parts, arm, done)[1] for arm in SIZES if arm in self.arms}
        if not heads or None in heads.values():
            return None
        chosen = {arm: head for arm, head in heads.items() if head}
        bits = {arm: self.validation(parts, arm, head, self.seeds, done) for arm, head in chosen.items()}
        return None if math.nan in bits.values() else chosen[min(bits, key=bits.__getitem__)]

    def validation(self, parts: int, arm: str, recipe: Recipe, seeds: int, done: Mapping[str, Line]) -> float:
        """Mean held-out bits/dim over the first seeds; `math.nan` until all are there, infinite where one diverged."""
        keys = [self.job(parts, arm, recipe, seed).run.directory for seed in range(seeds)]
        if any(key not in done for key in keys):
            return math.nan
        return mean(done[key].get("validation") or math.inf for key in keys)

    def job(self, parts: int, arm: str, recipe: Recipe, seed: int) -> Job:
        """One run; end to end its bytes are those between two processes."""
        run = self.tasks[parts].run(recipe, seed)
        name = f"{self.labels['data']}, {parts} parts, {arm}, lr {recipe.lr:g}"
        labels = {**self.labels, "parts": parts, "arm": arm, "lr": recipe.lr, "words": " ".join(recipe.words)}
        return Job(replace(run, name=name), labels, max(2, parts))


def study(args: argparse.Namespace) -> Study:
    """What the options ask for."""
    tasks = {parts: chosen_task(args, parts, args.flow) for parts in (1, *args.parts)}
    labels = task_labels(args, tasks[1]) | {"clip": args.clip}
    if args.flow != "glow":
        labels["data"] = f"{args.data}, {args.flow}"
    grid = LRS[args.data] if args.flow == "glow" else TRANSFORMER_LRS
    lrs, clip = tuple(args.lrs or grid), None if args.clip == "none" else args.clip
    searched = min(args.searched, args.seeds)
    hidden, depth = width(args.data, args.flow, args.quick), layers(args.flow)
    return Study(tasks, hidden, labels, args.arms, lrs, args.seeds, searched, clip, depth)


def main() -> None:
    parser = make_parser(__doc__)
    add_study_options(parser)
    parser.add_argument("--parts", type=int, nargs="+", choices=(2, 3, 4), default=[2, 3, 4])
    parser.add_argument("--flow", choices=FAMILIES, default="glow", help="a small flow of this family")
    parser.add_argument(
        "--arms", nargs="+", choices=(*ARMS, *LARGER), metavar="ARM", default=ARMS, help=f"some of {(*ARMS, *LARGER)}"
    )
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--searched", type=int, default=2, help="seeds that train at every learning rate")
    parser.add_argument("--lrs", type=float, nargs="+", help="the grid of learning rates; one is taken as it is")
    parser.add_argument("--clip", choices=("none", "adaptive"), default="none")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only make tables of such files")
    args = parser.parse_args()
    if args.quick:
        args.parts, args.seeds, args.searched = args.parts[:1], 2, 1
    if args.table:
        lines = read_files(args.table)
    else:
        file = study_file(args, parser)
        lines = train_in_order(study(args).wanted, file, args.jobs, args.minutes)
    found = rows(lines)
    print(tables(found))
    if args.table or args.quick:
        keep("heads", {**about_runs(lines), "rows": found, "runs": without_curves(lines)}, args, draw(found))


if __name__ == "__main__":
    main()
