"""A part's kernels recorded once and replayed: a GPU that is fed kernel by kernel waits for the host at small latents.

`torch.compile(mode="reduce-overhead")` decides by itself what it records. Here the forward and the backward pass of a
part are one CUDA graph each, so that the packet still leaves before the backward pass starts.
"""

import torch
from torch import nn

from .objective import Truncated
from .packet import Packet


def graphed(truncated: Truncated, batch: int) -> nn.Module:
    """The part as two CUDA graphs; what it returns is valid until it is called again.

    Its parameters stay where they are, and must do so; its prior and its steps can still be called one by one.

    Args:
        truncated: a part on a GPU.
        batch: images of every packet to come.
    """
    device = next(truncated.parameters()).device
    blank = Packet(torch.zeros(batch, *truncated.part.event_in, device=device), torch.zeros(batch, device=device))
    replayed: nn.Module = torch.cuda.make_graphed_callables(truncated, (blank,), allow_unused_input=True)  # type: ignore[assignment, arg-type]
    return replayed
