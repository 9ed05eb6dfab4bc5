"""How far an input that was found by inverting lies from what entered: what reversible training rests on.

Rounding errors grow on the way back through a part, most where its steps are badly conditioned, and nothing else would
show it: gradients at latents that lie elsewhere are as finite as others.
"""

from torch import Tensor

NAMES = ("drift", "relative_drift")


class Drift:
    """Of the newest backward pass.

    Attributes:
        numbers: the largest |found − entered|, and that as a share of the largest |entered|, scalars on the device of
            the latents; none before the first backward pass.
    """

    def __init__(self) -> None:
        self.numbers: tuple[Tensor, ...] = ()

    def take(self, entered: Tensor, found: Tensor) -> None:
        """Compares what entered a part with what inverting its steps has found, both (B, *event)."""
        largest = (found - entered).abs().max()
        self.numbers = (largest, largest / entered.abs().max())
