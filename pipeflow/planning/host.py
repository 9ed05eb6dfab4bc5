"""The device that is measured, and how many processes this host can run at once."""

import os
import platform

import torch


def device_name(device: torch.device) -> str:
    """The device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU with {os.cpu_count()} cores"


def device_memory(device: torch.device) -> float:
    """Bytes of the device; on the CPU those of the host, which its processes share."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processes_at_once(device: torch.device, threads: int) -> float:
    """How many processes this host has devices, or cores, for; `threads`: of each process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1.0, cores / threads)
