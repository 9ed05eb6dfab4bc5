"""A sheet of images to look at.

torchvision's `make_grid` draws one block of images, and without its frame where it is a single one; a sheet may show
several blocks below each other, and rows that belong together though they are not full.
"""

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

_COLUMNS = 8
_LEAST_SIDE = 48  # pixels on the sheet; smaller images are enlarged by a whole number
_GREY = 0.5


def draw_sheet(blocks: Sequence[Sequence[Tensor]], levels: int) -> Tensor:
    """Lays images out, eight a row, small ones enlarged.

    Args:
        blocks: from top to bottom, with a wide gap between two; in each some batches of images (B, C, H, W), uint8,
            every batch beginning a row of its own.
        levels: number of values of a stored pixel; the highest is drawn white.

    Returns:
        (C, height, width), float32 in [0, 1].
    """
    columns = min(_COLUMNS, max(len(images) for block in blocks for images in block))
    enlarge = max(1, math.ceil(_LEAST_SIDE / blocks[0][0].shape[-1]))
    bands = [torch.cat([_rows(images, levels, columns, enlarge) for images in block], 1) for block in blocks]
    spaced = [*(pad(band, (0, 0, 0, 3 * enlarge), value=_GREY) for band in bands[:-1]), bands[-1]]
    return pad(torch.cat(spaced, 1), (enlarge, 0, enlarge, 0), value=_GREY)


def sheet_png(images: Tensor | Sequence[Sequence[Tensor]], levels: int) -> bytes:
    """A sheet as a PNG, of images (B, C, H, W) uint8, or of blocks as `draw_sheet` takes them."""
    from torchvision.utils import save_image  # slow to import, and needed after training only

    stream = BytesIO()
    save_image(draw_sheet([[images]] if isinstance(images, Tensor) else images, levels), stream, "png")
    return stream.getvalue()


def save_sheet(images: Tensor | Sequence[Sequence[Tensor]], levels: int, path: Path) -> None:
    """Writes what `sheet_png` returns; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sheet_png(images, levels))


def _rows(images: Tensor, levels: int, columns: int, enlarge: int) -> Tensor:
    """(B, C, H, W) uint8 → (C, height, width): whole rows, each image with a margin to its right and below it."""
    large = images.float().div(levels - 1).clamp(0, 1).repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    tiles = pad(large, (0, enlarge, 0, enlarge, 0, 0, 0, -len(images) % columns), value=_GREY)
    _, channels, height, width = tiles.shape
    rows = tiles.view(-1, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return rows.reshape(channels, -1, columns * width)
