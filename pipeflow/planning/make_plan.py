"""Settings of a run → its plan: what can be refused is refused, steps are measured, and a cut is chosen."""

import dataclasses
import os
import platform
import time
from typing import Any

import torch

from ..config import Config, turns
from ..data import Pixels, check_enough, outline
from ..distributed import choose_device, grid, intra_op_threads, unequal
from ..model import FAMILIES, family_cut, family_steps
from ..units import bytes_of
from .balance import balanced_cut
from .cluster import make_cluster
from .forecast import per_part, share
from .micro_batches import with_chosen_micro_batches
from .placement import place_processes
from .plan import Plan
from .profile import Link
from .run_profile import batch_sizes, flow_step_groups, measured_profile
from .scaling import Simulation


def make_plan(
    config: Config,
    link: float = 1e10,
    memory: float | None = None,
    hosts: int | None = None,
    gpus_per_host: int | None = None,
    **cluster: Any,
) -> Plan:
    """Measures the steps of a run's flow on this device, for some seconds; the plan computes the rest.

    Args:
        config: the settings of the run.
        link: speed between two devices in each direction, in bits per second.
        memory: bytes of a device; None takes `parallel.memory`, or those of the measured device or of this host.
        hosts, gpus_per_host: a grid with one process per GPU; None plans for a device per part and replica.
        cluster: `devices`, and more of the options of `make_cluster`, for a simulation.

    Raises:
        ValueError: settings that `train` would refuse, or that no plan can be made for.
    """
    simulated = make_cluster(link, hosts, **cluster)
    if simulated and gpus_per_host is not None:
        raise ValueError("--devices and --hosts say how many GPUs a host has; leave --gpus-per-host out.")
    if not simulated and (hosts is None) != (gpus_per_host is None):
        raise ValueError("--hosts and --gpus-per-host belong together; give both, or none.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("A plan is made by one process, also for many; start it without torchrun.")
    data, parts = config.data, config.cut.parts
    if config.flow not in FAMILIES or data.name == "own":
        raise ValueError("A plan is made from settings alone; a flow or data of a script's own are not in them.")
    image, levels, many, classes = outline(data.name, data.root, data.image_size, data.on_corrupt, data.labels)
    training_images = check_enough(data, many)
    for phase in config.phases:
        turns(phase, parts, training_images, data.batch)
    placement = None
    if hosts is not None and gpus_per_host is not None:
        placement = place_processes(parts, hosts, gpus_per_host, config.parallel.replicas)
    wanted = config.parallel.replicas
    chains = wanted[0] if isinstance(wanted, list) else wanted or 1
    replicas = unequal(parts, wanted) or (placement.replicas if placement else chains)
    counts = per_part(replicas, parts)
    if max(counts) > data.batch:
        raise ValueError(f"data.batch is {data.batch}, which {replicas} replicas cannot share; use a larger batch.")
    device, space = choose_device(config.device), Pixels(image, levels, data.bits, classes=classes)
    steps = family_steps(config.family, image, config.seed, classes)
    images = [share(data.batch, count) for count in counts]
    if simulated:
        simulated.grids(simulated.devices, len(flow_step_groups(steps)), data.batch)
    began, computed = time.perf_counter(), time.process_time()
    batches = sorted({*batch_sizes(data.batch), *images})
    with intra_op_threads(config.parallel.threads):
        profile = measured_profile(config, space, steps, device, batches)
    computed, took = time.process_time() - computed, time.perf_counter() - began
    if config.cut.scheme == "balanced":
        at = balanced_cut(profile, parts, images[0])  # unequal replicas come with another cut
    else:
        at = family_cut(config.cut, config.family)
    name, measured_memory, at_once = _described(device, config.parallel.threads)
    given = config.parallel.memory
    memory = memory or (bytes_of(given) if given else measured_memory)
    size = sum(counts) if isinstance(replicas, tuple) else replicas * (placement.stages if placement else parts)
    cut = dataclasses.replace(config.cut, scheme="explicit", at=list(at))
    processes = grid(parts, size, replicas)
    chosen = with_chosen_micro_batches(dataclasses.replace(config, cut=cut), space, processes, [memory] * size)
    config = dataclasses.replace(config, parallel=chosen.parallel)
    return Plan(
        config=config,
        images=training_images,
        device=name,
        cuda=device.type == "cuda",
        at_once=at_once,
        busy=max(0.0, 1 - computed / took) if device.type == "cpu" else 0.0,
        link=Link(link),
        memory_bytes=memory,
        placement=placement,
        replicas=replicas,
        simulation=Simulation.of(profile, simulated, config, training_images) if simulated else None,
        image=image,
        profile=profile,
        at=at,
    )


def _described(device: torch.device, threads: int) -> tuple[str, float, float]:
    """A device's name for people, its bytes, and how many processes this host has devices, or cores, for.

    The memory of the CPU is that of the host, which its processes share; `threads` are those of each process on it.
    """
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.get_device_name(device), memory, torch.cuda.device_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{platform.machine()} CPU with {os.cpu_count()} cores", memory, max(1.0, cores / threads)
