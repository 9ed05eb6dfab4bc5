"""Memory on the host that is freed stays with the process.

A step frees its activations and the next one needs as much again. glibc hands large blocks back to the system at once,
and what lies free at the top of its heap, so that every page is faulted in anew in every step. Parts, whose blocks are
fewer and whose steps are shorter, lose more by it than the whole. PyTorch keeps the memory of a GPU in the same way.
`GLIBC_TUNABLES= python -m benchmarks.speed.throughput` measures without it.
"""

import ctypes
import os
import sys

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BLOCK = 2**30
_NEVER = 2**31 - 1
_CHOSEN = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"


def keep_memory() -> None:
    """From now on this process keeps what it frees, in blocks of up to 1 GiB, for what it allocates next.

    It stays as large as it ever was. Does nothing where the C library is not glibc, or where the environment has chosen
    (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`; see mallopt(3)).
    """
    if sys.platform != "linux" or any(name in os.environ for name in _CHOSEN):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
