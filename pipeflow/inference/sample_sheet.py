"""What `python -m pipeflow.sample` takes, and the picture that it writes: what a flow draws, or makes of test images.

A notebook calls the functions of pictures.py and `pipeflow.data.save_sheet` itself.
"""

import math
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data import Images, Labels, Space, Splits, fetch, save_sheet
from ..distributed import ParallelConfig, World, open_world, prepare_process, say
from ..model import Maker, check_labels, set_tensor_cores
from ..storage import MANIFEST, RunDirectory
from .distributed_sampling import draw, load_local_parts, parts_of_one_process
from .load import Source, Trained, load, locate, locate_together, read
from .pictures import difference, interpolate, reconstruct

_ROW = 8
_DEFAULTS = {"n": 64, "temperature": [0.7], "seed": 0, "labels": None, "guidance": 0.0}


class Sheet(NamedTuple):
    """Blocks of images as `save_sheet` takes them, the levels of a pixel, and in words what they show."""

    blocks: list[list[Tensor]]
    levels: int
    shows: str


def sampling_options(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Reads the command line, with "kind" ("grid", "each-part", "interpolate" or "reconstruct") and defaults added.

    A ValueError says which options do not go together, or which file must not be written.
    """
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run directory, a checkpoint, or an exported flow")
    add("--out", type=Path, metavar="FILE.png", help="default: RUN/samples/<kind>.png")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--interpolate", nargs="*", type=int, metavar="I J", help="from test image I to J, and so on")
    kinds.add_argument("--reconstruct", type=int, metavar="N", help="the first N test images above what comes back")
    kinds.add_argument("--each-part", action="store_true", help="what the flow draws if it stops at each border")
    add("--images", "--n", dest="n", metavar="N", type=int, help="how many to draw; of each label (default: 64; or 8)")
    add("--labels", nargs="+", type=int, metavar="L", help="to draw class by class (default: the first 10 there are)")
    add("--guidance", type=float, metavar="W", help="how far to go beyond what the labels make (default: 0)")
    add("--temperature", nargs="+", type=float, metavar="T", help="one or more (default: 0.7)")
    add("--seed", type=int, help="of the draw (default: 0)")
    add("--root", metavar="DIR", help="where the files of the run's test images are")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(words)
    given = (options.each_part, options.interpolate is not None, options.reconstruct is not None)
    options.kind = dict(zip(given, ("each-part", "interpolate", "reconstruct"), strict=True)).get(True, "grid")
    options.of_each_label = options.n or _ROW
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
    if not 0 <= options.guidance < math.inf:
        raise ValueError(f"--guidance is {options.guidance:g}; it must be 0 or a positive number.")
    if options.kind == "each-part" and len(options.temperature) > 1:
        raise ValueError(f"--each-part takes one --temperature, not {len(options.temperature)}.")
    if len(options.interpolate or []) % 2:
        raise ValueError(f"--interpolate takes pairs of images, not {len(options.interpolate)} numbers.")
    if options.out is None:
        if exported or (options.run / MANIFEST).exists():
            raise ValueError(f"{options.run} is no run directory; say where the picture goes with --out FILE.png.")
        RunDirectory(options.run).check_plain()
        options.out = options.run / "samples" / f"{options.kind}.png"
    if options.out.suffix != ".png":
        raise ValueError(f"--out {options.out} must end in .png.")
    if options.out.exists():
        raise ValueError(f"{options.out} is there already, and is not written over; give another name with --out.")
    return options


def open_sampling_world(options: Namespace, init_method: str) -> World:
    """The processes, at most one a part of the flow, which compute as the run did."""
    parts, threads, precision, family = 1, 1, Config.precision, Config.flow
    if options.run.suffix != ".safetensors":
        config = locate(options.run, verify=False).config
        parts, threads, precision, family = config.cut.parts, config.parallel.threads, config.precision, config.flow
    # Only latents and control traffic travel here, through host memory.
    world = open_world(ParallelConfig(backend="gloo", threads=threads, replicas=1), parts, options.device, init_method)
    prepare_process(threads, world.device)
    set_tensor_cores(precision, family)
    return world


def write_sheet(options: Namespace, world: World, flow: Maker | None = None, data: Splits | None = None) -> None:
    """Makes the picture, writes it, and says what it shows; every process must call it.

    `flow` and `data` are a script's own, those that the run was trained with. A ValueError says which run, data or file
    does not fit; a LostError, that another process is gone.
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
    n, labels = _to_draw(options, local.data_space)
    drawn = draw(local, n, options.temperature, options.seed, labels, options.guidance)
    many = f"{len(drawn)} × {n} images, from top to bottom" if len(drawn) > 1 else f"{n} images"
    heat = ", ".join(f"{value:g}" for value in options.temperature)
    by = f"the flow in {source.directory}{_not_begun(source)}" if source else str(options.run)
    shows = f"{many}{_classes(options, labels)} at temperature {heat} (seed {options.seed}), by {by}"
    return Sheet([_rows(options, images, labels) for images in drawn], local.data_space.levels, shows)


def _to_draw(options: Namespace, data_space: Space) -> tuple[int, list[int] | None]:
    """How many images, and the label of each, class by class; None for a flow that takes none."""
    if not data_space.classes:
        if options.labels is not None or options.guidance:
            raise ValueError(f"--labels and --guidance are for flows with labels; that in {options.run} has none.")
        return options.n, None
    chosen = options.labels or range(min(10, data_space.classes))
    check_labels(list(chosen), len(chosen), data_space.classes, torch.device("cpu"))
    labels = [label for label in chosen for _ in range(options.of_each_label)]
    return len(labels), labels


def _classes(options: Namespace, labels: list[int] | None) -> str:
    """For people: what the rows of a sheet are."""
    if labels is None:
        return ""
    guided = f" with guidance {options.guidance:g}" if options.guidance else ""
    return f", {options.of_each_label} of each label {', '.join(map(str, dict.fromkeys(labels)))}{guided},"


def _rows(options: Namespace, images: Tensor, labels: list[int] | None) -> list[Tensor]:
    """Every label begins a row."""
    return [images] if labels is None else list(torch.split(images, options.of_each_label))


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
    held_out = trained.held_out_images(replace(config, root=options.root or config.root), data)
    return (_interpolate if options.kind == "interpolate" else _reconstruct)(options, trained, *held_out, world.device)


def _each_part(options: Namespace, trained: Trained) -> Sheet:
    temperature = options.temperature[0]
    parts = range(1, len(trained.slices) + 1)
    n, labels = _to_draw(options, trained.data_space)
    given = (n, temperature, options.seed, labels, options.guidance)
    drawn = [trained.flow(part).sample(*given).cpu() for part in parts]
    ends = ", ".join(f"after part {part}" for part in parts)
    shows = (
        f"{len(drawn)} × {n} images{_classes(options, labels) or ','} from top to bottom by the flow in "
        f"{trained.directory} that stops {ends}"
        f"{_not_begun(trained)}, at temperature {temperature:g} (seed {options.seed})"
    )
    return Sheet([_rows(options, images, labels) for images in drawn], trained.data_space.levels, shows)


def _interpolate(
    options: Namespace, trained: Trained, images: Images, labels: Labels | None, device: torch.device
) -> Sheet:
    numbers = options.interpolate or list(range(min(_ROW, len(images) // 2 * 2)))
    _check_numbers(numbers, len(images))
    ends = fetch(images, np.array(numbers, dtype=np.int64), device)
    flow, levels = trained.flow(), trained.data_space.levels
    label = None if labels is None else torch.from_numpy(labels[numbers]).to(device)
    pairs = [None] * (len(ends) // 2) if label is None else [(int(a), int(b)) for a, b in label.view(-1, 2)]
    rows = [
        interpolate(flow, first, last, _ROW, pair).cpu()
        for first, last, pair in zip(ends[::2], ends[1::2], pairs, strict=True)
    ]
    ways = ", ".join(f"{first} to {last}" for first, last in zip(numbers[::2], numbers[1::2], strict=True))
    error = difference(*reconstruct(flow, ends, label))
    shows = (
        f"from test image {ways}, a row each, by the flow in {trained.directory}; largest error of a pixel at the "
        f"ends: {error} of {levels} levels"
    )
    return Sheet([rows], levels, shows)


def _reconstruct(
    options: Namespace, trained: Trained, images: Images, labels: Labels | None, device: torch.device
) -> Sheet:
    _check_numbers([options.reconstruct - 1], len(images))
    label = None if labels is None else torch.from_numpy(labels[: options.reconstruct]).to(device)
    seen, back = reconstruct(trained.flow(), fetch(images, np.arange(options.reconstruct), device), label)
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
