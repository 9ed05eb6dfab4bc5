"""The workload of a speed benchmark: a flow, how it is cut and computed, and the images that it is fed with.

Whatever is compared takes the same workload. The images are noise in the shape of photographs: what they show changes
neither how long a step takes nor what travels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import torch
from torch import nn

from pipeflow.config import Config, PhaseConfig
from pipeflow.data import Batches, DataConfig, Pixels, resident
from pipeflow.distributed import World, keep_memory
from pipeflow.flow import Packet, Step
from pipeflow.model import (
    Activations,
    Compile,
    CutConfig,
    Family,
    GlowConfig,
    JetConfig,
    Layout,
    Precision,
    TarFlowConfig,
    Truncated,
    family_steps,
    make_passage,
    provisional_prior,
    set_precision,
    set_tensor_cores,
)
from pipeflow.model.truncated import truncate
from pipeflow.planning import resolve_cut
from pipeflow.stage import CudaRecorder, RecordedStep, Stage, Update, make_optimizer
from pipeflow.stage.cuda_graphs import WARM_UP
from pipeflow.stream import Chain, Discard


@dataclass(frozen=True)
class Workload:
    """A model, how it is cut, how it computes and how it is fed.

    Attributes:
        levels, steps, hidden: of the Glow; of a Jet or TarFlow `steps` are couplings or blocks, and `hidden` the width.
        size: images are 3 × size × size.
        batch: images per optimizer step, over all processes.
        cut: how many flow steps lie before each border.
        depth: packets in flight over a border, by parts.
        lr: Adam's learning rate; small, since nobody looks at what is learned.
        activations, compile, precision, layout: as in a run's settings.
        split_prior: of the Glow.
        flow: the family; a Jet or TarFlow has patches of 4 × 4 pixels, transformers of two layers, and four heads.
        provisional_prior: behind every part but the last.
        device: where it is trained.
        flip: whether images are flipped at random, as training does.
    """

    levels: int
    steps: int
    hidden: int
    size: int
    batch: int
    cut: tuple[int, ...] = ()
    depth: int = 2
    lr: float = 1e-5
    activations: Activations = "keep"
    compile: Compile = "none"
    precision: Precision = "fp32"
    layout: Layout = "contiguous"
    split_prior: Literal["learned", "standard"] = "learned"
    flow: str = "glow"
    provisional_prior: Literal["standard", "flow"] = "standard"
    device: str = "cpu"
    flip: bool = False

    def __str__(self) -> str:
        return f"{self.family}, batch {self.batch}"

    @property
    def pixels(self) -> Pixels:
        return Pixels((3, self.size, self.size))

    @property
    def glow(self) -> GlowConfig:
        return GlowConfig(levels=self.levels, steps=self.steps, hidden=self.hidden, split_prior=self.split_prior)

    @property
    def family(self) -> Family:
        """Shape of the model."""
        sizes = {"depth": 2, "width": self.hidden, "heads": 4, "patch": 4}
        if self.flow == "jet":
            return JetConfig(couplings=self.steps, **sizes)
        if self.flow == "tarflow":
            return TarFlowConfig(blocks=self.steps, **sizes)
        return self.glow

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def build(self) -> tuple[list[Truncated], Truncated]:
        """Fresh parts and the whole flow, which share their modules, the same in every process; ActNorm has started."""
        parts, flow = self._truncate()
        set_tensor_cores(self.precision)
        set_precision(flow, self.precision, self.layout)
        for truncated in (*parts, flow):
            truncated.to(self.torch_device)
        flow.part.initialise(replace(self, batch=64).batches().recv())
        for truncated in (*parts, flow):
            truncated.part.passage = make_passage(self.activations, self.compile)
        return parts, flow

    def batches(self, shard: tuple[int, int] = (0, 1)) -> Batches:
        """The images, as an inbox; a replica takes its share of every batch."""
        shape = (max(64, 2 * self.batch), self.size, self.size, 3)
        images = resident(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), self.torch_device)
        return Batches(images, self.pixels, 0, self.batch, self.flip, self.torch_device, 0, shard)

    def stage(self, truncated: Truncated, fused: bool | None = None, sizes: tuple[int, ...] = (1,)) -> Stage:
        """A part at work, not yet connected, for batches of packets of these sizes."""
        named = truncated.named_global_parameters()
        update = Update(named, make_optimizer("adam", named, self.lr, fused=fused), self.lr)
        return Stage(truncated, update, self.pixels.dims, sizes=sizes)

    def training_stage(self, fused: bool | None = None, cuda_graphs: bool = False) -> Stage:
        """The whole flow as one stage, fed with the images: each `tick` is a training step, end to end."""
        stage = self.stage(self.build()[1], fused)
        if cuda_graphs:
            stage.step = RecordedStep(stage.step, stage.update.optimizer, CudaRecorder(self.torch_device))
        stage.connect(self.batches(), Discard())
        for _ in range(WARM_UP + 1 if cuda_graphs else 0):
            stage.tick()
        return stage

    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of a latent after each part."""
        return [tuple(truncated.part.event_out) for truncated in self._truncate()[0]]

    def level_shapes(self) -> Iterator[tuple[int, int, int]]:
        """(C, H, W) inside each level, after its squeeze."""
        channels, side = 3, self.size
        for _ in range(self.levels):
            channels, side = channels * 4, side // 2
            yield channels, side, side
            channels -= channels // 2

    def parameters(self) -> int:
        """How many numbers the whole flow learns."""
        return count_parameters(self._truncate()[1])

    def chain(self, world: World, parts: list[Truncated]) -> Chain:
        """The parts over the processes, as a run would spread them."""
        return Chain(world, [truncated.part.event_out for truncated in parts], repr(self))

    def config(self, parts: int) -> Config:
        """The settings of a run that trains it in so many balanced parts."""
        return Config(
            flow=self.flow,
            **{self.flow: self.family},
            data=DataConfig(batch=self.batch, flip=self.flip),
            cut=CutConfig("balanced", parts, provisional_prior=self.provisional_prior),
            phases=[PhaseConfig("simultaneous", steps=1)],
            precision=self.precision,
            layout=self.layout,
            compile=self.compile,
            activations=self.activations,
        )

    def balanced(self, parts: int) -> Self:
        """Cut into `parts` whose slowest is as fast as possible, measured here and now.

        From then on this process computes as a worker does: in one thread, and it keeps the memory that it frees.
        """
        if parts == 1:
            return replace(self, cut=())
        if self.device == "cpu":
            torch.set_num_threads(1)
            keep_memory()
        cut = resolve_cut(self.config(parts), self.pixels, self.flow_steps(), self.torch_device, self.batch)
        return replace(self, cut=tuple(cut.at or ()))

    def flow_steps(self) -> list[Step]:
        """The steps of the whole flow."""
        return family_steps(self.family, self.pixels.shape)

    def _truncate(self) -> tuple[list[Truncated], Truncated]:
        prior = provisional_prior(self.config(len(self.cut) + 1).model, None)
        return truncate(self.flow_steps(), self.cut, self.pixels.shape, "standard", prior)


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


class Repeated:
    """An inbox that never runs dry: the same packet again and again."""

    def __init__(self, packet: Packet) -> None:
        self._packet = packet

    def recv(self) -> Packet:
        return self._packet

    def close(self, early: bool = False) -> None:
        """Nothing is on its way."""
