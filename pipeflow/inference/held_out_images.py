"""The test or validation images of a data set, if they are like those that a run has learned."""

from ..data import PUBLISHED, DataConfig, Images, Split, Splits, images_of
from ..storage import check_own
from .load import Trained


def held_out_images(trained: Trained, config: DataConfig, data: Splits | None, split: Split = "test") -> Images:
    """Images (N, H, W, C) uint8, or points (N, *event) float32.

    Args:
        trained: the run's flow.
        config: the data set.
        data: training and test data of a script's own, where `config` names them.
        split: "validation" only of the run's own data.

    Raises:
        ValueError: the data are not there, or of another shape or number of levels than the run's, or the run has no
            such split.
    """
    if split == "validation" and not config.validation:
        raise ValueError(f"{trained.directory} has no validation split: data.validation is 0 in its run.")
    shape, levels = trained.data_space.shape, trained.data_space.levels
    if config.name in PUBLISHED:  # what it looks like is known before a download
        side = PUBLISHED[config.name].size
        if levels != 256 or side != shape[1]:
            raise _unlike(config.name, f"{side}×{side} pixels with 256 levels", trained)
    try:
        images, digests = images_of(config, data)
    except ValueError as error:
        raise ValueError(str(error).replace("--data.root", "--root")) from error
    check_own(digests, trained.manifest, trained.directory)
    event = images.test.shape[1:]
    found = (event[2], *event[:2]) if images.levels else event
    if found != shape or images.levels != levels:
        raise _unlike(config.name, f"{'×'.join(map(str, found))} with {images.levels} levels", trained)
    return images.test if split == "test" else images.hold_out(config.validation, trained.config.seed).evaluated()[1]


def _unlike(name: str, found: str, trained: Trained) -> ValueError:
    wanted = f"{'×'.join(map(str, trained.data_space.shape))} with {trained.data_space.levels} levels"
    return ValueError(
        f"The images of {name} are {found}, those of the run {wanted}; its flow can score no others. Say with --root "
        "where the run's own are."
    )
