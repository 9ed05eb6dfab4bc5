"""A plan: a measured profile under a run's settings, as rows that tables, a picture and a JSON file show alike."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch

from ..config import Config, phase_steps, turns
from ..flow import Event
from ..model import family_caution
from .balance import balanced_cut
from .forecast import Forecast, Replicas, compare, data_parallel, part_memory, per_part, share
from .phase_forecast import Processes, phase_seconds, pipeline
from .placement import Placement
from .profile import Link, Profile
from .replicas import with_replicas
from .scaling import Simulation

MOST_DEVICES = 8


@dataclass(frozen=True)
class PartRow:
    """One part at work on a batch.

    Attributes:
        part, flow_steps: its number, and those of its first and last flow step, from 1.
        parameters: that learn.
        forward_s, backward_s, update_s: seconds.
        share: of the whole flow's seconds.
        memory_bytes, fits: while it learns, and whether a device has that much.
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
    """A phase of the run; seconds of training alone and images/s by the name of `Plan.processes` that carry it out."""

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
        device, cuda: name of the device that was measured, and whether it is a GPU.
        at_once: how many processes can compute at the same time on this host.
        busy: share of the measuring in which something else had the CPU.
        link: between two devices.
        memory_bytes: of a device.
        placement: of the processes over hosts; None for a device per part and replica.
        replicas: chains side by side, or those of each part where they are unequal.
        simulation: of many devices; None if none is asked for.
        image: (C, H, W) of an image.
        profile, at: what was measured, and flow steps before each border.
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
    replicas: Replicas
    simulation: Simulation | None
    image: Event
    profile: Profile
    at: tuple[int, ...]

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
        both = zip(self.profile.border_bytes(self.at), pairwise(self._images), strict=True)
        return max([8 * size * max(images) / seconds for size, images in both], default=0.0)

    @property
    def _images(self) -> list[int]:
        """Of a batch, at one process of each part."""
        return [share(self.config.data.batch, count) for count in per_part(self.replicas, len(self.at) + 1)]

    def fits(self, forecast: Forecast) -> bool:
        """Whether every device has the memory for it."""
        return forecast.memory_bytes <= self.memory_bytes

    @cached_property
    def parts(self) -> list[PartRow]:
        """The parts of the cut, at the images that one of them gets."""
        profile, batch, costs = self.profile, self.config.data.batch, self.profile.parts(self.at)
        memory = part_memory(profile, self.at, batch, self.replicas, self.config.parallel)
        total = sum(cost.seconds(images) / images for cost, images in zip(costs, self._images, strict=True))
        rows = []
        for part, (start, end) in enumerate(pairwise([0, *self.at, len(profile.steps)])):
            cost, images, last = costs[part], self._images[part], part == len(self.at)
            rows.append(
                PartRow(
                    part=part + 1,
                    flow_steps=(start + 1, end),
                    parameters=cost.parameters,
                    forward_s=cost.forward(images),
                    backward_s=cost.backward(images),
                    update_s=cost.update_s,
                    share=cost.seconds(images) / images / total,
                    memory_bytes=memory[part],
                    fits=memory[part] <= self.memory_bytes,
                    sent_shape=None if last else (images, *profile.packet_shapes[end - 1]),
                    sent_bytes=0 if last else profile.packet_bytes[end - 1] * images,
                )
            )
        return rows

    @cached_property
    def ways(self) -> list[Forecast]:
        """This cut and other ways to use as many devices, one device first."""
        batch, parallel = self.config.data.batch, self.config.parallel
        return compare(self.profile, self.borders, batch, self.link, self.replicas, parallel)

    @cached_property
    def best(self) -> list[list[Forecast]]:
        """For 1, 2, … devices: the best cut, the other ways, and this cut with the best replicas of its parts."""
        profile, batch, parallel, found = self.profile, self.config.data.batch, self.config.parallel, []
        for devices in range(1, min(MOST_DEVICES, len(profile.steps)) + 1):
            ways = compare(profile, balanced_cut(profile, devices, batch, self.link), batch, self.link, 1, parallel)
            if devices > len(self.at):
                ways.insert(1, with_replicas(profile, self.at, batch, self.link, devices, parallel))
            found.append(ways)
        return found

    @cached_property
    def processes(self) -> dict[str, Processes]:
        """By name: one device, all devices, and where those are more than this host has, this host."""
        parts = len(self.at) + 1
        stages = tuple(range(parts))
        if self.placement:
            stages = tuple(process.stage for process in self.placement.chain(0) for _ in process.parts)
        size = Processes(stages, self.replicas, 1.0).size
        found = {"one device": Processes((0,) * parts, 1, 1.0)}
        if size > 1:
            found[f"{size} devices"] = Processes(stages, self.replicas, float(size))
        if (self.placement is None or self.placement.hosts == 1) and self.at_once < size:
            name = f"{size} processes on {self.at_once:g} {'GPU' if self.cuda else 'CPU'}{'s' * (self.at_once != 1)}"
            found[name] = Processes(stages, self.replicas, self.at_once)
        return found

    @cached_property
    def phases(self) -> list[PhaseRow]:
        batch, rows = self.config.data.batch, []
        for number, phase in enumerate(self.config.phases, 1):
            steps, of_phase = phase_steps(phase, self.images, batch), turns(phase, len(self.at) + 1, self.images, batch)
            end_to_end = self.config.end_to_end if phase.schedule == "end_to_end" else None
            seconds = {
                name: phase_seconds(self.profile, self.at, of_phase, end_to_end, batch, self.link, processes)
                for name, processes in self.processes.items()
            }
            speeds = {name: steps * batch / each for name, each in seconds.items()}
            rows.append(PhaseRow(number, phase.schedule, steps, seconds, speeds))
        return rows

    @cached_property
    def cautions(self) -> list[str]:
        """Sentences about what `train` would refuse, what would not fit, and figures to doubt."""
        found = family_caution(self.config.family, [*self.at, len(self.profile.steps)])
        if self.busy > 0.1:
            found.append(
                f"Something else had the CPU for {100 * self.busy:.0f} % of the time that measuring took; the seconds "
                "may be too many."
            )
        for processes in self.processes.values():
            try:
                self.config.check_world(processes.size, processes.chains)
            except ValueError as error:
                found.append(str(error))
        if self.config.compile == "part":
            found.append("Flow steps were measured one by one; what compiling a part as a whole saves is not counted.")
        if over := [str(row.part) for row in self.parts if not row.fits]:
            found.append(f"By parts, part {', '.join(over)} needs more memory than a device has.")
        if any(phase.schedule == "end_to_end" for phase in self.config.phases):
            found += self._too_large_end_to_end()
        return list(dict.fromkeys(found))

    def _too_large_end_to_end(self) -> list[str]:
        """A sentence where a device has too little memory for its process end to end."""
        end_to_end, batch = self.config.end_to_end, self.config.data.batch
        processes = list(self.processes.values())[:2][-1]
        if end_to_end.engine == "pipeline" and processes.stages > 1:
            found = pipeline(self.profile, self.at, end_to_end, batch, self.link, processes)
            sentence = "End to end a process of the pipeline needs more memory than a device has."
        elif end_to_end.engine == "fsdp" and processes.size > 1:
            return []  # each process holds a share of the model, of which nothing is forecast
        else:
            found = data_parallel(self.profile, batch, processes.size, self.link, self.config.parallel)
            sentence = "End to end every process holds the whole model, which needs more memory than a device has."
        return [] if self.fits(found) else [sentence]

    def as_dict(self) -> dict[str, Any]:
        """What plan.json says, as plain values: seconds, bytes, bits per second, images per second throughout."""

        def forecasts(ways: list[Forecast]) -> list[dict[str, Any]]:
            return [{**dataclasses.asdict(way), "fits": self.fits(way)} for way in ways]

        plain = ("image", "images", "device", "memory_bytes", "busy", "at", "cautions")
        return {name: getattr(self, name) for name in plain} | {
            "batch": self.config.data.batch,
            "link_bits_per_s": self.link.bits_per_s,
            "least_link_bits_per_s": self.least_link,
            "parts": [dataclasses.asdict(row) for row in self.parts],
            "ways": forecasts(self.ways),
            "best": [forecasts(ways) for ways in self.best],
            "phases": [dataclasses.asdict(row) for row in self.phases],
            "placement": self.placement and self.placement.as_list(),
            "scaling": self.simulation and self.simulation.as_dict(),
            "format": 2,
            "torch": torch.__version__,
            "config": self.config.as_dict(),
            "profile": dataclasses.asdict(self.profile),
        }
