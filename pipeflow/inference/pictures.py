"""What a trained flow makes of images: between two of them, and there and back; `save_sheet` lays the results out."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..model import Flow

_BATCH = 256


@torch.no_grad()
def interpolate(
    flow: Flow, first: Tensor, last: Tensor, count: int = 8, labels: tuple[int, int] | None = None
) -> Tensor:
    """From one image to another, on the great circle through their latents (spherical linear interpolation).

    All latents take part, those of every split and the top, standardised, as one vector: a straight line would pass
    where a standard normal of so many dimensions has no images (White, "Sampling Generative Networks", 2016).

    Args:
        flow: on the device of the images.
        first, last: uint8, shape (C, H, W).
        count: how many images, both ends included.
        labels: of the two, for a flow that takes them; an image in between has that of the nearer end.

    Returns:
        uint8, shape (count, C, H, W); the ends are what `reconstruct` makes of the images.
    """
    latents = flow.encode(torch.stack([first, last]), labels)
    ends = torch.cat([latent.flatten(1) for latent in latents.values()], 1).double()
    angle = cosine_similarity(ends[0], ends[1], 0).clamp(-1, 1).acos()
    way = torch.linspace(0, 1, count, device=ends.device, dtype=torch.float64)
    weights = torch.stack([1 - way, way])
    if angle.sin() > 1e-6:  # through two latents in one line there is no circle, or any
        weights = (weights * angle).sin() / angle.sin()

    def circle(latent: Tensor) -> Tensor:
        one, other = weights.to(latent.dtype).view(2, count, *[1] * (latent.dim() - 1))
        between: Tensor = one * latent[0] + other * latent[1]
        return between

    nearer = labels and [labels[2 * number >= count] for number in range(count)]
    return flow.decode({name: circle(latent) for name, latent in latents.items()}, nearer)


@torch.no_grad()
def reconstruct(flow: Flow, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """There and back: images → latents → images.

    Args:
        flow: on the device of the images.
        images: uint8, shape (B, C, H, W).
        labels: (B,), for a flow that takes them.

    Returns:
        The images as the flow sees them (with `data.bits` of each pixel), and what comes back; uint8, (B, C, H, W).
    """
    batches = torch.split(images, _BATCH)
    seen = torch.cat([flow.pixels.quantise(flow.pixels.dequantise(batch, None).z) for batch in batches])
    of_each = [None] * len(batches) if labels is None else torch.split(labels, _BATCH)
    pairs = zip(batches, of_each, strict=True)
    return seen, torch.cat([flow.decode(flow.encode(batch, label), label) for batch, label in pairs])


def difference(first: Tensor, second: Tensor) -> int:
    """The largest difference of two pixels in the same place, in levels of a stored pixel; both uint8."""
    return int((first.int() - second.int()).abs().max())
