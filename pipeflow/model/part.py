"""A part: consecutive steps of a flow, which keep the global names of their parameters."""

import torch
from torch import Tensor, nn

from ..flow import Event, Packet, Step, Weights, added, advance, encode, invert, prepare, prepare_inverse
from .activations import Passage, keep


class Part(nn.Module):
    """Consecutive steps of a flow; the whole flow is the part that holds them all.

    Args:
        steps: global index → step, in order.
        event: shape of a latent that enters.

    Attributes:
        passage: how `forward` goes through the steps; evaluation and sampling do so one by one, whatever it is.
    """

    def __init__(self, steps: dict[int, Step], event: Event) -> None:
        super().__init__()
        self.steps = nn.ModuleDict({str(index): step for index, step in steps.items()})
        self.event_in = event
        self.passage: Passage = keep
        for step in steps.values():
            event = step.out_shape(event)
        self.event_out = event

    def chain(self) -> list[tuple[int, Step]]:
        """(global index, step), in order."""
        return [(int(name), step) for name, step in self.steps.items()]  # type: ignore[misc]

    def forward(self, given: Packet) -> Packet:
        """z (B, *event_in) and the log-likelihood so far → z (B, *event_out) and the log-likelihood after the part."""
        return self.passage([step for _, step in self.chain()], given)

    def ledger(self, given: Packet) -> tuple[Packet, dict[str, Tensor]]:
        """Like forward, and what each kind of step added: entry → (B,) nats, float64."""
        z, logp, label = given
        entries: dict[str, Tensor] = {}
        increments = []
        for _, step, weights in self._prepared(z):
            z, dlogp = advance(step, z, weights, label)
            increments.append(dlogp)
            entries[step.entry] = entries.get(step.entry, 0) + dlogp.double()
        return Packet(z, added(logp, increments), label), entries

    def encode(self, given: Packet) -> tuple[Packet, dict[int, Tensor]]:
        """Like forward, and the standardised variables that left the flow: global index → (B, *eps_shape)."""
        z, logp, label = given
        eps: dict[int, Tensor] = {}
        increments = []
        for index, step, weights in self._prepared(z):
            z, dlogp, left = encode(step, z, weights, label)
            increments.append(dlogp)
            if left is not None:
                eps[index] = left
        return Packet(z, added(logp, increments), label), eps

    def inverse(self, z: Tensor, eps: dict[int, Tensor], label: Tensor | None = None, guidance: float = 0.0) -> Tensor:
        """z (B, *event_out) → (B, *event_in), given the variables that left, by global index, and labels (B,)."""
        steps = [step for _, step in self.chain()]
        inverse = prepare_inverse(steps, prepare(steps, self.event_in, len(z)), self.event_in)
        for (index, step), weights in zip(reversed(self.chain()), reversed(inverse), strict=True):
            z = invert(step, z, eps.get(index), weights, label, guidance)
        return z

    @torch.no_grad()
    def drift(self, given: Packet) -> float:
        """How far an inverted input lies from what entered, at most: what `activations: invert` rests on."""
        packet, eps = self.encode(given)
        return (self.inverse(packet.z, eps, given.label) - given.z).abs().max().item()

    def eps_shapes(self) -> dict[int, Event]:
        """Shapes, without the batch, of the variables that leave inside this part, by global index."""
        shapes, event = {}, self.event_in
        for index, step in self.chain():
            if (shape := step.eps_shape(event)) is not None:
                shapes[index] = shape
            event = step.out_shape(event)
        return shapes

    @torch.no_grad()
    def initialise(self, given: Packet) -> Packet:
        """Data-dependent start, each step on what the started steps before it make of the batch."""
        z, logp, label = given
        increments = []
        for _, step in self.chain():
            step.initialise(z)
            z, dlogp = advance(step, z, None, label)
            increments.append(dlogp)
        return Packet(z, added(logp, increments), label)

    def _prepared(self, z: Tensor) -> list[tuple[int, Step, Weights | None]]:
        """(global index, step, its weights for latents z that enter the part), in order."""
        steps = [step for _, step in self.chain()]
        made = prepare(steps, self.event_in, len(z))
        return [(*pair, weights) for pair, weights in zip(self.chain(), made, strict=True)]

    def extra_repr(self) -> str:
        return f"{self.event_in} → {self.event_out}"
