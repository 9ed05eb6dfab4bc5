"""Optimizers whose state is keyed by parameter name.

`optimizer.state_dict()` numbers its parameters in the order of construction, so the state of a part means nothing to
another cut. Keyed by global name, the states of all parts are joined, cut again and saved like weights.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adam", "adamax", "adamw"]

_KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
}
NamedParameters = list[tuple[str, nn.Parameter]]


def make_optimizer(
    name: OptimizerName, named: NamedParameters, lr: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """An optimizer with PyTorch's defaults.

    Args:
        name: "adam", "adamax" or "adamw".
        named: (global name, parameter).
        lr: learning rate.
        weight_decay: of the weights of networks only; decaying a bias, a scale or a rotation bends the flow itself.
    """
    decayed = [parameter for key, parameter in named if key.endswith(".weight")]
    others = [parameter for key, parameter in named if not key.endswith(".weight")]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return _KINDS[name]([group for group in groups if group["params"]], lr=lr)


def named_moments(optimizer: torch.optim.Optimizer, named: NamedParameters) -> dict[str, Tensor]:
    """The optimizer's state as "<slot>/<global name>" → tensor, such as "exp_avg/steps.3.actnorm.bias"."""
    return {
        f"{slot}/{name}": value
        for name, parameter in named
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(optimizer: torch.optim.Optimizer, named: NamedParameters, moments: dict[str, Tensor]) -> None:
    """Gives the optimizer copies of those moments that belong to its parameters; the rest is left alone."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        slot, name = key.split("/", 1)
        by_name.setdefault(name, {})[slot] = value
    for name, parameter in named:
        if name in by_name:
            # `step` stays on the CPU, where PyTorch keeps it.
            optimizer.state[parameter] = {
                slot: value.clone() if slot == "step" else value.to(parameter.device, copy=True)
                for slot, value in by_name[name].items()
            }
