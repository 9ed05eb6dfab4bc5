"""A coupling network as three matrix products, for a GPU's tensor cores.

Its first convolution has a few channels in and its last a few out, shapes for which a library's convolutions waste most
of a tensor core, and none of them adds the bias or clamps as it goes. So the nine neighbours of a pixel are laid side
by side: the first convolution is a product of these rows, the last one gives what each pixel adds to its nine
neighbours, and the products add biases and clamp. Rows are padded to a multiple of 8 numbers, which products want; the
first number beyond the neighbours is 1, so that a product with the rows' gradients sums these too.
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
    """Numbers in a row of the nine neighbours of a pixel, a 1, and what is padded."""
    return -(-(9 * channels + 1) // _MULTIPLE) * _MULTIPLE


def channels_of(rows: Tensor) -> int:
    """(…, columns(C)) → C."""
    return (rows.shape[-1] - 1) // 9


def rows_of(tensors: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """What `network` takes of n networks, all made at once.

    Args:
        tensors: per network (hidden, C, 3, 3), (hidden,), (hidden, hidden, 1, 1), (hidden,), (out, hidden, 3, 3):
            weight and bias of each convolution; without the last bias, which whoever takes the result adds.
        dtype: that networks compute in.
    """
    first, first_bias, middle, middle_bias, last = (
        converted(torch.stack(kind), dtype) for kind in zip(*tensors, strict=True)
    )
    into, onto = _rows(first.movedim(2, 4)), _rows(last.movedim(1, 4))
    kinds = (into, first_bias, middle.flatten(2), middle_bias, onto)
    return list(zip(*(kind.unbind() for kind in kinds), strict=True))


def around(z: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H, W, columns(C)): each pixel's nine neighbours, a 1, and zeros."""
    result: Tensor = _Around.apply(z)
    return result


def network(rows: Tensor, *weights: Tensor) -> Tensor:
    """3×3 convolution, ReLU, 1×1 convolution, ReLU, 3×3 convolution without its bias.

    Args:
        rows: (B, H, W, columns(C)), of `around` or of `mix`.
        weights: of one network, from `rows_of`.

    Returns:
        (B, out, H, W), channels last.
    """
    result: Tensor = _Network.apply(rows, *weights)
    return result


class _Around(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        rows: Tensor = torch.ops.pipeflow.neighbours(z, 1)
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad_z: Tensor = torch.ops.pipeflow.overlapped(grad, 1)
        return grad_z


class _Network(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *weights: Tensor) -> Tensor:
        into, first_bias, between, middle_bias, onto = weights
        hidden = torch._addmm_activation(first_bias, rows.flatten(0, 2), into.t())
        second = torch._addmm_activation(middle_bias, hidden, between.t())
        ctx.save_for_backward(rows, hidden, second, into, between, onto)
        out: Tensor = torch.ops.pipeflow.overlapped((second @ onto).view(*rows.shape[:3], -1), -1)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, second, into, between, onto = ctx.saved_tensors
        given = torch.ops.pipeflow.neighbours(grad, -1).flatten(0, 2)
        grad_second = torch.ops.aten.threshold_backward(given @ onto.t(), second, 0)
        grad_hidden = torch.ops.aten.threshold_backward(grad_second @ between, hidden, 0)
        grad_into = grad_hidden.t() @ rows.flatten(0, 2)
        return (
            (grad_hidden @ into).view(rows.shape) if ctx.needs_input_grad[0] else None,
            grad_into,
            grad_into[:, 9 * channels_of(rows)],
            grad_second.t() @ hidden,
            grad_second.sum(0),
            second.t() @ given,
        )


def _rows(kernels: Tensor) -> Tensor:
    """(n, hidden, 3, 3, C) → (n, hidden, columns(C)): a row has what each neighbour is multiplied by, and zeros."""
    rows = kernels.flatten(2)
    return F.pad(rows, (0, columns(kernels.shape[4]) - rows.shape[2]))


def _neighbours(z: Tensor, sign: int) -> Tensor:
    """(B, C, H, W) → (B, H, W, columns(C)): the nine pixels around each, with sign −1 in reverse order; 1; zeros."""
    batch, channels, height, width = z.shape
    found = F.unfold(z if z.dtype == torch.float64 else z.float(), 3, padding=1)
    found = found.view(batch, channels, 9, height * width)
    found = (found if sign > 0 else found.flip(2)).permute(0, 3, 2, 1).reshape(batch, height, width, 9 * channels)
    found = F.pad(found.to(z.dtype), (0, columns(channels) - 9 * channels))
    found[..., 9 * channels] = 1
    return found


def _overlapped(rows: Tensor, sign: int) -> Tensor:
    """The adjoint of `_neighbours`: (B, H, W, columns(C)) → (B, C, H, W), channels last."""
    return _summed(rows, sign).to(rows.dtype, memory_format=torch.channels_last)


def _summed(rows: Tensor, sign: int) -> Tensor:
    """The same in float32 or float64."""
    (batch, height, width, _), channels = rows.shape, channels_of(rows)
    parts = rows[..., : 9 * channels]
    parts = (parts if rows.dtype == torch.float64 else parts.float()).reshape(batch, height * width, 9, channels)
    parts = (parts if sign > 0 else parts.flip(2)).permute(0, 3, 2, 1).reshape(batch, 9 * channels, height * width)
    return F.fold(parts, (height, width), 3, padding=1)


def _shift_rows(z: Tensor, bias: Tensor, kept: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `_shift` of fused.py, but the first channels come as rows."""
    out = z + bias[:, :, None, None]
    return out, _neighbours(out[:, :kept].to(dtype), 1)


def _shift_rows_backward(grad: Tensor, grad_rows: Tensor) -> tuple[Tensor, Tensor]:
    kept = channels_of(grad_rows)
    out = torch.cat([grad[:, :kept] + _summed(grad_rows, 1).to(grad.dtype), grad[:, kept:]], 1)
    return out, out.sum((2, 3))


def _empty_rows(z: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    return z.new_empty(len(z), *z.shape[2:], columns(channels), dtype=dtype)


define(
    "neighbours(Tensor z, int sign) -> Tensor",
    _neighbours,
    lambda z, sign: _empty_rows(z, z.shape[1], z.dtype),
    "triton_neighbours",
)
define(
    "overlapped(Tensor rows, int sign) -> Tensor",
    _overlapped,
    lambda rows, sign: rows.new_empty(*rows.shape[:3], channels_of(rows)).permute(0, 3, 1, 2),
    "triton_neighbours",
)
define(
    "shift_rows(Tensor z, Tensor bias, int kept, ScalarType dtype) -> (Tensor, Tensor)",
    _shift_rows,
    lambda z, bias, kept, dtype: (z.new_empty(z.shape), _empty_rows(z, kept, dtype)),
    "triton_neighbours",
)
define(
    "shift_rows_backward(Tensor grad, Tensor grad_rows) -> (Tensor, Tensor)",
    _shift_rows_backward,
    lambda grad, grad_rows: (grad.new_empty(grad.shape), grad.new_empty(grad.shape[:2])),
    "triton_neighbours",
)
