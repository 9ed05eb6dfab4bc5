"""The test images of a data set, if they are like those that a run has learned."""

from ..data import PUBLISHED, DataConfig, Images, Splits, images_of
from ..storage import check_own
from .load import Trained


def held_out_images(trained: Trained, config: DataConfig, data: Splits | None) -> Images:
    """Test images (N, H, W, C) uint8, or points (N, *event) float32, of a data set, or of a script's own `data`.

    Raises a ValueError if they are not there, or have another shape or number of levels than the run's.
    """
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
    return images.test


def _unlike(name: str, found: str, trained: Trained) -> ValueError:
    wanted = f"{'×'.join(map(str, trained.data_space.shape))} with {trained.data_space.levels} levels"
    return ValueError(
        f"The images of {name} are {found}, those of the run {wanted}; its flow can score no others. Say with --root "
        "where the run's own are."
    )
