"""Data that a script hands over as arrays, checked before anything is written."""

import hashlib

import numpy as np
from numpy.typing import ArrayLike

from .datasets import ImageSet, load
from .settings import DataConfig

Splits = tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, tuple[ArrayLike, ArrayLike]]
"""Training and test data: float (N, *event), or images as uint8 (N, H, W, C); and maybe the labels of both, (N,)."""


def images_of(config: DataConfig, data: Splits | None = None) -> tuple[ImageSet, dict[str, str]]:
    """The two splits that the settings name, or that a script hands over; of the latter a hash, as "data".

    Raises:
        ValueError: the settings and what is handed over do not go together, or either is unfit.
    """
    if config.name == "own":
        if data is None:
            raise ValueError(
                "data.name is own, but no data are handed over: in the script that has them, say data=(train, test)."
            )
        if (len(data) == 3) != config.labels:
            given = "are handed over" if len(data) == 3 else "are not handed over"
            raise ValueError(
                f"data.labels is {config.labels}, but labels {given}; with labels, say data=(train, test, "
                "(train_labels, test_labels)) and DataConfig(labels=True)."
            )
        images, digest = own_data(data)
        return images, {"data": digest}
    if data is not None:
        raise ValueError(f"Data are handed over, but data.name is {config.name}; set it to own.")
    return load(config.name, config.root, config.image_size, config.on_corrupt, config.labels), {}


def own_data(splits: Splits) -> tuple[ImageSet, str]:
    """Data that a script hands over.

    Args:
        splits: training and test data, every process the same, and maybe their labels.

    Returns:
        The data, float32 or uint8, and a short hash of them.

    Raises:
        ValueError: arrays of another kind, of two shapes, or with values that are not finite; or labels that do not
            fit.
    """
    train, test = (np.ascontiguousarray(split) for split in splits[:2])
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise ValueError(
            f"The training data are {train.dtype} of shape {train.shape}, the test data {test.dtype} of shape "
            f"{test.shape}; but for their number they must be alike."
        )
    images = train.dtype == np.uint8 and train.ndim == 4
    points = np.issubdtype(train.dtype, np.floating) and train.ndim > 1
    if not (images or points) or 0 in (*train.shape, len(test)):
        raise ValueError(
            f"The data are {train.dtype} of shapes {train.shape} and {test.shape}; they must be points, float of shape "
            "(N, D) or (N, …), or images, uint8 of shape (N, H, W, C), and neither split may be empty."
        )
    if points:
        train, test = train.astype(np.float32, copy=False), test.astype(np.float32, copy=False)
        if not (np.isfinite(train).all() and np.isfinite(test).all()):
            raise ValueError("The data hold values that are not finite.")
    digest = hashlib.sha256(f"{train.dtype} {train.shape} {test.shape}".encode())
    found = ImageSet(train, test, levels=256 if images else 0).labelled(splits[2] if len(splits) == 3 else ())
    for split in (train, test, *found.labels.values()):
        digest.update(split.data)
    return found, digest.hexdigest()[:16]
