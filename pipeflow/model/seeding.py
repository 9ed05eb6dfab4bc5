"""Initial weights that depend on a seed alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's global generator on the CPU starts from a seed; afterwards it is as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@torch.no_grad()
def begin_like(step: nn.Module, other: nn.Module) -> None:
    """Gives a step the weights of another of its kind, the first numbers of each dimension that both have.

    Of an attention's weights these are the first of the queries, of the keys and of the values. Weights without memory
    are not taken.
    """
    theirs = other.state_dict()
    for name, mine in step.state_dict().items():
        if name in theirs and not theirs[name].is_meta:
            there = theirs[name]
            if ".qkv." in name:
                mine, there = mine.unflatten(0, (3, -1)), there.unflatten(0, (3, -1))
            shared = tuple(slice(min(sizes)) for sizes in zip(mine.shape, there.shape, strict=True))
            mine[shared] = there[shared]
