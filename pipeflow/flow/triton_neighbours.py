"""The kernels behind `neighbours` and `overlapped` of matrix_network.py: a program for each few pixels.

Each number is read, or added up in float32 in a fixed order, by one program; nothing depends on timing.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024  # elements


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
    rest = columns - 9 * channels
    zeros = tl.zeros((TILE_P, TILE_C), rows.dtype.element_ty)
    tl.store(rows + p[:, None] * columns + 9 * channels + c, zeros, mask=inside[:, None] & (c < rest))


@triton.jit  # type: ignore[untyped-decorator]
def _overlapped_kernel(
    rows, bias, out, pixels, height, width, channels, columns,
    HAS_BIAS: tl.constexpr, SIGN: tl.constexpr, TILE_P: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * TILE_P + tl.arange(0, TILE_P)
    c = tl.arange(0, TILE_C)[None, :]
    inside = p < pixels
    i, j = p // width % height, p % width
    total = tl.zeros((TILE_P, TILE_C), tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    for k in tl.static_range(9):
        down, right = -SIGN * (k // 3 - 1), -SIGN * (k % 3 - 1)
        there = inside & (i + down >= 0) & (i + down < height) & (j + right >= 0) & (j + right < width)
        at = rows + (p + down * width + right) * columns + k * channels
        total += tl.load(at[:, None] + c, mask=there[:, None] & (c < channels), other=0.0).to(tl.float32)
    tl.store(out + p[:, None] * channels + c, total.to(out.dtype.element_ty), mask=inside[:, None] & (c < channels))


def _tile(channels: int, pixels: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and the sizes of a tile; a tile has all channels, and as many as a row has zeros at its end."""
    wide = max(8, triton.next_power_of_2(channels))
    high = max(8, _TILE // wide)
    return (triton.cdiv(pixels, high),), {"TILE_P": high, "TILE_C": wide, "num_warps": 4}


def neighbours(z: Tensor, columns: int, sign: int) -> Tensor:
    """As `_neighbours` of matrix_network.py."""
    batch, channels, height, width = z.shape
    pixels = batch * height * width
    rows = torch.empty(pixels, columns, dtype=z.dtype, device=z.device)
    image, channel, row, column = z.stride()
    grid, sizes = _tile(channels, pixels)
    strides: Any = (image, channel, row, column)
    _neighbours_kernel[grid](z, rows, pixels, height, width, channels, columns, *strides, SIGN=sign, **sizes)
    return rows


def overlapped(rows: Tensor, bias: Tensor | None, channels: int, height: int, width: int, sign: int) -> Tensor:
    """As `_overlapped` of matrix_network.py."""
    rows = rows.contiguous()
    pixels, columns = rows.shape
    out = torch.empty(pixels // (height * width), height, width, channels, dtype=rows.dtype, device=rows.device)
    grid, sizes = _tile(channels, pixels)
    given = rows if bias is None else bias
    _overlapped_kernel[grid](
        rows, given, out, pixels, height, width, channels, columns, HAS_BIAS=bias is not None, SIGN=sign, **sizes
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)
