"""What a process frees stays with it, unless its environment has chosen otherwise."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys, torch
from pipeflow.distributed import ParallelConfig, keep_memory, open_world, prepare_process

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):  # 8 MiB go back when they are freed, whatever lies beside them
    ctypes.CDLL(None).mallopt(parameter, 2**20)
if sys.argv[1] == "keep":
    keep_memory()
elif sys.argv[1] == "world":
    open_world(ParallelConfig(), 1, "cpu")
elif sys.argv[1] == "command":
    prepare_process(1, torch.device("cpu"))
for number in range(10):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(2**21) for _ in range(4)]  # 8 MiB each
    del kept
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20 / 8)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def faulted(how: str, **environment: str) -> float:
    """MiB that are faulted in anew each time that 32 MiB are taken and freed."""
    chosen = {key: value for key, value in os.environ.items() if key not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    chosen = {key: value for key, value in chosen.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=chosen | environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@glibc
@pytest.mark.parametrize("how", ["keep", "command"])
def test_freed_memory_is_used_again(how):
    assert faulted(how) < 4


@glibc
def test_the_environment_may_choose_otherwise():
    assert faulted("keep", MALLOC_MMAP_THRESHOLD_=str(2**20)) > 20


@glibc
def test_a_world_leaves_the_allocator_alone():
    assert faulted("world") > 20
