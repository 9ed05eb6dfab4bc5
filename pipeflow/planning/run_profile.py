"""The profile of a run's flow on this device, measured as the run will run: what `plan` and `train` both cut by."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data import Batches, Pixels, Space, resident
from ..flow import Event, StandardNormal, Step, make_prior
from ..model import FAMILIES, Maker, flow_step_positions, provisional_prior, set_tensor_cores
from .measure import StepOptions, elapsed, measure_steps, medians
from .profile import Cost, Profile


def batch_sizes(batch: int, most: int = 32) -> tuple[int, ...]:
    """The batch, its half, its quarter, … down to a `most`-th of it, rounded up: the sizes to measure at, rising."""
    pieces = [2**power for power in range(most.bit_length()) if 2**power <= min(most, batch)]
    return tuple(sorted({-(-batch // piece) for piece in pieces}))


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
        steps: the whole flow, on the CPU; neither changed nor moved.
        device: where the run takes place.
        batches: sizes to measure at, rising.
        flow: that a script hands over; it makes the heads, if there are any.

    Raises:
        ValueError: a step does not fit into the memory of the device.
    """
    optimizer, batches = config.phases[0].optimizer, tuple(batches)
    options = StepOptions(
        config.precision, config.layout, config.compile, config.activations, optimizer, config.ema
    )  # fmt: skip
    set_tensor_cores(config.precision, config.flow)
    costs = flow_step_costs(steps, measure_steps(steps, space.shape, batches, device, options))
    costs[0] = Cost(batches, _drawing(config, space, batches, device), (0.0,) * len(batches)) + costs[0]
    shapes = _shapes_after_flow_steps(steps, space.shape)
    options = StepOptions(
        config.precision, config.layout, optimizer=optimizer, ema=config.ema
    )  # priors are neither compiled nor inverted
    known: dict[str, Cost] = {}
    priors = []
    for prior, shape in zip(_priors(config, steps, shapes, flow), shapes, strict=True):
        if (kind := str(prior)) not in known:
            known[kind] = measure_steps([_PriorStep(prior)], shape, batches, device, options)[0]
        priors.append(known[kind])
    slots = 4 + (config.ema is not None)  # weight, gradient, two moments, average
    return Profile(
        steps=tuple(costs),
        priors=tuple(priors),
        packet_shapes=tuple(shapes),
        packet_bytes=tuple(map(config.parallel.bytes_per_image, shapes)),
        state_bytes=4 * slots,
    )


def flow_step_costs(steps: Sequence[Step], costs: Sequence[Cost]) -> list[Cost]:
    """Costs of each flow step, with those of the squeeze that opens it and the split that closes it."""
    found: list[Cost] = []
    opening: Cost | None = None
    for step, cost in zip(steps, costs, strict=True):
        if step.place == "closes":
            found[-1] = found[-1] + cost
            continue
        cost = cost if opening is None else opening + cost
        opening = cost if step.place == "opens" else None
        if opening is None:
            found.append(cost)
    return found


def _priors(
    config: Config, steps: Sequence[Step], shapes: Sequence[Event], flow: Maker | None
) -> Iterator[StandardNormal]:
    """The prior that a part has which ends after each flow step: a provisional one, after the last the model's own."""
    provisional = provisional_prior(config.model, flow)
    ends = [position + 1 for position in flow_step_positions(steps)]
    for border, (end, shape) in enumerate(zip(ends[:-1], shapes, strict=False), 1):
        if isinstance(provisional, str):
            yield make_prior(provisional, shape)
        else:
            closing = next(index for index in range(end, len(steps)) if steps[index].place != "closes")
            yield provisional(border, shape, steps[closing:])
    yield make_prior(config.family.top_prior if config.flow in FAMILIES else "standard", shapes[-1])


class _PriorStep(Step):
    """A prior as a step: z stays, dlogp = log p(z)."""

    def __init__(self, prior: StandardNormal) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, self.prior.log_prob(z)


def _shapes_after_flow_steps(steps: Sequence[Step], event: Event) -> list[Event]:
    """Shape of a latent after each flow step, and after the split that closes it."""
    shapes: list[Event] = []
    for step in steps:
        event = tuple(step.out_shape(event))
        if step.place == "step":
            shapes.append(event)
        elif step.place == "closes":
            shapes[-1] = event
    assert len(shapes) == len(flow_step_positions(steps))
    return shapes


def _drawing(config: Config, space: Space, batches: Sequence[int], device: torch.device) -> tuple[float, ...]:
    """Seconds to draw batches of data that are in memory."""
    if isinstance(space, Pixels):
        channels, height, width = space.shape
        data = np.zeros((batches[-1], height, width, channels), np.uint8)
    else:
        data = np.zeros((batches[-1], *space.shape), np.float32)

    def draw(batch: int) -> tuple[float]:
        head = Batches(resident(data, device), space, config.seed, batch, config.data.flip, device)
        head.indices(0)  # the order of an epoch is made once
        return (elapsed(partial(head.at, 0), device),)

    return tuple(seconds for (seconds,) in medians([partial(draw, batch) for batch in batches]))
