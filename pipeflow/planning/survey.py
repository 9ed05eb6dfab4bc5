"""A run's settings → the profile of its flow on this device: what `python -m pipeflow.plan` measures.

What a part does besides its steps counts as well: drawing the batch at the head, and the prior that ends it.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from ..config import Config
from ..data import Batches, Pixels
from ..flow import Event, StandardNormal, Step, make_prior
from ..model import flow_step_positions, glow_steps, set_precision, set_tensor_cores
from .balance import flow_step_costs
from .measure import measure, medians, now, sizes
from .profile import Cost, Profile


class _Ending(Step):
    """A prior seen as a step: z stays, dlogp = log p(z)."""

    def __init__(self, prior: StandardNormal) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return z, self.prior.log_prob(z)


def survey(config: Config, pixels: Pixels, device: torch.device) -> Profile:
    """Measures every kind of step of a run's flow once.

    Args:
        config: the run's settings; the optimizer is that of its first phase.
        pixels: what the images look like.
        device: where to measure.

    Raises:
        ValueError: a step does not fit into the memory of the device.
    """
    batches, optimizer = sizes(config.data.batch), config.phases[0].optimizer
    steps = glow_steps(config.glow, pixels.shape, config.seed)
    set_tensor_cores(config.precision)
    for step in steps:
        set_precision(step, config.precision, config.layout)

    def costs(steps: list[Step], event: Event) -> list[Cost]:
        return measure(steps, event, batches, device, optimizer, config.ema)

    found = flow_step_costs(steps, costs(steps, pixels.shape))
    found[0] = Cost(batches, _drawing(config, pixels, batches, device), (0.0,) * len(batches)) + found[0]
    events = _behind(steps, pixels.shape)
    kinds = {(config.cut.provisional_prior, event) for event in events} | {(config.glow.top_prior, events[-1])}
    priors = {(kind, event): costs([_Ending(make_prior(kind, event))], event)[0] for kind, event in kinds}
    behind = [priors[config.cut.provisional_prior, event] for event in events[:-1]]
    slots = 4 + (config.ema is not None)  # weight, gradient, two moments, average
    return Profile(
        steps=tuple(found),
        priors=(*behind, priors[config.glow.top_prior, events[-1]]),
        sent_bytes=tuple(map(config.parallel.bytes_per_image, events)),
        state_bytes=4 * slots,
    )


def events_behind(config: Config, image: Event) -> list[Event]:
    """Shapes of what crosses a border behind each flow step of a run's flow."""
    return _behind(glow_steps(config.glow, image, config.seed), image)


def _behind(steps: list[Step], event: Event) -> list[Event]:
    events: list[Event] = []
    for step in steps:
        event = tuple(step.out_shape(event))
        if step.place == "step":
            events.append(event)
        elif step.place == "closes":
            events[-1] = event
    assert len(events) == len(flow_step_positions(steps))
    return events


def _drawing(config: Config, pixels: Pixels, batches: Sequence[int], device: torch.device) -> tuple[float, ...]:
    """Seconds to draw batches of images that are in memory."""
    channels, height, width = pixels.shape
    images = np.zeros((batches[-1], height, width, channels), np.uint8)

    def draw(batch: int) -> tuple[float]:
        head = Batches(images, pixels, config.seed, batch, config.data.flip, device)
        head.indices(0)  # the order of an epoch is made once
        began = now(device)
        head.at(0)
        return (now(device) - began,)

    return tuple(seconds for (seconds,) in medians([partial(draw, batch) for batch in batches]))
