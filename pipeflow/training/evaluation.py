"""Bits/dim on held-out images: of the model, of every truncation, and what each part contributes to it.

The chain that trains also evaluates: every part adds up its own increments, in float64, over exactly the given
images, and the totals of all parts make one ledger. A truncation's bits/dim is a valid one of the flow that stops
there; only the last one is the model's.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..data import InOrder, Labels, Purpose, Space, share
from ..model import Truncated
from ..stream import Chain, aborted_if_lost, close


@dataclass(frozen=True)
class Ledger:
    """Where the bits go; every figure in bits/dim, averaged over the images.

    Attributes:
        images: how many images were scored.
        dequantisation: log2 of the number of pixel levels.
        parts: for each part evaluated, in order: "log_det", "split_prior", "prior" (of the truncation behind the part)
            and "bits_per_dim" (of that truncation).
        complete: whether the last of these parts is the model's last.
    """

    images: int
    dequantisation: float
    parts: list[dict[str, float]]
    complete: bool

    @property
    def bits_per_dim(self) -> float | None:
        """The model's bits/dim; None while its last part has not started to learn."""
        return self.parts[-1]["bits_per_dim"] if self.complete else None

    def table(self) -> str:
        """For people: one line per part."""
        lines = [f"  dequantisation {self.dequantisation:9.4f}"] if self.dequantisation else []  # none for points
        for number, part in enumerate(self.parts, 1):
            label = "model" if self.complete and number == len(self.parts) else f"flow truncated after part {number}"
            lines.append(
                f"  part {number}: log-dets {part['log_det']:8.4f}, split priors {part['split_prior']:8.4f}, "
                f"prior {part['prior']:8.4f} → {part['bits_per_dim']:.4f} bits/dim ({label})"
            )
        return "\n".join(lines)


def evaluate(
    chain: Chain,
    slices: Mapping[int, Truncated],
    images: np.ndarray,
    space: Space,
    seed: int,
    batch: int,
    last: int,
    labels: Labels | None = None,
) -> Ledger:
    """Scores the images with the chain; every process must call it, and gets the same ledger.

    Chains share the images, batch by batch; the processes of a part share each batch.

    Args:
        chain: the borders.
        slices: position → part with its prior, of this process.
        images: (N, H, W, C) uint8, scored once each; the last batch may be short.
        space: what they look like.
        seed: of the dequantisation noise.
        batch: images a packet.
        last: position of the last part to evaluate.
        labels: (N,) of the images.
    """
    sums: dict[int, dict[str, torch.Tensor]] = {part: {} for part in chain.mine(last)}  # on the device: no host waits
    world = chain.world
    for first, count, size in _equal_batches(len(images), batch, world.replica, world.grid.replicas):
        mine = world.grid.share(world.rank, size)
        index = torch.arange(first, first + count * size).view(count, size)[:, mine.start : mine.stop].flatten()
        head = InOrder(images, index, space, seed, Purpose.EVALUATE, len(mine) or size, world.device, labels)
        links = chain.open_links(head, (size,), count, last)
        with aborted_if_lost(links):
            for _ in range(count):
                world.pulse.beat()
                for part, inbox, outbox in links:
                    with torch.no_grad():
                        packet, entries = slices[part].part.ledger(inbox.recv())
                        outbox.send(packet.sealed())
                        entries["prior"] = slices[part].prior.log_prob(packet.z, packet.label).double()
                    for entry, logp in entries.items():
                        sums[part][entry] = sums[part].get(entry, 0.0) + logp.sum()
            close(links)
    totals: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    read = {part: {entry: nats.item() for entry, nats in by_entry.items()} for part, by_entry in sums.items()}
    for sums_of_process in world.gather(read):
        for part, by_entry in sums_of_process.items():
            for entry, nats in by_entry.items():
                totals[int(part)][entry] += nats
    return _ledger(totals, len(images), space, last == len(chain.events) - 1)


def _equal_batches(images: int, batch: int, replica: int, replicas: int) -> list[tuple[int, int, int]]:
    """A replica's share of the images as (first image, batches, images per batch), the same number in all replicas.

    The short batch at the end is the last replica's; the others have none of it.
    """
    shared, (full, rest) = share(images, batch, replica, replicas), divmod(images, batch)
    batches = [(shared.start, len(shared) // batch, batch)] * bool(full)
    return batches + [(full * batch, int(len(shared) % batch > 0), rest)] * bool(rest)


def _ledger(totals: Mapping[int, Mapping[str, float]], images: int, space: Space, complete: bool) -> Ledger:
    dequantisation = running = math.log2(space.n) if space.nats else 0.0
    parts = []
    for _, nats in sorted(totals.items()):
        bits = {name: space.bits_per_dim(nats.get(name, 0.0) / images) for name in ("log_det", "split_prior", "prior")}
        running += bits["log_det"] + bits["split_prior"]
        parts.append(bits | {"bits_per_dim": running + bits["prior"]})
    return Ledger(images, dequantisation, parts, complete)
