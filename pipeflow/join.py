"""The switch to end to end: every process gathers all parts and holds the whole model.

DDP's constructor would broadcast rank 0's weights over parts that rank 0 never had. So parts are joined first, by
global name and with their moments, and the joined model must give the bits/dim that the chain of parts gave.
"""

import math

import torch
from safetensors.torch import load, save

from .data import InOrder
from .ledger import evaluate
from .noise import Purpose
from .objective import bits_per_dim
from .state import State, build

# Same weights, same images, same order of sums: what differs is the evaluation's float64 accumulation.
_TOLERANCE = 1e-4


class JoinError(RuntimeError):
    """The joined model is not the model that the parts make."""


def join(state: State) -> None:
    """Gives every process all slices and the whole, sharing modules, and all moments.

    Raises:
        JoinError: bits/dim of the joined model differ from those of the chain of parts.
    """
    before = _chain_bits(state)
    own: dict[str, torch.Tensor] = {}
    for part in state.world.mine:
        own |= state.part_state(part)
    gathered: dict[str, torch.Tensor] = {}
    for data in state.world.exchange(save({name: tensor.contiguous().cpu() for name, tensor in own.items()})):
        gathered |= load(data)
    slices, whole = build(state.config, state.pixels)
    for truncated in slices.values():
        truncated.load_global_state(gathered)
        truncated.to(state.world.device)
    state.chain.slices = slices
    state.whole = whole
    state.take_slots(gathered)
    after = _whole_bits(state)
    if not math.isclose(before, after, rel_tol=0, abs_tol=_TOLERANCE) and math.isfinite(before):
        raise JoinError(
            f"The parts do not join: {before:.6f} bits/dim by parts, {after:.6f} joined, on the same images "
            f"(step {state.step}, rank {state.world.rank}). The run stops before it trains a wrong model."
        )


def part_again(state: State) -> None:
    """Back to training by parts: this process keeps its own slices of the joined model."""
    state.chain.slices = {part: state.chain.slices[part] for part in state.world.mine}
    state.whole = None


def _chain_bits(state: State) -> float:
    count = state.config.data.batch
    last = len(state.chain.events) - 1
    ledger = evaluate(state.chain, state.images.train[:count], state.pixels, state.config.seed, count, last)
    return ledger.parts[-1]["bits_per_dim"]


def _whole_bits(state: State) -> float:
    assert state.whole is not None
    count, device = state.config.data.batch, state.world.device
    index = torch.arange(count)
    head = InOrder(state.images.train, index, state.pixels, state.config.seed, Purpose.EVALUATE, count, device)
    with torch.no_grad():
        _, nll = state.whole(head.recv())
    return bits_per_dim(nll.double().mean(), state.pixels.dims).item()
