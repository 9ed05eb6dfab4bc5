"""A trained flow → bits/dim of every image, after every part; what `python -m pipeflow.evaluate` prints.

The ledger of training (training/evaluation.py) sums over the images and needs the processes that trained.
How sure a figure is, and how far apart two data sets lie, are questions about single images; and a trained flow is
small enough to be whole in every process, so here processes share out the images, not the parts.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Images, Labels, Purpose, Space, fetch, share
from ..distributed import ParallelConfig, World
from ..flow import Packet
from ..model import Truncated, check_labels, flow_steps_behind
from .load import Trained

Values = NDArray[np.float64]


@dataclass(frozen=True)
class TruncationScores:
    """A flow that stops after one of the parts, scored image by image.

    Attributes:
        part, flow_steps: its last part, counted from 1, and how many flow steps it has.
        model: whether that is all of them.
        bits_per_dim: (N,) float64, one figure an image, the mean over the draws of dequantisation noise.
        bound: (N,) float64, bits/dim as the importance-weighted bound of all draws has it; never above `bits_per_dim`,
            and the same with one draw.
    """

    part: int
    flow_steps: int
    model: bool
    bits_per_dim: Values
    bound: Values

    @property
    def label(self) -> str:
        """How tables call it."""
        steps = f"{self.flow_steps} flow step{'s' * (self.flow_steps != 1)}"
        return "model" if self.model else f"after part {self.part} ({steps})"


@dataclass(frozen=True)
class Scores:
    """What `score` found of so many images, with a seed of the dequantisation noise and so many draws of it an image.

    `rows`: for every part that has started to learn, in order, the flow that stops after it. `labels`: of the images,
    (N,), where the flow takes them.
    """

    images: int
    seed: int
    samples: int
    rows: list[TruncationScores]
    labels: Labels | None = None

    def by_class(self) -> dict[int, dict[str, float | None]]:
        """Label → a summary of the last row's bits/dim of the images that have it; empty without labels."""
        bits, labels = self.rows[-1].bits_per_dim, self.labels
        return {} if labels is None else {int(one): _summary(bits[labels == one]) for one in np.unique(labels)}

    def table(self) -> str:
        """For people: a line a truncation, means and their standard errors."""
        many = self.samples > 1
        lines = [f"{'':36} {'bits/dim':>10} {'standard error':>16}"]
        lines[0] += f" {'weighted bound':>16} {'standard error':>16}" * many
        for row in self.rows:
            line = f"{row.label:36} {row.bits_per_dim.mean():10.4f} {standard_error(row.bits_per_dim):16.4f}"
            lines.append(line + f" {row.bound.mean():16.4f} {standard_error(row.bound):16.4f}" * many)
            if bad := _not_finite(row.bits_per_dim):
                lines.append(f"  ({bad} of these images have a bits/dim that is not finite)")
        for label, found in self.by_class().items():
            mean, error = (math.nan if found[name] is None else found[name] for name in ("mean", "standard_error"))
            lines.append(f"{f'{self.rows[-1].label}, class {label}':36} {mean:10.4f} {error:16.4f}")
        if not any(row.model for row in self.rows):
            lines.append(f"no bits/dim of the model yet: part {len(self.rows) + 1} has not started to learn")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For programs: plain numbers; None for one that is not finite, which JSON does not have."""
        truncations = [
            {
                "label": row.label,
                "part": row.part,
                "flow_steps": row.flow_steps,
                "model": row.model,
                "bits_per_dim": _summary(row.bits_per_dim),
                "weighted_bound": _summary(row.bound),
            }
            for row in self.rows
        ]
        found = {"images": self.images, "seed": self.seed, "samples": self.samples, "truncations": truncations}
        return found | ({"classes": self.by_class()} if self.labels is not None else {})


def standard_error(values: Values) -> float:
    """Of the mean of N independent figures: their standard deviation (N − 1) / √N; NaN for a single one."""
    with np.errstate(invalid="ignore"):
        return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _summary(values: Values) -> dict[str, float | None]:
    figures = {"mean": values.mean(), "standard_error": standard_error(values), "least": values.min()}
    figures |= {"median": np.median(values), "most": values.max(), "not_finite": _not_finite(values)}
    return {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}


def _not_finite(values: Values) -> int:
    return int((~np.isfinite(values)).sum())


def score(
    trained: Trained,
    images: Images,
    seed: int | None = None,
    samples: int = 1,
    batch: int | None = None,
    world: World | None = None,
    labels: Labels | None = None,
) -> Scores:
    """Scores every image once, after every part that has started to learn, by one pass down the chain a draw.

    log p(x) ≥ E_u log p(x, u) for u ~ U(0, 1) (Theis, van den Oord and Bethge, 2016), and K draws u_1 … u_K give the
    tighter bound log (1/K) Σ p(x, u_k) (Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016).

    Args:
        trained: what `pipeflow.inference.read` returned; it is computed where its weights are.
        images: (N, H, W, C) uint8.
        seed: of the dequantisation noise; that of the run by default, with which the first draw is that of training's
            own evaluations.
        samples: K, draws of noise an image.
        batch: images at a time; as in training by default.
        world: the processes that share the work; all must call it, and each gets everything. By default this one.
        labels: (N,) of the images, for a flow that takes them.

    Returns:
        The model's bits/dim, and those of the flows that stop earlier.

    Raises:
        ValueError: fewer than one draw or image at a time, images or labels that do not fit the run, or a run of
            which no part has started to learn.
        LostError: another process is gone.
    """
    config, data_space = trained.config, trained.data_space
    seed, batch = config.seed if seed is None else seed, config.data.batch if batch is None else batch
    if samples < 1 or batch < 1:
        raise ValueError(f"Cannot score with {samples} draws of noise in batches of {batch}; both must be at least 1.")
    world = world or World(ParallelConfig(), 1, "cpu")
    every = flow_steps_behind([piece.part for piece in trained.slices])
    ends = [end for end in every if end <= trained.manifest.started]
    if not ends:
        raise ValueError(f"No part of {trained.directory} has started to learn; there is nothing to score yet.")
    slices = trained.slices[: len(ends)]
    device = next(trained.model.parameters()).device
    label = check_labels(None if labels is None else torch.from_numpy(labels), len(images), data_space.classes, device)
    numbers = share(len(images), batch, world.rank, world.size)
    found = np.empty((2, len(ends), len(numbers)))
    for first in range(numbers.start, numbers.stop, batch):
        index = torch.arange(first, min(first + batch, numbers.stop))
        chosen = fetch(images, index.numpy(), device)
        columns = slice(first - numbers.start, first - numbers.start + len(index))
        of_chosen, index = None if label is None else label[index], index.to(device)
        found[:, :, columns] = _nats(slices, chosen, of_chosen, data_space, seed, samples, index).cpu().numpy()
    everyone = [np.frombuffer(data).reshape(2, len(ends), -1) for data in world.gather_bytes(found.tobytes()) if data]
    bits = -np.concatenate(everyone, axis=2) / (data_space.dims * math.log(2))
    rows = [
        TruncationScores(part + 1, end, end == every[-1], bits[0, part], bits[1, part]) for part, end in enumerate(ends)
    ]
    return Scores(len(images), seed, samples, rows, labels)


@torch.inference_mode()
def _nats(
    slices: list[Truncated],
    images: Tensor,
    label: Tensor | None,
    data_space: Space,
    seed: int,
    samples: int,
    index: Tensor,
) -> Tensor:
    """(B, C, H, W) uint8 → (2, parts, B) float64, log-likelihoods: the mean over the draws, and their bound."""
    packets = (data_space.noisy(images, seed, Purpose.EVALUATE, draw, index) for draw in range(samples))
    draws = torch.stack([_after_every_part(slices, one._replace(label=label), data_space) for one in packets])
    return torch.stack([draws.mean(0), draws.logsumexp(0) - math.log(samples)])


def _after_every_part(slices: list[Truncated], packet: Packet, data_space: Space) -> Tensor:
    """Log-likelihood after every part, (parts, B) nats, added up in float64: a packet's own sum is float32."""
    logp = torch.full_like(packet.logp, -data_space.nats, dtype=torch.float64)
    rows = []
    for piece in slices:
        packet, entries = piece.part.ledger(packet)
        logp = logp + sum(entries.values())
        rows.append(logp + piece.prior.log_prob(packet.z, packet.label).double())
    return torch.stack(rows)
