"""How a part's steps are gone through in training: what stays for the backward pass, what is computed a second time.

Autograd keeps every activation, so memory grows with depth. `torch.utils.checkpoint` keeps a latent a step and computes
the rest again; a flow can do better, since a step's input is the inverse of its output: then only what leaves the part
is kept, however deep it is (Gomez et al., "The Reversible Residual Network", 2017; Jacobsen et al., "i-RevNet", 2018).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..flow import Packet, Step

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
Advance = Callable[[Step, Tensor], tuple[Tensor, Tensor]]
Passage = Callable[[Sequence[Step], Packet], Packet]


def advance(step: Step, z: Tensor) -> tuple[Tensor, Tensor]:
    """One step: z → z', dlogp."""
    result: tuple[Tensor, Tensor] = step(z)
    return result


def keep(steps: Sequence[Step], given: Packet, advance: Advance = advance) -> Packet:
    """Autograd keeps what it needs: the fastest, and the most memory."""
    z, logp = given
    for step in steps:
        z, dlogp = advance(step, z)
        logp = logp + dlogp
    return Packet(z, logp)


def recompute(steps: Sequence[Step], given: Packet, advance: Advance = advance) -> Packet:
    """Keeps what enters each step, and goes through the step again in the backward pass: the same bits."""

    def again(step: Step, z: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = checkpoint(advance, step, z, use_reentrant=False, preserve_rng_state=False)
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
    parameters = [parameter for step in steps for parameter in step.parameters()]
    z, logp = _Inverted.apply(tuple(steps), advance, drift, given.z, given.logp, *parameters)
    return Packet(z, logp)


class _Inverted(torch.autograd.Function):
    """(z, logp, parameters of all steps) → (z', logp')."""

    @staticmethod
    def forward(
        ctx: Any,
        steps: tuple[Step, ...],
        advance: Advance,
        drift: Drift | None,
        z: Tensor,
        logp: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        entered = None if drift is None else z
        left: list[Tensor | None] = []
        for step in steps:
            if type(step).encode is Step.encode:  # nothing leaves the flow here
                z, dlogp = advance(step, z)
                left.append(None)
            else:
                z, dlogp, eps = step.encode(z)
                left.append(eps)
            logp = logp + dlogp
        ctx.steps, ctx.advance, ctx.drift = steps, advance, drift
        ctx.save_for_backward(entered, z, *left)
        return z, logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_logp: Tensor) -> tuple[Tensor | None, ...]:
        steps: tuple[Step, ...] = ctx.steps
        entered, z, *left = ctx.saved_tensors
        found: list[Tensor | None] = []
        passed: Tensor | None = grad_z
        for number in reversed(range(len(steps))):
            step = steps[number]
            z = step.inverse(z, left[number]).requires_grad_(number > 0 or ctx.needs_input_grad[3])
            with torch.enable_grad():
                out, dlogp = ctx.advance(step, z)
            passed, gradients = _gradients(step, z, (out, dlogp), (passed, grad_logp))
            found[:0] = gradients
        if ctx.drift is not None:
            ctx.drift.take(entered, z)
        return None, None, None, passed, grad_logp if ctx.needs_input_grad[4] else None, *found


def _gradients(
    step: Step, z: Tensor, outputs: tuple[Tensor, Tensor], given: tuple[Tensor | None, Tensor]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of what a step returned → of z, and of each of its parameters; None for those that ask for none."""
    wanted = [z, *step.parameters()]
    asking = [tensor for tensor in wanted if tensor.requires_grad]
    pairs = [pair for pair in zip(outputs, given, strict=True) if pair[0].requires_grad]
    answers: tuple[Tensor | None, ...] = ()
    if asking and pairs:
        answers = torch.autograd.grad([o for o, _ in pairs], asking, [g for _, g in pairs], allow_unused=True)
    answer = iter(answers or [None] * len(asking))
    of_z, *of_parameters = [next(answer) if tensor.requires_grad else None for tensor in wanted]
    return of_z, of_parameters


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
    return partial(passage, advance=lambda step, z: graph(step, z) if step.place == "step" else advance(step, z))


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
