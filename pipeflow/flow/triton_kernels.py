"""The kernels behind the operations of fused.py on a GPU, one launch each: a program for each image.

A program goes over its image in tiles of channels × pixels; nothing is added across programs, so that results do not
depend on timing. Latents are float32 and contiguous, what a network takes or gives is in any precision and layout.
Sizes: `kept` + `moved` = C channels, `pixels` = H·W.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # elements


@triton.jit  # type: ignore[untyped-decorator]
def _shift_kernel(
    z, bias, out, seen,
    channels, pixels, kept, bias_image, bias_channel, seen_image, seen_channel, seen_pixel,
    TILE_C: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    z += image * channels * pixels
    out += image * channels * pixels
    bias += image * bias_image
    seen += image * seen_image
    for first_c in range(0, channels, TILE_C):
        c = (first_c + tl.arange(0, TILE_C))[:, None]
        shift = tl.load(bias + c * bias_channel, mask=c < channels, other=0.0)
        for first_p in range(0, pixels, TILE_P):
            p = first_p + tl.arange(0, TILE_P)[None, :]
            inside = (c < channels) & (p < pixels)
            value = tl.load(z + c * pixels + p, mask=inside, other=0.0) + shift
            tl.store(out + c * pixels + p, value, mask=inside)
            taken = value.to(seen.dtype.element_ty)
            tl.store(seen + c * seen_channel + p * seen_pixel, taken, mask=(c < kept) & (p < pixels))


@triton.jit  # type: ignore[untyped-decorator]
def _shift_backward_kernel(
    grad, grad_seen, out, grad_bias,
    channels, pixels, kept, seen_image, seen_channel, seen_pixel,
    TILE_C: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    grad += image * channels * pixels
    out += image * channels * pixels
    grad_seen += image * seen_image
    for first_c in range(0, channels, TILE_C):
        rows = first_c + tl.arange(0, TILE_C)
        c = rows[:, None]
        total = tl.zeros((TILE_C, TILE_P), tl.float32)
        for first_p in range(0, pixels, TILE_P):
            p = first_p + tl.arange(0, TILE_P)[None, :]
            inside = (c < channels) & (p < pixels)
            seen = tl.load(grad_seen + c * seen_channel + p * seen_pixel, mask=(c < kept) & (p < pixels), other=0.0)
            value = tl.load(grad + c * pixels + p, mask=inside, other=0.0) + seen.to(tl.float32)
            tl.store(out + c * pixels + p, value, mask=inside)
            total += value
        tl.store(grad_bias + image * channels + rows, tl.sum(total, 1), mask=rows < channels)


@triton.jit  # type: ignore[untyped-decorator]
def _copy(source, target, channels, pixels, TILE_C: tl.constexpr, TILE_P: tl.constexpr):
    """The first channels of an image."""
    for first_c in range(0, channels, TILE_C):
        c = (first_c + tl.arange(0, TILE_C))[:, None]
        for first_p in range(0, pixels, TILE_P):
            p = first_p + tl.arange(0, TILE_P)[None, :]
            inside = (c < channels) & (p < pixels)
            tl.store(target + c * pixels + p, tl.load(source + c * pixels + p, mask=inside, other=0.0), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _two(source, rows, stride, moved, GIVEN: tl.constexpr):
    """Of 2 · moved numbers those of some channels in either half, as columns; zeros if none are given."""
    at, mask = (source + rows * stride)[:, None], ((rows < moved) & GIVEN)[:, None]
    return tl.load(at, mask=mask, other=0.0), tl.load(at + moved * stride, mask=mask, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _affine_kernel(
    z, raw, gain, bias, log_det, out, dlogp,
    kept, moved, pixels, raw_image, raw_channel, raw_pixel, gain_image, gain_channel, bias_image, bias_channel,
    log_det_image,
    HAS_BIAS: tl.constexpr, TILE_C: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    z += image * (kept + moved) * pixels
    out += image * (kept + moved) * pixels
    raw += image * raw_image
    gain += image * gain_image
    bias += image * bias_image
    _copy(z, out, kept, pixels, TILE_C, TILE_P)
    z += kept * pixels
    out += kept * pixels
    total = tl.zeros((TILE_C, TILE_P), tl.float32)
    for first_c in range(0, moved, TILE_C):
        rows = first_c + tl.arange(0, TILE_C)
        gain_shift, gain_x = _two(gain, rows, gain_channel, moved, True)
        bias_shift, bias_x = _two(bias, rows, bias_channel, moved, HAS_BIAS)
        c = rows[:, None]
        for first_p in range(0, pixels, TILE_P):
            p = first_p + tl.arange(0, TILE_P)[None, :]
            inside = (c < moved) & (p < pixels)
            at = raw + c * raw_channel + p * raw_pixel
            shift = (tl.load(at, mask=inside, other=0.0).to(tl.float32) + bias_shift) * gain_shift
            x = (tl.load(at + moved * raw_channel, mask=inside, other=0.0).to(tl.float32) + bias_x) * gain_x + 2.0
            value = tl.load(z + c * pixels + p, mask=inside, other=0.0)
            log_scale = tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))
            tl.store(out + c * pixels + p, (value + shift) * tl.exp(log_scale), mask=inside)
            total += tl.where(inside, log_scale, 0.0)
    tl.store(dlogp + image, tl.load(log_det + image * log_det_image) + tl.sum(tl.sum(total, 1), 0))


@triton.jit  # type: ignore[untyped-decorator]
def _affine_backward_kernel(
    grad, grad_dlogp, z, raw, gain, bias, grad_z, grad_raw, grad_gain, grad_bias,
    kept, moved, pixels, raw_image, raw_channel, raw_pixel, gain_image, gain_channel, bias_image, bias_channel,
    dlogp_image,
    HAS_BIAS: tl.constexpr, TILE_C: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    grad += image * (kept + moved) * pixels
    z += image * (kept + moved) * pixels
    grad_z += image * (kept + moved) * pixels
    raw += image * raw_image
    grad_raw += image * raw_image
    gain += image * gain_image
    bias += image * bias_image
    grad_gain += image * 2 * moved
    grad_bias += image * 2 * moved
    grad_log_scale = tl.load(grad_dlogp + image * dlogp_image)
    _copy(grad, grad_z, kept, pixels, TILE_C, TILE_P)
    z += kept * pixels
    grad += kept * pixels
    grad_z += kept * pixels
    for first_c in range(0, moved, TILE_C):
        rows = first_c + tl.arange(0, TILE_C)
        gain_shift, gain_x = _two(gain, rows, gain_channel, moved, True)
        c = rows[:, None]
        total_shift = tl.zeros((TILE_C, TILE_P), tl.float32)
        total_x = tl.zeros((TILE_C, TILE_P), tl.float32)
        bias_shift, bias_x = _two(bias, rows, bias_channel, moved, HAS_BIAS)
        sum_shift = tl.zeros((TILE_C, TILE_P), tl.float32)
        sum_x = tl.zeros((TILE_C, TILE_P), tl.float32)
        for first_p in range(0, pixels, TILE_P):
            p = first_p + tl.arange(0, TILE_P)[None, :]
            inside = (c < moved) & (p < pixels)
            at = c * raw_channel + p * raw_pixel
            raw_shift = tl.load(raw + at, mask=inside, other=0.0).to(tl.float32) + bias_shift
            raw_x = tl.load(raw + at + moved * raw_channel, mask=inside, other=0.0).to(tl.float32) + bias_x
            value = tl.load(z + c * pixels + p, mask=inside, other=0.0)
            x = raw_x * gain_x + 2.0
            small = tl.exp(-tl.abs(x))  # σ(|x|) = 1 / (1 + small), σ(−|x|) = small / (1 + small)
            scale = tl.where(x >= 0, 1.0, small) / (1.0 + small)
            rest = tl.where(x >= 0, small, 1.0) / (1.0 + small)
            moved_grad = tl.load(grad + c * pixels + p, mask=inside, other=0.0) * scale
            x_grad = ((value + raw_shift * gain_shift) * moved_grad + grad_log_scale) * rest
            tl.store(grad_z + c * pixels + p, moved_grad, mask=inside)
            kind = grad_raw.dtype.element_ty
            tl.store(grad_raw + at, (moved_grad * gain_shift).to(kind), mask=inside)
            tl.store(grad_raw + at + moved * raw_channel, (x_grad * gain_x).to(kind), mask=inside)
            total_shift += moved_grad * raw_shift
            total_x += tl.where(inside, x_grad * raw_x, 0.0)
            sum_shift += moved_grad * gain_shift
            sum_x += tl.where(inside, x_grad * gain_x, 0.0)
        tl.store(grad_gain + rows, tl.sum(total_shift, 1), mask=rows < moved)
        tl.store(grad_gain + moved + rows, tl.sum(total_x, 1), mask=rows < moved)
        tl.store(grad_bias + rows, tl.sum(sum_shift, 1), mask=(rows < moved) & HAS_BIAS)
        tl.store(grad_bias + moved + rows, tl.sum(sum_x, 1), mask=(rows < moved) & HAS_BIAS)


def _tile(channels: int, pixels: int) -> dict[str, int]:
    """Sizes of a tile, powers of two."""
    most = min(32, triton.next_power_of_2(channels))
    return {"TILE_C": most, "TILE_P": min(_TILE // most, triton.next_power_of_2(pixels)), "num_warps": 4}


def _image_channel_pixel(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of (B, C, H, W), of whose dimensions H and W are one in memory."""
    assert tensor.stride(2) == tensor.shape[3] * tensor.stride(3) or 1 in tensor.shape[2:]
    pixel = tensor.stride(3) if tensor.shape[3] > 1 else tensor.stride(2)
    return tensor.stride(0), tensor.stride(1), pixel


def _dense(tensor: Tensor) -> Tensor:
    """A network's tensor as it is, contiguous or channels last; others are copied."""
    return tensor if tensor.is_contiguous(memory_format=torch.channels_last) else tensor.contiguous()


def shift(z: Tensor, bias: Tensor, kept: int, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor]:
    """As `_shift` of fused.py."""
    z = z.contiguous()
    batch, channels, height, width = z.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    seen = torch.empty(batch, kept, height, width, dtype=dtype, device=z.device, memory_format=layout)
    out = torch.empty_like(z)
    _shift_kernel[(batch,)](
        z, bias, out, seen, channels, height * width, kept, *bias.stride(), *_image_channel_pixel(seen),
        **_tile(channels, height * width),
    )  # fmt: skip
    return out, seen


def shift_backward(grad: Tensor, grad_seen: Tensor) -> tuple[Tensor, Tensor]:
    """As `_shift_backward` of fused.py."""
    grad, grad_seen = grad.contiguous(), _dense(grad_seen)
    batch, channels, height, width = grad.shape
    out, grad_bias = torch.empty_like(grad), grad.new_empty(batch, channels)
    _shift_backward_kernel[(batch,)](
        grad, grad_seen, out, grad_bias, channels, height * width, grad_seen.shape[1], *_image_channel_pixel(grad_seen),
        **_tile(channels, height * width),
    )  # fmt: skip
    return out, grad_bias


def affine(
    z: Tensor, raw: Tensor, gain: Tensor, log_det: Tensor, kept: int, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `_affine` of fused.py."""
    z, raw = z.contiguous(), _dense(raw)
    out, dlogp, given = torch.empty_like(z), z.new_empty(len(z)), gain if bias is None else bias
    sizes, tile = _sizes(z, raw, gain, given, kept)
    _affine_kernel[(len(z),)](
        z, raw, gain, given, log_det, out, dlogp, *sizes, log_det.stride(0), HAS_BIAS=bias is not None, **tile
    )
    return out, dlogp


def affine_backward(
    grad: Tensor, grad_dlogp: Tensor, z: Tensor, raw: Tensor, gain: Tensor, kept: int, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_affine_backward` of fused.py."""
    grad, z, raw = grad.contiguous(), z.contiguous(), _dense(raw)
    grad_z, grad_raw, grad_gain = torch.empty_like(z), torch.empty_like(raw), z.new_empty(raw.shape[:2])
    grad_bias, given = (z.new_empty(0), gain) if bias is None else (torch.empty_like(grad_gain), bias)
    sizes, tile = _sizes(z, raw, gain, given, kept)
    _affine_backward_kernel[(len(z),)](
        grad, grad_dlogp, z, raw, gain, given, grad_z, grad_raw, grad_gain, grad_bias, *sizes, grad_dlogp.stride(0),
        HAS_BIAS=bias is not None, **tile,
    )  # fmt: skip
    return grad_z, grad_raw, grad_gain, grad_bias


def _sizes(z: Tensor, raw: Tensor, gain: Tensor, bias: Tensor, kept: int) -> tuple[tuple[Any, ...], dict[str, int]]:
    moved, pixels = z.shape[1] - kept, z.shape[2] * z.shape[3]
    return (kept, moved, pixels, *_image_channel_pixel(raw), *gain.stride(), *bias.stride()), _tile(moved, pixels)
