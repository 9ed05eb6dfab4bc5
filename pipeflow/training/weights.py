"""What a run has learned: weights, and what is kept per weight, by global name."""

from dataclasses import dataclass, field

from torch import Tensor

from ..model import Truncated, is_average


@dataclass
class Weights:
    """The weights that this process holds, as of the last pause.

    Attributes:
        slices: position → part with its prior, of the parts that this process holds; after a join, of all.
        joined: the whole model; None while parts learn apart (switch.py).
        moments: the optimizers' state, as "<slot>/<global name>".
        averages: of the weights, as "ema/<global name>", if the run keeps them.
    """

    slices: dict[int, Truncated]
    joined: Truncated | None = None
    moments: dict[str, Tensor] = field(default_factory=dict)
    averages: dict[str, Tensor] = field(default_factory=dict)

    def part_state(self, part: int) -> dict[str, Tensor]:
        """Weights, buffers, prior, moments and averages of one of this process's parts, by global name."""
        truncated = self.slices[part]
        names = {name for name, _ in truncated.named_global_parameters()}
        slots = {key: value for key, value in (self.moments | self.averages).items() if key.split("/", 1)[1] in names}
        return truncated.global_state() | slots

    def take_slots(self, tensors: dict[str, Tensor]) -> None:
        """Replaces moments and averages by those among `tensors`, which go by global name."""
        self.moments = {name: tensor for name, tensor in tensors.items() if "/" in name and not is_average(name)}
        self.averages = {name: tensor for name, tensor in tensors.items() if is_average(name)}
