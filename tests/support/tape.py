"""A CUDA graph for the CPU: the operations of a piece of work on tape, and the same ones again at the same addresses.

What a CUDA graph does not do, the tape does not do: no line of Python runs in a replay, nothing is computed while it is
recorded, what is returned lies where it lay, and a host that asks for a number breaks the recording.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten._linalg_check_errors.default}


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in HOST_READS, f"{func}: the host reads what the device computes"
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._before += [(tensor, tensor.clone()) for tensor in tensors(value)]
        out = func(*args, **kwargs)
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        new = [(at, t) for at, t in enumerate(tensors(out)) if t.untyped_storage().data_ptr() not in known]
        self.steps.append((func, args, kwargs, new))
        return out

    def undo(self) -> None:
        for tensor, value in reversed(self._before):
            tensor.copy_(value)
        self._before = []

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, new in self.steps:
            again = tensors(func(*args, **kwargs))
            for at, tensor in new:
                tensor.copy_(again[at])


class TapeRecorder:
    """What `CudaRecorder` does, without a GPU.

    Attributes:
        recorded: pieces of work so far.
        replays: how often any of them was done.
    """

    def __init__(self) -> None:
        self.recorded = self.replays = 0

    def aside(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        with (tape := _Tape()):
            result = work()
        with torch.no_grad():
            tape.undo()
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay, result
