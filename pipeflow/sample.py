"""python -m pipeflow.sample: one picture of what a flow draws, or of what it makes of test images.

A notebook calls `pictures` and `sheet.draw_sheet` itself. Under torchrun, as many processes as the flow has parts, or
fewer, hold their own parts alone. For a flow of its own a script calls `main` with that, and with its data.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .cli import Options, leave_the_word_to_rank_0
from .data import Images, Space, Splits, fetch, images_of, save_sheet
from .distributed import ParallelConfig, World, open_world, prepare_process, say
from .errors import LostError
from .inference import (
    Source,
    Trained,
    alone,
    difference,
    draw,
    each_part,
    hold,
    interpolate,
    load,
    locate,
    read,
    reconstruct,
)
from .model import Maker
from .storage import check_own

_ROW = 8
_DEFAULTS = {"n": 64, "temperature": [0.7], "seed": 0}


@dataclass(frozen=True)
class Picture:
    """Blocks of images as `sheet.draw_sheet` takes them, the levels of a pixel, and in words what they show."""

    blocks: list[list[Tensor]]
    levels: int
    shows: str


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line → options, with "kind" and, where they are to be drawn, `_DEFAULTS`; a ValueError if it is wrong."""
    parser = Options("pipeflow.sample", "A picture of what a trained flow draws.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory, a checkpoint, or an exported flow")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="default: RUN/samples/<kind>.png")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--interpolate", nargs="*", type=int, metavar="I J", help="from test image I to J, and so on")
    kinds.add_argument("--reconstruct", type=int, metavar="N", help="the first N test images above what comes back")
    kinds.add_argument("--each-part", action="store_true", help="what the flow draws if it stops at each border")
    parser.add_argument(
        "--images", "--n", dest="n", metavar="N", type=int, help="how many images to draw (default: 64)"
    )
    parser.add_argument("--temperature", nargs="+", type=float, metavar="T", help="one or more (default: 0.7)")
    parser.add_argument("--seed", type=int, help="of the draw (default: 0)")
    parser.add_argument("--root", metavar="DIR", help="where the files of the run's test images are")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse(arguments)
    chosen = (options.each_part, options.interpolate is not None, options.reconstruct is not None)
    options.kind = dict(zip(chosen, ("each-part", "interpolate", "reconstruct"), strict=True)).get(True, "grid")
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    draws, exported = options.kind in ("grid", "each-part"), options.run.suffix == ".safetensors"
    if options.kind != "grid" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"--{options.kind} runs in one process; only what the whole flow draws is drawn in several.")
    if options.kind != "grid" and exported:
        raise ValueError(f"{options.run} has no parts and no data, so --{options.kind} needs the run's directory.")
    for name, value in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
        elif not draws:
            raise ValueError(f"--{name} says what to draw, but --{options.kind} draws nothing; leave it out.")
    if draws and options.root is not None:
        raise ValueError("--root says where test images are; only --interpolate and --reconstruct look at them.")
    for name in ("n", "reconstruct"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1.")
    for value in options.temperature:
        if not 0 <= value < math.inf:
            raise ValueError(f"--temperature is {value:g}; it must be 0 or a positive number.")
    if options.kind == "each-part" and len(options.temperature) > 1:
        raise ValueError(f"--each-part takes one --temperature, not {len(options.temperature)}.")
    if len(options.interpolate or []) % 2:
        raise ValueError(f"--interpolate takes pairs of images, not {len(options.interpolate)} numbers.")
    if options.out is None:
        if exported or (options.run / "manifest.json").exists():
            raise ValueError(f"{options.run} is no run directory; say where the picture goes with --out FILE.png.")
        options.out = options.run / "samples" / f"{options.kind}.png"
    if options.out.suffix != ".png":
        raise ValueError(f"--out {options.out} must end in .png.")
    if options.out.exists():
        raise ValueError(f"{options.out} is there already, and is not written over; give another name with --out.")


def picture(
    options: argparse.Namespace,
    source: Source | None,
    world: World,
    flow: Maker | None = None,
    data: Splits | None = None,
) -> Picture:
    """What the options ask for; every process must call it, and the first one gets the images.

    Args:
        options: what `parse` returned.
        source: the checkpoint; None for an exported flow.
        world: the processes.
        flow, data: of a script's own, those that the run was trained with.

    Raises:
        ValueError: a run, or data, that do not fit.
        LostError: another process is gone.
    """
    if options.kind == "grid":
        return _grid(options, source, world, flow)
    assert source
    trained = read(source, flow)
    _check_images(options, trained.pixels)
    for piece in trained.slices:
        piece.to(world.device)
    if options.kind == "each-part":
        return _each_part(options, trained, source)
    images = _test_images(options, trained, data)
    return (_interpolate if options.kind == "interpolate" else _reconstruct)(options, trained, images, world.device)


def _grid(options: argparse.Namespace, source: Source | None, world: World, flow: Maker | None) -> Picture:
    if source:
        held = hold(world, source, flow)
    else:
        exported = load(options.run, flow)
        held = alone(world, exported)
    _check_images(options, held.pixels)
    drawn = draw(held, options.n, options.temperature, options.seed)
    many = f"{len(drawn)} × {options.n} images, from top to bottom" if len(drawn) > 1 else f"{options.n} images"
    heat = ", ".join(f"{value:g}" for value in options.temperature)
    by = f"the flow in {source.directory}{_unlearned(source)}" if source else str(options.run)
    return Picture(
        [[images] for images in drawn],
        held.pixels.levels,
        f"{many} at temperature {heat} (seed {options.seed}), by {by}",
    )


def _each_part(options: argparse.Namespace, trained: Trained, source: Source) -> Picture:
    drawn = each_part(trained, options.n, options.temperature[0], options.seed)
    behind = [f"behind part {part}" for part in range(1, len(drawn) + 1)]
    shows = (
        f"{len(drawn)} × {options.n} images, from top to bottom by the flow in {trained.directory} that stops "
        f"{', '.join(behind)}{_unlearned(source)}, at temperature {options.temperature[0]:g} (seed {options.seed})"
    )
    return Picture([[images.cpu()] for images in drawn], trained.pixels.levels, shows)


def _interpolate(options: argparse.Namespace, trained: Trained, images: Images, device: torch.device) -> Picture:
    numbers = options.interpolate or list(range(min(_ROW, len(images) // 2 * 2)))
    _check_numbers(numbers, len(images))
    ends = fetch(images, np.array(numbers, dtype=np.int64), device)
    flow = trained.flow()
    rows = [interpolate(flow, first, last, _ROW).cpu() for first, last in zip(ends[::2], ends[1::2], strict=True)]
    ways = ", ".join(f"{first} to {last}" for first, last in zip(numbers[::2], numbers[1::2], strict=True))
    shows = (
        f"from test image {ways}, a row each, by the flow in {trained.directory}; largest error of a pixel at the "
        f"ends: {difference(*reconstruct(flow, ends))} of {trained.pixels.levels} levels"
    )
    return Picture([rows], trained.pixels.levels, shows)


def _reconstruct(options: argparse.Namespace, trained: Trained, images: Images, device: torch.device) -> Picture:
    _check_numbers([options.reconstruct - 1], len(images))
    seen, back = reconstruct(trained.flow(), fetch(images, np.arange(options.reconstruct), device))
    pairs = zip(torch.split(seen.cpu(), _ROW), torch.split(back.cpu(), _ROW), strict=True)
    shows = (
        f"the first {options.reconstruct} test images, each above what {trained.directory} makes of it there and back; "
        f"largest error of a pixel: {difference(seen, back)} of {trained.pixels.levels} levels"
    )
    return Picture([list(pair) for pair in pairs], trained.pixels.levels, shows)


def _test_images(options: argparse.Namespace, trained: Trained, data: Splits | None) -> Images:
    """(N, H, W, C) uint8, which are like those that the run has learned."""
    config, pixels = trained.config.data, trained.pixels
    try:
        images, own = images_of(replace(config, root=options.root or config.root), data)
    except ValueError as error:
        raise ValueError(str(error).replace("--data.root", "--root")) from error
    check_own(own, trained.manifest, trained.directory)
    height, width, channels = images.test.shape[1:]
    if (channels, height, width) != pixels.shape or images.levels != pixels.levels:
        raise ValueError(
            f"The test images are {channels}×{height}×{width} with {images.levels} levels, those of the run "
            f"{'×'.join(map(str, pixels.shape))} with {pixels.levels}; say with --root where the run's own are."
        )
    return images.test


def _check_images(options: argparse.Namespace, pixels: Space) -> None:
    if not pixels.levels:
        raise ValueError(
            f"The flow in {options.run} is one of points, which are no picture; in the script that has it, "
            "pipeflow.load(RUN, flow=…).sample(n) draws points."
        )


def _check_numbers(numbers: list[int], images: int) -> None:
    for number in numbers:
        if not 0 <= number < images:
            raise ValueError(f"There is no test image {number}: the run has {images} of them, counted from 0.")


def _unlearned(source: Source) -> str:
    """For people: parts without a start draw noise."""
    began, parts = source.began, source.config.cut.parts
    return "" if began == parts else f" (part {began + 1} has not begun to learn in it)"


def main(
    arguments: Sequence[str] | None = None,
    init_method: str = "env://",
    flow: Maker | None = None,
    data: Splits | None = None,
) -> int:
    """Draws; returns the exit code: 0, 1 if a process is gone, 2 for what can be put right, 130 for Ctrl-C.

    Args:
        arguments: of the command line; the process's own by default.
        init_method: where processes meet.
        flow, data: of a script's own, as for `pipeflow.train.main`.
    """
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        source = None if options.run.suffix == ".safetensors" else locate(options.run)
        parts, threads = (source.config.cut.parts, source.config.parallel.threads) if source else (1, 1)
        # Only small latents and control traffic travel here, through host memory.
        world = open_world(
            ParallelConfig(backend="gloo", threads=threads, replicas=1), parts, options.device, init_method
        )
        prepare_process(threads, world.device)
    except (ValueError, OSError) as error:
        leave_the_word_to_rank_0()
        print(f"pipeflow: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1 if isinstance(error, LostError) else 2
    try:
        drawn = picture(options, source, world, flow, data)
        if world.rank == 0:
            _write(drawn, options.out)
        say(world, f"{options.out}: {drawn.shows}")
    except torch.OutOfMemoryError:
        return _tell(world, "The device has no memory for so many images at a time; give a smaller --n.", 2)
    except LostError as error:
        return _tell(world, str(error), 1)
    except (ValueError, OSError) as error:
        return _tell(world, str(error), 2)
    except KeyboardInterrupt:
        return _tell(world, "interrupted", 130)
    world.close()
    return 0


def _write(drawn: Picture, file: Path) -> None:
    try:
        save_sheet(drawn.blocks, drawn.levels, file)
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error}); give another name with --out.") from error


def _tell(world: World, line: str, code: int) -> int:
    if world.claim(line):
        print(f"pipeflow: {' '.join(line.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
