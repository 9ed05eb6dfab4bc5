"""What one batch of one stage has come to, for metrics, the terminal and the count of bad updates."""

from dataclasses import dataclass

from ..model import NAMES
from .async_scalars import AsyncScalars


@dataclass(frozen=True)
class Report:
    """What one tick did.

    On a GPU `bits_per_dim`, `updated` and `bad` are read late: to ask for them is to wait until the batch is done.

    Attributes:
        bits_per_dim: mean over the batch of the flow truncated behind this part.
        updated: whether the weights changed; False where the part only ran forward or the update was skipped.
        bad: whether the loss or the gradient was not finite.
        learn: whether the part was to learn.
        wait_s, send_s, compute_s: seconds waiting for the packet, handing it on (back-pressure), and the rest; on a GPU
            the last is the time to hand the work to it.
        in_flight: packets sent and not yet taken.
        figures: the loss, whether everything was finite, and the drift where activations are inverted.
    """

    learn: bool
    wait_s: float
    send_s: float
    compute_s: float
    in_flight: int
    figures: AsyncScalars

    @property
    def bits_per_dim(self) -> float:
        return self.figures.read()[0]

    @property
    def bad(self) -> bool:
        return not self.figures.read()[1]

    @property
    def updated(self) -> bool:
        return self.learn and not self.bad

    @property
    def drift(self) -> dict[str, float]:
        """How far the inverted input lay from what entered, absolute and relative; empty where nothing was inverted."""
        return dict(zip(NAMES, self.figures.read()[2:], strict=False))

    def as_dict(self) -> dict[str, object]:
        """As a line of the part's metrics."""
        names = ("bits_per_dim", "learn", "updated", "bad", "wait_s", "send_s", "compute_s", "in_flight")
        return {name: getattr(self, name) for name in names} | self.drift
