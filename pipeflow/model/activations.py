"""How a part's steps are gone through in training: what stays for the backward pass, what is computed a second time.

Autograd keeps every activation, so memory grows with depth. `torch.utils.checkpoint` keeps a latent a step and computes
the rest again; a flow can do better, since a step's input is the inverse of its output: then only what leaves the part
is kept, however deep it is (Gomez et al., "The Reversible Residual Network", 2017; Jacobsen et al., "i-RevNet", 2018).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..flow import Advance, Packet, Step, Weights, added, advance, encode, prepare, prepare_inverse
from ..flow import invert as invert_step

NAMES = ("drift", "relative_drift")


class Drift:
    """Of the newest backward pass.

    Attributes:
        numbers: the largest |found − entered|, and that as a share of the largest |entered|, scalars on the device of
            the latents; none before the first backward pass.
    """

    def __init__(self) -> None:
        self.numbers: tuple[Tensor, ...] = ()

    def take(self, entered: Tensor, found: Tensor) -> None:
        """Compares what entered a part with what inverting its steps has found, both (B, *event)."""
        largest = (found - entered).abs().max()
        self.numbers = (largest, largest / entered.abs().max())


Activations = Literal["keep", "checkpoint", "invert"]
Compile = Literal["none", "steps", "part"]
Passage = Callable[[Sequence[Step], Packet], Packet]


def keep(steps: Sequence[Step], given: Packet, advance: Advance = advance) -> Packet:
    """Autograd keeps what it needs: the fastest, and the most memory."""
    z, logp, label = given
    increments = []
    for step, weights in zip(steps, prepare(steps, tuple(z.shape[1:]), len(z)), strict=True):
        z, dlogp = advance(step, z, weights, label)
        increments.append(dlogp)
    return Packet(z, added(logp, increments), label)


def recompute(steps: Sequence[Step], given: Packet, advance: Advance = advance) -> Packet:
    """Keeps what enters each step, and goes through the step again in the backward pass: the same bits."""

    def again(step: Step, z: Tensor, weights: Weights | None, label: Tensor | None) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = checkpoint(
            advance, step, z, weights, label, use_reentrant=False, preserve_rng_state=False
        )
        return result

    return keep(steps, given, again)


def invert(steps: Sequence[Step], given: Packet, advance: Advance = advance, drift: Drift | None = None) -> Packet:
    """Keeps what leaves the part, and finds what entered each step by inverting it in the backward pass.

    What was standardised by a split leaves the flow there, so it is kept: less than one latent of the part in all.
    With `drift`, what entered the part is kept as well, and compared with what was found; whoever handed it in has it
    anyway.
    """
    if not torch.is_grad_enabled():
        return keep(steps, given, advance)
    prepared = prepare(steps, tuple(given.z.shape[1:]), len(given.z))
    tensors = [tensor for step, weights in zip(steps, prepared, strict=True) for tensor in _learned(step, weights)]
    z, logp = _Inverted.apply(tuple(steps), advance, drift, prepared, given.label, given.z, given.logp, *tensors)
    return given._replace(z=z, logp=logp)


def _learned(step: Step, weights: Weights | None) -> list[Tensor]:
    """What a step may have a gradient of."""
    return [*step.parameters(), *(weights or ())]


class _Inverted(torch.autograd.Function):
    """(z, logp, parameters and weights of all steps) → (z', logp')."""

    @staticmethod
    def forward(
        ctx: Any,
        steps: tuple[Step, ...],
        advance: Advance,
        drift: Drift | None,
        prepared: list[Weights | None],
        label: Tensor | None,
        z: Tensor,
        logp: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        entered, ctx.event = None if drift is None else z, tuple(z.shape[1:])
        left: list[Tensor | None] = []
        increments = []
        for step, weights in zip(steps, prepared, strict=True):
            z, dlogp, eps = encode(step, z, weights, label, advance)
            left.append(eps)
            increments.append(dlogp)
        ctx.steps, ctx.advance, ctx.drift = steps, advance, drift
        ctx.made = [None if weights is None else len(weights) for weights in prepared]
        ctx.save_for_backward(label, entered, z, *left, *(tensor for weights in prepared for tensor in weights or ()))
        return z, added(logp, increments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_logp: Tensor) -> tuple[Tensor | None, ...]:
        steps: tuple[Step, ...] = ctx.steps
        label, entered, z, *saved = ctx.saved_tensors
        # Aliases outside the graph: what follows ends at the weights, and does not go on to where they come from.
        left, made = (
            saved[: len(steps)],
            (one.view_as(one).requires_grad_(one.requires_grad) for one in saved[len(steps) :]),
        )
        prepared = [None if count is None else tuple(islice(made, count)) for count in ctx.made]
        inverse = prepare_inverse(steps, prepared, ctx.event)
        found: list[Tensor | None] = []
        passed: Tensor | None = grad_z
        for number in reversed(range(len(steps))):
            step, weights = steps[number], prepared[number]
            z = invert_step(step, z, left[number], inverse[number], label).requires_grad_(
                number > 0 or ctx.needs_input_grad[5]
            )
            with torch.enable_grad():
                out, dlogp = ctx.advance(step, z, weights, label)
            passed, gradients = _gradients(_learned(step, weights), z, (out, dlogp), (passed, grad_logp))
            found[:0] = gradients
        if ctx.drift is not None:
            ctx.drift.take(entered, z)
        return None, None, None, None, None, passed, grad_logp if ctx.needs_input_grad[6] else None, *found


def _gradients(
    learned: list[Tensor], z: Tensor, outputs: tuple[Tensor, Tensor], given: tuple[Tensor | None, Tensor]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of what a step returned → of z, and of each tensor in `learned`; None for those that ask for none."""
    wanted = [z, *learned]
    asking = [tensor for tensor in wanted if tensor.requires_grad]
    pairs = [pair for pair in zip(outputs, given, strict=True) if pair[0].requires_grad]
    answers: tuple[Tensor | None, ...] = ()
    if asking and pairs:
        answers = torch.autograd.grad([o for o, _ in pairs], asking, [g for _, g in pairs], allow_unused=True)
    answer = iter(answers or [None] * len(asking))
    of_z, *of_learned = [next(answer) if tensor.requires_grad else None for tensor in wanted]
    return of_z, of_learned


_PASSAGES: dict[str, Callable[..., Packet]] = {"keep": keep, "checkpoint": recompute, "invert": invert}


def check_passage(activations: Activations, compile: Compile) -> None:
    """A ValueError where a part that is to be compiled as a whole is to compute its activations a second time."""
    if compile == "part" and activations != "keep":
        raise ValueError(
            f"compile is part and activations is {activations}, but a graph of the whole part decides by itself "
            "what it keeps; use compile steps, or activations keep."
        )


def make_passage(activations: Activations = "keep", compile: Compile = "none", drift: Drift | None = None) -> Passage:
    """How the parts of a run are gone through.

    Args:
        activations: what stays for the backward pass: "keep" everything, "checkpoint" what enters each step, "invert"
            what leaves the part.
        compile: "none"; "steps" compiles a flow step once for each shape of its latents, and all steps of that shape
            run it; "part" compiles a part as a whole, which takes longer the deeper it is.
        drift: takes how far inverted inputs lie from what entered; with "invert" only.
    """
    passage = _PASSAGES[activations] if drift is None else partial(invert, drift=drift)
    if compile == "none":
        return passage
    if compile == "part":
        return _compiled(keep)
    graph = _compiled(advance)
    return partial(passage, advance=lambda step, *given: (graph if step.place == "step" else advance)(step, *given))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as graphs, one for each shape.

    The compiler's settings belong to a thread, and on a GPU the backward pass has one of its own. So they are set where
    they are used.
    """
    import torch._dynamo  # takes a second, which only those pay who compile

    config, graph = torch._dynamo.config, torch.compile(function, dynamic=False)

    def run(*arguments: Any) -> Any:
        if config.recompile_limit < 64 or config.optimize_ddp:
            config.recompile_limit = 64  # one code object meets every shape; beyond it, it would silently stay eager
            config.optimize_ddp = False  # under DDP it would be split into a graph for each bucket of gradients
        return graph(*arguments)

    return run
