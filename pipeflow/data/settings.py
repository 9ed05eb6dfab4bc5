"""Settings of the data of a run."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ..settings import AtLeast1, settings
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
    """

    name: DataName = "digits"
    root: str | None = None
    image_size: AtLeast1 | None = None
    bits: Annotated[int, Field(ge=1, le=8, description="a whole number between 1 and 8")] = 8
    flip: bool = False
    batch: AtLeast1 = 64
    init_batch: AtLeast1 = 256
    on_corrupt: Literal["stop", "skip"] = "stop"


def check_enough(config: DataConfig, images: int) -> None:
    """A ValueError where a batch or the start would need more images than there are."""
    for name in ("batch", "init_batch"):
        if getattr(config, name) > images:
            raise ValueError(
                f"data.{name} is {getattr(config, name)}, but {config.name} has only {images} training images."
            )
