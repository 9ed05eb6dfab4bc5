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

from ..data import InOrder, Purpose, Space, share
from ..model import Truncated
from ..stream import Chain, close


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
        """For people: a line a part."""
        lines = [f"  dequantisation {self.dequantisation:9.4f}"] if self.dequantisation else []  # none for points
        for number, part in enumerate(self.parts, 1):
            label = "model" if self.complete and number == len(self.parts) else f"flow truncated behind part {number}"
            lines.append(
                f"  part {number}: log-dets {part['log_det']:8.4f}, split priors {part['split_prior']:8.4f}, "
                f"prior {part['prior']:8.4f} → {part['bits_per_dim']:.4f} bits/dim ({label})"
            )
        return "\n".join(lines)


def evaluate(
    chain: Chain,
    slices: Mapping[int, Truncated],
    images: np.ndarray,
    pixels: Space,
    seed: int,
    batch: int,
    last: int,
) -> Ledger:
    """Scores the images with the chain; every process must call it, and gets the same ledger.

    Replicas share the images, batch by batch.

    Args:
        chain: the borders.
        slices: position → part with its prior, of this process.
        images: (N, H, W, C) uint8, scored once each; the last batch may be short.
        pixels: what they look like.
        seed: of the dequantisation noise.
        batch: images a packet.
        last: position of the last part to evaluate.
    """
    sums: dict[int, defaultdict[str, float]] = {part: defaultdict(float) for part in chain.mine(last)}
    grid = chain.world.grid
    mine = share(len(images), batch, chain.world.replica, grid.replicas)
    whole, rest = divmod(len(images), batch)
    # The short batch is the last replica's; the others lay no links for it.
    runs = [(mine.start, len(mine) // batch, batch)] * bool(whole)
    runs += [(whole * batch, int(len(mine) % batch > 0), rest)] * bool(rest)
    for first, count, size in runs:
        index = torch.arange(first, first + count * size)
        head = InOrder(images, index, pixels, seed, Purpose.EVALUATE, size, chain.world.device)
        ends = chain.lay(head, size, count, last)
        for _ in range(count):
            chain.world.pulse.beat()
            for part, inbox, outbox in ends:
                truncated = slices[part]
                with torch.no_grad():
                    packet, entries = truncated.part.ledger(inbox.recv())
                    outbox.send(packet.sealed())
                    entries["prior"] = truncated.prior.log_prob(packet.z).double()
                for entry, logp in entries.items():
                    sums[part][entry] += logp.sum().item()
        close(ends)
    totals: dict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for sums_of_rank in chain.world.gather(sums):
        for part, entries in sums_of_rank.items():
            for entry, nats in entries.items():
                totals[int(part)][entry] += nats
    return _ledger(totals, len(images), pixels, last == len(chain.events) - 1)


def _ledger(totals: Mapping[int, Mapping[str, float]], images: int, pixels: Space, complete: bool) -> Ledger:
    dequantisation = math.log2(pixels.n)
    running = dequantisation
    parts = []
    for part in sorted(totals):
        bits = {
            entry: pixels.bits_per_dim(totals[part].get(entry, 0.0) / images)
            for entry in ("log_det", "split_prior", "prior")
        }
        running += bits["log_det"] + bits["split_prior"]
        parts.append(bits | {"bits_per_dim": running + bits["prior"]})
    return Ledger(images, dequantisation, parts, complete)
