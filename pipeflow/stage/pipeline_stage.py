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
from .async_scalars import AsyncScalars
from .optimizer import NamedParameters
from .report import Report
from .stage import BaseStage
from .update import Update


class PipelineStage(BaseStage):
    """Consecutive parts of the model, trained end to end with those of the other processes.

    Args:
        engine: carries batches forward and gradients back.
        update: of the parameters of this process; the norm that it clips by is the whole model's.
    """

    def __init__(self, engine: Engine, update: Update) -> None:
        super().__init__(update)
        self.engine = engine

    def tick(self, learn: bool = True) -> Report:
        """One batch, one update, or in all processes none; its figures are those of the whole batch, in all of them.

        Waiting is all that is neither this process's own passes nor its update: the bubble, and links.
        """
        assert learn, "end to end, all parts learn"
        started, computed_s = time.perf_counter(), self.engine.seconds
        packet = self.inbox.recv()
        self.update.optimizer.zero_grad()
        ready = time.perf_counter()
        loss = self.engine.run(*packet)
        norm, loss = self.engine.settle(self.update.gradients(), loss)
        wait_s = time.perf_counter() - ready - (self.engine.seconds - computed_s)
        finite = norm.isfinite()
        self.update.begin()
        self.update(norm, finite)
        return Report(
            learn=True,
            figures=AsyncScalars(loss, finite),
            wait_s=wait_s,
            send_s=0.0,
            in_flight=0,
            compute_s=time.perf_counter() - started - wait_s,
        )


class PipelineModule(nn.Module):
    """Consecutive parts as a pipeline's stage: tensors in, tensors out, at the end of the flow nll (B,).

    Labels are not passed on: every process draws them.

    Args:
        slices: the parts; of their priors only the model's own takes part.
        last: whether the flow ends here.

    Attributes:
        events: shape of a latent that enters, and of one that leaves.
    """

    def __init__(self, slices: list[Truncated], last: bool) -> None:
        super().__init__()
        self.slices, self.last = slices, last
        self.events = slices[0].part.event_in, slices[-1].part.event_out
        self.registered = nn.ModuleList(slices)  # a list by itself has no parameters for PyTorch

    def forward(self, z: Tensor, logp: Tensor, label: Tensor | None = None) -> Any:
        packet = Packet(_Contiguous.apply(z), _Contiguous.apply(logp), label)
        for truncated in self.slices:
            packet = truncated.part(packet)
        if self.last:
            return self.slices[-1].nll(packet)
        return _Contiguous.apply(packet.z), _Contiguous.apply(packet.logp)

    def named_global_parameters(self) -> NamedParameters:
        """(global name, parameter) of all that learn end to end, in the order of the model."""
        named = [pair for truncated in self.slices for pair in truncated.named_global_parameters()]
        return [(name, parameter) for name, parameter in named if not name.startswith("provisional.")]


class _Contiguous(torch.autograd.Function):
    """The same tensor, contiguous on the way there and back: gloo sends no other, and PyTorch's stage sees to none."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()
