"""A TarFlow as a flat list of steps: the image's patches, then blocks that go through them forward and backward."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import ClassVar

from ..flow import Event, Patches, Step, TarFlowBlock
from ..settings import AtLeast1, Positive, settings
from .cut import HeadConfig
from .jet import check_heads, check_patches
from .seeding import seeded


@settings("tarflow")
@dataclass(frozen=True)
class TarFlowConfig:
    """The shape of a TarFlow (Zhai et al., "Normalizing Flows are Capable Generative Models", 2024).

    Attributes:
        blocks: number of blocks, the units of a cut; each goes through the patches against the one before it.
        depth: layers of the transformer in each block.
        width: of the transformers' tokens.
        heads: of the transformers' attention.
        patch: side of a patch in pixels.
        noise: standard deviation of Gaussian noise on pixels that lie in (−1, 1), as in the paper (0.05 there), in
            place of the uniform noise of dequantisation: for samples; bits/dim are then those of a density.
    """

    blocks: AtLeast1 = 8
    depth: AtLeast1 = 8
    width: AtLeast1 = 768
    heads: AtLeast1 = 12
    patch: AtLeast1 = 2
    noise: Positive | None = None

    levels: ClassVar[int] = 0
    top_prior: ClassVar[str] = "standard"

    def __post_init__(self) -> None:
        check_heads("tarflow", self.heads, self.width)

    def __str__(self) -> str:
        return f"TarFlow {self.blocks} × {self.depth} × {self.width}"

    @property
    def steps(self) -> int:
        """Units of a cut."""
        return self.blocks


def tarflow_steps(config: TarFlowConfig, image: Event, seed: int = 0, classes: int = 0) -> list[Step]:
    """The steps of a TarFlow, in order.

    Args:
        config: the model's shape.
        image: (C, H, W) of the images.
        seed: of the initial weights; the global generator is left as it was.
        classes: how many labels there are; 0 for none.

    Raises:
        ValueError: the images cannot be cut into patches.
    """
    check_patches("tarflow", config.patch, image)
    opening = Patches(config.patch)
    with seeded(seed):
        return [opening, *_blocks(opening.out_shape(image), False, config.blocks, config.depth, config, classes)]


def tarflow_head(config: TarFlowConfig, head: HeadConfig, event: Event, remaining: Sequence[Step]) -> list[Step]:
    """The head of a TarFlow: `head.steps` blocks, at most those that remain, of half of the model's width.

    They go through the patches in the directions of the blocks that they stand for.
    """
    following = remaining[0]
    assert isinstance(following, TarFlowBlock)
    width = head.hidden or max(1, config.width // 2)
    count = min(head.steps, len(remaining))
    return _blocks(event, following.backward, count, head.depth, config, following.classes, width)


def _blocks(
    event: Event, backward: bool, count: int, depth: int, config: TarFlowConfig, classes: int, width: int | None = None
) -> list[Step]:
    width = width or config.width
    heads = gcd(config.heads, width)
    return [TarFlowBlock(event, backward ^ bool(number % 2), depth, width, heads, classes) for number in range(count)]
