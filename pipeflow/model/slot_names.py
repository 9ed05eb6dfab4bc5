"""Names of what is kept per parameter besides its value: "<slot>/<global name>", such as an average of the weights."""

from torch import Tensor

SLOT = "ema"


def is_average(name: str) -> bool:
    """Whether a tensor of a checkpoint belongs to an average, not to an optimizer."""
    return name.startswith(SLOT + "/")


def averaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint with averages in place of the weights that have one."""
    return tensors | {name.split("/", 1)[1]: tensor for name, tensor in tensors.items() if is_average(name)}
