"""Processes: which there are, how they reach each other, and whether they are alive.

Only this package and stream import torch.distributed.
"""

from .blame import blame
from .data_parallel import average_gradients, equalise, full_tensor, local_tensor, shard, spread_like
from .device import available_memory, choose_device
from .graceful_stop import Stop
from .grid import Grid, grid, overlap, owners, unequal
from .heartbeat import EVERYONE, Pulse, last_sign
from .launch import RESTARTS, launch_name
from .lives import run_in_child
from .malloc import keep_memory
from .pipeline_1f1b import Engine
from .process_settings import deterministic_kernels, intra_op_threads, prepare_process
from .process_world import open_world
from .settings import WIRES, ParallelConfig, bytes_per_image
from .socket_counters import totals
from .transport_errors import lost_error, others_answer
from .watchdog import Watch
from .world import Members, ResumePoint, World, say

__all__ = [
    "EVERYONE",
    "RESTARTS",
    "WIRES",
    "Engine",
    "Grid",
    "Members",
    "ParallelConfig",
    "Pulse",
    "ResumePoint",
    "Stop",
    "Watch",
    "World",
    "available_memory",
    "average_gradients",
    "blame",
    "bytes_per_image",
    "choose_device",
    "deterministic_kernels",
    "equalise",
    "full_tensor",
    "grid",
    "intra_op_threads",
    "keep_memory",
    "last_sign",
    "launch_name",
    "local_tensor",
    "lost_error",
    "open_world",
    "others_answer",
    "overlap",
    "owners",
    "prepare_process",
    "run_in_child",
    "say",
    "shard",
    "spread_like",
    "totals",
    "unequal",
]
