"""Measures time and memory of each flow step on this device.

`torch.profiler` reports on the operators of a model that runs; a plan needs the cost of each entry of the flat list of
steps, before there is a run. Steps of one kind and of the same shapes, of latent and weights, cost the same, so each is
measured once: as the run will run it, at the batch and at the shares of it that other ways to train would work on.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_high

import torch
from torch import Tensor, nn

from ..flow import Event, Packet, Step
from ..model import Activations, Compile, Layout, Precision, make_passage, set_precision
from ..stage import Average, CudaRecorder, OptimizerName, Recorder, make_optimizer
from .profile import Cost

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
    cuda_graphs: bool = False


def measure_steps(
    steps: Sequence[Step],
    event: Event,
    batches: Sequence[int],
    device: torch.device,
    options: StepOptions = StepOptions(),
) -> list[Cost]:
    """The cost of every step, with `batches` images, rising: medians of repeated runs, after one to warm up.

    The steps are the whole flow, on the CPU, neither changed nor moved; `event` is the shape of what enters. A
    ValueError says which step at the largest batch does not fit into the memory of the device.
    """
    known: dict[tuple[object, ...], Cost] = {}
    costs, computing = [], list(steps)
    if (options.precision, options.layout) != (StepOptions.precision, StepOptions.layout):
        computing = [copy.deepcopy(step) for step in steps]
        for step in computing:
            set_precision(step, options.precision, options.layout)
    for step, (fixed, saved) in zip(steps, saved_bytes(computing, event, options.activations), strict=True):
        key = (type(step), tuple(event), *(tuple(parameter.shape) for parameter in step.parameters()))
        if key not in known:
            try:
                passes = [_Passes(step, event, batch, device, options) for batch in batches]
                forward, backward = zip(*medians(passes), strict=True)
                update = _update_seconds(step, device, options)
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"One {type(step).__name__} with {batches[-1]} images of shape {tuple(event)} does not fit into "
                    f"the memory of {device}; use a smaller data.batch or a narrower flow."
                ) from error
            parameters = sum(parameter.numel() for parameter in step.parameters())
            working = passes[-1].working_bytes / batches[-1]
            known[key] = Cost(tuple(batches), forward, backward, update, parameters, fixed, saved, working)
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
    return [tuple(map(median_high, zip(*laps, strict=True))) for laps in zip(*rounds, strict=True)]


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

    On a GPU, several copies of the step run in a row where one fits after the other. With CUDA graphs only the first
    call starts kernels one by one; the second records them, and replays are what is timed.

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
        z = torch.randn(batch, *event, device=device).requires_grad_()
        self._entering = Packet(z, torch.zeros(batch).to(device))
        self.working_bytes = 0.0
        self._recorder = _recorder(options, device)
        self._replays: list[Callable[[], None]] = []
        self._warm = False

    def __call__(self) -> tuple[float, float]:
        """Seconds of forward and of backward, per step."""
        if self._recorder and self._warm:
            self._replays = self._replays or self._record(self._recorder)
            forward_s, backward_s = (elapsed(replay, self._device) / len(self._steps) for replay in self._replays)
            return forward_s, backward_s
        self._warm = True
        return self._recorder.aside(self._start_each_kernel) if self._recorder else self._start_each_kernel()

    def _forward(self) -> list[Tensor]:
        for tensor in (self._entering.z, *self._parameters):
            tensor.grad = None
        left = self._passage(self._steps, self._entering)
        return [tensor for tensor in (left.z, left.logp) if tensor.requires_grad]

    def _record(self, recorder: Recorder) -> list[Callable[[], None]]:
        forward, results = recorder.record(self._forward)
        gradients = [torch.ones_like(tensor) for tensor in results]
        backward, _ = recorder.record(lambda: torch.autograd.backward(results, gradients))
        return [forward, backward]

    def _start_each_kernel(self) -> tuple[float, float]:
        device = self._device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        began = now(device)
        results = self._forward()
        forward_s = now(device) - began
        kept = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        gradients = [torch.ones_like(tensor) for tensor in results]
        backward_s = elapsed(lambda: torch.autograd.backward(results, gradients), device)
        if device.type == "cuda":
            of_parameters = 4 * sum(parameter.numel() for parameter in self._parameters)
            working = torch.cuda.max_memory_allocated(device) - kept - of_parameters
            self.working_bytes = max(self.working_bytes, working)
        return forward_s / len(self._steps), backward_s / len(self._steps)


def _recorder(options: StepOptions, device: torch.device) -> Recorder | None:
    return CudaRecorder(device) if options.cuda_graphs and device.type == "cuda" else None


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


def saved_bytes(steps: Sequence[Step], event: Event, activations: Activations) -> list[tuple[float, float]]:
    """Per step: (bytes whatever the batch, bytes per image) that are kept for the backward pass, none counted twice.

    CUDA's allocator reports the memory of a whole process and the CPU reports none, so tensors are counted, on the CPU.
    With "keep" they are the storages that autograd saves and no parameter owns, found with two and three images; with
    "checkpoint" the latent that enters each step; with "invert" the variable that leaves the flow in a step.
    """
    if activations != "keep":
        kept = []
        for step in steps:
            shape = event if activations == "checkpoint" else step.eps_shape(event)
            kept.append((0.0, 0.0 if shape is None else 4.0 * torch.Size(shape).numel()))
            event = step.out_shape(event)
        return kept
    two, three = (_autograd_bytes(steps, torch.zeros(images, *event)) for images in (2, 3))
    return [(max(0, 3 * few - 2 * more), max(0, more - few)) for few, more in zip(two, three, strict=True)]


def _autograd_bytes(steps: Sequence[Step], z: Tensor) -> list[int]:
    """Bytes that each step adds to what autograd saves."""
    parameters = {value.data_ptr() for step in steps for value in [*step.parameters(), *step.buffers()]}
    seen: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used again
    totals = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for step in steps:
            z, _ = step(z)
            totals.append(sum(storage.nbytes() for storage in seen.values()))
    return [after - before for before, after in pairwise(totals)]
