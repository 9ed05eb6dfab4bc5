"""Settings of the process: threads and allocator. A command or a worker changes them for good, the library never."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .malloc import keep_memory


def prepare_process(threads: int, device: torch.device) -> None:
    """Called once by a process that does nothing but pipeflow's work: a command or a worker, never a library function.

    Args:
        threads: intra-op threads of PyTorch from now on (`parallel.threads`).
        device: where it computes; on the CPU, freed memory stays with the process.
    """
    torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_memory()


@contextmanager
def intra_op_threads(number: int) -> Iterator[None]:
    """While the block runs, PyTorch computes with so many threads; results depend on it to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic_kernels(on: bool) -> Iterator[None]:
    """While the block runs, and if `on`, only kernels that give the same bits every time; elsewhere as before.

    cuBLAS looks at its variable when it is first used: a process that has computed on a GPU before must have had it.
    """
    if not on:
        yield
        return
    memory: Any = torch.utils.deterministic
    variable = "CUBLAS_WORKSPACE_CONFIG"
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    flags = torch.backends.cudnn.deterministic, memory.fill_uninitialized_memory
    given = os.environ.get(variable)
    os.environ[variable] = given or ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, memory.fill_uninitialized_memory = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic, memory.fill_uninitialized_memory = flags
        if given is None:
            del os.environ[variable]
