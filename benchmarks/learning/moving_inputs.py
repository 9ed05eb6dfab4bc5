"""What helps a part to learn from an input that moves? Ways to train by parts with heads, tried one by one.

    python -m benchmarks.learning.moving_inputs --out FILE [--arms ARM ...] [--parts 3 4] [--seeds 2]
    python -m benchmarks.learning.moving_inputs --table FILE

Digits, Glow 2 × 4 × 32, 600 steps of 48 images at learning rate 0.032, the last third at a tenth of it. The training
loop is written out here, all parts in one process, since most of these ways are not in the package. A line per run, by
which the same command goes on: held-out bits/dim, which choose, and those of the test split; of the flow (the last
part), and of every part behind its head.
"""

import copy
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.learning.comparison import (
    Line,
    about_runs,
    by_seed,
    grouped,
    mean_error,
    paired,
    read_files,
    read_lines,
)
from benchmarks.lib.results import hardware, keep, make_parser, table
from pipeflow.config import Config, PhaseConfig
from pipeflow.data import Batches, DataConfig, InOrder, Purpose
from pipeflow.distributed import World, prepare_process
from pipeflow.flow import ActNorm, FlowPrior, LUConv1x1, Packet, Squeeze
from pipeflow.model import CutConfig, GlowConfig, HeadConfig, Truncated, bits_per_dim
from pipeflow.training.prepare import prepare
from pipeflow.training.run import Run

BORDERS = {1: [], 2: [4], 3: [2, 6], 4: [2, 4, 6]}
LR, WARM_UP, COOL = 3.2e-2, 50, 0.1


@dataclass(frozen=True)
class Way:
    """A way to train by parts.

    Attributes:
        head: size of the heads, and how they start.
        rotations: whether a head that starts like the model turns the channels as the steps do that it leaves out.
        average: of the weights, whose latents go to the next part, this decay; 0 sends those of the weights.
        head_lr: learning rate of the heads, by that of their parts.
        again: further updates of a head from each batch.
        cool: when each part's learning rate falls, by the usual time, in shares of the run, first part to last.
        follow: whether a part's first ActNorm moves as the mean and deviation of its input do.
        copied: share of the run after which each head is copied into the next part, as far as that is alike.
    """

    head: HeadConfig = field(default_factory=lambda: HeadConfig(1, 16, "random"))
    rotations: bool = True
    average: float = 0.0
    head_lr: float = 1.0
    again: int = 0
    cool: tuple[float, float] = (0.0, 0.0)
    follow: bool = False
    copied: float = math.inf


LIKE, LARGE = HeadConfig(1, 16, "model"), HeadConfig(2, 32, "random")
ARMS = {
    "end to end": Way(),
    "heads 1 × half": Way(),
    "averages sent, decay 0.9": Way(average=0.9),
    "averages sent, decay 0.98": Way(average=0.98),
    "heads learn 0.3 times as fast": Way(head_lr=0.3),
    "averages sent, heads learn twice as fast": Way(average=0.98, head_lr=2.0),
    "averages sent, heads learn twice from a batch": Way(average=0.98, again=1),
    "averages sent, earlier parts cool earlier": Way(average=0.98, cool=(-0.3, 0.0)),
    "first ActNorm follows the input": Way(follow=True),
    "heads 2 × full, averages sent": Way(LARGE, average=0.98),
    "heads 2 × full, averages sent, copied at 2/3": Way(LARGE, average=0.98, copied=2 / 3),
    "like the model, no rotations": Way(LIKE, rotations=False),
    "like the model, no rotations, averages sent": Way(LIKE, rotations=False, average=0.98),
    "like the model": Way(LIKE),
    "like the model, averages sent": Way(LIKE, average=0.98),
    "1 × full, like the model, no rotations": Way(replace(LIKE, hidden=32), rotations=False),
    "1 × full, like the model": Way(replace(LIKE, hidden=32)),
    "2 × full, like the model, no rotations": Way(replace(LARGE, start="model"), rotations=False),
    "2 × full, like the model": Way(replace(LARGE, start="model")),
}


class Trained:
    """A flow in parts, and what trains it in one way."""

    def __init__(self, way: Way, parts: int, seed: int, steps: int, directory: Path) -> None:
        self.way, self.seed, self.steps = way, seed, steps
        cut = CutConfig("explicit", parts, BORDERS[parts], "flow", way.head)
        config = Config(
            run_dir=str(directory / "run"),
            seed=seed,
            device="cpu",
            glow=GlowConfig(levels=2, steps=4, hidden=32),
            data=DataConfig(batch=48, validation=200),
            cut=cut,
            phases=[PhaseConfig("simultaneous", steps=steps)],
        )
        state = prepare(World(config.parallel, parts, "cpu"), config, None, None, None)
        self.run: Run = state.run
        self.slices: list[Truncated] = list(state.weights.slices.values())
        self.heads = [cast(FlowPrior, piece.prior) for piece in self.slices[:-1]]
        for head in self.heads if not way.rotations else ():
            head.steps = torch.nn.ModuleList(step for step in head.chain() if not isinstance(step, LUConv1x1))
        self.batches = Batches(self.run.images.train, self.run.space, seed, 48, False, torch.device("cpu"))
        first = Batches(self.run.images.train, self.run.space, seed, config.data.init_batch, False, torch.device("cpu"))
        packet = self.packets(self.run.images.train, first.indices(0), Purpose.INITIALISE, config.data.init_batch)[0]
        for piece in self.slices:
            packet = piece.initialise(packet).sealed()
        self.sent = [copy.deepcopy(piece.part).requires_grad_(False) for piece in self.slices]
        self.optimizers = [self.optimizer(piece, way.head_lr) for piece in self.slices]
        self.again = [self.optimizer(piece, way.head_lr, of_part=False) for piece in self.slices[:-1]]
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def optimizer(piece: Truncated, head_lr: float, of_part: bool = True) -> torch.optim.Optimizer:
        groups = [(piece.part, 1.0)] * of_part + [(piece.prior, head_lr)]
        found = [{"params": list(module.parameters()), "times": times} for module, times in groups]
        return torch.optim.Adam([group for group in found if group["params"]], lr=LR, fused=True)

    def packets(self, images: np.ndarray, index: Tensor, purpose: Purpose, size: int) -> list[Packet]:
        inbox = InOrder(images, index, self.run.space, self.seed, purpose, size, torch.device("cpu"))
        return [inbox.recv() for _ in range(0, len(index), size)]

    def step(self, t: int) -> None:
        packet = self.batches.recv()
        for number, piece in enumerate(self.slices):
            if self.way.follow and number:
                self.follow(number, packet.z)
            with torch.no_grad():
                averaged = self.sent[number](packet) if self.way.average else None
            after, nll = piece(packet)
            torch.autograd.backward(bits_per_dim(nll, self.run.space.dims).mean())
            self.update(self.optimizers[number], t, number)
            after = after.sealed()
            for _ in range(self.way.again if number < len(self.again) else 0):
                torch.autograd.backward(bits_per_dim(piece.nll(after), self.run.space.dims).mean())
                self.update(self.again[number], t, number)
            if self.way.average:
                decay = min(self.way.average, (t + 1) / (t + 10))
                with torch.no_grad():
                    for average, weight in zip(self.sent[number].parameters(), piece.part.parameters(), strict=True):
                        average.lerp_(weight, 1 - decay)
            packet = averaged or after

    def update(self, optimizer: torch.optim.Optimizer, t: int, number: int) -> None:
        first, last = self.way.cool
        cool = 2 / 3 + first + (last - first) * number / max(1, len(self.slices) - 1)
        factor = min(1.0, (t + 1) / WARM_UP) * (COOL if t >= round(self.steps * cool) else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * group["times"] * factor
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def follow(self, number: int, z: Tensor) -> None:
        """Moves the part's first ActNorm so that a change of mean and deviation of its input changes nothing behind."""
        opening = self.slices[number].part.chain()[0][1]
        actnorm = next(module for module in self.slices[number].part.modules() if isinstance(module, ActNorm))
        values = (opening(z)[0] if isinstance(opening, Squeeze) else z).transpose(0, 1).flatten(1)
        now = values.mean(1), values.std(1).log()
        mean, log_sd = self.seen.get(number, now)
        new_mean, new_log_sd = mean + 0.1 * (now[0] - mean), log_sd + 0.1 * (now[1] - log_sd)
        actnorm.bias.copy_((mean + actnorm.bias) * (new_log_sd - log_sd).exp() - new_mean)
        actnorm.log_scale.sub_(new_log_sd - log_sd)
        self.seen[number] = new_mean, new_log_sd

    def copy_heads(self) -> None:
        """Heads, first to last, into the parts and heads behind them; both are as large as heads 2 × full are here."""
        for number, (head, after) in enumerate(zip(self.heads, self.slices[1:], strict=True)):
            steps = [step for _, step in after.part.chain()]
            steps += [step for own in self.heads[number + 1 : number + 2] for step in own.chain()]
            for theirs, mine in zip(head.chain(), steps, strict=False):
                mine.load_state_dict(theirs.state_dict())
                for one, other in zip(theirs.parameters(), mine.parameters(), strict=True):
                    moments = copy.deepcopy(self.optimizers[number].state[one])
                    self.optimizers[number + 1].state[other] = moments
            self.sent[number + 1].load_state_dict(after.part.state_dict())

    @torch.no_grad()
    def score(self, images: np.ndarray) -> list[float]:
        """Bits/dim of the flow behind every part; averaged parts, where they are sent, but for the last."""
        nats = [0.0] * len(self.slices)
        for packet in self.packets(images, torch.arange(len(images)), Purpose.EVALUATE, 50):
            for number, piece in enumerate(self.slices):
                averaged = self.way.average and number < len(self.slices) - 1
                packet = (self.sent[number] if averaged else piece.part)(packet)
                nats[number] += piece.nll(packet).double().sum().item()
        return [self.run.space.bits_per_dim(-total / len(images)) for total in nats]


def trained(arm: str, parts: int, seed: int, steps: int) -> Line:
    """The line of a run."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        flow = Trained(ARMS[arm], parts, seed, steps, Path(directory))
        for t in range(steps):
            flow.step(t)
            if t + 1 == round(steps * min(2.0, ARMS[arm].copied)):
                flow.copy_heads()
        images = flow.run.images
        assert images.validation is not None
        validation, test = flow.score(images.validation), flow.score(images.test)
    line: Line = {"key": f"{arm}, {parts}, {seed}, {steps}", "arm": arm, "parts": parts, "seed": seed, "steps": steps}
    line |= {"validation": validation[-1], "test": test[-1], "validation_of_parts": validation}
    return line | {"seconds": time.perf_counter() - began, "hardware": hardware(), "torch": torch.__version__}


def show(lines: Sequence[Line]) -> str:
    """Per number of parts and arm, minus end to end of the same seeds."""
    base, rows = [line for line in lines if line["parts"] == 1], []
    for (parts, arm), ours in sorted(grouped(lines, "parts", "arm").items(), key=lambda item: item[0][0]):
        cells = [mean_error(list(by_seed(ours, "validation").values()))]
        cells += [mean_error(paired(ours, base, value)) for value in ("validation", "test")]
        behind = [", ".join(f"{figure:.3f}" for figure in line["validation_of_parts"]) for line in ours[:1]]
        shown = [cell and f"{cell[0]:+.3f} ± {cell[1]:.3f}" for cell in cells]
        rows.append([f"{parts} parts, {arm}", *shown, len(ours), *behind])
    return table(["", "held out", "to end to end", "test", "seeds", "behind each part"], rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, help="file of the lines, one per run")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only make the table of such files")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", default=list(ARMS))
    parser.add_argument("--parts", type=int, nargs="+", default=[3, 4], choices=[2, 3, 4])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    if args.table:
        lines = read_files(args.table)
        print(show(lines))
        keep("moving_inputs", {**about_runs(lines), "runs": lines}, args)
        return
    if not args.out:
        parser.error("--out or --table is needed.")
    prepare_process(1, torch.device("cpu"))
    done = {line["key"] for line in read_lines(args.out)}
    for seed, parts, arm in product(range(args.seeds), args.parts, args.arms):
        parts = 1 if arm == "end to end" else parts
        if f"{arm}, {parts}, {seed}, {args.steps}" not in done:
            line = trained(arm, parts, seed, args.steps)
            done.add(line["key"])
            with open(args.out, "a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{line['key']}: {line['validation']:.4f}", flush=True)
    print(show(read_files([args.out])))


if __name__ == "__main__":
    main()
