"""A coupling network as three matrix products, for a GPU's tensor cores.

Its first convolution has a few channels in and its last a few out, shapes for which a library's convolutions waste most
of a tensor core, and none of them adds the bias or clamps as it goes. So the nine neighbours of a pixel are laid side
by side: the first convolution is a product of these rows, the last one gives what each pixel adds to its nine
neighbours, and the products add biases and clamp. Rows are padded to a multiple of 8 numbers, which products want.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .fused import define
from .step_weights import converted

_MULTIPLE = 8


def columns(channels: int) -> int:
    """Numbers in a row of the nine neighbours of a pixel, padded."""
    return -(-9 * channels // _MULTIPLE) * _MULTIPLE


def rows_of(tensors: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """What `network` takes of n networks, all made at once.

    Args:
        tensors: per network (hidden, C, 3, 3), (hidden,), (hidden, hidden, 1, 1), (hidden,), (out, hidden, 3, 3),
            (out,): weight and bias of each convolution.
        dtype: that networks compute in.
    """
    first, first_bias, middle, middle_bias, last, last_bias = (
        converted(torch.stack(kind), dtype) for kind in zip(*tensors, strict=True)
    )
    into, onto = _rows(first.movedim(2, 4)), _rows(last.movedim(1, 4))
    kinds = (into, first_bias, middle.flatten(2), middle_bias, onto, last_bias)
    return list(zip(*(kind.unbind() for kind in kinds), strict=True))


def network(z: Tensor, *weights: Tensor) -> Tensor:
    """3×3 convolution, ReLU, 1×1 convolution, ReLU, 3×3 convolution.

    Args:
        z: (B, C, H, W), channels last.
        weights: of one network, from `rows_of`.

    Returns:
        (B, out, H, W), channels last.
    """
    result: Tensor = _Network.apply(z, *weights)
    return result


class _Network(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, *weights: Tensor) -> Tensor:
        into, first_bias, between, middle_bias, onto, last_bias = weights
        height, width = z.shape[2:]
        around = torch.ops.pipeflow.neighbours(z, into.shape[1], 1)
        hidden = torch._addmm_activation(first_bias, around, into.t())
        second = torch._addmm_activation(middle_bias, hidden, between.t())
        ctx.save_for_backward(around, hidden, second, into, between, onto)
        ctx.shape = tuple(z.shape[1:])
        out: Tensor = torch.ops.pipeflow.overlapped(second @ onto, last_bias, len(last_bias), height, width, -1)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        around, hidden, second, into, between, onto = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        given = torch.ops.pipeflow.neighbours(grad, onto.shape[1], -1)
        grad_second = torch.ops.aten.threshold_backward(given @ onto.t(), second, 0)
        grad_hidden = torch.ops.aten.threshold_backward(grad_second @ between, hidden, 0)
        grad_z = None
        if ctx.needs_input_grad[0]:
            grad_z = torch.ops.pipeflow.overlapped(grad_hidden @ into, None, *ctx.shape, 1)
        return (
            grad_z,
            grad_hidden.t() @ around,
            grad_hidden.sum(0),
            grad_second.t() @ hidden,
            grad_second.sum(0),
            second.t() @ given,
            grad.sum((0, 2, 3)),
        )


def _rows(kernels: Tensor) -> Tensor:
    """(n, hidden, 3, 3, C) → (n, hidden, columns(C)): a row has what each neighbour is multiplied by, and zeros."""
    rows = kernels.flatten(2)
    return F.pad(rows, (0, columns(kernels.shape[4]) - rows.shape[2]))


def _neighbours(z: Tensor, columns: int, sign: int) -> Tensor:
    """(B, C, H, W) → (B·H·W, columns): the nine pixels around each, with sign −1 in reverse order, and zeros."""
    batch, channels, height, width = z.shape
    found = F.unfold(z if z.dtype == torch.float64 else z.float(), 3, padding=1)
    found = found.view(batch, channels, 9, height * width)
    found = (found if sign > 0 else found.flip(2)).permute(0, 3, 2, 1).reshape(batch * height * width, 9 * channels)
    return F.pad(found.to(z.dtype), (0, columns - 9 * channels))


def _overlapped(rows: Tensor, bias: Tensor | None, channels: int, height: int, width: int, sign: int) -> Tensor:
    """The adjoint of `_neighbours`, plus a bias: (B·H·W, columns) → (B, channels, H, W), channels last."""
    parts = rows[:, : 9 * channels]
    parts = (parts if rows.dtype == torch.float64 else parts.float()).reshape(-1, height * width, 9, channels)
    parts = (parts if sign > 0 else parts.flip(2)).permute(0, 3, 2, 1).reshape(-1, 9 * channels, height * width)
    out = F.fold(parts, (height, width), 3, padding=1)
    if bias is not None:
        out = out + bias.to(out.dtype)[:, None, None]
    return out.to(rows.dtype, memory_format=torch.channels_last)


define(
    "neighbours(Tensor z, int columns, int sign) -> Tensor",
    _neighbours,
    lambda z, columns, sign: z.new_empty(z.shape[0] * z.shape[2] * z.shape[3], columns),
    "triton_neighbours",
)
define(
    "overlapped(Tensor rows, Tensor? bias, int channels, int height, int width, int sign) -> Tensor",
    _overlapped,
    lambda rows, bias, channels, height, width, sign: rows.new_empty(
        rows.shape[0] // (height * width), height, width, channels
    ).permute(0, 3, 1, 2),
    "triton_neighbours",
)
