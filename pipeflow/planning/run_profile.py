"""The profile of a run's flow on this device, measured as the run will run: what `plan` and `train` both cut by."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import pairwise
from operator import add

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data import Batches, Pixels, Space, resident
from ..flow import Event, StandardNormal, Step, make_prior
from ..model import FAMILIES, Maker, provisional_prior, set_tensor_cores
from .measure import StepOptions, elapsed, measure_steps, medians
from .profile import Cost, Profile


def batch_sizes(batch: int) -> tuple[int, ...]:
    """The batch, its half, its quarter, … down to a 32nd of it, rounded up: the sizes to measure at, rising."""
    return tuple(sorted({-(-batch // pieces) for pieces in (1, 2, 4, 8, 16, 32) if pieces <= batch}))


def measured_profile(
    config: Config,
    space: Space,
    steps: Sequence[Step],
    device: torch.device,
    batches: Sequence[int],
    flow: Maker | None = None,
) -> Profile:
    """Measures every kind of step of a run's flow once, and what a part does besides: its prior, drawing at the head.

    Args:
        config: the run's settings; the optimizer is that of its first phase.
        space: of the data.
        steps, device, batches: as for `measure_steps`.
        flow: that a script hands over; it makes the heads, if there are any.
    """
    batches, optimizer = tuple(batches), config.phases[0].optimizer
    options = StepOptions(
        config.precision, config.layout, config.compile, config.activations, optimizer, config.ema, config.cuda_graphs
    )  # fmt: skip
    set_tensor_cores(config.precision, config.flow)
    groups, event, shapes = flow_step_groups(steps), space.shape, []
    measured = measure_steps(steps, event, batches, device, options)
    costs = [reduce(add, measured[group]) for group in groups]
    costs[0] = Cost(batches, _drawing(config, space, batches, device), (0.0,) * len(batches)) + costs[0]
    for group in groups:
        for step in steps[group]:
            event = tuple(step.out_shape(event))
        shapes.append(event)
    options = replace(options, compile="none", activations="keep")  # priors are neither compiled nor inverted
    known: dict[str, Cost] = {}
    priors = []
    for prior, shape in zip(_priors(config, steps, groups, shapes, flow), shapes, strict=True):
        if (kind := str(prior)) not in known:
            known[kind] = measure_steps([PriorStep(prior)], shape, batches, device, options)[0]
        priors.append(known[kind])
    packet_bytes = tuple(config.parallel.bytes_per_image(shape, config.data.labels) for shape in shapes)
    return Profile(tuple(costs), tuple(priors), tuple(shapes), packet_bytes, state_bytes(config))


def state_bytes(config: Config) -> int:
    """Bytes per parameter: weight, gradient, two moments, and an average where there is one."""
    return 4 * (4 + (config.ema is not None))


def flow_step_groups(steps: Sequence[Step]) -> list[slice]:
    """Each flow step with the squeeze that opens it and the split that closes it, in a flat list of steps."""
    starts = [
        position
        for position, step in enumerate(steps)
        if step.place != "closes" and (position == 0 or steps[position - 1].place != "opens")
    ]
    return [slice(start, end) for start, end in pairwise([*starts, len(steps)])]


def _priors(
    config: Config, steps: Sequence[Step], groups: Sequence[slice], shapes: Sequence[Event], flow: Maker | None
) -> Iterator[StandardNormal]:
    """The prior that a part has which ends after each flow step: a provisional one, after the last the model's own."""
    provisional = provisional_prior(config.model, flow)
    for border, (group, shape) in enumerate(zip(groups[:-1], shapes, strict=False), 1):
        if isinstance(provisional, str):
            yield make_prior(provisional, shape)
        else:
            yield provisional(border, shape, steps[group.stop :])
    yield make_prior(config.family.top_prior if config.flow in FAMILIES else "standard", shapes[-1])


class PriorStep(Step):
    """A prior as a step: z stays, dlogp = log p(z)."""

    def __init__(self, prior: StandardNormal) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, self.prior.log_prob(z)


def _drawing(config: Config, space: Space, batches: Sequence[int], device: torch.device) -> tuple[float, ...]:
    """Seconds to draw batches of data that are in memory."""
    if isinstance(space, Pixels):  # a file of images has its channels last
        data = np.zeros((batches[-1], *space.shape[1:], space.shape[0]), np.uint8)
    else:
        data = np.zeros((batches[-1], *space.shape), np.float32)

    def draw(batch: int) -> tuple[float]:
        head = Batches(resident(data, device), space, config.seed, batch, config.data.flip, device)
        head.indices(0)  # the order of an epoch is made once
        return (elapsed(partial(head.at, 0), device),)

    return tuple(seconds for (seconds,) in medians([partial(draw, batch) for batch in batches]))
