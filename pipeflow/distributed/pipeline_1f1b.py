"""The parts of a chain as one pipeline that is trained end to end: 1F1B of `torch.distributed.pipelining`.

By parts nothing comes back over a border; end to end gradients must, and with a whole batch at a time every process
would wait for all the others. So a batch is cut into micro-batches, and each process goes forward with one, backward
with another, in turns (Narayanan et al., "PipeDream", 2019). The schedule, its sends and its receives are PyTorch's;
here the parts are made fit for it, and its sums over processes are taken.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from .transport_errors import others_answer
from .world import World

Event = tuple[int, ...]


class TimedStage(PipelineStage):
    """A stage of a pipeline that adds up how long it computes.

    Attributes:
        seconds: in forward and backward passes, so far.
    """

    seconds = 0.0

    def forward_one_chunk(self, *args: Any, **options: Any) -> Any:
        return self._timed(super().forward_one_chunk, *args, **options)

    def backward_one_chunk(self, *args: Any, **options: Any) -> Any:
        return self._timed(super().backward_one_chunk, *args, **options)

    def backward_weight_one_chunk(self, *args: Any, **options: Any) -> Any:
        return self._timed(super().backward_weight_one_chunk, *args, **options)

    def _timed(self, action: Callable[..., Any], *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return action(*args, **options)
        finally:
            self.seconds += time.perf_counter() - start


def _example(event: Event, batch: int, grad: bool) -> tuple[Tensor, Tensor]:
    """What a packet of a micro-batch looks like, (z, logp), without memory."""
    return (
        torch.empty(batch, *event, device="meta", requires_grad=grad),
        torch.empty(batch, device="meta", requires_grad=grad),
    )


def timed_stage(
    module: nn.Module,
    last: bool,
    position: tuple[int, int],
    events: tuple[Event, Event],
    micro: int,
    device: torch.device,
    group: Any,
) -> TimedStage:
    """The stage of one process. All shapes are given, so that PyTorch need not send objects around to find them out.

    Args:
        module: the parts of this process: (z, logp) → (z, logp), and in the last stage → nll (B,).
        last: whether it is the last stage.
        position: (i, n): it is the i-th of n stages, from 0.
        events: shape of a latent that enters it, and of one that leaves.
        micro: images per micro-batch.
        device: where it computes.
        group: of the processes of this chain.
    """
    number, stages = position
    nll = torch.empty(micro, device="meta", requires_grad=True)
    return TimedStage(
        module,
        number,
        stages,
        device,
        input_args=_example(events[0], micro, number > 0),
        output_args=nll if last else _example(events[1], micro, True),
        group=group,
    )


class Engine:
    """1F1B over the processes of this chain; all of them must do the same with theirs.

    Args:
        world: the processes, more than one in a chain.
        module: the parts of this process: (z, logp) → (z, logp), and in the last of the chain → nll (B,).
        events: shape of a latent that enters them, and of one that leaves.
        loss: nll (B,) → bits/dim (B,).
        batch: images that the chain takes per step.
        micro_batches: in how many equal pieces.

    Attributes:
        first, last: whether images enter here, and whether the flow ends here.

    Raises:
        LostError: from here and from every method, where another process did not answer.
    """

    def __init__(
        self,
        world: World,
        module: nn.Module,
        events: tuple[Event, Event],
        loss: Callable[[Tensor], Tensor],
        batch: int,
        micro_batches: int,
    ) -> None:
        self.world, stages = world, world.grid.stages
        number = world.rank % stages
        self.first, self.last = number == 0, number == stages - 1
        self._target = torch.zeros(batch, device=world.device)  # a loss function must have one
        group = world.group("chain")
        world.group("everyone")  # is opened here, by all processes, and used by `settle`
        with self._answered():
            # NCCL opens a communicator when all of its processes first use it, which those of a pipeline do one by one.
            dist.all_reduce(torch.zeros(1, device=world.device), group=group)
        position, micro = (number, stages), batch // micro_batches
        self._stage = timed_stage(module, self.last, position, events, micro, world.device, group)

        def mean_loss(nll: Tensor, target: Tensor) -> Tensor:
            return loss(nll).sum() / batch  # summed over the micro-batches: the mean of the batch

        self._schedule = Schedule1F1B(self._stage, micro_batches, loss_fn=mean_loss, scale_grads=False)

    @property
    def seconds(self) -> float:
        """How long this process has computed forward and backward so far."""
        return self._stage.seconds

    def run(self, z: Tensor, logp: Tensor, label: Tensor | None = None) -> Tensor:
        """A batch forward and backward; gradients are added to those that are there.

        Args:
            z, logp: the chain's share of the batch; only the first process looks at them.
            label: (B,) of the same images, in every process; None where there are none.

        Returns:
            Scalar: its bits/dim in the last process of the chain, 0 in the others.
        """
        losses: list[Tensor] = []
        target, given = self._target if self.last else None, (z, logp) if self.first else ()
        labels: dict[str, Any] = {} if label is None else {"label": label}
        with self._answered():
            self._schedule.step(*given, target=target, losses=losses, return_outputs=False, **labels)
        with torch.no_grad():
            return torch.stack(losses).sum() if losses else self._target.new_zeros(())

    @torch.no_grad()
    def settle(self, gradients: list[Tensor], loss: Tensor) -> tuple[Tensor, Tensor]:
        """Averages the gradients over the replicas, in place.

        Args:
            gradients: of this process, after `run`.
            loss: what `run` returned.

        Returns:
            The norm of the whole model's gradient, NaN where the loss is not finite, and the loss of the whole batch;
            the same in every process.
        """
        replicas = self.world.grid.replicas
        with self._answered():
            if replicas > 1 and gradients:
                flat = torch.cat([gradient.flatten() for gradient in gradients])
                dist.all_reduce(flat, group=self.world.group("replicas"))
                shares = torch.split(flat / replicas, [gradient.numel() for gradient in gradients])
                for gradient, share in zip(gradients, shares, strict=True):
                    gradient.copy_(share.view_as(gradient))
            norm = nn.utils.get_total_norm(gradients).to(loss.device)
            sums = torch.stack([norm.double().square(), loss.double()])
            dist.all_reduce(sums, group=self.world.group("everyone"))
        squared, loss = sums / replicas
        return torch.where(loss.isfinite(), squared.sqrt(), torch.nan).float(), loss.float()

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """While the block runs, this process waits for the others."""
        try:
            with others_answer(self.world.pulse, "the pipeline's latents or gradients did not pass"):
                yield
        except RuntimeError as error:
            # What went wrong inside a part comes wrapped in a description of its tensors.
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise
