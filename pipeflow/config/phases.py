"""Settings of a phase, and of the engine that trains the whole model end to end."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ..settings import AtLeast0, AtLeast1, NotNegative, settings
from ..stage import OptimizerName

Schedule = Literal["simultaneous", "alternate", "sequential", "end_to_end"]
Finite = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a positive, finite number")]


@settings("phases")
@dataclass(frozen=True)
class PhaseConfig:
    """One phase of a run, measured in epochs or in steps: batches drawn at the head of the chain.

    Attributes:
        schedule: "simultaneous": every part learns from every batch; "alternate": turns of one learning part each,
            again and again; "sequential": one long turn per part; "end_to_end": the whole model learns.
        epochs, steps: length; one of the two.
        turn_epochs, turn_steps: length of a turn of "alternate"; one epoch by default.
        lr: learning rate; by parts also a list, one number per part.
        optimizer: "adam", "adamax" or "adamw".
        weight_decay: of the networks' weights; for "adamw" decoupled from the gradient, for the others an L2 penalty.
        warmup_steps: updates over which the learning rate rises linearly.
        clip: largest norm of the gradient, a part's by parts and the model's end to end; "adaptive": twice the running
            mean of the phase's norms; None does not clip.
        restart_optimizer: forget the moments of earlier phases.
    """

    schedule: Schedule
    epochs: Finite | None = None
    steps: AtLeast1 | None = None
    turn_epochs: Finite | None = None
    turn_steps: AtLeast1 | None = None
    lr: Finite | list[Finite] = 1e-3
    optimizer: OptimizerName = "adam"
    weight_decay: NotNegative = 0.0
    warmup_steps: AtLeast0 = 0
    clip: Finite | Literal["adaptive"] | None = None
    restart_optimizer: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("A phase needs a length in epochs or in steps, one of the two.")
        if self.turn_epochs is not None and self.turn_steps is not None:
            raise ValueError("A phase has turn_epochs or turn_steps, not both.")
        if (self.turn_epochs or self.turn_steps) and self.schedule != "alternate":
            raise ValueError(f"turn_epochs and turn_steps belong to the schedule alternate, not to {self.schedule}.")
        if isinstance(self.lr, list) and self.schedule == "end_to_end":
            raise ValueError("An end_to_end phase has one lr, not a list.")

    def lr_of(self, part: int) -> float:
        """Learning rate of a part, counted from 0; end to end, of the model."""
        return self.lr[part] if isinstance(self.lr, list) else self.lr


@settings("end_to_end")
@dataclass(frozen=True)
class EndToEndConfig:
    """How the whole model is spread over the processes that train it end to end.

    Attributes:
        engine: "ddp": every process holds all of it; "fsdp": weights, gradients and moments are spread, and gathered a
            flow step at a time, for a model that does not fit one device; "pipeline": every process keeps the parts
            that it has, latents go forward and gradients back (1F1B).
        micro_batches: of "pipeline": pieces of a chain's share of a batch, at least one per process of the chain; None
            takes the fewest that are equal.
    """

    engine: Literal["ddp", "fsdp", "pipeline"] = "ddp"
    micro_batches: AtLeast1 | None = None

    def __post_init__(self) -> None:
        if self.micro_batches is not None and self.engine != "pipeline":
            raise ValueError(
                f"end_to_end.micro_batches is {self.micro_batches}, but only the engine pipeline has micro-batches and "
                f"end_to_end.engine is {self.engine}; leave it out."
            )
