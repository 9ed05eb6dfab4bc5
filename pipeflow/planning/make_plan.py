"""Settings of a run → its plan: what can be refused is refused, steps are measured, and a cut is chosen."""

import os
import time
from dataclasses import dataclass

from ..config import Config, turns
from ..data import Pixels, check_enough, outline
from ..distributed import choose_device, intra_op_threads
from ..model import FAMILIES, family_cut, family_steps
from .balance import balanced_cut
from .forecast import share
from .host import device_memory, device_name, processes_at_once
from .link import Link
from .placement import place_processes
from .plan import Plan, replica_count
from .run_profile import batch_sizes, measured_profile


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is made for, besides the run's settings.

    Attributes:
        link: speed between two devices in each direction, in bits per second.
        memory: bytes of a device; None takes those of the device that is measured, or of this host.
        hosts, gpus_per_host: a grid with one process per GPU; None plans for a device per part and replica.
    """

    link: float = 1e10
    memory: float | None = None
    hosts: int | None = None
    gpus_per_host: int | None = None

    def __post_init__(self) -> None:
        if (self.hosts is None) != (self.gpus_per_host is None):
            raise ValueError("--hosts and --gpus-per-host belong together; give both, or none.")


def make_plan(config: Config, options: PlanOptions = PlanOptions()) -> Plan:
    """Measures the steps of a run's flow on this device, for some seconds; the plan computes the rest.

    Args:
        config: the settings of the run.
        options: what to plan for.

    Raises:
        ValueError: settings that `train` would refuse, or that no plan can be made for.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("A plan is made by one process, also for many; start it without torchrun.")
    data, parts = config.data, config.cut.parts
    if config.flow not in FAMILIES or data.name == "own":
        raise ValueError("A plan is made from settings alone; a flow or data of a script's own are not in them.")
    image, levels, many = outline(data.name, data.root, data.image_size, data.on_corrupt)
    images = check_enough(data, many)
    for phase in config.phases:
        turns(phase, parts, images, data.batch)
    placement = None
    if options.hosts is not None and options.gpus_per_host is not None:
        placement = place_processes(parts, options.hosts, options.gpus_per_host, config.parallel.replicas)
    replicas = replica_count(config, placement)
    if replicas > data.batch:
        raise ValueError(f"data.batch is {data.batch}, which {replicas} replicas cannot share; use a larger batch.")
    device, space = choose_device(config.device), Pixels(image, levels, data.bits)
    steps, images_per_part = family_steps(config.family, image, config.seed), share(data.batch, replicas)
    began, computed = time.perf_counter(), time.process_time()
    batches = sorted({*batch_sizes(data.batch), images_per_part})
    with intra_op_threads(config.parallel.threads):
        profile = measured_profile(config, space, steps, device, batches)
    computed, took = time.process_time() - computed, time.perf_counter() - began
    if config.cut.scheme == "balanced":
        at = balanced_cut(profile, parts, images_per_part)
    else:
        at = family_cut(config.cut, config.family)
    return Plan(
        config=config,
        images=images,
        device=device_name(device),
        cuda=device.type == "cuda",
        at_once=processes_at_once(device, config.parallel.threads),
        busy=max(0.0, 1 - computed / took) if device.type == "cpu" else 0.0,
        link=Link(options.link),
        memory_bytes=options.memory or device_memory(device),
        placement=placement,
        image=image,
        profile=profile,
        at=at,
    )
