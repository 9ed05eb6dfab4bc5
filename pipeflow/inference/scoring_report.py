"""What `python -m pipeflow.evaluate` takes, prints and writes: bits/dim on held-out images, and how sure they are.

`result.json` has the means alone, of the run's own images and one draw of noise.
"""

import io
import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from ..data import DataConfig, SourceName, Splits
from ..distributed import ParallelConfig, World, open_world, prepare_process, say
from ..model import Maker, set_tensor_cores
from .load import Trained, locate_together, read
from .scoring import Scores, score, standard_error


def scoring_options(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Reads the command line; a ValueError where numbers are out of range, or options do not go together."""
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run directory, or RUN/checkpoints/step-<n>")
    add("--seed", type=int, help="of the dequantisation noise (default: the run's own)")
    add("--split", choices=("test", "validation"), default="test", help="of the run's own data (default: test)")
    add("--samples", type=int, default=1, metavar="K", help="draws of noise an image (default: 1)")
    add("--data", choices=get_args(SourceName), help="score the test split of this data set instead")
    add("--root", metavar="DIR", help="where the files of the scored data set are")
    add("--own-root", metavar="DIR", help="with --data and --histogram: where the run's own files are")
    add("--batch", type=int, metavar="B", help="images at a time (default: as in training)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--histogram", type=Path, metavar="FILE.png", help="bits/dim by image; with --data of both sets")
    add("--json", type=Path, metavar="FILE", help="everything that is printed, and more")
    options = parser.parse_args(words)
    for name in ("samples", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1.")
    if options.split == "validation" and options.data:
        raise ValueError("--split validation is of the run's own data; --data scores the test split of others.")
    if options.own_root and not (options.data and options.histogram):
        raise ValueError("--own-root only says where the second data set of a --histogram with --data is; use --root.")
    return options


def _check_files(table: Path | None, histogram: Path | None) -> None:
    """A ValueError where a file that is asked for could not be written in the end."""
    for name, file in (("json", table), ("histogram", histogram)):
        if file and file.exists():
            raise ValueError(f"--{name} {file} is there already, and is not written over; give another name.")
        if file and not file.parent.is_dir():
            raise ValueError(f"--{name} {file} cannot be written: {file.parent} is no directory.")
    if histogram and histogram.suffix != ".png":
        raise ValueError(f"--histogram {histogram} must end in .png.")
    if histogram and histogram == table:
        raise ValueError(f"--histogram and --json are both {table}; give two names.")


def open_scoring_world(options: Namespace, init_method: str) -> World:
    """The processes, of which there may be any number: each holds the whole flow, and scores a share of the images."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return open_world(ParallelConfig(backend="gloo"), size, options.device, init_method)


def report_scores(options: Namespace, world: World, flow: Maker | None = None, data: Splits | None = None) -> None:
    """Scores, prints, and writes what the options ask for; every process must call it.

    `flow` and `data` are a script's own, those that the run was trained with. A ValueError says which run, data set or
    file does not fit; a LostError, that another process is gone.
    """
    world.on_rank_0(lambda: _check_files(options.json, options.histogram))
    source = locate_together(world, options.run)
    trained = world.everywhere(lambda: read(source, flow))
    set_tensor_cores(trained.config.precision, trained.config.flow)
    prepare_process(trained.config.parallel.threads, world.device)
    for piece in trained.slices:
        piece.to(world.device)
    splits = {
        label: world.rank_0_first(
            partial(trained.held_out_images, config, data if config.name == "own" else None, options.split)
        )
        for label, config in _data_sets(options, trained).items()
    }
    shapes = {label: images.shape for label, (images, _) in splits.items()}
    step = f"step {trained.manifest.step}"
    world.agree("the checkpoint and the images", f"{step} with settings {trained.config.digest()}, {shapes}")
    found: dict[str, Scores] = {}
    for label, (images, classes) in splits.items():
        found[label] = score(trained, images, options.seed, options.samples, options.batch, world, classes)
        say(world, _table(trained, label, options.split, found[label]))
    if world.rank == 0 and options.json:
        about = {
            "run": str(options.run),
            "checkpoint": str(trained.directory),
            "step": trained.manifest.step,
            "batch": options.batch or trained.config.data.batch,
            "processes": world.size,
            "device": world.device.type,
            "results": [{"data": label, "split": options.split, **scores.as_dict()} for label, scores in found.items()],
        }
        _write(options.json, (json.dumps(about, indent=2) + "\n").encode())
    if world.rank == 0 and options.histogram:
        _write(options.histogram, _histogram(found, step, options.split))


def _data_sets(options: Namespace, trained: Trained) -> dict[str, DataConfig]:
    """The data sets to score: what tables call them → where they are."""
    own = trained.config.data
    if not options.data:
        return {own.name: replace(own, root=options.root or own.root)}
    label = options.data if options.data != own.name else f"{options.data} (--data)"
    size = trained.data_space.shape[-1] if options.data == "folder" else None
    found = {label: replace(own, name=options.data, root=options.root, image_size=size)}
    return found | ({own.name: replace(own, root=options.own_root or own.root)} if options.histogram else {})


def _table(trained: Trained, label: str, split: str, scores: Scores) -> str:
    images = bool(trained.data_space.levels)
    noise = "Gaussian" if trained.config.noise else "dequantisation"
    draws = f", {scores.samples} draw{'s' * (scores.samples > 1)} of {noise} noise (seed {scores.seed})"
    what = f"{scores.images} {split} {'images' if images else 'points'} of {label}{draws * images}"
    density = "" if trained.data_space.nats else "bits/dim are those of a density, not of discrete images\n"
    return f"{trained.directory}: {what}\n{density}{scores.table()}"


def _histogram(found: dict[str, Scores], step: str, split: str) -> bytes:
    """A PNG of the bits/dim by image of the model (or of the last truncation there is), a colour a data set."""
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
        label = f"{name}: {bits.mean():.4f} ± {standard_error(bits):.4f}, {len(bits)} {split} images"
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
