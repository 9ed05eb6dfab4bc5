"""Measures time and memory of each flow step on this device.

`torch.profiler` reports on the operators of a model that runs; a plan needs the cost of each entry of the flat list of
steps, before there is a run. Steps of one kind and of the same shapes, of latent and weights, cost the same, so each is
measured once: as the run will run it, at the batch and at the shares of it that other ways to train would work on.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..flow import Event, Packet, Step
from ..model import Activations, Compile, Layout, Precision, make_passage, set_precision
from ..stage import Average, OptimizerName, make_optimizer
from .profile import Cost
from .saved_memory import saved_bytes

_ENOUGH_S = 1.0  # of repeating a measurement
_MOST = 40
_IN_A_ROW = 4  # on a GPU: a single step would show how long its kernels take to be launched


@dataclass(frozen=True)
class StepOptions:
    """How steps are trained, as far as it changes what they cost; the names are those of the run's settings."""

    precision: Precision = "fp32"
    layout: Layout = "contiguous"
    compile: Compile = "none"
    activations: Activations = "keep"
    optimizer: OptimizerName = "adam"
    ema: float | None = None


def measure_steps(
    steps: Sequence[Step],
    event: Event,
    batches: Sequence[int],
    device: torch.device,
    options: StepOptions = StepOptions(),
) -> list[Cost]:
    """The cost of every step: medians of repeated runs, after one to warm up.

    Args:
        steps: the whole flow, on the CPU; neither changed nor moved.
        event: shape of what enters.
        batches: sizes to measure at, rising.
        device: where the run takes place.
        options: of the run.

    Raises:
        ValueError: a step at the largest batch does not fit into the memory of the device.
    """
    known: dict[tuple[object, ...], Cost] = {}
    costs = []
    for step, (fixed, saved) in zip(steps, saved_bytes(steps, event, options.activations), strict=True):
        key = (type(step), tuple(event), *(tuple(parameter.shape) for parameter in step.parameters()))
        if key not in known:
            try:
                passes = [_Passes(step, event, batch, device, options) for batch in batches]
                times = medians(passes)
                update = _update_seconds(step, device, options)
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"One {type(step).__name__} with {batches[-1]} images of shape {tuple(event)} does not fit into "
                    f"the memory of {device}; use a smaller data.batch or a narrower flow."
                ) from error
            known[key] = Cost(
                batches=tuple(batches),
                forward_s=tuple(forward for forward, _ in times),
                backward_s=tuple(backward for _, backward in times),
                update_s=update,
                parameters=sum(parameter.numel() for parameter in step.parameters()),
                fixed_bytes=fixed,
                saved_bytes=saved,
                working_bytes=passes[-1].working_bytes / batches[-1],
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
    return [tuple(sorted(lap)[middle] for lap in zip(*laps, strict=True)) for laps in zip(*rounds, strict=True)]


def now(device: torch.device) -> float:
    """The clock, in seconds, once the device has done the work that it was given.

    On the CPU with one thread it is the time that this thread has computed: what others do meanwhile does not count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()


def elapsed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the device takes for some work."""
    began = now(device)
    work()
    return now(device) - began


class _Passes:
    """Forward and backward of a step with some images, to be run again and again.

    On a GPU, several copies of the step run in a row where one fits after the other.

    Attributes:
        working_bytes: held besides what is kept between the two; 0 on the CPU, which does not tell.
    """

    def __init__(self, step: Step, event: Event, batch: int, device: torch.device, options: StepOptions) -> None:
        many = _IN_A_ROW if device.type == "cuda" and step.out_shape(event) == tuple(event) else 1
        self._steps, self._device = _copies(step, many, device), device
        for one in self._steps:
            set_precision(one, options.precision, options.layout)
        self._passage = make_passage(options.activations, options.compile)
        self._parameters = [parameter for one in self._steps for parameter in one.parameters()]
        self._entering = Packet(
            torch.randn(batch, *event, device=device).requires_grad_(), torch.zeros(batch).to(device)
        )
        self.working_bytes = 0.0

    def __call__(self) -> tuple[float, float]:
        """Seconds of forward and of backward, per step."""
        device = self._device
        for tensor in (self._entering.z, *self._parameters):
            tensor.grad = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        began = now(device)
        results = [tensor for tensor in self._passage(self._steps, self._entering) if tensor.requires_grad]
        forward_s = now(device) - began
        kept = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        gradients = [torch.ones_like(tensor) for tensor in results]
        began = now(device)
        torch.autograd.backward(results, gradients)
        backward_s = now(device) - began
        if device.type == "cuda":
            of_parameters = 4 * sum(parameter.numel() for parameter in self._parameters)
            working = torch.cuda.max_memory_allocated(device) - kept - of_parameters
            self.working_bytes = max(self.working_bytes, working)
        return forward_s / len(self._steps), backward_s / len(self._steps)


def _copies(step: Step, many: int, device: torch.device) -> list[Step]:
    return [copy.deepcopy(step).to(device) for _ in range(many)]


def _update_seconds(step: Step, device: torch.device, options: StepOptions) -> float:
    """Seconds of a step's share of the gradient's norm, the optimizer and the moving average."""
    copies = _copies(step, _IN_A_ROW if device.type == "cuda" else 1, device)
    named = [(f"{index}.{name}", value) for index, one in enumerate(copies) for name, value in one.named_parameters()]
    if not named:
        return 0.0
    for _, parameter in named:
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer, average = make_optimizer(options.optimizer, named, lr=1e-6), Average(named, options.ema, {})

    def update() -> None:
        nn.utils.get_total_norm([parameter.grad for _, parameter in named if parameter.grad is not None]).isfinite()
        optimizer.step()
        average.update()

    return medians([lambda: (elapsed(update, device),)])[0][0] / len(copies)
