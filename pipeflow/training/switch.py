"""The switch to end to end: every process gathers all parts and holds the whole model.

DDP's constructor would broadcast rank 0's weights over parts that rank 0 never had. So parts are joined first, by
global name and with their moments, and the joined model must give the bits/dim that the chain of parts gave.
"""

import math

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..data import InOrder, Purpose
from ..distributed import whole as put_together
from ..errors import JoinError
from ..model import bits_per_dim, build
from .evaluation import evaluate
from .state import State

# Same weights, same images, same order of sums: what differs is the evaluation's float64 accumulation.
_TOLERANCE = 1e-4
# Where bits/dim are huge, a run that diverges, float32 itself is coarser than that.
_RELATIVE_TOLERANCE = 1e-5


def join(state: State, sharded: bool = False) -> None:
    """Gives every process all slices and the whole, sharing modules, and all moments.

    Args:
        state: of parts that learned apart.
        sharded: the whole is spread over all processes; each keeps slices of its own beside its share, which
            `take_back` brings up to date.

    Raises:
        JoinError: bits/dim of the joined model differ from those of the chain of parts.
    """
    before = _chain_bits(state)
    own: dict[str, torch.Tensor] = {}
    for part in state.world.mine if state.world.replica == 0 else []:  # replicas are equal
        own |= state.part_state(part)
    gathered: dict[str, torch.Tensor] = {}
    packed = save({name: tensor.contiguous().cpu() for name, tensor in own.items()}) if own else b""
    for data in state.world.exchange(packed):
        gathered |= load(data) if data else {}
    slices, whole = build(state.config.model, state.pixels, state.flow)
    for part, truncated in slices.items():
        truncated.load_global_state(gathered)
        if not sharded or part in state.world.mine:
            truncated.to(state.world.device)
    if sharded:
        slices = {part: slices[part] for part in state.world.mine}
        _, whole = build(state.config.model, state.pixels, state.flow)
        whole.load_global_state(gathered)
        state.world.shard(whole, [step for _, step in whole.part.chain() if step.place == "step"])
    state.slices = slices
    state.whole = whole
    state.take_slots(gathered)
    after = _whole_bits(state)
    if not math.isclose(before, after, rel_tol=_RELATIVE_TOLERANCE, abs_tol=_TOLERANCE) and math.isfinite(before):
        raise JoinError(
            f"The parts do not join: {before:.6f} bits/dim by parts, {after:.6f} joined, on the same images "
            f"(step {state.step}, rank {state.world.rank}). The run stops before it trains a wrong model."
        )


def take_back(state: State, moments: dict[str, Tensor], averages: dict[str, Tensor]) -> None:
    """Brings this process's slices, moments and averages up to date with a whole that is spread over all processes.

    Every process must call it; each keeps what belongs to its own parts.
    """
    assert state.whole is not None
    own: dict[str, Tensor] = {}
    for truncated in state.slices.values():
        own |= truncated.global_state()
    for name, tensor in state.whole.global_state().items():
        found = put_together(tensor)
        if name in own:
            own[name].copy_(found)
    for slots, kept in ((moments, state.moments), (averages, state.averages)):
        for key in sorted(slots):  # in one order everywhere: what was resumed is in another
            found = put_together(slots[key])
            if key.split("/", 1)[1] in own:
                kept[key] = found
            else:
                kept.pop(key, None)


def part_again(state: State) -> None:
    """Back to training by parts: this process keeps its own slices of the joined model."""
    state.slices = {part: state.slices[part] for part in state.world.mine}
    state.whole = None


def _chain_bits(state: State) -> float:
    count = state.config.data.batch
    last = len(state.chain.events) - 1
    ledger = evaluate(
        state.chain, state.slices, state.images.train[:count], state.pixels, state.config.seed, count, last
    )
    return ledger.parts[-1]["bits_per_dim"]


def _whole_bits(state: State) -> float:
    assert state.whole is not None
    count, device = state.config.data.batch, state.world.device
    index = torch.arange(count)
    head = InOrder(state.images.train, index, state.pixels, state.config.seed, Purpose.EVALUATE, count, device)
    with torch.no_grad():
        _, nll = state.whole(head.recv())
    return bits_per_dim(nll.double().mean(), state.pixels.dims).item()
