"""Before a run: everything that can be refused is refused here, before anything is written."""

import dataclasses
from pathlib import Path

import torch

from ..config import Config, Resume, turns, with_recorded_micro_batches
from ..data import DataConfig, ImageSet, Pixels, Points, Space, Splits, check_enough, images_of
from ..distributed import World, available_memory, say
from ..model import Maker, check_flow, check_name, steps_of
from ..planning import resolve_cut, with_chosen_micro_batches
from ..storage import checkpoint, claim, run_of
from ..units import bytes_of
from .recorder import refuse_old_run
from .recovery import recall
from .restore import find, restore
from .state import State, fresh


def prepare(world: World, config: Config, resume: Resume, flow: Maker | None, data: Splits | None) -> State:
    """The run about to begin, or to go on from a checkpoint; every process must call it.

    Args:
        world, config, resume, flow, data: as of `fit`.

    Raises:
        ValueError: settings, data, processes, a checkpoint or a run directory that do not fit.
    """
    _check_processes(world, config)
    world.agree("the settings", f"hash {config.digest()}")
    source, messages = world.on_rank_0(lambda: _claim_and_find(config, resume))
    images, space, hashes = world.rank_0_first(lambda: _load(config, flow, data))
    world.agree("what the script hands over", f"hashes {hashes}")
    chosen = _with_micro_batches(world, _with_measured_cut(world, config, space, flow), space, flow, source)
    state = fresh(world, chosen, images, space, flow, hashes)
    if source:
        messages += world.everywhere(lambda: restore(state, Path(source)))
    for message in messages:
        say(world, message)
    return state


def come_back(world: World, config: Config, flow: Maker | None, data: Splits | None) -> State:
    """The run as this process left it when it was lost; the others wait for it."""
    images, space, hashes = _load(config, flow, data)
    state = fresh(world, config, images, space, flow, hashes)
    recall(state)
    print(f"{world.describe()} is back: goes on from step {state.progress.step}", flush=True)
    return state


def _claim_and_find(config: Config, resume: Resume) -> tuple[str | None, list[str]]:
    """Locks the run directory before anything in it is read; the checkpoint to go on from, and what is to be said."""
    run = Path(config.run_dir)
    claim(run)
    source, messages = find(config, resume)
    if resume is None or (source and run_of(source) != run.resolve()):
        refuse_old_run(run)
    return str(source) if source else None, messages


def _check_processes(world: World, config: Config) -> None:
    """A ValueError if these processes, on these devices, cannot carry the settings out."""
    config.check_world(world.size, world.grid.replicas)
    if config.cuda_graphs and world.device.type != "cuda":
        raise ValueError(f"cuda_graphs is on, but the run is on {world.device.type} (device); leave it off there.")
    if world.staged and config.pipelined(world.grid.stages) and any(p.schedule == "end_to_end" for p in config.phases):
        raise ValueError(
            "end_to_end.engine is pipeline, but without a GPU for every process its latents cannot travel (NCCL); use "
            "engine ddp or fsdp there, or device cpu."
        )


def _load(config: Config, flow: Maker | None, data: Splits | None) -> tuple[ImageSet, Space, dict[str, str]]:
    """The data, what they look like, and hashes of what is handed over; checked against all that concerns them."""
    check_name(config.flow, flow)
    images, hashes = images_of(config.data, data)
    check_enough(config.data, len(images.train))
    images = images.hold_out(config.data.validation, config.seed)
    space = _space(config.data, images, config.noise)
    if flow is not None:
        hashes["flow"] = check_flow(flow, config.flow, space.shape, space.classes)
    else:
        with torch.device("meta"):
            steps_of(config.model, space, None)
    for phase in config.phases:
        turns(phase, config.cut.parts, len(images.train), config.data.batch)
    return images, space, hashes


def _space(config: DataConfig, images: ImageSet, noise: float | None) -> Space:
    if images.levels:
        height, width, channels = images.train.shape[1:]
        return Pixels((channels, height, width), images.levels, config.bits, noise, images.classes)
    if config.flip or config.bits != 8:
        raise ValueError("data.flip and data.bits are for images, but the data are points; leave them out.")
    return Points(images.train.shape[1:], images.classes)


def _with_micro_batches(world: World, config: Config, space: Space, flow: Maker | None, source: str | None) -> Config:
    """The settings with a number of micro-batches: that of the checkpoint to go on from, or chosen by rank 0."""
    parallel = config.parallel
    if parallel.micro_batches != "auto":
        return config
    memory = world.gather(bytes_of(parallel.memory) if parallel.memory else available_memory(world.device))

    def chosen() -> int:
        known = with_recorded_micro_batches(config, checkpoint.read_manifest(Path(source)).config) if source else config
        return with_chosen_micro_batches(known, space, world.grid, memory, flow).parallel.packets

    count = world.on_rank_0(chosen)
    say(world, f"parallel.micro_batches is auto: {count} per batch of {config.data.batch} images")
    config = dataclasses.replace(config, parallel=dataclasses.replace(parallel, micro_batches=count))
    config.check_world(world.size, world.grid.replicas)
    return config


def _with_measured_cut(world: World, config: Config, space: Space, flow: Maker | None) -> Config:
    """The settings with a balanced cut made explicit: measured once, by rank 0."""
    if config.cut.scheme != "balanced":
        return config

    def measured() -> list[int]:
        steps, images = steps_of(config.model, space, flow), config.data.batch // world.grid.replicas
        return resolve_cut(config, space, steps, world.device, images, flow).at or []

    at = world.on_rank_0(measured)
    cut = dataclasses.replace(config.cut, scheme="explicit", at=at)
    return dataclasses.replace(config, cut=cut)
