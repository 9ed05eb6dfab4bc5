"""The published data sets, through torchvision, as two arrays of their original pixels.

torchvision keeps a set's images under one attribute in three axis orders, asks for `download=True` before it looks into
a directory that may be written, lets several processes download over one another, and ends in "Dataset not found". Here
local files are read without a write, one process downloads while the others wait, and a failure names the files.
"""

import contextlib
import fcntl
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .image_decoding import Images


class Published(NamedTuple):
    """A data set as it was published: torchvision's class, sides in pixels, channels, training images, labels.

    `files` are those that hold it, below data.root.
    """

    kind: str
    size: int
    channels: int
    train: int
    classes: int
    files: str


_CIFAR10 = "cifar-10-batches-py/{data_batch_1,…,data_batch_5,test_batch,batches.meta}"
_IDX = "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"
PUBLISHED = {
    "cifar10": Published("CIFAR10", 32, 3, 50_000, 10, _CIFAR10),
    "cifar100": Published("CIFAR100", 32, 3, 50_000, 100, "cifar-100-python/{train,test,meta}"),
    "mnist": Published("MNIST", 28, 1, 60_000, 10, _IDX),
    "fashion_mnist": Published("FashionMNIST", 28, 1, 60_000, 10, f"Fashion{_IDX}"),
    "svhn": Published("SVHN", 32, 3, 73_257, 10, "{train,test}_32x32.mat"),
}


def load_published(name: str, root: str) -> tuple[Images, Images, Any, Any]:
    """Reads a data set's files in `root`, which are downloaded first where they are missing.

    Returns:
        (train, test), uint8, shapes (N, H, W, C) and (M, H, W, C), and the labels of both.

    Raises:
        ValueError: the files are missing or broken, and cannot be downloaded.
    """
    kind, files = PUBLISHED[name].kind, PUBLISHED[name].files
    folder = Path(root).expanduser()
    try:
        return _read(kind, folder, download=False)
    except Exception as error:  # torchvision raises anything at all on missing or broken files
        absent = str(error).split(".")[0]
    print(f"'{name}' is not to be read from '{folder}' ({absent}): downloading it.", file=sys.stderr)
    try:
        with _alone(folder), contextlib.redirect_stderr(io.StringIO()):  # torchvision's progress bars
            return _read(kind, folder, download=True)
    except Exception as error:  # no network, no permission, half an archive, …
        raise ValueError(
            f"The data set '{name}' could neither be read from '{folder / files}' ({absent}) nor be downloaded "
            f"({str(error).strip()}). Get these files elsewhere and say --data.root DIR, where DIR holds {files}."
        ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time in; the later ones find what the first has downloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _read(kind: str, folder: Path, download: bool) -> tuple[Images, Images, Any, Any]:
    import torchvision.datasets  # here, because the other data sets need not wait a second for it

    halves, labels = [], []
    for split in ("train", "test"):
        which: dict[str, Any] = {"split": split} if kind == "SVHN" else {"train": split == "train"}
        found = getattr(torchvision.datasets, kind)(folder, download=download, **which)
        images = np.asarray(found.data)
        labels.append(np.asarray(found.labels if kind == "SVHN" else found.targets))
        if kind == "SVHN":
            images = images.transpose(0, 2, 3, 1)
        halves.append(np.ascontiguousarray(images[..., None] if images.ndim == 3 else images))
    return halves[0], halves[1], *labels  # type: ignore[return-value]
