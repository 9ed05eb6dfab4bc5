"""Jet's couplings: half of a latent is moved by a small vision transformer that sees the other half.

Kolesnikov, Pinto and Tschannen, "Jet: A Modern Transformer-Based Normalizing Flow", 2024.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .step import Event, Step
from .transformer import Layer, Transformer

SPATIAL = ("checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv")
"""Which patches a spatial coupling keeps; "-inv" those that the other one moves."""


class _Reordered(torch.autograd.Function):
    """`reorder`; its gradient is a lookup too, by the inverse, where that of an index would add numbers up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.flatten(1)[:, order]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reordered.apply(gradient, inverse, order), None, None


def reorder(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Numbers of x (B, …) by their indices in a flat one: (B, *order.shape).

    Args:
        order: a permutation of the numbers of an example, of the shape that comes out.
        inverse: its inverse, of the shape that enters.
    """
    out: Tensor = _Reordered.apply(x, order, inverse)
    return out


def channel_order(event: Event) -> Tensor:
    """A random half of the channels of every patch, then the other half: indices into a flat latent (D, h, w)."""
    channels, height, width = event
    tokens = height * width
    halves = torch.randperm(channels).view(2, 1, -1)
    return (halves * tokens + torch.arange(tokens).view(-1, 1)).flatten()


def spatial_order(event: Event, kind: str) -> Tensor:
    """Half of the patches, then the other half: indices into a flat latent (D, h, w); kind: one of `SPATIAL`."""
    channels, height, width = event
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    name, _, inverted = kind.partition("-")
    odd = {"checkerboard": rows + columns, "vstripes": 0 * rows + columns, "hstripes": rows + 0 * columns}[name] % 2
    patches = torch.argsort(odd.flatten() ^ bool(inverted), stable=True)
    return (patches.view(-1, 1) + torch.arange(channels) * height * width).flatten()


class JetCoupling(Step):
    """z_b' = (z_b + shift) · 2σ(raw) with (shift, raw) = transformer(z_a), for halves a, b of all numbers of a latent.

    Each half enters the transformer as a token per patch, with half of the numbers of a patch.

    Args:
        event: shape (D, h, w) of the latents, D numbers per patch; D and h·w even.
        order: (D·h·w,) indices into a flat latent: half a, then half b, each by patches.
        depth, width, heads: of the transformer.
        classes: how many labels there are; 0 for none.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, event: Event, order: Tensor, depth: int, width: int, heads: int, classes: int = 0) -> None:
        super().__init__()
        self.conditional, self.classes = bool(classes), classes
        channels, tokens = event[0], event[1] * event[2]
        self.register_buffer("order", order.view(2, tokens, channels // 2))
        self.register_buffer("inverse_order", torch.argsort(order).view(event))
        self.network = Transformer(
            channels // 2, channels, tokens, width, depth, heads,
            position_sd=width**-0.5, eps=1e-6, gelu="tanh", final_norm=True, classes=classes,
        )  # fmt: skip
        for layer in self.network.layers:
            assert isinstance(layer, Layer)
            _glorot(layer, width)

    def forward(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z_a, z_b = self._apart(z)
        shift, raw = self.network(z_a, label=label).chunk(2, 2)
        log_scale = F.logsigmoid(raw) + math.log(2)
        return self._together(z_a, (z_b + shift) * log_scale.exp()), log_scale.flatten(1).sum(1)

    def inverse(
        self, z: Tensor, eps: Tensor | None = None, label: Tensor | None = None, guidance: float = 0.0
    ) -> Tensor:
        z_a, z_b = self._apart(z)
        shift, raw = self.network(z_a, label=label, guidance=guidance).chunk(2, 2)
        return self._together(z_a, z_b * (-F.logsigmoid(raw) - math.log(2)).exp() - shift)

    def _apart(self, z: Tensor) -> tuple[Tensor, ...]:
        return reorder(z, self.order, self.inverse_order).unbind(1)

    def _together(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        return reorder(torch.stack([z_a, z_b], 1), self.inverse_order, self.order)


def _glorot(layer: Layer, width: int) -> None:
    """The published start: Glorot's for each of query, key and value, and for the layer's other weights."""
    nn.init.uniform_(layer.qkv.weight, -math.sqrt(3 / width), math.sqrt(3 / width))
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
            if module is not layer.qkv:
                nn.init.xavier_uniform_(module.weight)
