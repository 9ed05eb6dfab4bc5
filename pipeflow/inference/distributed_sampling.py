"""Drawing images in as many processes as the environment describes: latents travel from the last part to the first.

`Flow.sample` needs the whole model in one place. Here a process holds its own parts alone, so that a flow which was
trained in several processes is drawn from in them as well. Only latents travel: each part draws the variables that
enter inside it by itself, since they are a hash of the seed and of their place. While a process works on one batch, the
one behind it is at the next.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import Purpose, Space, normal
from ..distributed import World
from ..model import Flow, Maker, Truncated
from ..stream import Chain
from .load import Source, read

BATCH = 256
"""Images that a process works on at a time."""


class Held(NamedTuple):
    """The parts of a trained flow that one process holds.

    Attributes:
        chain: the borders, over the processes.
        slices: position → part with its prior, of this process.
        pixels: what the images look like.
    """

    chain: Chain
    slices: dict[int, Truncated]
    pixels: Space


def hold(world: World, source: Source, flow: Maker | None = None) -> Held:
    """This process's parts of a trained flow, and what its images look like; the other parts are not kept.

    Args:
        world: the processes, opened for as many parts as the flow has; all of them must call it.
        source: the checkpoint.
        flow: makes the steps, where they are those of a script's own flow.

    Raises:
        ValueError: the checkpoint is damaged, or not the same for all processes; or the flow is another.
    """
    contents = hashlib.sha256(str(sorted(source.manifest.files.items())).encode()).hexdigest()[:12]
    world.agree("the checkpoint", f"step {source.manifest.step} ({contents})")
    trained = read(source, flow)
    mine = {part: trained.slices[part].to(world.device) for part in world.mine}
    events = [piece.part.event_out for piece in trained.slices]
    return Held(Chain(world, events, source.config.digest()), mine, trained.pixels)


def alone(world: World, flow: Flow) -> Held:
    """A flow that one process holds, as a chain."""
    pieces = [Truncated(part, flow.prior, "prior") for part in flow.to(world.device).parts()]
    chain = Chain(world, [piece.part.event_out for piece in pieces], "")
    return Held(chain, dict(enumerate(pieces)), flow.pixels)


@torch.inference_mode()
def draw(held: Held, n: int, temperatures: list[float], seed: int) -> list[Tensor]:
    """Draws the images that `Flow.sample(n, temperature, seed)` draws; all processes must call it.

    Args:
        held: this process's parts of the flow.
        n: how many images.
        temperatures: the same latents are scaled by each of them.
        seed: of the draw.

    Returns:
        In the first process, for each temperature uint8 images (n, C, H, W) on the CPU; empty in the others.

    Raises:
        ValueError: the processes disagree about what is to be drawn.
        LostError: a process is gone.
    """
    world = held.chain.world
    world.agree("what to draw", f"{n} images at {temperatures}, seed {seed}, settings {held.chain.digest}")
    shares = list(torch.split(torch.arange(n, device=world.device), BATCH))
    batches = [(temperature, index) for temperature in temperatures for index in shares]
    behind = world.size - 1 - world.rank
    images: list[Tensor] = []
    given = b""
    for tick in range(len(batches) + world.size - 1):
        handed_on = b""
        if 0 <= tick - behind < len(batches):
            z = _through(held, *batches[tick - behind], seed, given)
            if world.rank:
                handed_on = z.cpu().contiguous().numpy().tobytes()
            else:
                images.append(held.pixels.quantise(z).cpu())
        received = world.exchange(handed_on)
        given = received[world.rank + 1] if behind else b""
    return [torch.cat(images[i : i + len(shares)]) for i in range(0, len(images), len(shares))]


def _through(held: Held, temperature: float, index: Tensor, seed: int, given: bytes) -> Tensor:
    """What leaves this process upstream: z (B, *event), of the images `index`, float32.

    `given` is the latent that the process behind has handed on; the last process draws its own.
    """

    def eps(place: int, shape: tuple[int, ...]) -> Tensor:
        drawn = normal(seed, Purpose.SAMPLE, place, index, torch.Size(shape).numel())
        return drawn.view(len(index), *shape) * temperature

    mine = list(held.chain.world.mine)
    event = held.chain.events[mine[-1]]
    if mine[-1] == len(held.chain.events) - 1:
        z = held.slices[mine[-1]].prior.unstandardise(eps(0, event))
    else:
        z = torch.frombuffer(bytearray(given), dtype=torch.float32).view(len(index), *event).to(index.device)
    for number in reversed(mine):
        part = held.slices[number].part
        z = part.inverse(z, {i: eps(i + 1, shape) for i, shape in part.eps_shapes().items()})
    return z
