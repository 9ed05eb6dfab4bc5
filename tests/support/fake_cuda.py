"""A GPU that has shapes and devices but no numbers: an operation that mixes devices, or a host that reads, is an error.

The tensors are those of PyTorch's `FakeTensorMode`. The device is cuda:1, so that what takes the current device, which
is cuda:0, shows. Streams and events do nothing, and are noted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

DEVICE = torch.device("cuda", 1)


@contextmanager
def fake_cuda() -> Iterator[mock.MagicMock]:
    """While the block runs, tensors of cuda:1 can be made; yields what notes the calls of `torch.cuda`."""
    notes = mock.MagicMock()
    names = ("Event", "Stream", "stream", "current_stream")
    patches = [mock.patch.object(torch.cuda, name, getattr(notes, name)) for name in names]
    # Without it, autocast would switch itself off.
    patches.append(mock.patch.object(torch.cuda, "is_available", return_value=True))
    patches.append(mock.patch.object(torch.autograd, "backward", _backward))
    with FakeTensorMode(allow_non_fake_inputs=False):
        for patch in patches:
            patch.start()
        try:
            yield notes
        finally:
            for patch in patches:
                patch.stop()


def move(module: nn.Module) -> nn.Module:
    """Puts parameters and buffers of a module on the device; `to` cannot, between a fake tensor and a real one."""
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            owner.register_parameter(name, nn.Parameter(_moved(parameter), requires_grad=parameter.requires_grad))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, _moved(buffer))
    return module


def _moved(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


def _backward(loss: Tensor, gradient: Tensor) -> None:
    """Autograd's engine refuses a device that is not there: every parameter behind the loss gets a gradient instead."""
    assert loss.device == gradient.device == DEVICE
    pending, seen = [loss.grad_fn], set[Any]()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaf.grad = torch.empty_like(leaf)
        pending += [above for above, _ in node.next_functions]
