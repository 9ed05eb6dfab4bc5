"""What a run carries from phase to phase: this process's slices, the optimizers' moments, the place in the data."""

import platform
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .average import is_average
from .chain import Chain
from .checkpoint import Manifest
from .config import Config
from .glow import glow_steps
from .objective import Truncated, truncate
from .part import scheme_cut
from .pixels import Pixels
from .sources import ImageSet
from .world import World


@dataclass
class State:
    """A run between two turns.

    Attributes:
        world: the processes.
        config: the run's settings, with an explicit cut if it was measured.
        images: the training and the test split.
        pixels: what the images look like.
        chain: the parts that this process holds; after a join, all of them.
        parameters: how many numbers the whole model learns.
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
    pixels: Pixels
    chain: Chain
    parameters: int
    whole: Truncated | None = None
    moments: dict[str, Tensor] = field(default_factory=dict)
    averages: dict[str, Tensor] = field(default_factory=dict)
    moments_of: str | None = None
    learned: set[int] = field(default_factory=set)
    step: int = 0
    begun: int = 0
    ended: list[dict[str, Any]] = field(default_factory=list)
    elapsed: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "train_seconds": 0.0})

    def part_state(self, part: int) -> dict[str, Tensor]:
        """Weights, buffers, prior, moments and averages of one of this process's parts, by global name."""
        truncated = self.chain.slices[part]
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
        )

    @property
    def borders(self) -> list[int]:
        """How many flow steps lie before the end of each part."""
        glow = self.config.glow
        return [*scheme_cut(self.config.cut, glow.levels, glow.steps), glow.levels * glow.steps]

    @property
    def sizes(self) -> list[int]:
        """How many flow steps each part has."""
        return [end - start for start, end in pairwise([0, *self.borders])]


def build(config: Config, pixels: Pixels) -> tuple[dict[int, Truncated], Truncated]:
    """The model at its initial weights, the same in every process.

    Returns:
        Its slices by position, and the whole, which shares their modules.
    """
    steps = glow_steps(config.glow, pixels.shape, config.seed)
    at = scheme_cut(config.cut, config.glow.levels, config.glow.steps)
    slices, whole = truncate(steps, at, pixels.shape, config.glow.top_prior, config.cut.provisional_prior)
    return dict(enumerate(slices)), whole


def fresh(world: World, config: Config, images: ImageSet, pixels: Pixels) -> State:
    """A run that has not begun: this process keeps its own slices and drops the others."""
    slices, whole = build(config, pixels)
    chain = Chain(
        world,
        {part: slices[part].to(world.device) for part in world.mine},
        [slices[part].part.event_out for part in sorted(slices)],
        config.digest(),
    )
    return State(world, config, images, pixels, chain, sum(parameter.numel() for parameter in whole.parameters()))
