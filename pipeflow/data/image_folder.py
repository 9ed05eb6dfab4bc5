"""A tree of image files → two memory-mapped arrays, decoded once and cached.

torchvision's `ImageFolder` wants a folder a class, knows no split, and decodes every file again in every epoch and in
every process. Here one pass before the run writes the pixels to the user's cache, and every process of every later run
maps the same two files, for as long as no image has changed.
"""

import hashlib
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import image_decoding as decode
from .image_decoding import OnCorrupt

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
_FORMAT = 1  # of the cached pixels; raise it when the same files should give other ones


def load_folder(
    root: str | None, image_size: int | None, on_corrupt: OnCorrupt, labels: bool = False
) -> tuple[Any, ...]:
    """Every image below a directory; hidden files and folders are passed over.

    Args:
        root: a directory. With `train` and one of `test`, `val`, `valid` (the first there is) in it, these are the
            splits; otherwise every tenth image in the order of the relative paths is a test image.
        image_size: height and width in pixels: the short side is resized to it, then the centre cut out. None takes
            the images as they are, which must then share one square size.
        on_corrupt: what to do about an image that cannot be decoded, or that is grey where the first training image
            is in colour, or the other way round: stop, or leave it out and say on stderr how many were.
        labels: whether the class of every image is wanted: the number of its folder, in the order of the training
            images' folders.

    Returns:
        (train, test), uint8, shapes (N, H, W, C) and (M, H, W, C), C = 1 or 3, memory-mapped read-only; and the labels
        of both if they are wanted.

    Raises:
        ValueError: no readable directory, no image in a split, an image that does not fit, no place for the cache.
    """
    if root is None:
        raise ValueError("data.name is 'folder', but data.root is not given; point --data.root at a folder of images.")
    if image_size is not None and image_size < 1:
        raise ValueError(f"data.image_size is {image_size}; it must be at least 1 pixel.")
    folder = Path(root).expanduser().resolve()
    try:
        beside = [name for name in ("test", "val", "valid") if (folder / "train").is_dir() and (folder / name).is_dir()]
        files = _scan(folder)
    except OSError as error:
        raise ValueError(f"data.root '{root}' is not a folder that can be read ({error}); give another one.") from error
    held_out = beside[0] if beside else None
    train, test = split(list(files), held_out)
    if not train or not test:
        raise ValueError(
            f"data.root '{root}' holds {len(train)} training and {len(test)} test images ({', '.join(SUFFIXES)}), and "
            "both splits need at least one; "
            + (f"put images into both 'train' and '{held_out}'." if held_out else "every tenth image is a test image.")
        )

    versions = [[(name, *files[name]) for name in names] for names in (train, test)]
    facts = [_FORMAT, str(folder), image_size, on_corrupt, versions, *["labels"] * labels]
    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pipeflow"
    parts = ("train", "test", *(("train-labels", "test-labels") if labels else ()))
    ready = {part: cache / f"{fingerprint}-{part}.npy" for part in parts}
    classes = _classes(train, test, held_out is not None) if labels else {}
    try:
        if not all(path.exists() for path in ready.values()):
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="unfinished-", dir=cache) as scratch, warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such an image is refused
                like = decode.model(folder, train, image_size)
                for part, names in (("train", train), ("test", test)):
                    kept = decode.write(Path(scratch, part), folder, names, image_size, on_corrupt, like)
                    if labels:
                        numbers = [classes[names[at]] for at in kept]
                        with Path(scratch, f"{part}-labels").open("wb") as file:
                            np.save(file, np.array(numbers, np.int64))
                for part, path in ready.items():  # whole files appear at once, so racing processes cannot hurt
                    Path(scratch, part).replace(path)
        arrays = [np.lib.format.open_memmap(path, mode="r") for path in ready.values()]
    except OSError as error:
        raise ValueError(
            f"The pixels of '{root}' cannot be kept in '{cache}' ({error}); "
            "set XDG_CACHE_HOME to a directory that can be written and has room for them."
        ) from error

    given, found = len(train) + len(test), sum(map(len, arrays[:2]))
    if found < given:
        print(
            f"{given - found} of {given} images below '{root}' are left out: they cannot be decoded, or are grey among "
            "colours or colour among greys (data.on_corrupt 'stop' names the first).",
            file=sys.stderr,
        )
    return tuple(arrays)


def _classes(train: list[str], test: list[str], in_splits: bool) -> dict[str, int]:
    """Image → the number of its class; classes are the folders of the training images, sorted.

    `in_splits` says whether the first folder of an image is that of its split. A ValueError where folders are not those
    of classes.
    """

    def class_of(name: str) -> str:
        return "/".join(Path(name).parts[in_splits:-1])

    classes = sorted({class_of(name) for name in train})
    if "" in classes:
        outside = next(name for name in train if not class_of(name))
        raise ValueError(f"data.labels is on, but '{outside}' lies in no folder of a class.")
    if strange := sorted({class_of(name) for name in test} - set(classes)):
        raise ValueError(f"data.labels is on, but no training image is of the test images' class '{strange[0]}'.")
    numbers = {name: number for number, name in enumerate(classes)}
    return {name: numbers[class_of(name)] for name in (*train, *test)}


def split(names: list[str], held_out: str | None) -> tuple[list[str], list[str]]:
    """Which images train and which test: a function of nothing but their sorted relative paths.

    `held_out` is the folder of test images beside `train`; None where there is no such pair.
    """
    if held_out is None:
        return [name for at, name in enumerate(names) if at % 10 != 9], names[9::10]
    return [name for name in names if name.startswith("train/")], [n for n in names if n.startswith(f"{held_out}/")]


def _scan(root: Path) -> dict[str, tuple[int, int]]:
    """Relative path → (bytes, time of change in ns) of every image below root, sorted."""

    def fail(error: OSError) -> None:
        raise error

    found = {}
    for here, folders, files in os.walk(root, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        above = {os.path.realpath(folder) for folder in (Path(here), *Path(here).parents)}
        if around := [name for name in folders if os.path.realpath(Path(here, name)) in above]:
            raise OSError(f"{Path(here, around[0])} leads to a folder that it lies in")
        for name in files:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                path = Path(here, name)
                facts = path.stat()
                if not path.is_file():
                    raise OSError(f"{path} is no plain file")
                found[path.relative_to(root).as_posix()] = (facts.st_size, facts.st_mtime_ns)
    return dict(sorted(found.items()))
