"""What crosses a border between two parts, and the wall that no gradient passes.

A packet carries everything a later part has to know of the earlier ones. `sealed()` is the only place in the package
that cuts a latent out of the autograd graph: whatever leaves a part is sealed, so isolation can be audited in one line.
Whatever splits, joins or copies packets goes through the methods here, so that labels stay with their images.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Packet(NamedTuple):
    """A batch on its way through the flow.

    Attributes:
        z: latent, shape (B, *event).
        logp: log-likelihood collected so far, shape (B,), in nats: the dequantisation constant, the log-determinants
            and the factored-out terms of every step that the batch has passed.
        label: class of each image, shape (B,), int64, −1 where it is not known; None where the data have no labels.
    """

    z: Tensor
    logp: Tensor
    label: Tensor | None = None

    def sealed(self) -> "Packet":
        """The same numbers outside the autograd graph, contiguous: fit to cross a border."""
        return self.each(lambda tensor: tensor.detach().contiguous())

    def each(self, function: Callable[[Tensor], Tensor]) -> "Packet":
        """The packet of what a function makes of every tensor."""
        label = None if self.label is None else function(self.label)
        return Packet(function(self.z), function(self.logp), label)

    def take(self, images: range) -> "Packet":
        """Consecutive images of the packet, sharing its memory."""
        return self.each(lambda tensor: tensor[images.start : images.stop])

    @staticmethod
    def joined(packets: Sequence["Packet"]) -> "Packet":
        """Packets put together, in order; one alone as it is."""
        if len(packets) == 1:
            return packets[0]
        z, logp, label = zip(*packets, strict=True)
        return Packet(torch.cat(z), torch.cat(logp), None if label[0] is None else torch.cat(label))

    def fill(self, other: "Packet", non_blocking: bool = False) -> None:
        """Writes the numbers of another packet of the same shape into the memory of this one."""
        for tensor, given in zip(self, other, strict=True):
            if tensor is not None:
                assert given is not None, "a packet without labels"
                tensor.copy_(given, non_blocking=non_blocking)
