"""Settings of the process: threads and allocator. A command or a worker changes them for good, the library never."""

from collections.abc import Iterator
from contextlib import contextmanager

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
