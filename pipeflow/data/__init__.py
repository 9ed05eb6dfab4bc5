"""Images and points as packets of the flow; randomness that depends on counters alone."""

from .batches import Batches, ImageArray, InOrder, MicroBatches, fetch, packet_sizes, resident, share
from .datasets import ImageSet, Labels, SourceName, Split, outline
from .image_decoding import Images
from .image_grid import save_sheet, sheet_png
from .pixels import Pixels
from .points import Points, Space, space
from .rng import Purpose, normal
from .settings import DataConfig, check_enough
from .torchvision_sets import PUBLISHED
from .user_arrays import Splits, images_of

__all__ = [
    "PUBLISHED",
    "Batches",
    "DataConfig",
    "ImageArray",
    "ImageSet",
    "Images",
    "InOrder",
    "Labels",
    "MicroBatches",
    "Pixels",
    "Points",
    "Purpose",
    "SourceName",
    "Space",
    "Split",
    "Splits",
    "check_enough",
    "fetch",
    "images_of",
    "normal",
    "outline",
    "packet_sizes",
    "resident",
    "save_sheet",
    "share",
    "sheet_png",
    "space",
]
