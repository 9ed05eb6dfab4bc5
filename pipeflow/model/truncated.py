"""The truncated objective: a part with its own prior, scored as if the flow ended there.

Everything before the part is a constant of its input, everything after it is ignored, so each part has a loss of its
own: −(logp + log p_k(z)), with logp handed in by the parts before (Bhatt and Inouye, "Learning Flows By Parts"). What
is wrapped for distribution is this module, so that every parameter that learns is inside.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from ..flow import Event, Packet, StandardNormal, Step, make_prior
from .cut import cut_steps
from .part import Part


class Truncated(nn.Module):
    """A flow truncated behind one of its parts.

    Args:
        part: the steps that learn here.
        prior: of what leaves the part.
        prior_name: the prior's global name: "prior" for the model's own, "provisional.<flow steps before the border>".
    """

    def __init__(self, part: Part, prior: StandardNormal, prior_name: str) -> None:
        super().__init__()
        self.part = part
        self.prior = prior
        self.prior_name = prior_name

    def forward(self, given: Packet) -> tuple[Packet, Tensor]:
        """Packet in → packet behind the part, nll (B,) in nats an image of the flow truncated here."""
        packet = self.part(given)
        return packet, self.nll(packet)

    def nll(self, packet: Packet) -> Tensor:
        """(B,) nats an image, of a packet that has left the part."""
        return -(packet.logp + self.prior.log_prob(packet.z, packet.label))

    def initialise(self, given: Packet) -> Packet:
        """Data-dependent start of the part and of its prior; returns the packet behind the part."""
        packet = self.part.initialise(given)
        self.prior.initialise(packet.z, packet.label)
        return packet

    def global_name(self, name: str) -> str:
        """This module's name of a parameter or buffer → its name in the whole model, the same in every cut."""
        owner, rest = name.split(".", 1)
        return rest if owner == "part" else f"{self.prior_name}.{rest}"

    def named_global_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(global name, parameter), in the order of the model."""
        return [(self.global_name(name), parameter) for name, parameter in self.named_parameters()]

    def global_state(self) -> dict[str, Tensor]:
        """global name → parameter or buffer, sharing storage with this module."""
        return {self.global_name(name): tensor for name, tensor in self.state_dict().items()}

    def load_global_state(self, state: dict[str, Tensor]) -> None:
        """Takes its own parameters and buffers out of `state`; every one of them must be there."""
        self.load_state_dict({name: state[self.global_name(name)] for name in self.state_dict()})


def global_state(pieces: Iterable[Truncated]) -> dict[str, Tensor]:
    """The parameters and buffers of several parts, by global name."""
    return {name: tensor for piece in pieces for name, tensor in piece.global_state().items()}


def bits_per_dim(nll: Tensor, dims: int) -> Tensor:
    """nats an image → bits per dimension, for images of `dims` dimensions."""
    return nll / (dims * math.log(2))


MakePrior = Callable[[int, Event, Sequence[Step]], StandardNormal]
"""Makes a provisional prior: flow steps before the border, shape of the latent there, the steps that remain → prior."""


def truncate(
    steps: list[Step], at: tuple[int, ...], event: Event, top_prior: str, provisional_prior: str | MakePrior
) -> tuple[list[Truncated], Truncated]:
    """Cuts a flow, and gives every part its prior.

    Args:
        steps: the whole flow.
        at: how many flow steps lie before each border.
        event: shape of what enters.
        top_prior: "standard" or "learned", for the last part.
        provisional_prior: for the others likewise, or what makes them.

    Returns:
        The slices, and the whole: the same modules as one part, with the last slice's prior.
    """
    parts = cut_steps(steps, at, event)
    slices, used = [], 0
    for part, border in zip(parts, at, strict=False):
        used += len(part.steps)
        if isinstance(provisional_prior, str):
            prior = make_prior(provisional_prior, part.event_out)
        else:
            prior = provisional_prior(border, part.event_out, steps[used:])
        slices.append(Truncated(part, prior, f"provisional.{border}"))
    slices.append(Truncated(parts[-1], make_prior(top_prior, parts[-1].event_out), "prior"))
    whole = Truncated(cut_steps(steps, (), event)[0], slices[-1].prior, "prior")
    return slices, whole
