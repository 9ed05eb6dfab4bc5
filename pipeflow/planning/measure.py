"""The clock and the scales: what each step of a flow costs on this device.

`torch.profiler` reports on the operators of a model that runs; a plan needs the cost of each entry of the flat list of
steps, before there is a run. Steps of one kind and of the same shapes, of latent and weights, cost the same, so each is
measured once, at the batch and at the shares of it that other ways to train would work on.
"""

import copy
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..flow import Event, Step
from ..stage import Average, OptimizerName, make_optimizer
from .profile import Cost

_ENOUGH_S = 1.0  # of repeating a measurement
_MOST = 40
_IN_A_ROW = 4  # on a GPU: a single step would show how long its kernels take to be launched


def sizes(batch: int, most: int = 32) -> tuple[int, ...]:
    """The batch, its half, its quarter, … down to a `most`-th of it, rounded up: the sizes to measure at, rising."""
    found, pieces = {batch}, 2
    while pieces <= min(most, batch):
        found.add(-(-batch // pieces))
        pieces *= 2
    return tuple(sorted(found))


def measure(
    steps: Sequence[Step],
    event: Event,
    batches: Sequence[int],
    device: torch.device,
    optimizer: OptimizerName = "adam",
    ema: float | None = None,
) -> list[Cost]:
    """The cost of every step: medians of repeated runs, after one to warm up.

    Args:
        steps: the whole flow, on the CPU; neither changed nor moved.
        event: shape of what enters.
        batches: sizes to measure at, rising.
        device: where the run takes place.
        optimizer, ema: of the run.

    Raises:
        ValueError: a step at the largest batch does not fit into the memory of the device.
    """
    known: dict[tuple[object, ...], Cost] = {}
    costs = []
    for step, (fixed, saved) in zip(steps, _kept(steps, event), strict=True):
        key = (type(step), tuple(event), *(tuple(parameter.shape) for parameter in step.parameters()))
        if key not in known:
            try:
                passes = [_Passes(_copies(step, event, device), event, batch, device) for batch in batches]
                times = medians(passes)
                update = _update(step, device, optimizer, ema)
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"One {type(step).__name__} with {batches[-1]} images of shape {tuple(event)} does not fit into "
                    f"the memory of {device}; use a smaller data.batch or glow.hidden."
                ) from error
            known[key] = Cost(
                batches=tuple(batches),
                forward_s=tuple(forward for forward, _ in times),
                backward_s=tuple(backward for _, backward in times),
                update_s=update,
                parameters=sum(parameter.numel() for parameter in step.parameters()),
                fixed_bytes=fixed,
                saved_bytes=saved,
                working_bytes=passes[-1].working / batches[-1],
            )
        costs.append(known[key])
        event = step.out_shape(event)
    return costs


def medians(runs: Sequence[Callable[[], tuple[float, ...]]]) -> list[tuple[float, ...]]:
    """Medians of the seconds that each of `runs` returns.

    All of them are repeated in turns, after once to warm up: what disturbs the device for a moment disturbs them alike.
    """
    for run in runs:
        run()
    began, rounds = time.perf_counter(), [[run() for run in runs]]
    while len(rounds) < _MOST and time.perf_counter() - began < _ENOUGH_S:
        rounds.append([run() for run in runs])
    middle = len(rounds) // 2
    return [tuple(sorted(lap)[middle] for lap in zip(*found, strict=True)) for found in zip(*rounds, strict=True)]


def now(device: torch.device) -> float:
    """The clock, once the device has done what it was given.

    On the CPU with one thread it is the time that this thread has computed: what others do meanwhile does not count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()


def _copies(step: Step, event: Event, device: torch.device) -> list[Step]:
    """The step on the device; on a GPU, several in a row where one fits behind the other."""
    many = _IN_A_ROW if device.type == "cuda" and step.out_shape(event) == tuple(event) else 1
    return [copy.deepcopy(step).to(device) for _ in range(many)]


class _Passes:
    """Forward and backward of a step with some images, to be run again and again.

    Attributes:
        working: bytes that were held besides what is kept between the two; 0 on the CPU, which does not tell.
    """

    def __init__(self, steps: list[Step], event: Event, batch: int, device: torch.device) -> None:
        self._steps, self._device = steps, device
        self._parameters = [parameter for step in steps for parameter in step.parameters()]
        self._z = torch.randn(batch, *event, device=device).requires_grad_()
        self.working = 0.0

    def __call__(self) -> tuple[float, float]:
        """Seconds of forward and of backward, a step."""
        device = self._device
        for tensor in (self._z, *self._parameters):
            tensor.grad = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        began = now(device)
        out, logp = self._z, self._z.new_zeros(len(self._z))
        for step in self._steps:
            out, dlogp = step(out)
            logp = logp + dlogp
        forwarded = now(device)
        kept = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        results = [tensor for tensor in (out, logp) if tensor.requires_grad]
        given = [torch.ones_like(tensor) for tensor in results]
        begun = now(device)
        torch.autograd.backward(results, given)
        ended = now(device)
        if device.type == "cuda":
            gradients = 4 * sum(parameter.numel() for parameter in self._parameters)
            self.working = max(self.working, torch.cuda.max_memory_allocated(device) - kept - gradients)
        return (forwarded - began) / len(self._steps), (ended - begun) / len(self._steps)


def _update(step: Step, device: torch.device, optimizer: OptimizerName, ema: float | None) -> float:
    """Seconds of a step's share of the norm, the optimizer and the average."""
    copies = [copy.deepcopy(step).to(device) for _ in range(_IN_A_ROW if device.type == "cuda" else 1)]
    named = [(f"{index}.{name}", value) for index, one in enumerate(copies) for name, value in one.named_parameters()]
    if not named:
        return 0.0
    for _, parameter in named:
        parameter.grad = torch.full_like(parameter, 1e-3)
    adam, average = make_optimizer(optimizer, named, lr=1e-6), Average(named, ema, {})

    def run() -> tuple[float]:
        began = now(device)
        nn.utils.get_total_norm([parameter.grad for _, parameter in named if parameter.grad is not None]).isfinite()
        adam.step()
        average.update()
        return (now(device) - began,)

    return medians([run])[0][0] / len(copies)


def _kept(steps: Sequence[Step], event: Event) -> list[tuple[float, float]]:
    """What each step keeps for its backward pass: (bytes whatever the batch, bytes an image), of which none twice.

    Counted on the CPU with two and with three images, as the storages that autograd saves and no parameter owns.
    """
    two, three = (_saved(steps, torch.zeros(images, *event)) for images in (2, 3))
    return [(max(0, 3 * few - 2 * more), max(0, more - few)) for few, more in zip(two, three, strict=True)]


def _saved(steps: Sequence[Step], z: Tensor) -> list[int]:
    """Bytes that each step adds to what autograd saves."""
    owned = {value.data_ptr() for step in steps for value in [*step.parameters(), *step.buffers()]}
    seen: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used again
    counts = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for step in steps:
            before = sum(storage.nbytes() for storage in seen.values())
            z, _ = step(z)
            counts.append(sum(storage.nbytes() for storage in seen.values()) - before)
    return counts
