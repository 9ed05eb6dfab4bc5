"""A flow of one's own on data of one's own: a RealNVP on two moons, trained by parts, and drawn.

    python examples/realnvp.py --out density.png
    torchrun --standalone --nproc_per_node=2 examples/realnvp.py --run_dir runs/two --out density.png

Both print the same figures. Every setting of `python -m pipeflow.train` may follow, and --resume auto. Under torchrun
every process runs this script, so that a flow is a function here and never a name in a file of settings.
"""

import argparse
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pipeflow
from pipeflow.config import PhaseConfig
from pipeflow.data import DataConfig
from pipeflow.flow import ActNorm, Step
from pipeflow.model import CutConfig
from pipeflow.train import main


class Coupling(Step):
    """z_b' = z_b · exp(s(z_a)) + t(z_a), z_a stays; log|det| = Σ s (Dinh et al., "Real NVP", 2017, §3.2)."""

    def __init__(self, first: bool, hidden: int = 64) -> None:
        super().__init__()
        self.kept = 0 if first else 1
        self.network = nn.Sequential(
            nn.Linear(1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2)
        )
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z_a, z_b = z[:, self.kept, None], z[:, 1 - self.kept, None]
        s, t = self.scale_and_shift(z_a)
        return self.together(z_a, z_b * s.exp() + t), s.squeeze(1)

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        z_a, z_b = z[:, self.kept, None], z[:, 1 - self.kept, None]
        s, t = self.scale_and_shift(z_a)
        return self.together(z_a, (z_b - t) * (-s).exp())

    def scale_and_shift(self, z_a: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.network(z_a).chunk(2, 1)
        return 2 * torch.tanh(s / 2), t

    def together(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        return torch.cat([z_b, z_a] if self.kept else [z_a, z_b], 1)


def realnvp() -> list[Step]:
    """24 flow steps on (2,): ActNorm and coupling by turns."""
    return [step for i in range(12) for step in (ActNorm(2), Coupling(first=i % 2 == 0))]


def moons(n: int, seed: int) -> np.ndarray:
    """n points of two half-circles that reach into each other, with noise: (n, 2)."""
    draw = np.random.default_rng(seed)
    angle, upper = math.pi * draw.uniform(size=n), draw.integers(2, size=n) == 1
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    return 2 * np.stack([x, y], 1) + draw.normal(scale=0.15, size=(n, 2))


CONFIG = pipeflow.Config(
    run_dir="runs/realnvp",
    device="cpu",
    flow="realnvp",
    data=DataConfig("own", batch=256, init_batch=2048),
    cut=CutConfig("explicit", parts=3, at=[2, 6]),
    phases=[
        PhaseConfig("simultaneous", steps=1200, lr=5e-3, clip=1.0, warmup_steps=100),
        PhaseConfig("simultaneous", steps=400, lr=5e-4, clip=1.0),
    ],
)


def draw(run: str, points: np.ndarray, file: Path) -> None:
    """Draws the points, and the density of the flow that stops behind each part."""
    x, y = torch.linspace(-4, 4, 320), torch.linspace(-2.5, 2.5, 200)
    grid, extent = torch.cartesian_prod(x, y), (-4, 4, -2.5, 2.5)
    figure = Figure(figsize=(14, 2.6), layout="constrained")
    first, *others = figure.subplots(1, 1 + CONFIG.cut.parts)
    first.hist2d(*points.T, bins=(128, 80), range=(extent[:2], extent[2:]), cmap="magma")
    first.set_title("data")
    for parts, axes in enumerate(others, 1):
        flow = pipeflow.load(run, realnvp, parts)
        with torch.no_grad():
            density = flow.log_prob(grid).exp().view(len(x), len(y)).T
            nats = -flow.log_prob(torch.from_numpy(points)).mean()
        axes.imshow(density, origin="lower", extent=extent, cmap="magma", vmax=0.2)
        axes.set_title(f"after part {parts}: {nats:.3f} nats a test point")
    for axes in (first, *others):
        axes.set(xticks=[], yticks=[], aspect="equal")
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", default=CONFIG.run_dir, help="the run directory")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="draw the densities")
    options, words = parser.parse_known_args()
    train, test = moons(20_000, seed=0), moons(5_000, seed=1)
    code = main(["--run_dir", options.run_dir, *words], CONFIG, realnvp, (train, test))
    if code == 0 and options.out and os.environ.get("RANK", "0") == "0":
        draw(options.run_dir, test, options.out)
    sys.exit(code)
