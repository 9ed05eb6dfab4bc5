"""Processes: which there are, how they reach each other, and whether they are alive.

Only this package and stream import torch.distributed.
"""

from .device import choose_device
from .graceful_stop import Stop
from .grid import grid, owners
from .heartbeat import EVERYONE, Pulse
from .malloc import keep_memory
from .pipeline_1f1b import Engine
from .process_settings import intra_op_threads, prepare_process
from .process_world import open_world
from .settings import WIRES, ParallelConfig, bytes_per_image
from .sharding import local, placed, whole
from .shared_work import everywhere, on_rank_0
from .socket_counters import totals
from .watchdog import Watch
from .world import World, say

__all__ = [
    "EVERYONE",
    "WIRES",
    "Engine",
    "ParallelConfig",
    "Pulse",
    "Stop",
    "Watch",
    "World",
    "bytes_per_image",
    "choose_device",
    "everywhere",
    "grid",
    "intra_op_threads",
    "keep_memory",
    "local",
    "on_rank_0",
    "open_world",
    "owners",
    "placed",
    "prepare_process",
    "say",
    "totals",
    "whole",
]
