"""Where the images come from: every data set as the same two arrays of whole-numbered pixels.

torchvision's data sets hand out one PIL image at a time and leave its scale to a transform. A flow's likelihood is one
of the stored integers, so here every image is uint8, channels last, with the number of its levels; no seed ever moves
one from one split to the other; and what cannot be loaded says what was looked for, where, and what would do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .image_decoding import Images, OnCorrupt
from .image_folder import load_folder
from .rng import Purpose, permutation
from .torchvision_sets import PUBLISHED, load_published

SourceName = Literal["digits", "cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "folder", "npy"]
DataName = Literal[SourceName, "own"]
"""A data set, or what a script hands over."""
Split = Literal["validation", "test"]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """A data set in its splits.

    Attributes:
        train: uint8, shape (N, H, W, C), H = W, C = 1 or 3; maybe a read-only memory map. Points that a script hands
            over: float32, (N, *event).
        test: uint8, shape (M, H, W, C); points: float32, (M, *event).
        levels: number of different values that a stored pixel can take; 0 for points.
        validation: like test; None where no training images were held out.
        labels: of the images in each split, by its name, (N,) and (M,), from 0; none where they are not used.
        classes: number of different labels; 0 where they are not used.
    """

    train: NDArray[Any]
    test: NDArray[Any]
    levels: int
    validation: NDArray[Any] | None = None
    labels: Mapping[str, Labels] = field(default_factory=dict)
    classes: int = 0

    def hold_out(self, count: int, seed: int) -> "ImageSet":
        """The set with `count` of its training images as the validation split; itself for 0.

        Which images they are depends on the seed and on how many training images there are. Both splits keep the order
        of the images; what is left to train on is a copy in memory.
        """
        if not count:
            return self
        held_out = np.zeros(len(self.train), dtype=np.bool_)
        held_out[permutation(seed, 0, len(self.train), Purpose.VALIDATION)[:count].numpy()] = True
        labels = dict(self.labels)
        if labels:
            labels |= {"train": labels["train"][~held_out], "validation": labels["train"][held_out]}
        return replace(self, train=self.train[~held_out], validation=self.train[held_out], labels=labels)

    def labelled(self, given: Sequence[ArrayLike], classes: int | None = None) -> "ImageSet":
        """The set with labels of the training and the test images; itself where none are given.

        `classes` is the number of different ones; by default the training images have them all.

        Raises:
            ValueError: labels that are no whole numbers from 0, not one per image, or of a class that is not there.
        """
        if not given:
            return self
        labels = dict(zip(("train", "test"), map(np.asarray, given), strict=True))
        for split, images in (("train", self.train), ("test", self.test)):
            found = labels[split]
            if found.shape != (len(images),) or not np.issubdtype(found.dtype, np.integer):
                raise ValueError(
                    f"The {split} labels are {found.dtype} of shape {found.shape}; they must be whole numbers, one for "
                    f"each of the {len(images)} {split} images."
                )
            classes = classes or int(found.max()) + 1  # of the training images
            if wrong := [int(label) for label in (found.min(), found.max()) if not 0 <= label < classes]:
                raise ValueError(
                    f"A {split} label is {wrong[0]}, but labels are 0 to {classes - 1}, as the training images have."
                )
        in_memory = {split: np.array(found, np.int64) for split, found in labels.items()}
        return replace(self, labels=in_memory, classes=classes or 0)

    def evaluated(self) -> tuple[Split, NDArray[Any]]:
        """The split on which a run is evaluated while it trains, and its name."""
        return ("test", self.test) if self.validation is None else ("validation", self.validation)


def load(
    name: SourceName, root: str | None, image_size: int | None, on_corrupt: OnCorrupt = "stop", labels: bool = False
) -> ImageSet:
    """Loads a data set; only `folder` ever resizes.

    Args:
        name: which one.
        root: the directory of the files. digits: not used; folder, npy: required; the others: where torchvision keeps
            or puts its files, "data" by default.
        image_size: height and width in pixels; None takes what the data set has.
        on_corrupt: folder only: whether an image that cannot be used stops, or is left out.
        labels: whether the images come with their labels.

    Raises:
        ValueError: files that are missing or unfit, or an image_size or labels that the data set has not.
    """
    if name == "digits":
        images = _digits(labels)
    elif name in PUBLISHED:
        _check_size(name, image_size, PUBLISHED[name].size)  # before a download of minutes
        train, test, *found = load_published(name, root or "data")
        images = ImageSet(train, test, levels=256).labelled(found if labels else (), PUBLISHED[name].classes)
    elif name == "folder":
        train, test, *found = load_folder(root, image_size, on_corrupt, labels)
        images = ImageSet(train, test, levels=256).labelled(found)
    else:  # npy: the settings refuse any other name
        images = _npy(root, labels)
    _check_size(name, image_size, images.train.shape[1])
    return images


def outline(
    name: SourceName, root: str | None, image_size: int | None, on_corrupt: OnCorrupt = "stop", labels: bool = False
) -> tuple[tuple[int, int, int], int, int, int]:
    """What the images of a data set look like; a published one is neither read nor downloaded for it.

    Args:
        name, root, image_size, on_corrupt, labels: as for `load`.

    Returns:
        (C, H, W) of an image, the number of values that a stored pixel can take, the number of training images, and
        that of their labels, 0 if they are not used.

    Raises:
        ValueError: as for `load`.
    """
    if name in PUBLISHED:
        known = PUBLISHED[name]
        _check_size(name, image_size, known.size)
        return (known.channels, known.size, known.size), 256, known.train, known.classes * labels
    images = load(name, root, image_size, on_corrupt, labels)
    many, height, width, channels = images.train.shape
    return (channels, height, width), images.levels, many, images.classes


def _check_size(name: str, wanted: int | None, size: int) -> None:
    if wanted not in (None, size):
        raise ValueError(
            f"data.image_size is {wanted}, but the images of '{name}' are {size}×{size} and are never resized or "
            f"padded: their bits/dim could not be compared. Leave it out or set it to {size}."
        )


def _digits(labels: bool) -> ImageSet:
    """scikit-learn's 1,797 digits, 8×8, greys 0…16: in the order they ship in, the last 297 are the test images."""
    package = find_spec("sklearn")  # its file is read without it: scikit-learn and SciPy are slow to import
    assert package and package.submodule_search_locations, "scikit-learn is a dependency"
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, np.uint8, delimiter=",")  # 64 pixels and the digit
    images, digits = rows[:, :64].reshape(-1, 8, 8, 1), rows[:, 64]
    found = [digits[:1500], digits[1500:]] if labels else []
    return ImageSet(images[:1500], images[1500:], levels=17).labelled(found)


def _npy(root: str | None, labels: bool) -> ImageSet:
    """A directory with train.npy and test.npy, or one .npy file whose last tenth is the test split.

    Labels are in train_labels.npy and test_labels.npy of the directory.
    """
    if root is None:
        raise ValueError(
            "data.name is 'npy', but data.root is not given; "
            "point --data.root at a .npy file or at a directory that holds train.npy and test.npy."
        )
    path = Path(root).expanduser()
    if path.is_dir():
        train, test = _map(path / "train.npy"), _map(path / "test.npy")
        if train.shape[1:] != test.shape[1:]:
            raise ValueError(
                f"The images in '{path}' differ in shape (H, W, C): {train.shape[1:]} in train.npy, "
                f"{test.shape[1:]} in test.npy; they must be the same."
            )
        found = [_array(path / f"{split}_labels.npy") for split in ("train", "test") if labels]
        return ImageSet(train, test, levels=256).labelled(found)
    if labels:
        raise ValueError(
            f"data.labels is on, but data.root '{root}' is one file; labels are in a directory that holds train.npy, "
            "test.npy, train_labels.npy and test_labels.npy."
        )
    images = _map(path)
    if len(images) < 2:
        raise ValueError(f"'{path}' holds one image; it takes at least two, one to train and one to test.")
    held_out = max(1, len(images) // 10)
    return ImageSet(images[:-held_out], images[-held_out:], levels=256)


def _array(path: Path) -> NDArray[Any]:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no plain file")
        with np.errstate(over="raise"):
            return np.lib.format.open_memmap(path, mode="r")  # refuses pickles
    except Exception as error:  # numpy raises anything at all on a header that lies
        raise ValueError(
            f"'{path}' cannot be read as an array ({error}); data.name 'npy' takes a .npy file of numbers, "
            "or a directory that holds train.npy and test.npy."
        ) from error


def _map(path: Path) -> Images:
    images = _array(path)
    square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] in (1, 3)
    if images.dtype != np.uint8 or not square or 0 in images.shape:
        raise ValueError(
            f"'{path}' holds {images.dtype} of shape {images.shape}; images must be uint8 of shape (N, H, W, C) "
            "with N at least 1, H equal to W, and C 1 or 3."
        )
    return images
