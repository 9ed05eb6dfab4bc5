"""Whether the tensors of a checkpoint belong to this model: names, shapes, kinds, finite values."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor


def check_names(expected: Collection[str], names: Collection[str], source: Path) -> None:
    """A ValueError where a checkpoint's tensors, moments ("<slot>/<global name>") included, are not the model's.

    Provisional priors may be others than the checkpoint's, but none may be so in part: that is a head of another size.
    `source` is the checkpoint, for sentences.
    """
    if missing := [name for name in expected if name not in names and not is_provisional(name)]:
        raise ValueError(
            f"{source} lacks {missing[0]}, which the model has: it belongs to another model, or is damaged."
        )
    if foreign := [name for name in names if name.split("/", 1)[-1] not in expected and not is_provisional(name)]:
        raise ValueError(f"{source} holds {foreign[0]}, which the model does not have: it belongs to another model.")
    heads = {owner_of(name) for name in expected if is_provisional(name) and name in names}
    parts = [name for name in expected if name not in names] + [name for name in names if name not in expected]
    if other := next((name for name in parts if "/" not in name and owner_of(name) in heads), None):
        raise ValueError(
            f"{source} {'holds' if other in names else 'lacks'} {other}: its heads have another size (cut.head)."
        )


def check_values(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: Path) -> None:
    """A ValueError where a tensor of the model, or a moment, has another shape or kind, or is not finite."""
    for name, tensor in tensors.items():
        if (model := expected.get(name.split("/", 1)[-1])) is None:
            continue
        shape = torch.Size() if name.startswith(("step/", "norm/")) else model.shape
        if tensor.shape != shape:
            raise ValueError(f"{source} holds {name} of shape {tuple(tensor.shape)}; here it must be {tuple(shape)}.")
        if tensor.dtype != model.dtype:
            raise ValueError(f"{source} holds {name} as {tensor.dtype}; here it must be {model.dtype}.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{source} holds values of {name} that are not finite.")


def is_provisional(name: str) -> bool:
    """Whether a tensor belongs to a provisional prior."""
    return name.split("/", 1)[-1].startswith("provisional.")


def owner_of(name: str) -> str:
    """The step or prior that a parameter, or its moments, belong to: "steps.17", "provisional.32"."""
    return ".".join(name.split("/", 1)[-1].split(".")[:2])
