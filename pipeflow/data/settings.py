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
        labels: whether the flow is given the class of every image, as the data have it: digits and the published sets;
            npy: train_labels.npy and test_labels.npy beside the images; folder: the folder that an image lies in; own:
            handed over with the data. For flows that take labels: Jet, TarFlow, or a flow of the script's own.
        label_dropout: share of the labels that are withheld in training, drawn anew in every epoch, so that the flow
            also learns images without one (for guidance when it draws).
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
    labels: bool = False
    label_dropout: Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1, such as 0.1")] = 0.0

    def __post_init__(self) -> None:
        if self.label_dropout and not self.labels:
            raise ValueError(
                f"data.label_dropout is {self.label_dropout}, but the data are used without labels; set data.labels."
            )


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
