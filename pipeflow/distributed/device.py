"""The device of this process, and the backend that carries its tensors to others."""

import os

import torch

from .settings import ParallelConfig


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto", "cpu" or "cuda" → a device of this machine; a ValueError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device is cuda, but PyTorch sees no CUDA device here; use --device cpu or auto.")
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device(name)


def choose_backend(config: ParallelConfig, device: torch.device) -> str:
    """ "gloo" or "nccl", for several processes; a ValueError where the settings ask for what cannot be."""
    own_gpu = device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
    if config.rejoin_s and config.backend == "nccl":
        raise ValueError(
            "parallel.rejoin_s needs links that can be opened again, which is built for gloo only; set "
            "parallel.backend to gloo or auto."
        )
    if config.backend == "auto":
        return "nccl" if own_gpu and not config.rejoin_s else "gloo"
    if config.backend == "nccl" and not own_gpu:
        raise ValueError("parallel.backend is nccl, but not every process has a GPU of its own here; use gloo or auto.")
    return config.backend
