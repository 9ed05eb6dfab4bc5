"""What a plan says: a profile under a run's settings, as rows that a table, a picture and a JSON file show alike."""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..config import Config, PhaseConfig, phase_steps, turns
from ..flow import Event
from ..model import check_cut
from .forecast import Forecast, Link, best_cut, compare, data_parallel, part_memory, share
from .phase_forecast import Crew, phase_seconds, pipeline
from .placement import Placement
from .profile import Profile

MOST_DEVICES = 8


@dataclass(frozen=True)
class Setting:
    """What is planned for.

    Attributes:
        config: the run's settings.
        image: (C, H, W) of an image.
        images: size of the training set.
        events: shape of a latent behind each flow step.
        device: name of the one that was measured.
        cuda: whether it is a GPU.
        here: how many processes can compute at the same time on this host.
        link: between two devices.
        memory_bytes: of a device.
        busy: share of the measuring in which something else had the CPU.
        placement: stages × replicas over hosts; None for one chain with a device a part.
    """

    config: Config
    image: Event
    images: int
    events: list[Event]
    device: str
    cuda: bool
    here: float
    link: Link
    memory_bytes: float
    busy: float = 0.0
    placement: Placement | None = None


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
        sent_shape, sent_bytes: of the latents of a batch that it hands on; None and 0 of the last.
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
    """A phase of the run, carried out by some processes.

    Attributes:
        number: from 1.
        schedule, steps: of the phase.
        seconds, images_per_s: for each of `Outlook.crews`, in training alone.
    """

    number: int
    schedule: str
    steps: int
    seconds: list[float]
    images_per_s: list[float]


@dataclass(frozen=True)
class Outlook:
    """All that a plan says.

    Attributes:
        setting: what is planned for.
        profile: what was measured.
        at: flow steps before each border.
        parts: the parts of this cut, at the images that one of them gets.
        ways: this cut and other ways to use as many devices; one device first.
        best: for 1, 2, … devices: the best cut, and the other ways.
        crews: words for each crew of the phases → who they are.
        phases: what they take.
        cautions: what would be refused, or would not fit.
    """

    setting: Setting
    profile: Profile
    at: tuple[int, ...]
    parts: list[PartRow]
    ways: list[Forecast]
    best: list[list[Forecast]]
    crews: dict[str, Crew]
    phases: list[PhaseRow]
    cautions: list[str]

    @property
    def replicas(self) -> int:
        """Chains side by side."""
        return self.setting.placement.replicas if self.setting.placement else 1

    def fits(self, forecast: Forecast) -> bool:
        """Whether every device has the memory for it."""
        return forecast.memory_bytes <= self.setting.memory_bytes

    @property
    def borders(self) -> tuple[int, ...]:
        """Flow steps before each border between two processes; fewer than `at` where one holds several parts."""
        placement = self.setting.placement
        return self.at if placement is None else between_processes(self.at, placement)

    @property
    def least_link(self) -> float:
        """Bits a second below which the slowest border, and not the slowest part, would set the pace."""
        images = share(self.setting.config.data.batch, self.replicas)
        seconds = max(row.forward_s + row.backward_s + row.update_s for row in self.parts)
        return max([8 * sent * images / seconds for sent in self.profile.sent(self.at)], default=0.0)


def look(setting: Setting, profile: Profile, at: tuple[int, ...]) -> Outlook:
    """Works out everything.

    Args:
        setting: what is planned for.
        profile: what was measured.
        at: the cut that is asked about.

    Raises:
        ValueError: a batch that cannot be shared by the replicas.
    """
    config, link, placement = setting.config, setting.link, setting.placement
    batch, replicas = config.data.batch, placement.replicas if placement else 1
    if replicas > batch:
        raise ValueError(f"data.batch is {batch}, which {replicas} replicas cannot share; use a larger batch.")
    check_cut(at, len(profile.steps))
    borders = between_processes(at, placement) if placement else at
    crews = _crews(setting, len(at) + 1)
    found = Outlook(
        setting=setting,
        profile=profile,
        at=at,
        parts=_parts(setting, profile, at, replicas),
        ways=compare(profile, borders, batch, link, replicas, config.parallel.depth),
        best=[
            compare(profile, best_cut(profile, devices, batch, link), batch, link, depth=config.parallel.depth)
            for devices in range(1, min(MOST_DEVICES, len(profile.steps)) + 1)
        ],
        crews=crews,
        phases=[
            _phase(setting, profile, at, list(crews.values()), number, phase)
            for number, phase in enumerate(config.phases, 1)
        ],
        cautions=[],
    )
    return dataclasses.replace(found, cautions=_cautions(found))


def between_processes(at: tuple[int, ...], placement: Placement) -> tuple[int, ...]:
    """Those borders of a cut that lie between two processes."""
    return tuple(at[seat.parts[0] - 1] for seat in placement.chain(0)[1:])


def _parts(setting: Setting, profile: Profile, at: tuple[int, ...], replicas: int) -> list[PartRow]:
    batch, depth = setting.config.data.batch, setting.config.parallel.depth
    images, costs = share(batch, replicas), profile.parts(at)
    memory = part_memory(profile, at, batch, replicas, depth)
    whole = sum(cost.tick(images) for cost in costs)
    rows = []
    for part, (start, end) in enumerate(pairwise([0, *at, len(profile.steps)])):
        cost, last = costs[part], part == len(at)
        rows.append(
            PartRow(
                part=part + 1,
                flow_steps=(start + 1, end),
                parameters=cost.parameters,
                forward_s=cost.forward(images),
                backward_s=cost.backward(images),
                update_s=cost.update_s,
                share=cost.tick(images) / whole,
                memory_bytes=memory[part],
                fits=memory[part] <= setting.memory_bytes,
                sent_shape=None if last else (images, *setting.events[end - 1]),
                sent_bytes=0 if last else profile.sent_bytes[end - 1] * images,
            )
        )
    return rows


def _crews(setting: Setting, parts: int) -> dict[str, Crew]:
    """One device, a device a part (or the placement), and where those are more than this host has, this host."""
    here = setting.here
    crews = {"one device": Crew((0,) * parts, 1, 1.0)}
    if setting.placement:
        owner = tuple(seat.stage for seat in setting.placement.chain(0) for _ in seat.parts)
        size = len(setting.placement.seats)
        crews[f"{size} devices"] = Crew(owner, setting.placement.replicas, float(size))
    elif parts > 1:
        crews[f"{parts} devices"] = Crew(tuple(range(parts)), 1, float(parts))
        if here < parts:
            what = "GPU" if setting.cuda else "CPU"
            name = f"{parts} processes on {here:g} {what}{'s' * (here != 1)}"
            crews[name] = Crew(tuple(range(parts)), 1, here)
    return crews


def _phase(
    setting: Setting, profile: Profile, at: tuple[int, ...], crews: list[Crew], number: int, phase: PhaseConfig
) -> PhaseRow:
    batch = setting.config.data.batch
    plan, steps = turns(phase, len(at) + 1, setting.images, batch), phase_steps(phase, setting.images, batch)
    joined = setting.config.end_to_end if phase.schedule == "end_to_end" else None
    seconds = [phase_seconds(profile, at, plan, joined, batch, setting.link, crew) for crew in crews]
    return PhaseRow(number, phase.schedule, steps, seconds, [steps * batch / each for each in seconds])


def _cautions(outlook: Outlook) -> list[str]:
    """Sentences about what would go wrong."""
    setting, found = outlook.setting, []
    if setting.busy > 0.1:
        found.append(
            f"Something else had the CPU for {100 * setting.busy:.0f} % of the time that measuring took; the seconds "
            "may be too many."
        )
    for crew in outlook.crews.values():
        try:
            setting.config.check_world(crew.size, crew.replicas)
        except ValueError as error:
            found.append(str(error))
    if setting.config.compile != "none" or setting.config.activations != "keep":
        found.append("Steps were measured one by one, not compiled, and with all their activations kept.")
    over = [str(row.part) for row in outlook.parts if not row.fits]
    if over:
        found.append(f"By parts, part {', '.join(over)} needs more memory than a device has.")
    if any(phase.schedule == "end_to_end" for phase in setting.config.phases):
        found += _too_large(outlook)
    return list(dict.fromkeys(found))


def _too_large(outlook: Outlook) -> list[str]:
    """What end to end does not fit a device, with one a process."""
    setting, joined = outlook.setting, outlook.setting.config.end_to_end
    crew = list(outlook.crews.values())[min(1, len(outlook.crews) - 1)]
    if joined.engine == "pipeline" and crew.stages > 1:
        found = pipeline(outlook.profile, outlook.at, joined, setting.config.data.batch, setting.link, crew)
        said = "End to end a process of the pipeline needs more memory than a device has."
    elif joined.engine == "fsdp" and crew.size > 1:
        return []  # a share of the model each, of which nothing is foretold
    else:
        found = data_parallel(outlook.profile, setting.config.data.batch, outlook.ways[-1].devices, setting.link)
        said = "End to end every process holds the whole model, which needs more memory than a device has."
    return [] if outlook.fits(found) else [said]


def as_json(outlook: Outlook) -> dict[str, Any]:
    """What `plan.json` says, besides where it comes from; seconds, bytes, bits a second, images a second throughout.

    Returns:
        image, images, batch: (C, H, W), training images, images a step.
        device, memory_bytes, busy, link_bits_per_s, least_link_bits_per_s: as `Setting` and `Outlook` describe them.
        at: flow steps before each border.
        parts: a `PartRow` each.
        ways: a `Forecast` each, with "fits": whether a device has the memory.
        best: for 1, 2, … devices, the ways with the best cut.
        phases: number, schedule, steps; seconds and images_per_s by who carries the phase out.
        placement: a `Seat` a process, its parts as first and behind the last; null without --hosts.
        cautions: sentences.
    """
    setting = outlook.setting

    def forecasts(ways: list[Forecast]) -> list[dict[str, Any]]:
        return [{**dataclasses.asdict(way), "fits": outlook.fits(way)} for way in ways]

    return {
        "image": list(setting.image),
        "images": setting.images,
        "batch": setting.config.data.batch,
        "device": setting.device,
        "link_bits_per_s": setting.link.bits_per_s,
        "memory_bytes": setting.memory_bytes,
        "busy": setting.busy,
        "at": list(outlook.at),
        "parts": [dataclasses.asdict(row) for row in outlook.parts],
        "least_link_bits_per_s": outlook.least_link,
        "ways": forecasts(outlook.ways),
        "best": [forecasts(ways) for ways in outlook.best],
        "phases": [
            {
                "number": row.number,
                "schedule": row.schedule,
                "steps": row.steps,
                "seconds": dict(zip(outlook.crews, row.seconds, strict=True)),
                "images_per_s": dict(zip(outlook.crews, row.images_per_s, strict=True)),
            }
            for row in outlook.phases
        ],
        "placement": None
        if setting.placement is None
        else [seat._asdict() | {"parts": [seat.parts.start, seat.parts.stop]} for seat in setting.placement.seats],
        "cautions": outlook.cautions,
    }
