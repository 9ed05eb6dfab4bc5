"""python -m pipeflow.evaluate: bits/dim of a trained run on held-out images, and how sure each figure is.

`result.json` has the means alone, of the run's own images and one draw of noise. Under torchrun, any number of
processes share the images. For a flow of its own a script calls `main` with that, and with its data.
"""

import argparse
import importlib.util
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from .cli import Options, leave_the_word_to_rank_0
from .data import PUBLISHED, DataConfig, Images, SourceName, Space, Splits, images_of
from .distributed import ParallelConfig, World, open_world, prepare_process, say
from .errors import LostError
from .inference import Scores, Trained, read, score, standard_error
from .model import Maker, set_tensor_cores
from .storage import check_own


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line → options; a ValueError that says what is wrong with it."""
    parser = Options("pipeflow.evaluate", "Test bits/dim of a run's model and truncations.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory, or RUN/checkpoints/step-<n>")
    parser.add_argument("--seed", type=int, help="of the dequantisation noise (default: the run's own)")
    parser.add_argument("--samples", type=int, default=1, metavar="K", help="draws of noise an image (default: 1)")
    parser.add_argument("--data", choices=get_args(SourceName), help="score the test split of this data set instead")
    parser.add_argument("--root", metavar="DIR", help="where the files of the scored data set are")
    parser.add_argument("--own-root", metavar="DIR", help="with --data and --histogram: where the run's own files are")
    parser.add_argument("--batch", type=int, metavar="B", help="images at a time (default: as in training)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--histogram", type=Path, metavar="FILE.png", help="bits/dim by image; with --data of both sets"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that is printed, and more")
    options = parser.parse(arguments)
    for name in ("samples", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1.")
    if options.own_root and not (options.data and options.histogram):
        raise ValueError("--own-root only says where the second data set of a --histogram with --data is; use --root.")
    return options


def evaluate(
    options: argparse.Namespace, world: World, flow: Maker | None = None, data: Splits | None = None
) -> dict[str, Scores]:
    """Scores, prints, draws and writes what the options ask for; every process must call it.

    Args:
        options: what `parse` returned.
        world: the processes, which share the images.
        flow, data: of a script's own, those that the run was trained with.

    Returns:
        Data set → its scores: the one asked for and, where the histogram compares them, the run's own.

    Raises:
        ValueError: a run, a data set or a file that does not fit.
        LostError: another process is gone.
    """
    world.first(lambda: _check_files(options.json, options.histogram))
    trained = world.first(lambda: read(options.run, flow))
    set_tensor_cores(trained.config.precision)
    step = f"step {trained.manifest.step}"
    prepare_process(trained.config.parallel.threads, world.device)
    for piece in trained.slices:
        piece.to(world.device)
    splits = {
        label: world.first(partial(_test_split, trained, source, data if source.name == "own" else None))
        for label, source in _sources(options, trained).items()
    }
    shapes = {label: images.shape for label, images in splits.items()}
    world.agree("the checkpoint and the images", f"{step} with settings {trained.config.digest()}, {shapes}")
    found: dict[str, Scores] = {}
    what = "images" if trained.pixels.levels else "points"
    for label, images in splits.items():
        scores = found[label] = score(trained, images, options.seed, options.samples, options.batch, world)
        draws = f", {scores.samples} draw{'s' * (scores.samples > 1)} of dequantisation noise (seed {scores.seed})"
        draws = draws if trained.pixels.levels else ""
        say(world, f"{trained.directory}: {scores.images} test {what} of {label}{draws}\n{scores.table()}")
    if world.rank == 0 and options.json:
        about = {"run": str(options.run), "checkpoint": str(trained.directory), "step": trained.manifest.step}
        about["batch"] = options.batch or trained.config.data.batch
        about |= {"processes": world.size, "device": world.device.type}
        results = [{"data": name, "split": "test", **scores.as_dict()} for name, scores in found.items()]
        _write(options.json, (json.dumps({**about, "results": results}, indent=2) + "\n").encode())
    if world.rank == 0 and options.histogram:
        _write(options.histogram, _histogram(found, step))
    return found


def _check_files(table: Path | None, histogram: Path | None) -> None:
    """A ValueError where a file could not be written in the end."""
    for name, file in (("json", table), ("histogram", histogram)):
        if file and file.exists():
            raise ValueError(f"--{name} {file} is there already, and is not written over; give another name.")
        if file and not file.parent.is_dir():
            raise ValueError(f"--{name} {file} cannot be written: {file.parent} is no directory.")
    if histogram and histogram.suffix != ".png":
        raise ValueError(f"--histogram {histogram} must end in .png.")
    if histogram and histogram == table:
        raise ValueError(f"--histogram and --json are both {table}; give two names.")
    if histogram and not importlib.util.find_spec("matplotlib"):
        raise ValueError("--histogram needs matplotlib, which is not installed here: pip install matplotlib.")


def _sources(options: argparse.Namespace, trained: Trained) -> dict[str, DataConfig]:
    """The data sets to score: what tables call them → where they are."""
    own = trained.config.data
    if not options.data:
        return {own.name: replace(own, root=options.root or own.root)}
    label = options.data if options.data != own.name else f"{options.data} (--data)"
    size = trained.pixels.shape[-1] if options.data == "folder" else None
    found = {label: replace(own, name=options.data, root=options.root, image_size=size)}
    return found | ({own.name: replace(own, root=options.own_root or own.root)} if options.histogram else {})


def _test_split(trained: Trained, source: DataConfig, data: Splits | None) -> Images:
    """The test images of a data set, if they are like those that the run has learned."""
    name, pixels = source.name, trained.pixels
    if name in PUBLISHED and (pixels.levels != 256 or PUBLISHED[name].size != pixels.shape[1]):  # before a download
        raise _unlike(name, f"{PUBLISHED[name].size}×{PUBLISHED[name].size} pixels with 256 levels", pixels)
    try:
        images, own = images_of(source, data)
    except ValueError as error:
        raise ValueError(str(error).replace("--data.root", "--root")) from error
    check_own(own, trained.manifest, trained.directory)
    event = images.test.shape[1:]
    shape = (event[2], *event[:2]) if images.levels else event
    if shape != pixels.shape or images.levels != pixels.levels:
        raise _unlike(name, f"{'×'.join(map(str, shape))} with {images.levels} levels", pixels)
    return images.test


def _unlike(name: str, found: str, pixels: Space) -> ValueError:
    wanted = f"{'×'.join(map(str, pixels.shape))} with {pixels.levels} levels"
    return ValueError(f"The images of {name} are {found}, those of the run {wanted}; its flow can score no others.")


def _histogram(found: dict[str, Scores], step: str) -> bytes:
    """A PNG of the bits/dim of the model (or the last truncation there is) by image, a colour a data set."""
    from matplotlib.figure import Figure  # here, because nothing else needs it; without pyplot no window is opened

    rows = {name: scores.rows[-1] for name, scores in found.items()}
    finite = {name: row.bits_per_dim[np.isfinite(row.bits_per_dim)] for name, row in rows.items()}
    together = np.concatenate(list(finite.values()))
    if not len(together):
        raise ValueError("The histogram was not drawn: no image has a bits/dim that is finite.")
    edges = np.linspace(together.min(), together.max(), 61).tolist()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="bits/dim of an image", ylabel="share of the images")
    for name, row in rows.items():
        bits = row.bits_per_dim
        label = f"{name}: {bits.mean():.4f} ± {standard_error(bits):.4f}, {len(bits)} test images"
        # Heights are shares, so that data sets of different sizes compare.
        axes.hist(finite[name], edges, weights=np.full(len(finite[name]), 1 / len(bits)), alpha=0.6, label=label)
    axes.set_title(f"{step}, {next(iter(rows.values())).label}")
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _write(file: Path, data: bytes) -> None:
    try:
        with file.open("xb") as stream:
            stream.write(data)
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error}).") from error


def main(
    arguments: Sequence[str] | None = None,
    init_method: str = "env://",
    flow: Maker | None = None,
    data: Splits | None = None,
) -> int:
    """Evaluates; returns the exit code: 0, 1 if a process is gone, 2 for what can be put right, 130 for Ctrl-C.

    Args:
        arguments: of the command line; the process's own by default.
        init_method: where processes meet.
        flow, data: of a script's own, as for `pipeflow.train.main`.
    """
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        # Every process holds the whole flow: the world of as many parts as processes takes any number of them.
        size = int(os.environ.get("WORLD_SIZE", "1"))
        world = open_world(ParallelConfig(backend="gloo"), size, options.device, init_method)
    except (ValueError, LostError) as error:
        leave_the_word_to_rank_0()
        print(f"pipeflow: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1 if isinstance(error, LostError) else 2
    try:
        evaluate(options, world, flow, data)
    except (ValueError, LostError, torch.OutOfMemoryError, KeyboardInterrupt) as error:
        line, code = _said(error)
        if world.claim(line):
            print(f"pipeflow: {' '.join(line.split())}", file=sys.stderr, flush=True)
        return code
    world.close()
    return 0


def _said(error: BaseException) -> tuple[str, int]:
    """What ended an evaluation → a line and an exit code."""
    match error:
        case KeyboardInterrupt():
            return "interrupted", 130
        case LostError():
            return str(error), 1
        case torch.OutOfMemoryError():
            return "The device has no memory for so many images at a time; give a smaller --batch.", 2
        case _:
            return str(error), 2


if __name__ == "__main__":
    sys.exit(main())
