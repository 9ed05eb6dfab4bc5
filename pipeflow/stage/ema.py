"""An exponential moving average of the weights, by name, so that it is joined, cut and saved like them.

`torch.optim.swa_utils.AveragedModel` copies a whole module and names its parameters after its own attributes; here a
part's average has to find its way into any other cut.
"""

import torch
from torch import Tensor

from ..distributed import local_tensor, spread_like
from ..model import SLOT
from .optimizer import NamedParameters


class Average:
    """avg ← decay · avg + (1 − decay) · weights, after every update; it begins as the weights are then.

    Args:
        named: (global name, parameter).
        decay: between 0 and 1; None keeps no average.
        known: averages to go on with, as "ema/<global name>" → tensor.
    """

    def __init__(self, named: NamedParameters, decay: float | None, known: dict[str, Tensor]) -> None:
        self.named, self.decay = named, decay
        self.values: dict[str, Tensor] = {}
        if decay is not None:
            for name, parameter in named:
                if (key := f"{SLOT}/{name}") in known:
                    self.values[key] = spread_like(known[key], parameter)

    @torch.no_grad()
    def update(self, changed: Tensor | None = None) -> None:
        """Takes the weights in as they are now; `changed`, a scalar on their device, says whether they did change."""
        if self.decay is None:
            return
        averages, weights = [], []
        for name, parameter in self.named:
            if (average := self.values.get(f"{SLOT}/{name}")) is None:
                self.values[f"{SLOT}/{name}"] = parameter.clone()
            else:
                averages.append(local_tensor(average))
                weights.append(local_tensor(parameter))
        if not averages:
            return
        if changed is None:
            torch._foreach_lerp_(averages, weights, 1.0 - self.decay)
        else:  # of a scalar on the device, PyTorch has no fused form
            steps = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(steps, changed * (1.0 - self.decay))
            torch._foreach_add_(averages, steps)
