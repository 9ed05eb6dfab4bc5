"""A sheet of samples to look at."""

import math
from pathlib import Path

from torch import Tensor
from torchvision.utils import make_grid, save_image


def save_sheet(images: Tensor, levels: int, path: Path) -> None:
    """Writes a PNG, eight images a row, small ones enlarged.

    Args:
        images: (B, C, H, W) uint8.
        levels: number of values of a stored pixel; the highest is drawn white.
        path: where to; folders are made.
    """
    enlarge = max(1, math.ceil(48 / images.shape[-1]))
    large = images.float().div(levels - 1).repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(make_grid(large.clamp(0, 1), nrow=8, padding=enlarge, pad_value=0.5), path)
