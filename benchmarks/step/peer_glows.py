"""The same Glow in other libraries: levels of squeeze, (ActNorm, 1×1 convolution, affine coupling) × K, split.

Every flow gets the coupling network of Glow's paper: 3×3, 1×1, 3×3 convolutions of one width, the last of which starts
at zero; the half that leaves at the end of a level, and the rest at the end, are standard normal. If a library does not
have the very same step, its nearest one that costs less is taken, and `DIFFERENT` says which.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lib.workload import Workload

DIFFERENT = {
    "normflows": "the order of the steps is that of sampling: coupling, 1×1 convolution and ActNorm, undone in reverse",
    "FrEIA": "1×1 convolutions are fixed rotations, which do not learn; log-scales are bounded by tanh",
    "nflows": "1×1 convolutions are a permutation and an LU product, with a bias; scales are σ(raw + 2) + 0.001",
}


class Density(nn.Module):
    """A library's flow as images (B, C, H, W) → log-likelihood (B,), in nats."""

    def __init__(self, flow: nn.Module, log_prob: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.flow = flow
        self._log_prob = log_prob

    def forward(self, x: Tensor) -> Tensor:
        return self._log_prob(x)


class Network(nn.Sequential):
    """3×3 → 1×1 → 3×3 convolutions, the last one zero; a second argument, some libraries' condition, is ignored."""

    def __init__(self, channels_in: int, channels_out: int, hidden: int) -> None:
        last = nn.Conv2d(hidden, channels_out, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first, middle = nn.Conv2d(channels_in, hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 1)
        super().__init__(first, nn.ReLU(inplace=True), middle, nn.ReLU(inplace=True), last)

    def forward(self, z: Tensor, context: Any = None) -> Tensor:
        out: Tensor = super().forward(z)
        return out


def in_normflows(workload: Workload, use_lu: bool) -> nn.Module:
    """normflows (Stimper et al., 2023): `MultiscaleFlow` of `GlowBlock`s, as in its own example."""
    import normflows as nf

    bases, flows, merges = [], [], []
    shapes = list(workload.level_shapes())
    for level, (channels, height, width) in enumerate(reversed(shapes)):
        blocks = [nf.flows.GlowBlock(channels, workload.hidden, use_lu=use_lu) for _ in range(workload.steps)]
        flows.append([*blocks, nf.flows.Squeeze()])
        left = channels if level == 0 else channels // 2
        bases.append(nf.distributions.DiagGaussian((left, height, width), trainable=False))
        if level:
            merges.append(nf.flows.Merge())
    flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
    return Density(flow, lambda x: flow.log_prob(x, None))


def in_freia(workload: Workload) -> nn.Module:
    """FrEIA (Ardizzone et al., 2018): `AllInOneBlock`s, a sequence per level."""
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import AllInOneBlock, IRevNetDownsampling

    levels = nn.ModuleList()
    for channels, height, width in workload.level_shapes():
        level = SequenceINN(channels // 4, height * 2, width * 2)
        level.append(IRevNetDownsampling)
        for _ in range(workload.steps):
            network = lambda a, b: Network(a, b, workload.hidden)  # noqa: E731
            level.append(AllInOneBlock, subnet_constructor=network, permute_soft=True, global_affine_type="EXP")
        levels.append(level)

    def log_prob(x: Tensor) -> Tensor:
        logp = x.new_zeros(len(x))
        for level in levels[:-1]:
            z, dlogp = level(x)
            x, left = z[:, : z.shape[1] - z.shape[1] // 2], z[:, z.shape[1] - z.shape[1] // 2 :]
            logp = logp + dlogp + _standard_normal(left)
        z, dlogp = levels[-1](x)
        return logp + dlogp + _standard_normal(z)

    return Density(levels, log_prob)


def in_nflows(workload: Workload) -> nn.Module:
    """nflows (Durkan et al., 2020): `ActNorm`, `OneByOneConvolution`, `AffineCouplingTransform`, multiscale."""
    from nflows import distributions, flows, transforms

    shapes = list(workload.level_shapes())
    multiscale = transforms.MultiscaleCompositeTransform(workload.levels)
    for level, (channels, height, width) in enumerate(shapes):
        steps: list[Any] = [transforms.SqueezeTransform()]
        mask = [0] * (channels - channels // 2) + [1] * (channels // 2)
        for _ in range(workload.steps):
            steps += [
                transforms.ActNorm(channels),
                transforms.OneByOneConvolution(channels),
                transforms.AffineCouplingTransform(mask, lambda a, b: Network(a, b, workload.hidden)),
            ]
        if multiscale.add_transform(transforms.CompositeTransform(steps), (channels, height, width)) is None:
            assert level == workload.levels - 1
    flow = flows.Flow(multiscale, distributions.StandardNormal([workload.pixels.dims]))
    return Density(flow, flow.log_prob)


def peers(workload: Workload) -> dict[str, dict[str, Callable[[], nn.Module]]]:
    """Library → variant → function that builds it. All variants are timed; a library is as fast as its fastest.

    The variants are the memory layout of networks and images and, in normflows, how 1×1 convolutions are kept.
    """

    def laid_out(build: Callable[[], nn.Module], last: bool) -> Callable[[], nn.Module]:
        return lambda: build().to(memory_format=torch.channels_last) if last else build()

    layouts = (("channels first", False), ("channels last", True))
    return {
        "normflows": {
            f"{'LU' if lu else 'plain'} 1×1, {name}": laid_out(lambda lu=lu: in_normflows(workload, lu), last)
            for lu, (name, last) in product((True, False), layouts)
        },
        "FrEIA": {name: laid_out(lambda: in_freia(workload), last) for name, last in layouts},
        "nflows": {name: laid_out(lambda: in_nflows(workload), last) for name, last in layouts},
    }


def _standard_normal(z: Tensor) -> Tensor:
    """Log-density of (B, …) under a standard normal, (B,)."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)
