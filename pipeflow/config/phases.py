"""Settings of a phase, and of the engine that trains the whole model end to end."""

import math
from dataclasses import dataclass
from typing import Literal

from ..stage import OptimizerName

Schedule = Literal["simultaneous", "alternate", "sequential", "end_to_end"]


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of a run, measured in epochs or in steps: batches drawn at the head of the chain.

    Attributes:
        schedule: "simultaneous": every part learns from every batch; "alternate": turns of one learning part each,
            again and again; "sequential": one long turn a part; "end_to_end": the whole model learns.
        epochs, steps: length; one of the two.
        turn_epochs, turn_steps: length of a turn of "alternate"; one epoch by default.
        lr: learning rate; by parts also a list, one number a part.
        optimizer: "adam", "adamax" or "adamw".
        weight_decay: of the networks' weights; for "adamw" decoupled from the gradient, for the others an L2 penalty.
        warmup_steps: updates over which the learning rate rises linearly.
        clip: largest norm of the gradient, a part's by parts and the model's end to end; None does not clip.
        restart_optimizer: forget the moments of earlier phases.
    """

    schedule: Schedule
    epochs: float | None = None
    steps: int | None = None
    turn_epochs: float | None = None
    turn_steps: int | None = None
    lr: float | list[float] = 1e-3
    optimizer: OptimizerName = "adam"
    weight_decay: float = 0.0
    warmup_steps: int = 0
    clip: float | None = None
    restart_optimizer: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"A {self.schedule} phase needs a length in epochs or in steps, one of the two.")
        if self.turn_epochs is not None and self.turn_steps is not None:
            raise ValueError("A phase has turn_epochs or turn_steps, not both.")
        if (self.turn_epochs or self.turn_steps) and self.schedule != "alternate":
            raise ValueError(f"turn_epochs and turn_steps belong to the schedule alternate, not to {self.schedule}.")
        if isinstance(self.lr, list) and self.schedule == "end_to_end":
            raise ValueError("An end_to_end phase has one lr, not a list.")
        rates = self.lr if isinstance(self.lr, list) else [self.lr]
        for name, value in [
            *[(name, getattr(self, name)) for name in ("epochs", "steps", "turn_epochs", "turn_steps", "clip")],
            *[("lr", rate) for rate in rates],
        ]:
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value} in a {self.schedule} phase; it must be positive and finite.")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)} in a {self.schedule} phase; it must not be negative."
                )

    def lr_of(self, part: int) -> float:
        """Learning rate of a part, counted from 0; end to end, of the model."""
        return self.lr[part] if isinstance(self.lr, list) else self.lr


@dataclass(frozen=True)
class EndToEndConfig:
    """How the whole model is spread over the processes that train it end to end.

    Attributes:
        engine: "ddp": every process holds all of it; "fsdp": weights, gradients and moments are spread, and gathered a
            flow step at a time, for a model that does not fit one device; "pipeline": every process keeps the parts
            that it has, latents go forward and gradients back (1F1B).
        micro_batches: of "pipeline": pieces of a chain's share of a batch, at least one a process of the chain; None
            takes the fewest that are equal.
    """

    engine: Literal["ddp", "fsdp", "pipeline"] = "ddp"
    micro_batches: int | None = None

    def __post_init__(self) -> None:
        if self.micro_batches is None:
            return
        if self.micro_batches < 1:
            raise ValueError(f"end_to_end.micro_batches is {self.micro_batches}; it must be at least 1.")
        if self.engine != "pipeline":
            raise ValueError(
                f"end_to_end.micro_batches is {self.micro_batches}, but only the engine pipeline has micro-batches and "
                f"end_to_end.engine is {self.engine}; leave it out."
            )


def micro_batches(wanted: int | None, images: int, stages: int) -> int:
    """Into how many equal pieces a pipeline cuts a batch.

    Args:
        wanted: the setting; None takes the fewest that will do.
        images: a chain's share of a batch.
        stages: processes in the chain; with fewer micro-batches than these, 1F1B has no order of them.

    Raises:
        ValueError: pieces that are too few, or not equal, and what would fit.
    """
    fitting = [pieces for pieces in range(stages, images + 1) if images % pieces == 0]
    if wanted in fitting:
        return wanted
    if not fitting:
        raise ValueError(
            f"end_to_end.engine is pipeline, but the {images} image{'s' * (images != 1)} of a batch that a chain takes "
            f"cannot be {stages} micro-batches for its {stages} processes; use a larger data.batch, or engine fsdp."
        )
    if wanted is None:
        return fitting[0]
    raise ValueError(
        f"end_to_end.micro_batches is {wanted}, but a chain of {stages} processes takes {images} images a batch, which "
        f"must be cut into equal pieces, at least {stages}: {', '.join(map(str, fitting))} will do."
    )
