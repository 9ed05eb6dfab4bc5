"""Counts the bytes that each flow step keeps from its forward to its backward pass.

CUDA's allocator reports the memory of a whole process and the CPU reports none, so tensors are counted, on the CPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..flow import Event, Step
from ..model import Activations


def saved_bytes(steps: Sequence[Step], event: Event, activations: Activations) -> list[tuple[float, float]]:
    """Per step: (bytes whatever the batch, bytes per image) that are kept for the backward pass, none counted twice.

    Args:
        steps: the whole flow, on the CPU.
        event: shape of what enters.
        activations: "keep": the storages that autograd saves and no parameter owns, found with two and three images;
            "checkpoint": the latent that enters each step; "invert": the variable that leaves the flow in a step.
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
    counts = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for step in steps:
            before = sum(storage.nbytes() for storage in seen.values())
            z, _ = step(z)
            counts.append(sum(storage.nbytes() for storage in seen.values()) - before)
    return counts
