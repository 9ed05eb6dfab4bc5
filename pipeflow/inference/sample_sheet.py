"""The picture that `python -m pipeflow.sample` writes: what a flow draws, or what it makes of test images.

A notebook calls the functions of pictures.py and `pipeflow.data.save_sheet` itself.
"""

from argparse import Namespace
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..data import Images, Space, Splits, fetch, save_sheet
from ..distributed import ParallelConfig, World, open_world, prepare_process, say
from ..model import Maker
from .distributed_sampling import draw, load_local_parts, parts_of_one_process
from .held_out_images import held_out_images
from .load import Source, Trained, load, locate, locate_together, read
from .pictures import difference, interpolate, reconstruct

_ROW = 8


@dataclass(frozen=True)
class Sheet:
    """Blocks of images as `save_sheet` takes them, the levels of a pixel, and in words what they show."""

    blocks: list[list[Tensor]]
    levels: int
    shows: str


def open_sampling_world(options: Namespace, init_method: str) -> World:
    """The processes, at most one a part of the flow.

    Raises:
        ValueError: there is no run, or the number of processes does not fit.
    """
    parts, threads = 1, 1
    if options.run.suffix != ".safetensors":
        config = locate(options.run, verify=False).config
        parts, threads = config.cut.parts, config.parallel.threads
    # Only latents and control traffic travel here, through host memory.
    world = open_world(ParallelConfig(backend="gloo", threads=threads, replicas=1), parts, options.device, init_method)
    prepare_process(threads, world.device)
    return world


def write_sheet(options: Namespace, world: World, flow: Maker | None = None, data: Splits | None = None) -> None:
    """Makes the picture, writes it, and says what it shows; every process must call it.

    Args:
        options: of the command, completed.
        world: the processes that `open_sampling_world` opened.
        flow, data: of a script's own, those that the run was trained with.

    Raises:
        ValueError: a run, or data, that do not fit; or a file that cannot be written.
        LostError: another process is gone.
    """
    source = None if options.run.suffix == ".safetensors" else locate_together(world, options.run)
    sheet = _draw(options, source, world, flow) if options.kind == "grid" else _look(options, source, world, flow, data)
    if world.rank == 0:
        try:
            save_sheet(sheet.blocks, sheet.levels, options.out)
        except OSError as error:
            raise ValueError(f"{options.out} cannot be written ({error}); give another name with --out.") from error
    say(world, f"{options.out}: {sheet.shows}")


def _draw(options: Namespace, source: Source | None, world: World, flow: Maker | None) -> Sheet:
    """What the whole flow draws; the images are in the first process alone."""
    local = load_local_parts(world, source, flow) if source else parts_of_one_process(world, load(options.run, flow))
    _check_images(options, local.data_space)
    drawn = draw(local, options.n, options.temperature, options.seed)
    many = f"{len(drawn)} × {options.n} images, from top to bottom" if len(drawn) > 1 else f"{options.n} images"
    heat = ", ".join(f"{value:g}" for value in options.temperature)
    by = f"the flow in {source.directory}{_not_begun(source)}" if source else str(options.run)
    shows = f"{many} at temperature {heat} (seed {options.seed}), by {by}"
    return Sheet([[images] for images in drawn], local.data_space.levels, shows)


def _look(options: Namespace, source: Source | None, world: World, flow: Maker | None, data: Splits | None) -> Sheet:
    """What one process with the whole flow makes of latents or test images."""
    assert source
    trained = read(source, flow)
    _check_images(options, trained.data_space)
    for piece in trained.slices:
        piece.to(world.device)
    if options.kind == "each-part":
        return _each_part(options, trained)
    config = trained.config.data
    images = held_out_images(trained, replace(config, root=options.root or config.root), data)
    return (_interpolate if options.kind == "interpolate" else _reconstruct)(options, trained, images, world.device)


def _each_part(options: Namespace, trained: Trained) -> Sheet:
    temperature = options.temperature[0]
    parts = range(1, len(trained.slices) + 1)
    drawn = [trained.flow(part).sample(options.n, temperature, options.seed) for part in parts]
    ends = ", ".join(f"behind part {part}" for part in parts)
    shows = (
        f"{len(drawn)} × {options.n} images, from top to bottom by the flow in {trained.directory} that stops {ends}"
        f"{_not_begun(trained)}, at temperature {temperature:g} (seed {options.seed})"
    )
    return Sheet([[images.cpu()] for images in drawn], trained.data_space.levels, shows)


def _interpolate(options: Namespace, trained: Trained, images: Images, device: torch.device) -> Sheet:
    numbers = options.interpolate or list(range(min(_ROW, len(images) // 2 * 2)))
    _check_numbers(numbers, len(images))
    ends = fetch(images, np.array(numbers, dtype=np.int64), device)
    flow, levels = trained.flow(), trained.data_space.levels
    rows = [interpolate(flow, first, last, _ROW).cpu() for first, last in zip(ends[::2], ends[1::2], strict=True)]
    ways = ", ".join(f"{first} to {last}" for first, last in zip(numbers[::2], numbers[1::2], strict=True))
    error = difference(*reconstruct(flow, ends))
    shows = (
        f"from test image {ways}, a row each, by the flow in {trained.directory}; largest error of a pixel at the "
        f"ends: {error} of {levels} levels"
    )
    return Sheet([rows], levels, shows)


def _reconstruct(options: Namespace, trained: Trained, images: Images, device: torch.device) -> Sheet:
    _check_numbers([options.reconstruct - 1], len(images))
    seen, back = reconstruct(trained.flow(), fetch(images, np.arange(options.reconstruct), device))
    pairs = zip(torch.split(seen.cpu(), _ROW), torch.split(back.cpu(), _ROW), strict=True)
    levels = trained.data_space.levels
    shows = (
        f"the first {options.reconstruct} test images, each above what {trained.directory} makes of it there and back; "
        f"largest error of a pixel: {difference(seen, back)} of {levels} levels"
    )
    return Sheet([list(pair) for pair in pairs], levels, shows)


def _check_images(options: Namespace, data_space: Space) -> None:
    if not data_space.levels:
        raise ValueError(
            f"The flow in {options.run} is one of points, which are no picture; in the script that has it, "
            "pipeflow.load(RUN, flow=…).sample(n) draws points."
        )


def _check_numbers(numbers: list[int], images: int) -> None:
    for number in numbers:
        if not 0 <= number < images:
            raise ValueError(f"There is no test image {number}: the run has {images} of them, counted from 0.")


def _not_begun(source: Source) -> str:
    """For people: parts that have not begun to learn turn latents into noise."""
    begun = source.parts_begun
    return "" if begun == source.config.cut.parts else f" (part {begun + 1} has not begun to learn in it)"
