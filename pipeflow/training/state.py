"""What a run carries from phase to phase: this process's slices, the optimizers' moments, the place in the data."""

import platform
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..data import ImageArray, ImageSet, Space, resident
from ..distributed import World
from ..model import Maker, Truncated, build, flow_steps_behind, is_average
from ..storage import Manifest
from ..stream import Chain


@dataclass
class State:
    """A run between two turns.

    Attributes:
        world: the processes.
        config: the run's settings, with an explicit cut if it was measured.
        images: the training and the test split.
        pixels: what the images look like.
        chain: the borders between the parts, over the processes that hold them.
        slices: position → part with its prior, of the parts that this process holds; after a join, of all.
        borders: how many flow steps lie before the end of each part.
        parameters: how many numbers the whole model learns.
        flow: makes the steps of a flow that a script has handed over; None for a Glow.
        own: short hashes of what a script has handed over.
        whole: the joined model; None while parts learn apart.
        moments: the optimizers' state by global name, as of the last pause.
        averages: of the weights, as "ema/<global name>", if the run keeps them.
        moments_of: the kind of optimizer that they belong to.
        learned: positions of the parts that have started to learn.
        step: batches drawn at the head so far.
        begun: the step at which the first phase began; not 0 where other settings came before these.
        ended: for each phase that has ended, what `result.json` will say of it.
        elapsed: seconds that the phase in progress has taken before this process took it up.
    """

    world: World
    config: Config
    images: ImageSet
    pixels: Space
    chain: Chain
    slices: dict[int, Truncated]
    borders: list[int]
    parameters: int
    flow: Maker | None = None
    own: dict[str, str] = field(default_factory=dict)
    whole: Truncated | None = None
    moments: dict[str, Tensor] = field(default_factory=dict)
    averages: dict[str, Tensor] = field(default_factory=dict)
    moments_of: str | None = None
    learned: set[int] = field(default_factory=set)
    step: int = 0
    begun: int = 0
    ended: list[dict[str, Any]] = field(default_factory=list)
    elapsed: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "train_seconds": 0.0})

    @cached_property
    def training(self) -> ImageArray:
        """The training images, where the head draws them from: copied to a GPU once a run, whatever its phases."""
        return resident(self.images.train, self.world.device)

    def part_state(self, part: int) -> dict[str, Tensor]:
        """Weights, buffers, prior, moments and averages of one of this process's parts, by global name."""
        truncated = self.slices[part]
        own = {name for name, _ in truncated.named_global_parameters()}
        slots = {key: value for key, value in (self.moments | self.averages).items() if key.split("/", 1)[1] in own}
        return truncated.global_state() | slots

    def take_slots(self, tensors: dict[str, Tensor]) -> None:
        """Takes the moments and averages out of tensors by global name, in place of those that it had."""
        self.moments = {name: tensor for name, tensor in tensors.items() if "/" in name and not is_average(name)}
        self.averages = {name: tensor for name, tensor in tensors.items() if is_average(name)}

    def manifest(self, elapsed: dict[str, float], test_bits_per_dim: float | None) -> Manifest:
        """What a checkpoint of now says of itself, but for its files."""
        borders = [0, *self.borders]
        return Manifest(
            step=self.step,
            config=self.config.as_dict(),
            at=borders[1:-1],
            image=list(self.pixels.shape),
            levels=self.pixels.levels,
            begun=self.begun,
            phases=self.ended,
            elapsed=elapsed,
            started=borders[max(self.learned) + 1] if self.learned else 0,
            moments_of=self.moments_of,
            test_bits_per_dim=test_bits_per_dim,
            versions={"torch": torch.__version__, "python": platform.python_version()},
            files={},
            own=self.own,
        )

    @property
    def sizes(self) -> list[int]:
        """How many flow steps each part has."""
        return [end - start for start, end in pairwise([0, *self.borders])]


def fresh(
    world: World,
    config: Config,
    images: ImageSet,
    pixels: Space,
    flow: Maker | None = None,
    own: dict[str, str] | None = None,
) -> State:
    """A run that has not begun: this process keeps its own slices and drops the others."""
    slices, whole = build(config.model, pixels, flow)
    chain = Chain(world, [slices[part].part.event_out for part in sorted(slices)], config.digest())
    mine = {part: slices[part].to(world.device) for part in world.mine}
    borders = flow_steps_behind([piece.part for piece in slices.values()])
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    return State(world, config, images, pixels, chain, mine, borders, parameters, flow, own or {})
