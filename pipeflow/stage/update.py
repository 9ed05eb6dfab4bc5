"""From a gradient to new weights: warm up, clip, skip what is not finite, step, average."""

import torch
from torch import Tensor, nn

from .adaptive_clip import AdaptiveClip
from .ema import Average
from .optimizer import NamedParameters, can_skip, named_moments, set_lr, skip_if


class Update:
    """What is done with a gradient once it is there.

    An update whose loss or gradient is not finite is skipped: by the device, where the optimizer can (`can_skip`); else
    by the host, which then waits for the gradient.

    Args:
        named: (global name, parameter) of all that learn.
        optimizer: of these parameters.
        lr: learning rate after warm-up.
        warmup_steps: updates over which the learning rate rises linearly.
        clip: largest norm of the gradient, or what finds it; None for no clipping.
        average: of the weights; none by default.
        attempts: updates before now, skipped ones included.
    """

    def __init__(
        self,
        named: NamedParameters,
        optimizer: torch.optim.Optimizer,
        lr: float,
        warmup_steps: int = 0,
        clip: float | AdaptiveClip | None = None,
        average: Average | None = None,
        attempts: int = 0,
    ) -> None:
        self.named, self.optimizer = named, optimizer
        self.lr, self.warmup_steps, self.clip = lr, warmup_steps, clip
        self.average = average or Average(named, None, {})
        self.attempts = attempts
        self._parameters = [parameter for _, parameter in named]

    def begin(self) -> None:
        """Sets the learning rate of the update that comes now, skipped or not."""
        self.attempts += 1
        set_lr(self.optimizer, self.lr * min(1.0, self.attempts / max(1, self.warmup_steps)))

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state, and the mean that adaptive clipping keeps, as "<slot>/<global name>" → tensor."""
        norm = {self.clip.name: self.clip.usual} if isinstance(self.clip, AdaptiveClip) else {}
        return named_moments(self.optimizer, self.named) | norm

    def gradients(self) -> list[Tensor]:
        """Of all parameters that have one."""
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def __call__(self, norm: Tensor, finite: Tensor) -> None:
        """One optimizer step from the gradients that are there, or none.

        Args:
            norm: of the gradient, a scalar, as clipping understands it.
            finite: a scalar, whether the loss and the gradient were finite.
        """
        device_skips = can_skip(self.optimizer)
        if not device_skips and not finite:
            return
        if isinstance(self.clip, AdaptiveClip):  # PyTorch would read a limit that is a tensor on the host
            nn.utils.clip_grads_with_norm_(self._parameters, 1.0, norm / self.clip.limit(norm, finite))
        elif self.clip is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.clip, norm)
        if device_skips:
            skip_if(self.optimizer, ~finite)
        self.optimizer.step()
        self.average.update(finite if device_skips else None)
