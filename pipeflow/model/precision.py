"""How the coupling networks compute: where bits can be saved without the likelihood noticing, and how they lie.

`torch.autocast` around a whole model would also round latents and 1×1 convolutions, and what is rounded in a flow can
neither be inverted nor counted in nats. Nearly all arithmetic is inside networks, which are never inverted: only they
compute in bfloat16, or on a GPU in TF32. Latents, log-determinants, priors, ActNorm and 1×1 weights stay
float32.
"""

from typing import Literal

import torch
from torch import nn

from ..flow import AdditiveCoupling, AffineCoupling, CouplingNetwork, Transformer
from .families import FAMILIES

Precision = Literal["fp32", "tf32", "bf16"]
Layout = Literal["contiguous", "channels_last"]


def set_precision(flow: nn.Module, precision: Precision, layout: Layout = "contiguous") -> None:
    """Sets what the coupling networks of a flow compute in, and how their activations lie in memory.

    Args:
        flow: its parameters stay float32, whatever the precision.
        precision: "fp32"; "tf32", products of 10-bit mantissas on a GPU, nothing on the CPU; "bf16".
        layout: "contiguous", (B, C, H, W), or "channels_last", (B, H, W, C), which many convolutions prefer; latents
            and parameters lie as ever, the weights that a pass computes with do not.
    """
    for module in flow.modules():
        if isinstance(module, AffineCoupling | AdditiveCoupling | Transformer):
            module.autocast = torch.bfloat16 if precision == "bf16" else None
        if isinstance(module, AffineCoupling | AdditiveCoupling):
            module.channels_last = layout == "channels_last"


def set_packets(flow: nn.Module, packets: int) -> None:
    """Tells the coupling networks of a flow how many packets a batch is."""
    for module in flow.modules():
        if isinstance(module, CouplingNetwork):
            module.in_packets = packets > 1


def set_tensor_cores(precision: Precision, flow: str = "glow") -> None:
    """Sets whether this process's GPU may use TF32 for the networks' convolutions, or matrix products, of float32.

    In a Glow and in flows of a script's own, matrix products such as those of the 1×1 convolutions never use it.
    """
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32" and flow in FAMILIES and flow != "glow"
