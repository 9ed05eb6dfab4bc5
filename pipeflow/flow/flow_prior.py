"""A small flow as the prior of a truncated flow: a better judge of a latent in the middle of a flow than a normal.

What leaves a part that is not the last is far from a standard normal, and a part that is scored by one learns to make
it so at the expense of what the later parts could do. A *head* stands in for these: a small flow of what remains of the
model, trained with the part and dropped when training by parts is over.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .actnorm import ActNorm
from .prior import StandardNormal
from .step import Event, Step
from .step_weights import added, advance, encode, invert, prepare


class FlowPrior(StandardNormal):
    """log p(z) = log N(h(z); 0, 1) + log|det ∂h/∂z|, h the steps of a head.

    Where variables leave the head (`Split`), they are scored there, as in any flow.

    Args:
        steps: the head, in order.
        event: shape of a latent that enters it.
    """

    def __init__(self, steps: Sequence[Step], event: Event) -> None:
        super().__init__(event)
        self.steps = nn.ModuleList(steps)

    @property
    def started(self) -> bool:
        return all(bool(module.initialised) for module in self.modules() if isinstance(module, ActNorm))

    def chain(self) -> list[Step]:
        """The steps of the head, in order."""
        return cast(list[Step], list(self.steps))

    def log_prob(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        steps, increments = self.chain(), []
        for step, weights in zip(steps, prepare(steps, self.event, len(z)), strict=True):
            z, dlogp = advance(step, z, weights, label)
            increments.append(dlogp)
        return added(super().log_prob(z), increments)

    def standardise(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z → eps, both (B, *event): the variables that leave the head, in order, then what leaves its last step."""
        left: list[Tensor] = []
        shape = z.shape
        for step in self.chain():
            z, _, eps = encode(step, z, None, label)
            left += [] if eps is None else [eps]
        return torch.cat([part.flatten(1) for part in (*left, z)], 1).view(shape)

    def unstandardise(self, eps: Tensor, label: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        shapes, top = self._shapes()
        sizes = [torch.Size(shape).numel() for shape in (*(shape for shape in shapes if shape), top)]
        pieces = list(torch.split(eps.flatten(1), sizes, 1))
        z = pieces.pop().view(len(eps), *top)
        for step, shape in zip(reversed(self.chain()), reversed(shapes), strict=True):
            left = None if shape is None else pieces.pop().view(len(eps), *shape)
            z = invert(step, z, left, None, label, guidance)
        return z

    @torch.no_grad()
    def initialise(self, z: Tensor, label: Tensor | None = None) -> None:
        for step in self.chain():
            step.initialise(z)
            z, _ = advance(step, z, None, label)

    def _shapes(self) -> tuple[list[Event | None], Event]:
        """Shape of the variable that leaves at each step, None where nothing does; shape of what leaves the last."""
        event, shapes = self.event, []
        for step in self.chain():
            shapes.append(step.eps_shape(event))
            event = step.out_shape(event)
        return shapes, event
