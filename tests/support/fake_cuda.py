"""A GPU that has shapes and devices but no numbers: an operation that mixes devices, or a host that reads, is an error.

The tensors are those of PyTorch's `FakeTensorMode`. The device is cuda:1, so that what takes the current device, which
is cuda:0, shows. Streams and events do nothing, and are noted.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.tape import tensors

DEVICE = torch.device("cuda", 1)


@contextmanager
def fake_cuda() -> Iterator[mock.MagicMock]:
    """While the block runs, tensors of cuda:1 can be made; yields what notes the calls of `torch.cuda`."""
    notes = mock.MagicMock()
    names = ("Event", "Stream", "stream", "current_stream")
    patches = [mock.patch.object(torch.cuda, name, getattr(notes, name)) for name in names]
    # Without it, autocast would switch itself off.
    available = ("is_available", "is_bf16_supported")
    patches += [mock.patch.object(torch.cuda, name, return_value=True) for name in available]
    patches += [
        mock.patch.object(torch.autograd, name, own) for name, own in (("backward", _backward), ("grad", _grad))
    ]
    patches.append(mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False))
    patches.append(mock.patch("torch._subclasses.fake_tensor.init_gpu_context"))
    with FakeTensorMode(), _FusedOptimizers():
        for patch in patches:
            patch.start()
        try:
            yield notes
        finally:
            for patch in patches:
                patch.stop()


class _FusedOptimizers(TorchDispatchMode):
    """With a learning rate on the device, fused optimizers have no counterpart without a GPU; only devices are seen."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not str(func).startswith("aten._fused_adam"):
            return func(*args, **(kwargs or {}))
        assert all(tensor.device == DEVICE for tensor in tensors((args, kwargs))), func
        return None


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


def gradients(outputs: Sequence[Tensor], given: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """Leaf → gradient: what autograd's engine would do, which refuses a device that is not there."""
    waiting: Counter[Any] = Counter()
    edges = [get_gradient_edge(output) for output in outputs]  # an output may be a leaf
    stack, seen = [edge.node for edge in edges], set[Any]()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [above for above, _ in node.next_functions]
            waiting.update(above for above, _ in node.next_functions if above is not None)
    buffers: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    found: dict[Tensor, Tensor] = {}

    def add(node: Any, number: int, gradient: Tensor | None) -> None:
        if gradient is not None:
            like = node._input_metadata[number]
            gradient = gradient.sum_to_size(like.shape).to(like.dtype)
            assert gradient.device == like.device
            buffers[node][number] = buffers[node][number] + gradient if number in buffers[node] else gradient

    for output, edge, gradient in zip(outputs, edges, given, strict=True):
        assert output.device == gradient.device and output.shape == gradient.shape
        add(edge.node, edge.output_nr, gradient)
    ready = [node for node in {edge.node for edge in edges} if not waiting[node]]
    while ready:
        node = ready.pop()
        incoming = buffers.pop(node, {})
        above: Any = (None,) * len(node.next_functions)
        if incoming and (leaf := getattr(node, "variable", None)) is not None:
            found[leaf] = incoming[0]
        elif incoming:
            arguments = [incoming.get(number) for number in range(max(incoming) + 1)]
            above = (node if callable(node) else node.apply)(*arguments)
            above = above if isinstance(above, tuple) else (above,)
            above = above[-len(node.next_functions) :]  # before the tensors, a Function may take other things
        for (following, number), gradient in zip(node.next_functions, above, strict=True):
            if following is not None:
                add(following, number, gradient)
                waiting[following] -= 1
                ready += [following] * (not waiting[following])
    return found


def _backward(loss: Tensor, gradient: Tensor) -> None:
    for leaf, found in gradients([loss], [gradient]).items():
        assert leaf.device == found.device and leaf.shape == found.shape
        leaf.grad = found if leaf.grad is None else leaf.grad + found


def _grad(outputs: Any, inputs: Any, given: Any, allow_unused: bool = False) -> tuple[Tensor | None, ...]:
    found = gradients(outputs, given)
    return tuple(found.get(leaf) for leaf in inputs)
