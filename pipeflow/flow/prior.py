"""What a truncated flow believes of its last latent.

`torch.distributions.Normal` would serve for the density; these also standardise and its inverse, hold their parameters
as a module (so that they are saved, moved and trained like any other), and know their shape.
"""

import torch
from torch import Tensor, nn

from .split import normal_log_prob
from .step import Event


class StandardNormal(nn.Module):
    """log p(z) = Σ log N(z; 0, 1), for latents (B, *event). Priors that depend on labels take them as steps do.

    Args:
        event: shape of a latent.
    """

    def __init__(self, event: Event) -> None:
        super().__init__()
        self.event = event

    @property
    def started(self) -> bool:
        """Whether it needs no data-dependent start any more; reads from the device."""
        return True

    def log_prob(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, *event) → (B,), nats."""
        return normal_log_prob(z)

    def standardise(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z → eps, standard normal under this prior; both (B, *event)."""
        return z

    def unstandardise(self, eps: Tensor, label: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """eps → z, the inverse of `standardise`."""
        return eps

    def initialise(self, z: Tensor, label: Tensor | None = None) -> None:
        """Data-dependent start from a batch z (B, *event); nothing to do for a density without one."""

    def extra_repr(self) -> str:
        return f"{self.event}"


class ChannelGaussian(StandardNormal):
    """log p(z) = Σ log N(z; mean_c, exp(log_sd_c)), a learned Gaussian a channel: Glow's learned top prior (2018).

    Args:
        event: shape (C, …) of a latent.
    """

    def __init__(self, event: Event) -> None:
        super().__init__(event)
        shape = (event[0],) + (1,) * (len(event) - 1)
        self.mean = nn.Parameter(torch.zeros(shape))
        self.log_sd = nn.Parameter(torch.zeros(shape))

    def log_prob(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return normal_log_prob(self.standardise(z), self.log_sd.expand_as(z))

    def standardise(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return (z - self.mean) * (-self.log_sd).exp()

    def unstandardise(self, eps: Tensor, label: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        return self.mean + eps * self.log_sd.exp()


def make_prior(kind: str, event: Event) -> StandardNormal:
    """kind: "standard" or "learned"; event: shape of a latent."""
    return ChannelGaussian(event) if kind == "learned" else StandardNormal(event)
