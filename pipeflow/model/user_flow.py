"""What a script hands over: a flow and data of its own, looked at before anything is written.

No setting names code to import, so a flow of one's own cannot come out of a file; it is a function in the script that
trains it, and every process runs the script. The run's settings hold its name alone. Whether its steps keep the
contract that every part relies on (flow/step.py), a few random latents find out.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow import Event, Step, advance, encode, invert
from .cut import flow_step_positions
from .families import FAMILIES
from .seeding import seeded

Maker = Callable[[], Sequence[Step]]
"""Makes the steps of a flow, in order, anew at every call; random weights come from torch's global generator."""


@dataclass(frozen=True)
class UserFlow:
    """A flow of a script's own, with heads for its parts; a plain function of its steps will do where there are none.

    Attributes:
        steps: makes the steps of the flow.
        head: makes the steps of a head for latents of a shape (without the batch); for the setting
            `cut.provisional_prior: flow`.
    """

    steps: Maker
    head: Callable[[Event], Sequence[Step]]

    def __call__(self) -> Sequence[Step]:
        return self.steps()


def own_steps(make: Maker, seed: int) -> list[Step]:
    """The steps at their initial weights, which depend on the seed alone; the global generator is left as it was."""
    with seeded(seed):
        return list(make())


def check_name(name: str, make: Maker | None) -> None:
    """A ValueError where the settings call a flow one of a script's own and none is there, or the other way round."""
    if make is None and name not in FAMILIES:
        raise ValueError(
            f"The flow '{name}' is one of a script's own, and only that script can make its steps: there, say "
            "pipeflow.fit(…, flow=…) or pipeflow.load(RUN, flow=…), and main([RUN], flow=…) of pipeflow.evaluate or "
            "pipeflow.sample."
        )
    if make is not None and name in FAMILIES:
        raise ValueError(
            f"A flow is handed over, but the settings say flow: {name}; give yours a name, Config(flow=…)."
        )


def check_flow(make: Maker, name: str, event: Event, classes: int = 0) -> str:
    """Sends a few random latents down the flow, and compares what its steps do with what they say.

    Args:
        make: makes the steps.
        name: of the flow, for sentences.
        event: shape of what enters.
        classes: how many labels the data have, 0 for none.

    Returns:
        A short hash of what the steps are: their classes, and names and shapes of their parameters and buffers.

    Raises:
        ValueError: what is handed over is no flow, does not fit the data or their labels, or breaks the contract of a
            step.
    """
    steps = own_steps(make, 0)
    others = [type(step).__name__ for step in steps if not isinstance(step, Step)]
    if others or not flow_step_positions(steps):
        found = f"holds a {others[0]}" if others else "has no flow step"
        raise ValueError(f"The flow '{name}' {found}; it must be a list of steps, each a pipeflow.flow.Step.")
    conditional = any(step.conditional for step in steps)
    if conditional != (classes > 0):
        found = "takes labels (conditional)" if conditional else "has no step that takes labels (conditional)"
        raise ValueError(f"The flow '{name}' {found}, but data.labels is {classes > 0}.")
    label = torch.arange(4) % classes if classes else None
    owner: dict[int, int] = {}
    kinds = hashlib.sha256()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        z = torch.randn(4, *event)
        for number, step in enumerate(steps):
            for tensor in [*step.parameters(), *step.buffers()]:
                if (first := owner.setdefault(id(tensor), number)) != number:
                    raise ValueError(
                        f"steps.{first} and steps.{number} of the flow '{name}' share a parameter or buffer; parts "
                        "learn apart, so every step must have its own."
                    )
            shapes = {name: tuple(tensor.shape) for name, tensor in step.state_dict().items()}
            kinds.update(f"{type(step).__qualname__} {shapes};".encode())
            z = _behind(step, z, label, f"steps.{number} of the flow '{name}' ({type(step).__name__})")
    return kinds.hexdigest()[:16]


def _behind(step: Step, z: Tensor, label: Tensor | None, who: str) -> Tensor:
    """z behind a step that keeps its contract."""
    event, given = tuple(z.shape[1:]), z.clone()
    out: Tensor
    try:
        (out, dlogp), (again, _, eps) = advance(step, z, None, label), encode(step, z, None, label)
        back: Tensor = invert(step, out, eps, None, label)
        if step.conditional:
            step(z)  # steps are measured without labels
        said, said_eps = tuple(step.out_shape(event)), step.eps_shape(event)
    except Exception as error:  # a step that others wrote raises anything at all
        text = " ".join(str(error).split())
        raise ValueError(f"{who} does not take latents of shape {event}: {type(error).__name__}: {text}.") from error
    left = None if eps is None else tuple(eps.shape[1:])
    for wrong, what in [
        (tuple(out.shape[1:]) != said, f"makes latents of shape {tuple(out.shape[1:])}, its out_shape says {said}"),
        (left != said_eps, f"lets variables of shape {left} leave, its eps_shape says {said_eps}"),
        (dlogp.shape != z.shape[:1], f"gives dlogp of shape {tuple(dlogp.shape)}; one number an example is due, (B,)"),
        (out.dtype != z.dtype or dlogp.dtype != z.dtype, f"makes {out.dtype} and {dlogp.dtype}; both must be float32"),
        (not torch.equal(z, given), "writes into its argument, which is not its own"),
        (not torch.equal(out, again), "makes two things of the same latents; nothing in it may be random"),
        (back.shape != z.shape or not torch.allclose(back, z, 1e-3, 1e-3), "is not undone by its inverse"),
        (step.entry not in ("log_det", "split_prior"), f"has the entry {step.entry!r}: log_det or split_prior"),
        (step.place not in ("step", "opens", "closes"), f"has the place {step.place!r}: step, opens or closes"),
    ]:
        if wrong:
            raise ValueError(f"{who} {what}.")
    return out
