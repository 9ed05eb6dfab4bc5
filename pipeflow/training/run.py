"""What never changes while a run goes on: its processes, its settings, its data, the shape of its model."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from ..config import Config
from ..data import ImageArray, ImageSet, Space, packet_sizes, resident
from ..distributed import World
from ..model import Maker
from ..storage import RunDirectory
from ..stream import Chain


@dataclass(frozen=True)
class Run:
    """A run, whatever it has learned so far.

    Attributes:
        world: the processes.
        config: the settings, with an explicit cut if it was measured.
        images: the training, the test and maybe a validation split.
        space: what an image, or a point, looks like.
        flow: makes the steps of a flow that a script has handed over; None for one of a family.
        script_hashes: short hashes of what a script has handed over: "flow", "data".
        chain: the borders between the parts, over the processes that hold them.
        borders: how many flow steps lie before the end of each part.
        parameters: how many numbers the whole model learns.
    """

    world: World
    config: Config
    images: ImageSet
    space: Space
    flow: Maker | None
    script_hashes: dict[str, str]
    chain: Chain
    borders: list[int]
    parameters: int

    @cached_property
    def training_images(self) -> ImageArray:
        """The training split, where the head draws it from: copied to a GPU once per run, whatever its phases."""
        return resident(self.images.train, self.world.device)

    @property
    def packet_images(self) -> int:
        """Images per packet where nothing is learned: those of training in one chain, however many chains there are."""
        return packet_sizes(self.config.data.batch, self.config.parallel.packets)[0]

    @property
    def directory(self) -> RunDirectory:
        """Where the files of the run are."""
        return RunDirectory(Path(self.config.run_dir))

    @property
    def sizes(self) -> list[int]:
        """How many flow steps each part has."""
        return [end - start for start, end in pairwise([0, *self.borders])]
