"""The elementwise work of a flow step around its network, as two differentiable operations.

Written with PyTorch's own operations each would be a dozen kernels forward and more backward, and each kernel costs a
GPU's launch however small the latent is. Here each is one kernel in either direction: on a GPU one of Triton's
(triton_kernels.py), seen by `torch.compile`, CUDA graphs and fake tensors as one operation `pipeflow::…`; on a CPU the
functions below, which are also what the kernels are compared with.
"""

import importlib
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# Triton builds its launcher with a C compiler; without one a GPU runs the functions below as well.
_HAS_TRITON = bool(find_spec("triton") and (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")))


Layout = Literal["contiguous", "channels_last", "rows"]
"""How a coupling network takes latents: (B, C, H, W), or what `around` of matrix_network.py gives."""


def on_gpu(z: Tensor) -> bool:
    """Whether a flow step on z runs the operations that are one kernel each."""
    return z.is_cuda


def mix(
    z: Tensor, matrix: Tensor, bias: Tensor, kept: int, dtype: torch.dtype, layout: Layout
) -> tuple[Tensor, Tensor]:
    """matrix · z + bias at every pixel, and its first channels as the coupling network takes them.

    Args:
        z: latents (B, C, H, W).
        matrix: (C, C); on a GPU (B, C, C), the same for every image, so that its gradient is left a matrix an image,
            which whoever expanded it adds up for many steps at once.
        bias: (C,); on a GPU (B, C) likewise.
        kept: channels that the network sees.
        dtype, layout: what it takes; "rows" on a GPU only.

    Returns:
        z' (B, C, H, W) and z'[:, :kept] in memory of its own.
    """
    out, seen = _Mix.apply(kept, dtype, layout, z, matrix, bias)
    return out, seen


def affine(
    z: Tensor, raw: Tensor, gain: Tensor, log_det: Tensor, kept: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The affine coupling behind its network: z_b' = (z_b + shift) · σ(x + 2), with (shift, x) = gain · (raw + bias).

    Args:
        z: latents (B, C, H, W), float32 (or float64).
        raw: (B, 2(C − kept), H, W), what the network's last convolution gives, in any precision and layout.
        gain: (B, 2(C − kept)), the same for every image; its gradient is left a vector an image.
        log_det: (B,), is added to the result.
        kept: channels that stay as they are.
        bias: as `gain`; None where the network has added it.

    Returns:
        z' (B, C, H, W) and dlogp (B,).
    """
    out, dlogp = _Affine.apply(kept, bias, z, raw, gain, log_det)
    return out, dlogp


class _Mix(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        kept: int, dtype: torch.dtype, layout: Layout, z: Tensor, matrix: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        last = layout == "channels_last"
        if on_gpu(z):
            out = torch.bmm(matrix, z.flatten(2)).view(z.shape)
            ops, given = torch.ops.pipeflow, (out, bias, kept, dtype)
            result: tuple[Tensor, Tensor] = ops.shift_rows(*given) if layout == "rows" else ops.shift(*given, last)
            return result
        out = F.conv2d(z, matrix[:, :, None, None], bias)
        return out, _taken(out, kept, dtype, last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.rows = inputs[2] == "rows"
        ctx.save_for_backward(*inputs[3:5])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_seen: Tensor) -> tuple[Tensor | None, ...]:
        z, matrix = ctx.saved_tensors
        need_z, need_matrix, need_bias = ctx.needs_input_grad[3:]
        if on_gpu(z):
            ops = torch.ops.pipeflow
            grad, grad_bias = (ops.shift_rows_backward if ctx.rows else ops.shift_backward)(grad, grad_seen)
            flat = grad.flatten(2)
            grad_z = torch.bmm(matrix.mT, flat).view(z.shape) if need_z else None
            grad_matrix = torch.bmm(flat, z.flatten(2).mT) if need_matrix else None
            return None, None, None, grad_z, grad_matrix, grad_bias
        grad = torch.cat([grad[:, : grad_seen.shape[1]] + grad_seen, grad[:, grad_seen.shape[1] :]], 1)
        grad_z, grad_matrix, grad_bias = torch.ops.aten.convolution_backward(
            grad, z, matrix[:, :, None, None], [len(matrix)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
            [need_z, need_matrix, need_bias],
        )  # fmt: skip
        grad_matrix = grad_matrix.view(matrix.shape) if need_matrix else None
        return None, None, None, grad_z, grad_matrix, grad_bias


class _Affine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        kept: int, bias: Tensor | None, z: Tensor, raw: Tensor, gain: Tensor, log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        run = torch.ops.pipeflow.affine if on_gpu(z) else _affine
        result: tuple[Tensor, Tensor] = run(z, raw, gain, log_det, kept, bias)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kept, bias, z, raw, gain, _ = inputs
        ctx.save_for_backward(z, raw, gain, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_dlogp: Tensor) -> tuple[Tensor | None, ...]:
        z, raw, gain, bias = ctx.saved_tensors
        run = torch.ops.pipeflow.affine_backward if on_gpu(z) else _affine_backward
        *grads, grad_bias = run(grad, grad_dlogp, z, raw, gain, ctx.kept, bias)
        return None, None if bias is None else grad_bias, *grads, grad_dlogp


def _taken(z: Tensor, kept: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return z[:, :kept].to(dtype, memory_format=layout, copy=True)


def _shift(z: Tensor, bias: Tensor, kept: int, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor]:
    out = z + bias[:, :, None, None]
    return out, _taken(out, kept, dtype, channels_last)


def _shift_backward(grad: Tensor, grad_seen: Tensor) -> tuple[Tensor, Tensor]:
    kept = grad_seen.shape[1]
    out = torch.cat([grad[:, :kept] + grad_seen, grad[:, kept:]], 1)
    return out, out.sum((2, 3))


def _affine(
    z: Tensor, raw: Tensor, gain: Tensor, log_det: Tensor, kept: int, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    shift, x = (biased(raw, bias) * gain[:, :, None, None]).chunk(2, 1)
    log_scale = F.logsigmoid(x + 2)
    out = torch.cat([z[:, :kept], (z[:, kept:] + shift) * log_scale.exp()], 1)
    return out, log_det + log_scale.flatten(1).sum(1)


def _affine_backward(
    grad: Tensor, grad_dlogp: Tensor, z: Tensor, raw: Tensor, gain: Tensor, kept: int, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = biased(raw, bias)
    shift, x = (given * gain[:, :, None, None]).chunk(2, 1)
    x = x + 2
    grad_moved = grad[:, kept:] * x.sigmoid()
    grad_x = ((z[:, kept:] + shift) * grad_moved + grad_dlogp[:, None, None, None]) * (-x).sigmoid()
    grad_given = torch.cat([grad_moved, grad_x], 1)
    layout = torch.contiguous_format if raw.is_contiguous() else torch.channels_last
    grad_raw = grad_given * gain[:, :, None, None]
    grad_bias = z.new_empty(0) if bias is None else grad_raw.sum((2, 3))
    grad_gain = (grad_given * given).flatten(2).sum(2)
    grad_z = torch.cat([grad[:, :kept], grad_moved], 1)
    return grad_z, grad_raw.to(raw.dtype, memory_format=layout), grad_gain, grad_bias


def biased(raw: Tensor, bias: Tensor | None) -> Tensor:
    """raw (B, C, H, W) plus bias (B, C), if there is one."""
    return raw if bias is None else raw + bias[:, :, None, None]


# Registered by hand: `torch.library.custom_op` takes three times as long to call, and derivatives are above.
_LIBRARY = torch.library.Library("pipeflow", "DEF")  # type: ignore[no-untyped-call]


def define(
    signature: str, reference: Callable[..., Any], fake: Callable[..., Any], kernels: str = "triton_kernels"
) -> None:
    """Registers an operation: on a GPU a kernel of the same name, in float64 and elsewhere its reference.

    Args:
        signature: as `torch.library` takes it.
        reference: computes it on any device.
        fake: the shapes of its results.
        kernels: the module with the kernel.
    """
    name = signature.partition("(")[0]

    def on_cuda(first: Tensor, *others: Any) -> Any:
        if first.dtype == torch.float64 or not _HAS_TRITON:
            return reference(first, *others)
        module = importlib.import_module(f".{kernels}", __package__)
        with torch.cuda.device(first.device):
            return getattr(module, name)(first, *others)

    _LIBRARY.define(signature)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, on_cuda, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"pipeflow::{name}", fake, lib=_LIBRARY)


define(
    "shift(Tensor z, Tensor bias, int kept, ScalarType dtype, bool channels_last) -> (Tensor, Tensor)",
    _shift,
    lambda z, bias, kept, dtype, channels_last: (z.new_empty(z.shape), _taken(z, kept, dtype, channels_last)),
)
define(
    "shift_backward(Tensor grad, Tensor grad_seen) -> (Tensor, Tensor)",
    _shift_backward,
    lambda grad, grad_seen: (grad.new_empty(grad.shape), grad.new_empty(grad.shape[:2])),
)
define(
    "affine(Tensor z, Tensor raw, Tensor gain, Tensor log_det, int kept, Tensor? bias) -> (Tensor, Tensor)",
    _affine,
    lambda z, raw, gain, log_det, kept, bias: (z.new_empty(z.shape), z.new_empty(len(z))),
)
define(
    "affine_backward(Tensor grad, Tensor grad_dlogp, Tensor z, Tensor raw, Tensor gain, int kept, Tensor? bias)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _affine_backward,
    lambda grad, grad_dlogp, z, raw, gain, kept, bias: (
        z.new_empty(z.shape),
        torch.empty_like(raw),
        z.new_empty(raw.shape[:2]),
        z.new_empty(0 if bias is None else raw.shape[:2]),
    ),
)
