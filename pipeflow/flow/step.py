"""The contract of one invertible step.

A chain of `torch.nn` modules cannot be inverted and does not know its log-determinant; `torch.distributions.transforms`
knows both but has no parameters to train, no data-dependent start and no factored-out variables. Everything else in the
package relies on these five methods only, so a step written by a user is as good as ours.
"""

from collections.abc import Hashable, Sequence
from typing import Literal

from torch import Tensor, nn

Event = tuple[int, ...]
Weights = tuple[Tensor, ...]
"""What one pass through a step needs of its parameters, made from them beforehand."""


class Step(nn.Module):
    """An invertible map z → z' of latents (B, *event), images (C, H, W) or vectors (D,).

    A step returns its own increment of the log-likelihood, never a running sum, and never writes into its argument.

    Attributes:
        place: what the step means to a cut. "step" counts as a flow step; one that "opens" stays with the step after
            it, one that "closes" with the step before it, and neither is counted.
        entry: the line of the ledger that its increment belongs to.
        conditional: whether it depends on the images' labels. Then `forward`, and `encode` where it defines one, take
            `label=`: (B,) int64, −1 where a label is not known, or None where none is; `inverse` takes `label=`, and
            `guidance=`, how much further than to the label it shall go from where it would be without. Other steps are
            never given them.
    """

    place: Literal["step", "opens", "closes"] = "step"
    entry: Literal["log_det", "split_prior"] = "log_det"
    conditional: bool = False

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, *event) → z' (B, *out_shape(event)), dlogp (B,) in nats."""
        raise NotImplementedError(f"{type(self).__name__} must define forward.")

    def encode(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Like forward, and the standardised variable that left the flow (None where nothing leaves)."""
        return *self(z), None

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        """z' → z; eps is what `encode` handed out, or a draw of the caller's with shape `eps_shape`."""
        raise NotImplementedError(f"{type(self).__name__} must define inverse.")

    def initialise(self, z: Tensor) -> None:
        """Data-dependent start from a batch z (B, *event); a step that has started already does nothing."""

    def out_shape(self, event: Event) -> Event:
        """Shape of z' without its batch dimension; static, so that links need no headers."""
        return event

    def eps_shape(self, event: Event) -> Event | None:
        """Shape of the variable that leaves the flow here, for an input of shape `event`; None where nothing does."""
        return None


class BatchedStep(Step):
    """A step whose weights can be made together with those of other steps: a few kernels for all instead of each.

    Before a chain of steps is gone through, those of one class, group and latent shape are prepared in one call
    (step_weights.py). Each then gets its weights, the same bits however many steps are prepared together.
    """

    def group(self) -> Hashable | None:
        """Steps with equal groups are prepared together; one without, None, makes its weights itself."""
        return None

    @classmethod
    def prepare(cls, steps: Sequence["BatchedStep"], event: Event, batch: int) -> list[Weights]:
        """The weights of each step, differentiable in its parameters, for latents (batch, *event)."""
        raise NotImplementedError(f"{cls.__name__} must define prepare.")

    @classmethod
    def prepare_inverse(cls, weights: Sequence[Weights]) -> list[Weights]:
        """Weights of steps that were prepared together → what inverting each step needs."""
        raise NotImplementedError(f"{cls.__name__} must define prepare_inverse.")

    def forward(self, z: Tensor, weights: Weights | None = None) -> tuple[Tensor, Tensor]:
        """As `Step.forward`; without weights, the step makes its own."""
        raise NotImplementedError(f"{type(self).__name__} must define forward.")

    def inverse(self, z: Tensor, eps: Tensor | None = None, weights: Weights | None = None) -> Tensor:
        """As `Step.inverse`; the weights are those of `prepare_inverse`."""
        raise NotImplementedError(f"{type(self).__name__} must define inverse.")
