"""Optimizers whose state is keyed by parameter name.

`optimizer.state_dict()` numbers its parameters in the order of construction, so the state of a part means nothing to
another cut. Keyed by global name, the states of all parts are joined, cut again and saved like weights.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ..distributed import spread_like

OptimizerName = Literal["adam", "adamax", "adamw"]
_KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
}

NamedParameters = list[tuple[str, nn.Parameter]]
NORM = "norm"
"""The slot of a mean that gradients are clipped by (adaptive_clip.py); it is kept like moments, and none."""


def make_optimizer(
    name: OptimizerName, named: NamedParameters, lr: float, weight_decay: float = 0.0, fused: bool | None = None
) -> torch.optim.Optimizer:
    """An optimizer with PyTorch's defaults.

    Args:
        name: "adam", "adamw", or "adamax", of which PyTorch has no fused kernel: the host waits for every gradient.
        named: (global name, parameter).
        lr: learning rate.
        weight_decay: of the weights of networks only; decaying a bias, a scale or a rotation bends the flow itself.
        fused: one kernel for many parameters, which can also skip an update without the host; of "adam" and "adamw",
            and by default for parameters on a GPU.
    """
    decayed = [parameter for key, parameter in named if key.endswith(".weight")]
    others = [parameter for key, parameter in named if not key.endswith(".weight")]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    if fused is None:
        fused = all(parameter.is_cuda for _, parameter in named)
    options = {"fused": True} if fused and name in ("adam", "adamw") else {}
    return _KINDS[name]([group for group in groups if group["params"]], lr=lr, **options)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def keep_lr_on_device(optimizer: torch.optim.Optimizer) -> None:
    """A fused optimizer reads its learning rate from the device from now on; float32, as its kernels want it."""
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), group["lr"], dtype=torch.float32, device=group["params"][0].device)


def allow_recording(optimizer: torch.optim.Optimizer) -> None:
    """Marks the optimizer as capturable; call it right before capture: PyTorch warns about a marked one that steps."""
    for group in optimizer.param_groups:
        group["capturable"] = True


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `skip_if` works for it: whether it is one of PyTorch's fused ones.

    Adamax has no such kernel, and what it has cannot be made to stand still from outside: 0 · NaN is NaN, so a scale of
    0 does not keep a bad gradient out of the moments, decays are numbers of the host, and no kernel that takes many
    tensors at once selects. A kernel a tensor and slot to take everything back, or a copy of weights and moments, would
    cost more than the wait; so there the host looks.
    """
    return all(group.get("fused") for group in optimizer.param_groups)


def skip_if(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Lets a fused optimizer's next step change nothing, its count of steps neither, if `bad` (a scalar) is true.

    This is the attribute that `torch.amp.GradScaler` uses.
    """
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]


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
        if slot != NORM:
            by_name.setdefault(name, {})[slot] = value
    fused = can_skip(optimizer)
    for name, parameter in named:
        if name in by_name:
            # PyTorch keeps `step` on the CPU, but for fused optimizers.
            optimizer.state[parameter] = {
                slot: value.to(parameter.device if fused else "cpu", copy=True)
                if slot == "step"
                else spread_like(value, parameter)
                for slot, value in by_name[name].items()
            }
