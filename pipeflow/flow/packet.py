"""What crosses a border between two parts, and the wall that no gradient passes.

A packet carries everything a later part has to know of the earlier ones. `sealed()` is the only place in the package
that cuts a latent out of the autograd graph: whatever leaves a part is sealed, so isolation can be audited in one line.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Packet(NamedTuple):
    """A batch on its way through the flow.

    Attributes:
        z: latent, shape (B, *event).
        logp: log-likelihood collected so far, shape (B,), in nats: the dequantisation constant, the log-determinants
            and the factored-out terms of every step that the batch has passed.
    """

    z: Tensor
    logp: Tensor

    def sealed(self) -> "Packet":
        """The same numbers outside the autograd graph, contiguous: fit to cross a border."""
        return Packet(self.z.detach().contiguous(), self.logp.detach().contiguous())

    def take(self, images: range) -> "Packet":
        """Consecutive images of the packet, sharing its memory."""
        return Packet(*(tensor[images.start : images.stop] for tensor in self))

    @staticmethod
    def joined(packets: "Sequence[Packet]") -> "Packet":
        """Packets put together, in order; one alone as it is."""
        return packets[0] if len(packets) == 1 else Packet(*map(torch.cat, zip(*packets, strict=True)))
