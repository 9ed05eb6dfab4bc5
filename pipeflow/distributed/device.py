"""The device of this process, and the backend that carries its tensors to others."""

import os
import re
from contextlib import suppress
from pathlib import Path

import torch

from .settings import ParallelConfig

# (limit, used) of versions 2 and 1, as a container sees its own.
_CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto", "cpu" or "cuda" → a device of this machine; a ValueError where it is not there.

    A GPU becomes the current device of this process: FSDP, batched sends and the recording of CUDA graphs use the
    current device, and so does every stream and event that is made without one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise ValueError("device is cuda, but PyTorch sees no CUDA device here; use --device cpu or auto.")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def available_memory(device: torch.device) -> float:
    """Bytes that this process may take: an equal share, for the processes of this host that use it, of what is free.

    On the CPU that is what the system calls available, or less where a control group allows less.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / max(1, -(-processes // torch.cuda.device_count()))
    free = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        free += [1024.0 * int(found[1])] if found else []
    for limit, used in _CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # there is none, or its limit is "max"
            free.append(float(int(Path(limit).read_text()) - int(Path(used).read_text())))
    return max(0.0, min(free)) / processes


def choose_backend(config: ParallelConfig, device: torch.device) -> str:
    """ "gloo" or "nccl", for several processes, as this one sees it.

    Raises:
        ValueError: the settings ask for what cannot be.
    """
    own_gpu = device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
    if config.rejoin_s and config.backend == "nccl":
        raise ValueError(
            "parallel.rejoin_s needs links that can be opened again, which is built for gloo only; set "
            "parallel.backend to gloo or auto."
        )
    if config.backend == "gloo" or (config.backend == "auto" and (config.rejoin_s or not own_gpu)):
        return "gloo"
    if not own_gpu and not _ranks_may_share_a_gpu():
        raise ValueError("parallel.backend is nccl, but not every process has a GPU of its own here; use gloo or auto.")
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            "NCCL needs to know which GPU each process takes, but LOCAL_RANK is not set; start the processes with "
            "torchrun, or set LOCAL_RANK to 0, 1, … on each host, or parallel.backend to gloo."
        )
    return "nccl"


def _ranks_may_share_a_gpu() -> bool:
    """Whether NCCL was told, and is able, to connect several processes on one GPU; slow, but all of NCCL runs on it."""
    told = os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1"
    return told and torch.cuda.nccl.version() >= (2, 30)  # type: ignore[no-untyped-call]
