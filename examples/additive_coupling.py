"""A step of one's own in the package's own Glow: an additive coupling, on the digits, trained by parts.

    python examples/additive_coupling.py
    torchrun --standalone --nproc_per_node=3 examples/additive_coupling.py

Ends with a sheet of digits in runs/additive_coupling/samples/. Every setting of `python -m pipeflow.train` may follow.
"""

import sys

import torch
from torch import Tensor, nn

import pipeflow
from pipeflow.config import PhaseConfig
from pipeflow.data import DataConfig
from pipeflow.flow import Step
from pipeflow.model import CutConfig, glow_steps
from pipeflow.model.glow import FlowStep
from pipeflow.train import main


class Additive(Step):
    """z_b' = z_b + t(z_a), z_a stays; log|det| = 0 (Dinh et al., "NICE", 2014, §3.2)."""

    def __init__(self, channels: int, hidden: int = 64) -> None:
        super().__init__()
        self.kept = channels // 2
        self.network = nn.Sequential(
            nn.Conv2d(self.kept, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, channels - self.kept, 3, padding=1)
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z_a, z_b = z[:, : self.kept], z[:, self.kept :]
        return torch.cat([z_a, z_b + self.network(z_a)], 1), z.new_zeros(len(z))

    def inverse(self, z: Tensor, eps: Tensor | None = None) -> Tensor:
        z_a, z_b = z[:, : self.kept], z[:, self.kept :]
        return torch.cat([z_a, z_b - self.network(z_a)], 1)


def additive_glow() -> list[Step]:
    """A Glow of 2 levels × 4 flow steps on (1, 8, 8), its couplings replaced."""
    steps = glow_steps(pipeflow.GlowConfig(levels=2, steps=4, hidden=1), image=(1, 8, 8))
    for step in steps:
        if isinstance(step, FlowStep):
            step.coupling = Additive(channels=len(step.actnorm.bias))
    return steps


CONFIG = pipeflow.Config(
    run_dir="runs/additive_coupling",
    flow="additive_glow",
    data=DataConfig("digits", batch=48),
    cut=CutConfig("explicit", parts=3, at=[2, 5]),
    phases=[PhaseConfig("simultaneous", epochs=10, lr=2e-3, warmup_steps=50)],
)

if __name__ == "__main__":
    sys.exit(main(base=CONFIG, flow=additive_glow))
