"""Whether a checkpoint belongs to this model: names, shapes, kinds, finite values."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .manifest import Manifest


def check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: Path) -> None:
    """`check_names` and `check_values` of a checkpoint that was read as a whole."""
    check_names(expected, tensors, source)
    check_values(expected, tensors, source)


def check_names(expected: Collection[str], names: Collection[str], source: Path) -> None:
    """A ValueError where the tensors are not the model's.

    Args:
        expected: the global names of the model's state; its provisional priors may be others than the checkpoint's.
        names: of what the checkpoint holds, moments ("<slot>/<global name>") included.
        source: the checkpoint, for sentences.
    """
    if missing := [name for name in expected if name not in names and not is_provisional(name)]:
        raise ValueError(
            f"{source} lacks {missing[0]}, which the model has: it belongs to another model, or is damaged."
        )
    if foreign := [name for name in names if name.split("/", 1)[-1] not in expected and not is_provisional(name)]:
        raise ValueError(f"{source} holds {foreign[0]}, which the model does not have: it belongs to another model.")


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


def check_own(own: dict[str, str], manifest: Manifest, source: Path) -> None:
    """A ValueError where a script hands over another flow, or other data, than those of the checkpoint."""
    for what, digest in own.items():
        if manifest.own.get(what, digest) != digest:
            raise ValueError(
                f"The {what} handed over {'is' if what == 'flow' else 'are'} not what {source} was made with (hash "
                f"{digest}, there {manifest.own[what]}); what a run has begun with cannot change. Hand over the same, "
                "or start a new run."
            )


def is_provisional(name: str) -> bool:
    """Whether a tensor belongs to a provisional prior."""
    return name.split("/", 1)[-1].startswith("provisional.")


def owner_of(name: str) -> str:
    """The step or prior that a parameter, or its moments, belong to: "steps.17", "provisional.32"."""
    return ".".join(name.split("/", 1)[-1].split(".")[:2])
