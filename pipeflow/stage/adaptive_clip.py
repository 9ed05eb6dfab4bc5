"""Clipping by what is usual: a gradient more than twice as long as they have been is shortened to that.

A fixed largest norm has to be found for every part, and norms fall while a part learns. The mean that stands in for it
is a number on the device, so the host never waits, and it is saved, joined and cut by name like an optimizer's moments.
"""

import torch
from torch import Tensor

from .optimizer import NORM, NamedParameters

DECAY = 0.98
MOST = 2.0


class AdaptiveClip:
    """usual ← 0.98 · usual + 0.02 · min(norm, limit) with limit = 2 · usual; the first norm, never clipped, sets it.

    Args:
        named: (global name, parameter) of all that is clipped together; the first of them gives the mean its name.
        known: means to go on with, as "norm/<global name>" → scalar; others are left alone.

    Attributes:
        name: "norm/<global name>".
        usual: scalar, the mean; 0 before the first norm.
    """

    def __init__(self, named: NamedParameters, known: dict[str, Tensor]) -> None:
        first, parameter = named[0]
        self.name = f"{NORM}/{first}"
        self.usual = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
        if self.name in known:
            self.usual.copy_(known[self.name])

    @torch.no_grad()
    def limit(self, norm: Tensor, finite: Tensor) -> Tensor:
        """The largest norm that this gradient may have, a scalar; takes its norm into the mean, if `finite` says so."""
        begun = self.usual > 0
        limit = torch.where(begun, MOST * self.usual, torch.inf)
        clipped = torch.minimum(norm, limit)
        after = torch.where(begun, DECAY * self.usual + (1 - DECAY) * clipped, clipped)
        self.usual.copy_(torch.where(finite, after, self.usual))
        return limit
