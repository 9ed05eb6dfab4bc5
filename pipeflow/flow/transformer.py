"""The transformers that compute shifts and scales in the flows on patches (Jet, TarFlow).

`torch.nn.TransformerEncoderLayer` has no memory of the tokens that it has seen, which an autoregressive inverse needs,
and no attention without a mask tensor; here is what two papers share, with their differences as arguments.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyValues:
    """Keys and values of the tokens that a layer has seen, so that a sequence is computed token by token.

    Args:
        tokens: length of the sequence.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens, self._seen = tokens, 0
        self._stored: list[Tensor] = []

    def append(self, new: Sequence[Tensor]) -> list[Tensor]:
        """Key and value of the next token, each (B, heads, 1, width of a head) → those of all tokens so far."""
        if not self._stored:
            self._stored = [one.new_empty(*one.shape[:2], self._tokens, one.shape[3]) for one in new]
        for stored, one in zip(self._stored, new, strict=True):
            stored[:, :, self._seen] = one[:, :, 0]
        self._seen += 1
        return [stored[:, :, : self._seen] for stored in self._stored]


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): a pre-norm layer (Vaswani et al., 2017; Xiong et al., 2020).

    Args:
        width: of a token (B, tokens, width).
        heads: of the attention; they divide the width.
        causal: whether a token sees itself and earlier tokens only.
        eps: of the normalisations.
        gelu: "tanh" or "none": how GELU is computed.
    """

    def __init__(self, width: int, heads: int, causal: bool, eps: float, gelu: str) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm_attention = nn.LayerNorm(width, eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(gelu), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, seen: KeyValues | None = None) -> Tensor:
        """(B, tokens, width) → the same shape; with `seen`, x is the next token alone."""
        query, *others = self.qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        key, value = others if seen is None else seen.append(others)
        found = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal and seen is None)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        moved: Tensor = x + self.mlp(self.norm_mlp(x))
        return moved


class Transformer(nn.Module):
    """Tokens (B, tokens, entering) → (B, tokens, leaving), zero at the start.

    Args:
        entering, leaving: numbers per token.
        tokens: how many, each with a learned position.
        width, depth, heads: of the layers.
        position_sd: standard deviation of the positions at the start.
        causal, eps, gelu: of the layers.
        final_norm: whether what leaves the last layer is normalised.
        classes: how many labels there are, each with a learned vector that is added to every token; where a label is
            not known, the mean of all.

    Attributes:
        autocast: what it computes in, where it is not float32; what enters and leaves stays what it is.
    """

    autocast: torch.dtype | None = None

    def __init__(
        self,
        entering: int,
        leaving: int,
        tokens: int,
        width: int,
        depth: int,
        heads: int,
        position_sd: float,
        causal: bool = False,
        eps: float = 1e-5,
        gelu: str = "none",
        final_norm: bool = False,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(entering, width)
        self.position = nn.Parameter(position_sd * torch.randn(tokens, width))
        self.layers = nn.ModuleList(Layer(width, heads, causal, eps, gelu) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps) if final_norm else nn.Identity()
        self.leave = nn.Linear(width, leaving)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.class_embedding = nn.Parameter(0.01 * torch.randn(classes, width)) if classes else None

    def forward(
        self,
        x: Tensor,
        at: int | None = None,
        seen: Sequence[KeyValues] | None = None,
        label: Tensor | None = None,
        guidance: float = 0.0,
    ) -> Tensor:
        """All tokens; or, with what each layer has seen before, the one at position `at`, (B, 1, entering).

        With labels (B,) and `guidance`, what they make (1 + guidance) times, less guidance times what no label makes:
        classifier-free guidance, as Zhai et al. have it (2024, §2.5).
        """
        if guidance and label is not None:
            twice = torch.cat([label, torch.full_like(label, -1)])
            with_label, without = self(torch.cat([x, x]), at, seen, twice).chunk(2)
            guided: Tensor = with_label + guidance * (with_label - without)
            return guided
        if self.autocast is None:
            return self._compute(x, at, seen, label)
        # No cache: each weight is used once, and a CUDA graph must not keep a cast that was made outside it.
        with torch.autocast(x.device.type, self.autocast, cache_enabled=False):
            return self._compute(x, at, seen, label).to(x.dtype)

    def _compute(self, x: Tensor, at: int | None, seen: Sequence[KeyValues] | None, label: Tensor | None) -> Tensor:
        x = self.enter(x) + (self.position if at is None else self.position[at])
        if self.class_embedding is not None:
            x = x + _of_class(label, self.class_embedding)
        for number, layer in enumerate(self.layers):
            x = layer(x, None if seen is None else seen[number])
        out: Tensor = self.leave(self.norm(x))
        return out


def _of_class(label: Tensor | None, embedding: Tensor) -> Tensor:
    """The vector of each label, (B, 1, width), or (width,) without labels.

    A product: looked up, a vector's gradient would be added up on a GPU in any order.
    """
    if label is None:
        return embedding.mean(0)
    known = (label[:, None] == torch.arange(len(embedding), device=label.device)).to(embedding.dtype)
    return (torch.where(label[:, None] < 0, 1 / len(embedding), known) @ embedding)[:, None]
