"""Randomness as a function of what it is for, not of who asked before.

A generator's stream depends on how many numbers were drawn, hence on the number of processes, on the device and on
where a run was interrupted. Here every number is a hash of (seed, purpose, epoch, image, position): the same on a CPU
and on a GPU, in one process and in many, and a checkpoint has no generator state to carry.

The mixing function is the 32-bit finaliser "lowbias32" (Wellons, "Prospecting for Hash Functions", 2018), twice a
number with two keys an image, so that the sequences of two images never run in step.
"""

import math
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
Word = TypeVar("Word", int, Tensor)


class Purpose(IntEnum):
    """What a random number is for; two purposes never share numbers."""

    SHUFFLE = 1
    FLIP = 2
    DEQUANTISE = 3
    EVALUATE = 4
    INITIALISE = 5
    SAMPLE = 6
    VALIDATION = 7
    LABEL = 8


def _mix(h: Word) -> Word:
    # Of tensors, 32-bit words held in int64: the products may wrap, their low 32 bits are exact either way.
    h = h ^ (h >> 16)
    h = (h * 0x7FEB352D) & _MASK
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & _MASK
    return h ^ (h >> 16)


def words(seed: int, purpose: Purpose, epoch: int, index: Tensor, count: int) -> Tensor:
    """Uniform 32-bit words.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for.
        epoch: which pass over the data (or any other counter, such as a flow step).
        index: image indices, int64, shape (B,).
        count: how many words an image.

    Returns:
        int64, shape (B, count), values in [0, 2**32).
    """
    keys = []
    for lane in (1, 2):
        key = lane
        for part in (seed & _MASK, (seed >> 32) & _MASK, int(purpose), epoch & _MASK):
            key = _mix((key * _GOLDEN + part) & _MASK)
        keys.append(_mix((index * _GOLDEN + key) & _MASK).unsqueeze(1))
    position = torch.arange(count, device=index.device).unsqueeze(0)
    return _mix(_mix((keys[0] + position * _GOLDEN) & _MASK) ^ keys[1])


def uniform(seed: int, purpose: Purpose, epoch: int, index: Tensor, count: int) -> Tensor:
    """Uniform numbers inside (0, 1), float32, shape (B, count): the middles of 2**15 equal cells.

    So few bits on purpose: a pixel of 8 bits plus this fits float32 exactly, so no image is rounded into its neighbour.
    """
    return ((words(seed, purpose, epoch, index, count) >> 17).float() + 0.5) * 2.0**-15


def normal(seed: int, purpose: Purpose, epoch: int, index: Tensor, count: int) -> Tensor:
    """Standard normal numbers, float32, shape (B, count), by the Box–Muller transform."""
    pairs = words(seed, purpose, epoch, index, 2 * count).double().add(0.5).mul(2.0**-32)
    radius, angle = pairs[:, :count], pairs[:, count:]
    return (torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)).float()


def permutation(seed: int, epoch: int, size: int, purpose: Purpose = Purpose.SHUFFLE) -> Tensor:
    """A random order, such as that in which an epoch visits its images: int64, shape (size,)."""
    return words(seed, purpose, epoch, torch.arange(size), 1).squeeze(1).argsort(stable=True)
