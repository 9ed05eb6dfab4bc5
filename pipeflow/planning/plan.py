"""A plan: a measured profile under a run's settings, as rows that tables, a picture and a JSON file show alike."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ..config import Config, PhaseConfig, phase_steps, turns
from ..flow import Event
from .balance import balanced_cut
from .forecast import Forecast, compare, part_memory, share
from .link import Link
from .phase_forecast import Processes, phase_seconds
from .placement import Placement
from .profile import Profile

MOST_DEVICES = 8


@dataclass(frozen=True)
class PartRow:
    """One part at work on a batch.

    Attributes:
        part: its number, from 1.
        flow_steps: first and last, from 1.
        parameters: that learn.
        forward_s, backward_s, update_s: seconds.
        share: of the whole flow's seconds.
        memory_bytes: while it learns.
        fits: whether a device has that much.
        sent_shape, sent_bytes: of the latents that it sends on per batch; None and 0 of the last part.
    """

    part: int
    flow_steps: tuple[int, int]
    parameters: int
    forward_s: float
    backward_s: float
    update_s: float
    share: float
    memory_bytes: float
    fits: bool
    sent_shape: Event | None
    sent_bytes: int


@dataclass(frozen=True)
class PhaseRow:
    """A phase of the run.

    Attributes:
        number: from 1.
        schedule, steps: of the phase.
        seconds, images_per_s: by the name of `Plan.processes` that carry it out, in training alone.
    """

    number: int
    schedule: str
    steps: int
    seconds: dict[str, float]
    images_per_s: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it starts; everything else follows from it.

    Attributes:
        config: the run's settings.
        images: size of the training set.
        device: name of the device that was measured.
        cuda: whether it is a GPU.
        at_once: how many processes can compute at the same time on this host.
        busy: share of the measuring in which something else had the CPU.
        link: between two devices.
        memory_bytes: of a device.
        placement: stages × replicas over hosts; None for a device per part and replica.
        image: (C, H, W) of an image.
        profile: what was measured.
        at: flow steps before each border.
    """

    config: Config
    images: int
    device: str
    cuda: bool
    at_once: float
    busy: float
    link: Link
    memory_bytes: float
    placement: Placement | None
    image: Event
    profile: Profile
    at: tuple[int, ...]

    @property
    def replicas(self) -> int:
        """Chains side by side."""
        return replica_count(self.config, self.placement)

    @property
    def images_per_part(self) -> int:
        """Images that a part gets of a batch."""
        return share(self.config.data.batch, self.replicas)

    @property
    def borders(self) -> tuple[int, ...]:
        """Flow steps before each border between two processes; fewer than `at` where one holds several parts."""
        if self.placement is None:
            return self.at
        return tuple(self.at[process.parts[0] - 1] for process in self.placement.chain(0)[1:])

    @property
    def least_link(self) -> float:
        """Bits per second below which the slowest border, and not the slowest part, would set the pace."""
        seconds = max(row.forward_s + row.backward_s + row.update_s for row in self.parts)
        sizes = self.profile.border_bytes(self.at)
        return max([8 * size * self.images_per_part / seconds for size in sizes], default=0.0)

    def fits(self, forecast: Forecast) -> bool:
        """Whether every device has the memory for it."""
        return forecast.memory_bytes <= self.memory_bytes

    @cached_property
    def parts(self) -> list[PartRow]:
        """The parts of the cut, at the images that one of them gets."""
        images, costs = self.images_per_part, self.profile.parts(self.at)
        memory = part_memory(
            self.profile, self.at, self.config.data.batch, self.replicas, self.config.parallel.depth
        )  # fmt: skip
        total = sum(cost.seconds(images) for cost in costs)
        rows = []
        for part, (start, end) in enumerate(pairwise([0, *self.at, len(self.profile.steps)])):
            cost, last = costs[part], part == len(self.at)
            rows.append(
                PartRow(
                    part=part + 1,
                    flow_steps=(start + 1, end),
                    parameters=cost.parameters,
                    forward_s=cost.forward(images),
                    backward_s=cost.backward(images),
                    update_s=cost.update_s,
                    share=cost.seconds(images) / total,
                    memory_bytes=memory[part],
                    fits=memory[part] <= self.memory_bytes,
                    sent_shape=None if last else (images, *self.profile.packet_shapes[end - 1]),
                    sent_bytes=0 if last else self.profile.packet_bytes[end - 1] * images,
                )
            )
        return rows

    @cached_property
    def ways(self) -> list[Forecast]:
        """This cut and other ways to use as many devices, one device first."""
        batch, depth = self.config.data.batch, self.config.parallel.depth
        return compare(self.profile, self.borders, batch, self.link, self.replicas, depth)

    @cached_property
    def best(self) -> list[list[Forecast]]:
        """For 1, 2, … devices: the best cut, and the other ways."""
        batch, depth = self.config.data.batch, self.config.parallel.depth
        counts = range(1, min(MOST_DEVICES, len(self.profile.steps)) + 1)
        cuts = [balanced_cut(self.profile, count, batch, self.link) for count in counts]
        return [compare(self.profile, at, batch, self.link, depth=depth) for at in cuts]

    @cached_property
    def processes(self) -> dict[str, Processes]:
        """By name: one device, all devices, and where those are more than this host has, this host."""
        parts = len(self.at) + 1
        stages = tuple(range(parts))
        if self.placement:
            stages = tuple(process.stage for process in self.placement.chain(0) for _ in process.parts)
        size = (max(stages) + 1) * self.replicas
        found = {"one device": Processes((0,) * parts, 1, 1.0)}
        if size > 1:
            found[f"{size} devices"] = Processes(stages, self.replicas, float(size))
        if (self.placement is None or self.placement.hosts == 1) and self.at_once < size:
            name = f"{size} processes on {self.at_once:g} {'GPU' if self.cuda else 'CPU'}{'s' * (self.at_once != 1)}"
            found[name] = Processes(stages, self.replicas, self.at_once)
        return found

    @cached_property
    def phases(self) -> list[PhaseRow]:
        """What the phases take."""
        return [self._phase(number, phase) for number, phase in enumerate(self.config.phases, 1)]

    def _phase(self, number: int, phase: PhaseConfig) -> PhaseRow:
        batch, parts = self.config.data.batch, len(self.at) + 1
        steps, phase_turns = phase_steps(phase, self.images, batch), turns(phase, parts, self.images, batch)
        end_to_end = self.config.end_to_end if phase.schedule == "end_to_end" else None
        seconds = {
            name: phase_seconds(self.profile, self.at, phase_turns, end_to_end, batch, self.link, processes)
            for name, processes in self.processes.items()
        }
        speeds = {name: steps * batch / each for name, each in seconds.items()}
        return PhaseRow(number, phase.schedule, steps, seconds, speeds)


def replica_count(config: Config, placement: Placement | None) -> int:
    """Chains side by side: as placed, or as the settings say, or one."""
    return placement.replicas if placement else config.parallel.replicas or 1
