"""The switch to end to end and back: all parts are gathered into the whole model, or it is split into parts again.

DDP's constructor would broadcast rank 0's weights over parts that rank 0 never had. So parts are joined first, by
global name and with their moments, and the joined model must give the bits/dim that the chain of parts gave.
"""

import math

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..data import InOrder, Purpose
from ..distributed import full_tensor, shard
from ..errors import JoinError
from ..model import Truncated, bits_per_dim, build, global_state
from .evaluation import evaluate
from .state import State

# Same weights, same images, same order of sums: what differs is the evaluation's float64 accumulation.
_TOLERANCE = 1e-4
# Where bits/dim are huge, a run that diverges, float32 itself is coarser than that.
_RELATIVE_TOLERANCE = 1e-5


def join(state: State, sharded: bool = False) -> Truncated:
    """Gives every process the whole model and the slices that share its modules, and all moments.

    Args:
        state: of parts that learned apart.
        sharded: the whole model is spread over all processes; each keeps slices of its own beside its share, which
            `take_back` brings up to date.

    Returns:
        The whole model, which is in `state.weights` as well.

    Raises:
        JoinError: bits/dim of the joined model differ from those of the chain of parts.
    """
    run, weights, world = state.run, state.weights, state.run.world
    before = _chain_bits(state)
    gathered = _gather(state)
    slices, joined = build(run.config.model, run.space, run.flow)
    for part, truncated in slices.items():
        truncated.load_global_state(gathered)
        if not sharded or part in world.mine:
            truncated.to(world.device)
    if sharded:
        slices = {part: slices[part] for part in world.mine}
        _, joined = build(run.config.model, run.space, run.flow)
        joined.load_global_state(gathered)
        shard(world, joined, [step for _, step in joined.part.chain() if step.place == "step"])
    weights.slices, weights.joined = slices, joined
    weights.take_slots(gathered)
    after = _joined_bits(state, joined)
    if not math.isclose(before, after, rel_tol=_RELATIVE_TOLERANCE, abs_tol=_TOLERANCE) and math.isfinite(before):
        raise JoinError(
            f"The parts do not join: {before:.6f} bits/dim by parts, {after:.6f} joined, on the same images "
            f"(step {state.progress.step}, rank {world.rank}). The run stops before it trains a wrong model."
        )
    return joined


def split(state: State) -> None:
    """Keeps this process's slices of a joined model and lets go of the rest; does nothing if parts are apart."""
    weights = state.weights
    if weights.joined is not None:
        weights.slices = {part: weights.slices[part] for part in state.run.world.mine}
        weights.joined = None


def take_back(state: State, moments: dict[str, Tensor], averages: dict[str, Tensor]) -> None:
    """Brings slices, moments and averages of this process up to date with a model that is spread over all processes.

    Every process must call it; each keeps what belongs to its own parts.
    """
    weights = state.weights
    assert weights.joined is not None
    held = global_state(weights.slices.values())
    for name, tensor in weights.joined.global_state().items():
        found = full_tensor(tensor)
        if name in held:
            held[name].copy_(found)
    for slots, kept in ((moments, weights.moments), (averages, weights.averages)):
        for key in sorted(slots):  # in one order everywhere: what was resumed is in another
            found = full_tensor(slots[key])
            if key.split("/", 1)[1] in held:
                kept[key] = found
            else:
                kept.pop(key, None)


def _gather(state: State) -> dict[str, Tensor]:
    """Weights, moments and averages of all parts; the first replicas', since all are equal."""
    world, held = state.run.world, dict[str, Tensor]()
    for part in world.mine if world.leads else []:
        held |= state.weights.part_state(part)
    packed = save({name: tensor.contiguous().cpu() for name, tensor in held.items()}) if held else b""
    gathered: dict[str, Tensor] = {}
    for data in world.gather_bytes(packed):
        gathered |= load(data) if data else {}
    return gathered


def _chain_bits(state: State) -> float:
    """Bits/dim of the first training images, by the chain of parts."""
    run, count = state.run, state.run.config.data.batch
    images, last = run.images.train[:count], len(run.chain.events) - 1
    slices, seed = state.weights.slices, run.config.seed
    labels = run.images.labels.get("train")
    ledger = evaluate(run.chain, slices, images, run.space, seed, run.packet_images, last, labels)
    return ledger.parts[-1]["bits_per_dim"]


def _joined_bits(state: State, joined: Truncated) -> float:
    """Bits/dim of the same images, by the joined model."""
    run, count = state.run, state.run.config.data.batch
    index, device, size = torch.arange(count), run.world.device, run.packet_images
    images, labels = run.images.train, run.images.labels.get("train")
    head = InOrder(images, index, run.space, run.config.seed, Purpose.EVALUATE, size, device, labels)
    with torch.no_grad():
        nll = torch.cat([joined(head.recv())[1] for _ in range(0, count, size)])
    return bits_per_dim(nll.double().mean(), run.space.dims).item()
