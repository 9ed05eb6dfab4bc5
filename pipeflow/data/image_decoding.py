"""Image files → one .npy file of whole-numbered pixels.

The stock converter, `Image.convert`, clips 16-bit greys to white and warns about palettes with transparency, and
`ImageFolder` leaves a broken file to be found in the middle of a run. Here one pass over the files finds every image
that does not fit, names it, and holds no more than a handful of them in memory.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

Images = NDArray[np.uint8]
OnCorrupt = Literal["stop", "skip"]
_CHUNK = 64  # images in memory at a time
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF")  # whatever the name says; for others Pillow starts programs
_MOST_PIXELS = 1 << 26  # of a file; Pillow warns from 1.3 times as many
_GREY = ("1", "L", "LA", "La", "I", "F")
_KINDS = {1: "grey", 3: "in colour"}


class Model(NamedTuple):
    """The image that all others have to be like: its name and its shape (H, W, C)."""

    name: str
    shape: tuple[int, ...]


def read(path: Path, size: int | None) -> Images:
    """One image, (H, W, C) uint8, C = 1 for greys and 3 for everything else; EXIF orientation and alpha are ignored.

    Its short side is resized to `size` pixels (bicubic, antialiased) unless it has them already, and the centre cut
    out; None takes the image as it is. Pillow raises anything at all on a file that is no image, or half of one.
    """
    with Image.open(path, formats=_FORMATS) as file:
        if file.width * file.height > _MOST_PIXELS:
            raise ValueError(f"it has {file.width}×{file.height} pixels")
        file.load()
        image: Image.Image = file
        if image.mode == "I" or image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode == "P":
            image = image.convert("RGBA")
        image = image.convert("L" if image.mode in _GREY else "RGB")
        if size is not None:
            width, height = (round(side * size / min(image.size)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)  # a copy where they are the same
            left, top = (image.width - size) // 2, (image.height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        return np.asarray(image).reshape(image.height, image.width, -1)


def model(root: Path, names: list[str], size: int | None) -> Model:
    """The first image that can be decoded; a ValueError if there is none, or it is not square."""
    wrong = []
    for name in names:
        try:
            shape = read(root / name, size).shape
        except Exception as error:
            wrong.append(f"'{name}': {error}")
            continue
        if shape[0] != shape[1]:
            raise ValueError(
                f"'{name}' is {_extent(shape)} pixels, but images must be square; "
                "set data.image_size to have the middle of each cut out at that size."
            )
        return Model(name, shape)
    raise ValueError(
        f"None of the {len(names)} training images under '{root}' can be decoded; the first is {wrong[0]}."
    )


def write(
    target: Path, root: Path, names: list[str], size: int | None, on_corrupt: OnCorrupt, like: Model
) -> list[int]:
    """Decodes images into a .npy file, in order: uint8, (N, H, W, C), N the number of images kept.

    The pixels are written one image after the other, not through a memory map: on a full disk that is an OSError,
    where a map ends in SIGBUS, and images left out leave no gaps.

    Args:
        target: the file to write; an OSError if it cannot be.
        root: the directory to which names are relative.
        names: the images.
        size: as for `read`.
        on_corrupt: whether an image that cannot be decoded or has another number of colours stops, or is left out.
        like: what every image has to be like.

    Returns:
        Which of the names were kept, by number.

    Raises:
        ValueError: an image that does not fit, or none that does.
    """
    with (
        open(target, "wb") as file,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(names), desc=f"decoding {target.stem}", unit="image", disable=None) as bar,
    ):

        def header(images: int) -> int:  # numpy leaves room in it for any number
            facts = {"descr": "|u1", "fortran_order": False, "shape": (images, *like.shape)}
            np.lib.format.write_array_header_1_0(file, facts)
            return file.tell()

        start, kept = header(len(names)), list[int]()
        usable = partial(_usable, root, size, on_corrupt, like)
        for at in range(0, len(names), _CHUNK):
            for number, image in enumerate(pool.map(usable, names[at : at + _CHUNK]), at):
                if image is not None:
                    file.write(image.tobytes())
                    kept.append(number)
                bar.update()
        if not kept:
            raise ValueError(f"None of the {len(names)} {target.stem} images under '{root}' can be used.")
        file.seek(0)
        assert header(len(kept)) == start
    return kept


def _usable(root: Path, size: int | None, on_corrupt: OnCorrupt, like: Model, name: str) -> Images | None:
    """One image; None where it may be left out, a ValueError where one that does not fit stops."""
    advice = "remove it, or set data.on_corrupt to 'skip' to leave such images out."
    try:
        image = read(root / name, size)
    except Exception as error:
        if on_corrupt == "skip":
            return None
        raise ValueError(f"'{name}' cannot be decoded ({error}); {advice}") from error
    if image.shape == like.shape:
        return image
    if image.shape[2] == like.shape[2]:
        raise ValueError(
            f"'{name}' is {_extent(image.shape)} pixels, but '{like.name}' is {_extent(like.shape)}, and all images "
            "must share one square size; set data.image_size to have them resized and their middle cut out."
        )
    if on_corrupt == "skip":
        return None
    raise ValueError(
        f"'{name}' is {_KINDS[image.shape[2]]}, but '{like.name}' is {_KINDS[like.shape[2]]}, "
        f"and a data set holds only one kind; {advice}"
    )


def _extent(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]}"
