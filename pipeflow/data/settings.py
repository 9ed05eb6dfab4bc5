"""Settings of the data of a run."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ..settings import AtLeast0, AtLeast1, settings
from .datasets import DataName


@settings("data")
@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they enter.

    Attributes:
        name: digits, cifar10, cifar100, mnist, fashion_mnist, svhn, folder (of images), npy (uint8, N×H×W×C), or own:
            what a script hands over.
        root: where they are, or are downloaded to; for npy a file or a directory with train.npy and test.npy.
        image_size: side in pixels; None leaves the images as they are.
        bits: bits that are kept of each pixel.
        flip: horizontal flips at random.
        batch: images per step, over all processes.
        init_batch: images that ActNorm starts from.
        on_corrupt: what an unreadable image in a folder does: "stop" the run, or "skip" the image.
        validation: training images that are held out, chosen by the seed; the run is evaluated on them while it trains,
            and on the test split once, at its end. With 0 all evaluations are on the test split.
    """

    name: DataName = "digits"
    root: str | None = None
    image_size: AtLeast1 | None = None
    bits: Annotated[int, Field(ge=1, le=8, description="a whole number between 1 and 8")] = 8
    flip: bool = False
    batch: AtLeast1 = 64
    init_batch: AtLeast1 = 256
    on_corrupt: Literal["stop", "skip"] = "stop"
    validation: AtLeast0 = 0


def check_enough(config: DataConfig, images: int) -> int:
    """How many of a data set's training images are left to train on, without those held out for validation.

    Raises:
        ValueError: none are, or a batch or the start would need more images than are left.
    """
    left = images - config.validation
    if left < 1:
        raise ValueError(
            f"data.validation is {config.validation}, but {config.name} has only {images} training images, of which at "
            "least one must be left to train on."
        )
    held_out = f" without the {config.validation} held out (data.validation)" if config.validation else ""
    for name in ("batch", "init_batch"):
        if getattr(config, name) > left:
            raise ValueError(
                f"data.{name} is {getattr(config, name)}, but {config.name} has only {left} training images{held_out}."
            )
    return left
