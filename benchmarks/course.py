"""What every contestant of a race is given: the same flow, cut at the same places, and the same images.

The images are noise in the shape of photographs: what they show changes neither how long a step takes nor what travels.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pipeflow.data import Batches, Pixels
from pipeflow.distributed import World, keep_memory
from pipeflow.flow import Packet
from pipeflow.model import Activations, GlowConfig, Truncated, glow_steps, make_passage
from pipeflow.model.truncated import truncate
from pipeflow.planning import balanced_cut, flow_step_costs, measure_steps
from pipeflow.stream import Chain

_IMAGES = 256


@dataclass(frozen=True)
class Course:
    """A model and how it is cut and fed.

    Attributes:
        levels, steps, hidden: of the Glow.
        size: images are 3 × size × size.
        at: how many flow steps lie before each border.
        batch: images an optimizer step, over all processes.
        depth: packets in flight over a border, by parts.
        lr: Adam's learning rate; small, since nobody looks at what is learned.
        activations: what stays for the backward pass, as in a run's settings.
    """

    levels: int
    steps: int
    hidden: int
    size: int
    at: tuple[int, ...]
    batch: int
    depth: int = 2
    lr: float = 1e-5
    activations: Activations = "keep"

    @property
    def pixels(self) -> Pixels:
        return Pixels((3, self.size, self.size))

    @property
    def glow(self) -> GlowConfig:
        return GlowConfig(levels=self.levels, steps=self.steps, hidden=self.hidden)

    def build(self, started: bool = True) -> tuple[list[Truncated], Truncated]:
        """Fresh slices and the whole, which share their modules, the same in every process; ActNorm has started."""
        steps = glow_steps(self.glow, self.pixels.shape)
        slices, whole = truncate(steps, self.at, self.pixels.shape, "standard", "standard")
        if started:
            whole.part.initialise(self.head(batch=64).recv())
        for truncated in (*slices, whole):
            truncated.part.passage = make_passage(self.activations)
        return slices, whole

    def head(self, shard: tuple[int, int] = (0, 1), batch: int | None = None) -> Batches:
        """The images, as an inbox; a replica takes its share of every batch."""
        shape = (_IMAGES, self.size, self.size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return Batches(images, self.pixels, 0, batch or self.batch, False, torch.device("cpu"), 0, shard)

    def events(self) -> list[tuple[int, ...]]:
        """Shape of a latent behind each part."""
        steps = glow_steps(self.glow, self.pixels.shape)
        slices, _ = truncate(steps, self.at, self.pixels.shape, "standard", "standard")
        return [tuple(part.part.event_out) for part in slices]

    def parameters(self) -> int:
        """How many numbers the whole model learns."""
        return sum(p.numel() for step in glow_steps(self.glow, self.pixels.shape) for p in step.parameters())

    def chain(self, world: World, slices: list[Truncated]) -> Chain:
        """The slices over the processes, as a run would lay them."""
        events = [part.part.event_out for part in slices]
        return Chain(world, events, str(self))


def balanced(course: Course, parts: int) -> tuple[int, ...]:
    """The cut into `parts` whose slowest part is as fast as possible, measured here and now.

    From then on this process computes as one of a race does: in one thread, and it keeps the memory that it frees.
    """
    if parts == 1:
        return ()
    torch.set_num_threads(1)
    keep_memory()
    steps = glow_steps(course.glow, course.pixels.shape)
    seconds = measure_steps(steps, course.pixels.shape, course.batch, torch.device("cpu"))
    return balanced_cut(flow_step_costs(steps, seconds), parts)


class Again:
    """An inbox that never runs dry: the same packet again and again."""

    def __init__(self, packet: Packet) -> None:
        self._packet = packet

    def recv(self) -> Packet:
        return self._packet

    def close(self, early: bool = False) -> None:
        """Nothing is on its way."""
