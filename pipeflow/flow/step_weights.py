"""The weights of consecutive steps, made together before the steps are gone through; and going through them."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .step import BatchedStep, Event, Step, Weights

Advance = Callable[[Step, Tensor, Weights | None, Tensor | None], tuple[Tensor, Tensor]]
"""What goes through one step as `advance` does, given its weights and the labels of the images."""


def stacked(modules: Sequence[nn.Module], name: str) -> Tensor:
    """A parameter or buffer of n modules, (n, …)."""
    return torch.stack([getattr(module, name) for module in modules])


def for_each(stack: Tensor, batch: int) -> tuple[Tensor, ...]:
    """(n, …) → n views (batch, …), the same for every image; what is added up over images is so once for all n."""
    return stack[:, None].expand(-1, batch, *stack.shape[1:]).unbind()


def converted(tensor: Tensor, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """A tensor, of many modules at once, in another precision and layout; its gradient as the tensor lay.

    Parameters keep contiguous gradients: left as they come, each module's would be copied by itself.
    """
    result: Tensor = _Converted.apply(dtype, channels_last, tensor)
    return result


class _Converted(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(dtype: torch.dtype, channels_last: bool, tensor: Tensor) -> Tensor:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return tensor.to(dtype, memory_format=layout, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.dtype = inputs[2].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, grad.to(ctx.dtype, memory_format=torch.contiguous_format)


def prepare(steps: Sequence[Step], event: Event, batch: int) -> list[Weights | None]:
    """The weights of each step of a chain that latents (batch, *event) enter; None for steps that make their own."""
    weights: list[Weights | None] = [None] * len(steps)
    for members, entering in _groups(steps, event):
        made = type(members[0][1]).prepare([step for _, step in members], entering, batch)
        for (number, _), one in zip(members, made, strict=True):
            weights[number] = one
    return weights


def prepare_inverse(steps: Sequence[Step], weights: Sequence[Weights | None], event: Event) -> list[Weights | None]:
    """What `prepare` has made for each step → what inverting it needs."""
    inverse: list[Weights | None] = [None] * len(steps)
    for members, _ in _groups(steps, event):
        made = [one for number, _ in members if (one := weights[number]) is not None]
        for (number, _), one in zip(members, type(members[0][1]).prepare_inverse(made), strict=True):
            inverse[number] = one
    return inverse


def _groups(steps: Sequence[Step], event: Event) -> list[tuple[list[tuple[int, BatchedStep]], Event]]:
    """Steps that are prepared together, with their numbers, and the shape of the latents that enter them."""
    groups: dict[Hashable, tuple[list[tuple[int, BatchedStep]], Event]] = {}
    for number, step in enumerate(steps):
        if isinstance(step, BatchedStep) and (group := step.group()) is not None:
            # Whether a GPU's matrix products depend on how many are made at once, nobody promises.
            apart = number if torch.are_deterministic_algorithms_enabled() else None
            groups.setdefault((type(step), event, group, apart), ([], event))[0].append((number, step))
        event = step.out_shape(event)
    return list(groups.values())


def advance(
    step: Step, z: Tensor, weights: Weights | None = None, label: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step: z → z', dlogp."""
    given: dict[str, Any] = {"label": label} if step.conditional else {}
    result: tuple[Tensor, Tensor] = step(z, **given) if weights is None else step(z, weights, **given)
    return result


def encode(
    step: Step, z: Tensor, weights: Weights | None, label: Tensor | None, advance: Advance = advance
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One step: z → z', dlogp, and the standardised variable that left the flow."""
    if type(step).encode is Step.encode:  # nothing leaves the flow here
        return *advance(step, z, weights, label), None
    given: dict[str, Any] = {"label": label} if step.conditional else {}
    return step.encode(z, **given)


def invert(
    step: Step,
    z: Tensor,
    eps: Tensor | None,
    weights: Weights | None = None,
    label: Tensor | None = None,
    guidance: float = 0.0,
) -> Tensor:
    """One step back: z' → z."""
    given: dict[str, Any] = {"label": label, "guidance": guidance} if step.conditional else {}
    if weights is None:
        return step.inverse(z, eps, **given)
    assert isinstance(step, BatchedStep)
    return step.inverse(z, eps, weights, **given)


def added(logp: Tensor, increments: Sequence[Tensor]) -> Tensor:
    """logp (B,) plus what each step adds; on the CPU and in deterministic mode one by one, the same bits in any cut."""
    if logp.is_cuda and not torch.are_deterministic_algorithms_enabled():
        return torch.stack([logp, *increments]).sum(0)
    for increment in increments:
        logp = logp + increment
    return logp
