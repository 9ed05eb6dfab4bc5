"""A run between two segments: what never changes, what it has learned, how far it is."""

import platform
from dataclasses import dataclass

import torch

from ..config import Config
from ..data import ImageSet, Space
from ..distributed import ResumePoint, World
from ..model import Maker, build, flow_steps_behind
from ..storage import Manifest
from ..stream import Chain
from .progress import Progress
from .run import Run
from .weights import Weights


@dataclass
class State:
    """All that training reads and changes.

    Attributes:
        run: what never changes.
        weights: what is learned.
        progress: how far it is.
        kept: the beginning of a segment that this process has written last, to come back to (snapshot.py).
    """

    run: Run
    weights: Weights
    progress: Progress
    kept: ResumePoint | None = None

    def manifest(self, bits_per_dim: float | None) -> Manifest:
        """What a checkpoint of now says of itself, but for its files."""
        validated = self.run.images.validation is not None
        run, progress = self.run, self.progress
        borders = [0, *run.borders]
        return Manifest(
            step=progress.step,
            config=run.config.as_dict(),
            at=borders[1:-1],
            image=list(run.space.shape),
            levels=run.space.levels,
            begun=progress.begun,
            phases=progress.ended,
            elapsed=dict(progress.elapsed),
            started=borders[max(progress.learned) + 1] if progress.learned else 0,
            moments_of=progress.moments_of,
            test_bits_per_dim=None if validated else bits_per_dim,
            validation_bits_per_dim=bits_per_dim if validated else None,
            versions={"torch": torch.__version__, "python": platform.python_version()},
            files={},
            own=run.script_hashes,
            classes=run.space.classes,
        )


def fresh(
    world: World,
    config: Config,
    images: ImageSet,
    space: Space,
    flow: Maker | None = None,
    script_hashes: dict[str, str] | None = None,
) -> State:
    """A run that has not begun: this process keeps its own slices and drops the others."""
    slices, whole = build(config.model, space, flow)
    events = [slices[part].part.event_out for part in sorted(slices)]
    chain = Chain(world, events, config.digest(), space.classes > 0)
    borders = flow_steps_behind([truncated.part for truncated in slices.values()])
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    run = Run(world, config, images, space, flow, script_hashes or {}, chain, borders, parameters)
    return State(run, Weights({part: slices[part].to(world.device) for part in world.mine}), Progress())
