"""The device of this process."""

import torch


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto", "cpu" or "cuda" → a device of this machine; a ValueError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device is cuda, but PyTorch sees no CUDA device here; use --device cpu or auto.")
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device(name)
