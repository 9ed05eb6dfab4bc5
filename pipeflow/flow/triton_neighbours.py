"""The kernels behind the operations of matrix_network.py, one launch each.

Each number is read, or added up in float32 in a fixed order, by one program; nothing depends on timing. A program takes
a few pixels, or one image where it sums over its pixels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .matrix_network import channels_of, columns

_TILE = 1024  # elements


@triton.jit  # type: ignore[untyped-decorator]
def _store_rest(rows, p, c, channels, columns, inside, TILE_P: tl.constexpr, TILE_C: tl.constexpr):
    """The numbers of a row beyond the neighbours: 1, and zeros."""
    rest = tl.where(c == 0, 1.0, 0.0) + tl.zeros((TILE_P, TILE_C), tl.float32)
    target = rows + p[:, None] * columns + 9 * channels + c
    tl.store(target, rest.to(rows.dtype.element_ty), mask=inside[:, None] & (c < columns - 9 * channels))


@triton.jit  # type: ignore[untyped-decorator]
def _neighbours_kernel(
    z, rows, pixels, height, width, channels, columns, z_image, z_channel, z_row, z_column,
    SIGN: tl.constexpr, TILE_P: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * TILE_P + tl.arange(0, TILE_P)
    c = tl.arange(0, TILE_C)[None, :]
    inside = p < pixels
    image, i, j = p // (height * width), p // width % height, p % width
    for k in tl.static_range(9):
        from_i, from_j = i + SIGN * (k // 3 - 1), j + SIGN * (k % 3 - 1)
        there = inside & (from_i >= 0) & (from_i < height) & (from_j >= 0) & (from_j < width)
        at = z + image * z_image + from_i * z_row + from_j * z_column
        value = tl.load(at[:, None] + c * z_channel, mask=there[:, None] & (c < channels), other=0.0)
        target = rows + p[:, None] * columns + k * channels + c
        tl.store(target, value, mask=inside[:, None] & (c < channels))
    _store_rest(rows, p, c, channels, columns, inside, TILE_P, TILE_C)


@triton.jit  # type: ignore[untyped-decorator]
def _overlapped_kernel(
    rows, out, pixels, height, width, channels, columns,
    SIGN: tl.constexpr, TILE_P: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * TILE_P + tl.arange(0, TILE_P)
    c = tl.arange(0, TILE_C)[None, :]
    inside = p < pixels
    i, j = p // width % height, p % width
    total = tl.zeros((TILE_P, TILE_C), tl.float32)
    for k in tl.static_range(9):
        down, right = -SIGN * (k // 3 - 1), -SIGN * (k % 3 - 1)
        there = inside & (i + down >= 0) & (i + down < height) & (j + right >= 0) & (j + right < width)
        at = rows + (p + down * width + right) * columns + k * channels
        total += tl.load(at[:, None] + c, mask=there[:, None] & (c < channels), other=0.0).to(tl.float32)
    tl.store(out + p[:, None] * channels + c, total.to(out.dtype.element_ty), mask=inside[:, None] & (c < channels))


@triton.jit  # type: ignore[untyped-decorator]
def _shift_rows_kernel(
    z, bias, out, rows, pixels, height, width, channels, kept, columns, bias_image, bias_channel,
    TILE_P: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * TILE_P + tl.arange(0, TILE_P)
    c = tl.arange(0, TILE_C)[None, :]
    inside, area = p < pixels, height * width
    image, i, j = p // area, p // width % height, p % width
    at = (image * channels * area + p % area)[:, None] + c * area
    shift = bias + (image * bias_image)[:, None] + c * bias_channel
    for first in range(0, channels, TILE_C):
        mask = inside[:, None] & (first + c < channels)
        value = tl.load(z + at + first * area, mask=mask, other=0.0)
        value += tl.load(shift + first * bias_channel, mask=mask, other=0.0)
        tl.store(out + at + first * area, value, mask=mask)
    for k in tl.static_range(9):
        down, right = k // 3 - 1, k % 3 - 1
        there = inside & (i + down >= 0) & (i + down < height) & (j + right >= 0) & (j + right < width)
        mask = there[:, None] & (c < kept)
        value = tl.load(z + at + down * width + right, mask=mask, other=0.0) + tl.load(shift, mask=mask, other=0.0)
        target = rows + p[:, None] * columns + k * kept + c
        tl.store(target, value.to(rows.dtype.element_ty), mask=inside[:, None] & (c < kept))
    _store_rest(rows, p, c, kept, columns, inside, TILE_P, TILE_C)


@triton.jit  # type: ignore[untyped-decorator]
def _shift_rows_backward_kernel(
    grad, grad_rows, out, grad_bias, height, width, channels, kept, columns,
    TILE_P: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    image, area = tl.program_id(0).to(tl.int64), height * width
    grad += image * channels * area
    out += image * channels * area
    grad_rows += image * area * columns
    for first in range(0, channels, TILE_C):
        c = first + tl.arange(0, TILE_C)[None, :]
        sums = tl.zeros((TILE_P, TILE_C), tl.float32)
        for first_p in range(0, area, TILE_P):
            p = first_p + tl.arange(0, TILE_P)
            inside, i, j = p < area, p // width, p % width
            mask = inside[:, None] & (c < channels)
            value = tl.load(grad + c * area + p[:, None], mask=mask, other=0.0)
            for k in tl.static_range(9):
                down, right = 1 - k // 3, 1 - k % 3
                there = inside & (i + down >= 0) & (i + down < height) & (j + right >= 0) & (j + right < width)
                at = grad_rows + (p + down * width + right)[:, None] * columns + k * kept + c
                value += tl.load(at, mask=there[:, None] & (c < kept), other=0.0).to(tl.float32)
            tl.store(out + c * area + p[:, None], value, mask=mask)
            sums += value
        channel = first + tl.arange(0, TILE_C)
        tl.store(grad_bias + image * channels + channel, tl.sum(sums, 0), mask=channel < channels)


def neighbours(z: Tensor, sign: int) -> Tensor:
    """As `_neighbours` of matrix_network.py."""
    batch, channels, height, width = z.shape
    rows = torch.empty(batch, height, width, columns(channels), dtype=z.dtype, device=z.device)
    grid, sizes = _tile(channels, batch * height * width)
    _neighbours_kernel[grid](
        z, rows, batch * height * width, height, width, channels, rows.shape[3], *z.stride(), SIGN=sign, **sizes
    )
    return rows


def overlapped(rows: Tensor, sign: int) -> Tensor:
    """As `_overlapped` of matrix_network.py."""
    rows = rows.contiguous()
    (batch, height, width, wide), channels = rows.shape, channels_of(rows)
    out = torch.empty(batch, height, width, channels, dtype=rows.dtype, device=rows.device)
    grid, sizes = _tile(channels, batch * height * width)
    _overlapped_kernel[grid](rows, out, batch * height * width, height, width, channels, wide, SIGN=sign, **sizes)
    return out.permute(0, 3, 1, 2)


def shift_rows(z: Tensor, bias: Tensor, kept: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `_shift_rows` of matrix_network.py."""
    z = z.contiguous()
    batch, channels, height, width = z.shape
    out, rows = torch.empty_like(z), z.new_empty(batch, height, width, columns(kept), dtype=dtype)
    grid, sizes = _tile(kept, batch * height * width)
    _shift_rows_kernel[grid](
        z, bias, out, rows, batch * height * width, height, width, channels, kept, rows.shape[3], *bias.stride(),
        **sizes,
    )  # fmt: skip
    return out, rows


def shift_rows_backward(grad: Tensor, grad_rows: Tensor) -> tuple[Tensor, Tensor]:
    """As `_shift_rows_backward` of matrix_network.py."""
    grad, grad_rows = grad.contiguous(), grad_rows.contiguous()
    batch, channels, height, width = grad.shape
    out, grad_bias = torch.empty_like(grad), grad.new_empty(batch, channels)
    wide = min(32, max(8, triton.next_power_of_2(channels)))
    high = min(4 * _TILE // wide, max(8, triton.next_power_of_2(height * width)))
    _shift_rows_backward_kernel[(batch,)](
        grad, grad_rows, out, grad_bias, height, width, channels, channels_of(grad_rows), grad_rows.shape[3],
        TILE_P=high, TILE_C=wide, num_warps=8,
    )  # fmt: skip
    return out, grad_bias


def _tile(channels: int, pixels: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and the sizes of a tile; a tile has all channels, and as many as a row has numbers beyond them."""
    wide = max(8, triton.next_power_of_2(channels))
    high = max(8, _TILE // wide)
    return (triton.cdiv(pixels, high),), {"TILE_P": high, "TILE_C": wide, "num_warps": 4}
