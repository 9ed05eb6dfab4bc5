"""What `python -m pipeflow.evaluate` prints and writes: bits/dim on held-out images, and how sure each figure is.

`result.json` has the means alone, of the run's own images and one draw of noise.
"""

import io
import json
import os
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..data import DataConfig, Splits
from ..distributed import ParallelConfig, World, open_world, prepare_process, say
from ..model import Maker, set_tensor_cores
from .held_out_images import held_out_images
from .load import Trained, locate_together, read
from .scoring import Scores, score, standard_error
from .scoring_options import check_files


def open_scoring_world(options: Namespace, init_method: str) -> World:
    """The processes, of which there may be any number: each holds the whole flow, and scores a share of the images."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return open_world(ParallelConfig(backend="gloo"), size, options.device, init_method)


def report_scores(options: Namespace, world: World, flow: Maker | None = None, data: Splits | None = None) -> None:
    """Scores, prints, and writes what the options ask for; every process must call it.

    Args:
        options: of the command.
        world: the processes, which share the images.
        flow, data: of a script's own, those that the run was trained with.

    Raises:
        ValueError: a run, a data set or a file that does not fit.
        LostError: another process is gone.
    """
    world.on_rank_0(lambda: check_files(options.json, options.histogram))
    source = locate_together(world, options.run)
    trained = world.everywhere(lambda: read(source, flow))
    set_tensor_cores(trained.config.precision, trained.config.flow)
    prepare_process(trained.config.parallel.threads, world.device)
    for piece in trained.slices:
        piece.to(world.device)
    splits = {
        label: world.rank_0_first(
            partial(held_out_images, trained, config, data if config.name == "own" else None, options.split)
        )
        for label, config in _data_sets(options, trained).items()
    }
    shapes = {label: images.shape for label, images in splits.items()}
    step = f"step {trained.manifest.step}"
    world.agree("the checkpoint and the images", f"{step} with settings {trained.config.digest()}, {shapes}")
    found: dict[str, Scores] = {}
    for label, images in splits.items():
        found[label] = score(trained, images, options.seed, options.samples, options.batch, world)
        say(world, _table(trained, label, options.split, found[label]))
    if world.rank == 0 and options.json:
        _write(options.json, (json.dumps(_about(options, world, trained, found), indent=2) + "\n").encode())
    if world.rank == 0 and options.histogram:
        _write(options.histogram, histogram(found, step, options.split))


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


def _about(options: Namespace, world: World, trained: Trained, found: dict[str, Scores]) -> dict[str, object]:
    """What the JSON file says."""
    return {
        "run": str(options.run),
        "checkpoint": str(trained.directory),
        "step": trained.manifest.step,
        "batch": options.batch or trained.config.data.batch,
        "processes": world.size,
        "device": world.device.type,
        "results": [{"data": label, "split": options.split, **scores.as_dict()} for label, scores in found.items()],
    }


def histogram(found: dict[str, Scores], step: str, split: str = "test") -> bytes:
    """A PNG of the bits/dim by image of the model (or of the last truncation there is), a colour a data set.

    Raises:
        ValueError: no image has a finite bits/dim.
    """
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
