"""TarFlow's blocks: every patch is moved by what a causal transformer makes of the patches before it.

Zhai et al., "Normalizing Flows are Capable Generative Models", 2024.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .step import Event, Step
from .transformer import KeyValues, Transformer


class TarFlowBlock(Step):
    """z_t' = (z_t − shift_t) · exp(−log_scale_t), both from a causal transformer on z_1 … z_{t−1}; z_1' = z_1.

    The inverse goes from patch to patch, and keeps keys and values. It has no gradient.

    Args:
        event: shape (D, h, w) of the latents, D numbers per patch.
        backward: whether the patches are gone through from the last to the first.
        depth, width, heads: of the transformer.
        classes: how many labels there are; 0 for none.
    """

    def __init__(self, event: Event, backward: bool, depth: int, width: int, heads: int, classes: int = 0) -> None:
        super().__init__()
        channels, tokens = event[0], event[1] * event[2]
        self.tokens, self.backward, self.conditional, self.classes = tokens, backward, bool(classes), classes
        self.network = Transformer(
            channels, 2 * channels, tokens, width, depth, heads, position_sd=0.01, causal=True, classes=classes
        )

    def forward(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self._sequence(z)
        log_scale, shift = F.pad(self.network(x, label=label)[:, :-1], (0, 0, 1, 0)).chunk(2, 2)
        return self._latent((x - shift) * (-log_scale).exp(), z), -log_scale.flatten(1).sum(1)

    @torch.no_grad()
    def inverse(
        self, z: Tensor, eps: Tensor | None = None, label: Tensor | None = None, guidance: float = 0.0
    ) -> Tensor:
        x = self._sequence(z)
        seen = [KeyValues(self.tokens) for _ in self.network.layers]
        found = [x[:, :1]]
        for place in range(self.tokens - 1):
            log_scale, shift = self.network(found[-1], place, seen, label, guidance).chunk(2, 2)
            found.append(x[:, place + 1 : place + 2] * log_scale.exp() + shift)
        return self._latent(torch.cat(found, 1), z)

    def _sequence(self, z: Tensor) -> Tensor:
        """(B, D, h, w) → (B, h·w, D), in the direction of the block."""
        x = z.flatten(2).transpose(1, 2)
        return x.flip(1) if self.backward else x

    def _latent(self, x: Tensor, like: Tensor) -> Tensor:
        x = x.flip(1) if self.backward else x
        return x.transpose(1, 2).reshape(like.shape)

    def extra_repr(self) -> str:
        return "backward" if self.backward else "forward"
