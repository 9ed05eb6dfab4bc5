"""The parts of a process at work in a pipeline: the `tick` of an end-to-end phase that leaves every part where it is.

A `Stage` learns from what is inside its process. Here a batch goes through all processes of the chain and its gradient
back through them; what they must agree on, whether to update and how far to clip, is of the whole model.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import Engine
from ..flow import Packet
from ..model import Truncated
from .async_scalars import Late
from .ema import Average
from .optimizer import NamedParameters
from .stage import Learner, Report
from .update import Update


class Pipelined(Learner):
    """Consecutive parts of the model, trained end to end with those of the other processes.

    Args:
        engine: carries batches forward and gradients back.
        named, optimizer, lr, warmup_steps, clip, average: as of every learner; the norm that is clipped is the whole
            model's.
    """

    def __init__(
        self,
        engine: Engine,
        named: NamedParameters,
        optimizer: torch.optim.Optimizer,
        lr: float,
        warmup_steps: int,
        clip: float | None,
        average: Average | None = None,
    ) -> None:
        super().__init__(named, optimizer, lr, warmup_steps, average)
        self.engine = engine
        self._update = Update(named, optimizer, clip, self.average)

    def tick(self, learn: bool = True) -> Report:
        """One batch, one update, or in all processes none; its figures are those of the whole batch, in all of them.

        Waiting is all that is neither this process's own passes nor its update: the bubble, and links.
        """
        assert learn, "end to end, all parts learn"
        start, computed = time.perf_counter(), self.engine.seconds
        given = self.inbox.recv() if self.engine.first else None
        self.optimizer.zero_grad()
        began = time.perf_counter()
        loss = self.engine.run(given)
        norm, loss = self.engine.settle(self._update.gradients(), loss)
        settled = time.perf_counter()
        finite = norm.isfinite()
        self.begin_update()
        self._update(norm, finite)
        waited = settled - began - (self.engine.seconds - computed)
        return Report(
            learn=True,
            wait_s=waited,
            send_s=0.0,
            compute_s=time.perf_counter() - start - waited,
            in_flight=0,
            figures=Late(loss, finite),
        )


class Carriage(nn.Module):
    """Consecutive parts as a pipeline's stage: tensors in, tensors out, at the end of the flow nll (B,).

    Args:
        pieces: the parts; of their priors only the model's own takes part.
        last: whether the flow ends here.
    """

    def __init__(self, pieces: list[Truncated], last: bool) -> None:
        super().__init__()
        self.pieces, self.last = pieces, last
        self.events = pieces[0].part.event_in, pieces[-1].part.event_out
        self.registered = nn.ModuleList(pieces)  # a list by itself has no parameters for PyTorch

    def forward(self, z: Tensor, logp: Tensor) -> Any:
        packet = Packet(_Contiguous.apply(z), _Contiguous.apply(logp))
        for piece in self.pieces:
            packet = piece.part(packet)
        if self.last:
            return self.pieces[-1].nll(packet)
        return tuple(_Contiguous.apply(tensor) for tensor in packet)

    def named_global_parameters(self) -> NamedParameters:
        """(global name, parameter) of all that learn end to end, in the order of the model."""
        named = [pair for piece in self.pieces for pair in piece.named_global_parameters()]
        return [(name, parameter) for name, parameter in named if not name.startswith("provisional.")]


class _Contiguous(torch.autograd.Function):
    """The same tensor, contiguous on the way there and back: gloo sends no other, and PyTorch's stage sees to none."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()
