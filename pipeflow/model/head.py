"""The head behind a border: a small flow of what remains of the model, as the prior that a part learns with.

It has the splits and squeezes that remain, so that a part is asked for a latent that the rest of the model can use;
its flow steps are few and narrow, so that it costs little beside the part.
"""

import dataclasses
from collections.abc import Sequence
from functools import reduce

import torch

from ..flow import Event, Split, Squeeze, Step
from .cut import HeadConfig
from .glow import FlowStep, GlowConfig
from .seeding import begin_like


def glow_head(config: GlowConfig, head: HeadConfig, event: Event, remaining: Sequence[Step]) -> list[Step]:
    """The head of a Glow: per remaining level `head.steps` flow steps, with the splits and squeezes that remain.

    If it starts like the model, a 1×1 convolution after these flow steps stands for those that are left out: it starts
    as the product of their rotations, so that the same channels leave at a split.

    Args:
        config: shape of the model.
        head: size of the head.
        event: shape (C, H, W) of the latent that enters the head.
        remaining: the steps of the model after the border, at their initial weights.
    """
    narrow = dataclasses.replace(config, hidden=head.hidden or max(1, config.hidden // 2))
    steps: list[Step] = []
    level: list[FlowStep] = []
    for step in (*remaining, None):
        if isinstance(step, FlowStep):
            level.append(step)
            continue
        for model in level[: head.steps]:
            steps.append(FlowStep(event[0], narrow))
            if head.start == "model":
                begin_like(steps[-1], model)
        if head.start == "model" and level[head.steps :]:
            steps.append(_rotation(level[head.steps :]))
        level = []
        if step is not None:
            steps.append(Squeeze() if isinstance(step, Squeeze) else Split(event[0], config.split_prior == "learned"))
            event = steps[-1].out_shape(event)
    return steps


@torch.no_grad()
def _rotation(steps: Sequence[FlowStep]) -> Step:
    """One 1×1 convolution that turns the channels as those of several steps do, one after another."""
    convolutions = [step.conv1x1 for step in steps]
    turns = [convolution.weight_and_log_det()[0].double() for convolution in convolutions]
    product = None if turns[0].is_meta else reduce(lambda before, turn: turn @ before, turns)
    return type(convolutions[0])(len(turns[0]), product)
