"""The head behind a border: a small flow of what remains of the model, as the prior that a part learns with.

It has the splits and squeezes that remain, so that a part is asked for a latent that the rest of the model can use;
its flow steps are few and narrow, so that it costs little beside the part.
"""

import dataclasses
from collections.abc import Sequence

from ..flow import Event, Split, Squeeze, Step
from .cut import HeadConfig
from .glow import FlowStep, GlowConfig


def glow_head(config: GlowConfig, head: HeadConfig, event: Event, remaining: Sequence[Step]) -> list[Step]:
    """The head of a Glow: per remaining level `head.steps` flow steps, with the splits and squeezes that remain.

    Args:
        config: shape of the model.
        head: size of the head.
        event: shape (C, H, W) of the latent that enters the head.
        remaining: the steps of the model after the border.
    """
    narrow = dataclasses.replace(config, hidden=head.hidden or max(1, config.hidden // 2))
    steps: list[Step] = []
    in_level = 0
    for step in remaining:
        if isinstance(step, FlowStep):
            in_level += 1
            if in_level <= head.steps:
                steps.append(FlowStep(event[0], narrow))
            continue
        in_level = 0
        steps.append(Squeeze() if isinstance(step, Squeeze) else Split(event[0], config.split_prior == "learned"))
        event = steps[-1].out_shape(event)
    return steps
