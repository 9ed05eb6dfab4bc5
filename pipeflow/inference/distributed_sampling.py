"""Draws images in as many processes as the environment describes: latents travel from the last part to the first.

`Flow.sample` needs the whole model in one place. Here each process loads its own parts only, inverts them, and hands
the latents to the process before it; the variables that enter inside a part are drawn there, since they are a hash of
the seed and of their position. While one process works on a batch, the process after it works on the next.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..data import Purpose, Space, normal
from ..distributed import World
from ..flow import Packet
from ..model import Flow, LabelsLike, Maker, Truncated, build_parts, check_labels
from ..stream import Chain, upstream_links
from .load import Source, check_user_flow, fill

BATCH = 256  # images that a process works on at a time


class LocalParts(NamedTuple):
    """The parts of a trained flow that this process holds, by position, and the borders between all of them."""

    chain: Chain
    slices: dict[int, Truncated]
    data_space: Space


def load_local_parts(world: World, source: Source, flow: Maker | None = None) -> LocalParts:
    """Loads this process's parts of a trained flow, and nothing of the others; all processes must call it.

    The world is open for as many parts as the flow has, and `locate` has checked the files of `source`. A ValueError
    says in which process the checkpoint is damaged, or it or the flow another; a LostError, that a process is gone.
    """
    parts = source.config.cut.parts
    if parts != len(world.owner):
        raise ValueError(
            f"{source.directory} has {parts} parts, but a newer checkpoint that is damaged has {len(world.owner)}; to "
            "draw from this one, give it instead of the run."
        )
    contents = hashlib.sha256(str(sorted(source.manifest.files.items())).encode()).hexdigest()[:12]
    world.agree("the checkpoint", f"step {source.manifest.step} ({contents})")

    def load() -> list[Truncated]:
        check_user_flow(source, flow)
        slices = build_parts(source.config.model, source.data_space, world.mine, flow)
        fill({part: slices[part] for part in world.mine}, source)
        return slices

    slices = world.everywhere(load)
    chain = Chain(world, [piece.part.event_out for piece in slices], source.config.digest())
    return LocalParts(chain, {part: slices[part].to(world.device) for part in world.mine}, source.data_space)


def parts_of_one_process(world: World, flow: Flow) -> LocalParts:
    """A flow that is whole in a single process, for `draw`."""
    slices = [Truncated(part, flow.prior, "prior") for part in flow.to(world.device).parts()]
    chain = Chain(world, [piece.part.event_out for piece in slices], "")
    return LocalParts(chain, dict(enumerate(slices)), flow.pixels)


@torch.inference_mode()
def draw(
    local: LocalParts, n: int, temperatures: list[float], seed: int, labels: LabelsLike = None, guidance: float = 0.0
) -> list[Tensor]:
    """Draws the images that `Flow.sample(n, temperature, seed, labels, guidance)` draws; all processes must call it.

    Returns:
        In the first process, for each temperature uint8 images (n, C, H, W) on the CPU; empty in the others.

    Raises:
        ValueError: the processes disagree about what is to be drawn, or labels do not fit.
        LostError: a process is gone, or a latent does not come in time.
    """
    chain, world = local.chain, local.chain.world
    label = check_labels(labels, n, local.data_space.classes, world.device)
    labelled = "" if label is None else f" labels {str(labels)[:300]}, guidance {guidance},"
    world.agree("what to draw", f"{n} images at {temperatures}, seed {seed},{labelled} settings {chain.digest}")
    index_batches = list(torch.split(torch.arange(n, device=world.device), BATCH))
    largest = len(index_batches[0])
    inbox, outbox = upstream_links(chain, largest, len(index_batches) * len(temperatures))
    images: list[Tensor] = []
    for temperature in temperatures:
        for index in index_batches:
            received = inbox.recv().z[: len(index)] if inbox else None
            z = _invert(local, received, temperature, index, seed, None if label is None else label[index], guidance)
            if world.mine[0] == 0:
                images.append(local.data_space.quantise(z).cpu())
            # The last batch may be short, but a link has packets of one size.
            z = pad(z, [0, 0] * (z.dim() - 1) + [0, largest - len(index)])
            outbox.send(Packet(z, z.new_zeros(largest)))
    if inbox:
        inbox.close()
    outbox.close()
    return [torch.cat(images[i : i + len(index_batches)]) for i in range(0, len(images), len(index_batches))]


def _invert(
    local: LocalParts,
    received: Tensor | None,
    temperature: float,
    index: Tensor,
    seed: int,
    label: Tensor | None,
    guidance: float,
) -> Tensor:
    """Latents (B, *event) before the first part of this process, float32, of the images numbered `index` (B,).

    `received` are those after its last part; None where it is the flow's last part, and they are drawn.
    """

    def eps(position: int, shape: tuple[int, ...]) -> Tensor:
        drawn = normal(seed, Purpose.SAMPLE, position, index, torch.Size(shape).numel())
        return drawn.view(len(index), *shape) * temperature

    positions = sorted(local.slices, reverse=True)
    last = local.slices[positions[0]]
    z = received
    if z is None:
        z = last.prior.unstandardise(eps(0, last.part.event_out), label, guidance)
    for position in positions:
        part = local.slices[position].part
        left = {step: eps(step + 1, shape) for step, shape in part.eps_shapes().items()}
        z = part.inverse(z, left, label, guidance)
    return z
