"""The cut whose slowest part is as fast as possible, from measured costs.

Multiply-adds predict a GPU's time badly at the small latents of the deep levels; the clock does not. `plan` and `train`
both measure with `measured_profile` and cut with `balanced_cut`.
"""

import dataclasses
from collections.abc import Sequence
from itertools import accumulate

import torch

from ..config import Config
from ..data import Space
from ..flow import Step
from ..model import CutConfig, Maker
from .profile import Link, Profile
from .run_profile import measured_profile


def resolve_cut(
    config: Config, space: Space, steps: Sequence[Step], device: torch.device, images: int, flow: Maker | None = None
) -> CutConfig:
    """The cut of a run as an explicit list of borders; a balanced one is measured, here and now.

    `images` are those that a part gets of a batch: all of them, or a replica's share. The other arguments are those of
    `measured_profile`.
    """
    if config.cut.scheme != "balanced":
        return config.cut
    at = balanced_cut(measured_profile(config, space, steps, device, (images,), flow), config.cut.parts, images)
    return dataclasses.replace(config.cut, scheme="explicit", at=list(at))


def balanced_cut(profile: Profile, parts: int, images: int, link: Link | None = None) -> tuple[int, ...]:
    """Flow steps before each border of the cut whose slowest part, or link, takes the fewest seconds.

    `images` are those that a part gets of a batch; links take no time by default. A ValueError where there are more
    parts than flow steps.
    """
    return smallest_maximum(
        [cost.seconds(images) for cost in profile.steps],
        parts,
        [cost.seconds(images) for cost in profile.priors],
        [link.seconds(size * images) for size in profile.packet_bytes] if link else None,
    )


def smallest_maximum(
    costs: Sequence[float], parts: int, endings: Sequence[float] | None = None, carry: Sequence[float] | None = None
) -> tuple[int, ...]:
    """The borders with the smallest possible largest part; among equals, the parts before the largest are balanced too.

    Args:
        costs: seconds of each flow step.
        parts: number of parts; a ValueError where there are fewer flow steps.
        endings: seconds that a part takes besides if it ends after each flow step; none by default.
        carry: seconds that a packet takes over a border after each flow step; the largest of them counts like a part.
    """
    many = len(costs)
    if parts > many:
        raise ValueError(f"cut.parts is {parts}, but the flow has only {many} flow steps.")
    endings, carry = endings or [0.0] * many, carry or [0.0] * many
    before = list(accumulate(costs, initial=0.0))
    # best[end]: (largest part, borders) of the first `end` flow steps in so many parts.
    best: dict[int, tuple[float, tuple[int, ...]]]
    best = {end: (before[end] + endings[end - 1], ()) for end in range(1, many + 1)}
    for _ in range(parts - 1):
        best = {
            end: min(
                (max(best[border][0], carry[border - 1], before[end] - before[border] + endings[end - 1]),
                 (*best[border][1], border))
                for border in best if border < end
            )
            for end in range(min(best) + 1, many + 1)
        }  # fmt: skip
    return best[many][1]
