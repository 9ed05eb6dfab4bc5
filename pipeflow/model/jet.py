"""A Jet as a flat list of steps: the image's patches, then couplings that all cost the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import ClassVar

from ..flow import SPATIAL, Event, JetCoupling, Patches, Step, channel_order, spatial_order
from ..settings import AtLeast1, settings
from .cut import HeadConfig
from .seeding import seeded

_EVERY = 5  # one coupling in so many is spatial, the others are between channels, as in the published configuration


@settings("jet")
@dataclass(frozen=True)
class JetConfig:
    """The shape of a Jet (Kolesnikov, Pinto and Tschannen, "Jet", 2024).

    Attributes:
        couplings: number of couplings, the units of a cut.
        depth: layers of the transformer in each coupling.
        width: of the transformers' tokens.
        heads: of the transformers' attention.
        patch: side of a patch in pixels.
    """

    couplings: AtLeast1 = 32
    depth: AtLeast1 = 2
    width: AtLeast1 = 512
    heads: AtLeast1 = 8
    patch: AtLeast1 = 4

    levels: ClassVar[int] = 0
    top_prior: ClassVar[str] = "standard"

    def __post_init__(self) -> None:
        check_heads("jet", self.heads, self.width)

    def __str__(self) -> str:
        return f"Jet {self.couplings} × {self.depth} × {self.width}"

    @property
    def steps(self) -> int:
        """Units of a cut."""
        return self.couplings


def check_heads(name: str, heads: int, width: int) -> None:
    """A ValueError where heads do not divide the width of a transformer."""
    if width % heads:
        raise ValueError(f"{name}.width is {width}, which {heads} heads ({name}.heads) do not divide evenly.")


def check_patches(name: str, patch: int, image: Event) -> None:
    """A ValueError where an image has no whole number of patches, or is none."""
    if len(image) != 3:
        raise ValueError(
            f"The flow {name} is one on images (C, H, W), and this data has the shape {image}; hand over a flow of "
            "your own."
        )
    if image[1] % patch or image[2] % patch:
        raise ValueError(
            f"Images of {image[1]}×{image[2]} are no whole number of patches of {patch}×{patch} ({name}.patch)."
        )


def jet_steps(config: JetConfig, image: Event, seed: int = 0, classes: int = 0) -> list[Step]:
    """The steps of a Jet, in order.

    Args:
        config: the model's shape.
        image: (C, H, W) of the images.
        seed: of the initial weights and of the channels' order; the global generator is left as it was.
        classes: how many labels there are; 0 for none.

    Raises:
        ValueError: the images cannot be cut into patches and halves.
    """
    check_patches("jet", config.patch, image)
    opening = Patches(config.patch)
    event = opening.out_shape(image)
    if any(size % 2 for size in event):
        raise ValueError(
            f"Images of shape {image} are {event[1]}×{event[2]} patches of {event[0]} numbers (jet.patch is "
            f"{config.patch}), but couplings halve all three, so they must be even."
        )
    with seeded(seed):
        return [opening, *_couplings(event, config.couplings, config.depth, config.width, config.heads, classes)]


def jet_head(config: JetConfig, head: HeadConfig, event: Event, remaining: Sequence[Step]) -> list[Step]:
    """The head of a Jet: `head.steps` couplings, at most those that remain, of half of the model's width.

    If it starts like the model, `begin_like` gives each coupling the order of its numbers too.
    """
    following = remaining[0]
    assert isinstance(following, JetCoupling)
    width = head.hidden or max(1, config.width // 2)
    count, heads = min(head.steps, len(remaining)), gcd(config.heads, width)
    return _couplings(event, count, head.depth, width, heads, following.classes)


def _couplings(event: Event, count: int, depth: int, width: int, heads: int, classes: int) -> list[Step]:
    steps: list[Step] = []
    for number in range(1, count + 1):
        spatial = number % _EVERY == 0
        order = spatial_order(event, SPATIAL[(number // _EVERY - 1) % 6]) if spatial else channel_order(event)
        steps.append(JetCoupling(event, order, depth, width, heads, classes))
    return steps
