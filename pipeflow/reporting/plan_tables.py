"""An outlook as tables for the terminal."""

from collections.abc import Sequence
from itertools import pairwise

from ..planning import Forecast, Outlook, Placement, Profile
from ..units import rate
from .quantities import amount, duration


def tables(outlook: Outlook) -> str:
    """Everything that a plan says, some 40 lines of at most 120 letters."""
    blocks = [_heading(outlook), _parts(outlook), _ways(outlook), _best(outlook), _phases(outlook)]
    if outlook.setting.placement:
        blocks.append(_placement(outlook.setting.placement))
    blocks += [f"Note: {caution}" for caution in outlook.cautions]
    return "\n\n".join(blocks)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as lines; the first column is set to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            word.ljust(width) if column == 0 else word.rjust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def speed(bits_per_s: float) -> str:
    """A link's speed, for people."""
    unit, size = next((unit, size) for unit, size in _SPEEDS if bits_per_s >= size or size == 1)
    return f"{bits_per_s / size:.3g} {unit}"


_SPEEDS = (("Tb/s", 1e12), ("Gb/s", 1e9), ("Mb/s", 1e6), ("kb/s", 1e3), ("b/s", 1.0))


def _heading(outlook: Outlook) -> str:
    setting, config = outlook.setting, outlook.setting.config
    glow, parameters = config.glow, sum(row.parameters for row in outlook.parts)
    threads = "" if setting.cuda else f", {config.parallel.threads} thread{'s' * (config.parallel.threads != 1)}"
    return (
        f"Glow {glow.levels} × {glow.steps} × {glow.hidden} on {config.data.name} {setting.image}, "
        f"{parameters:,} parameters, batches of {config.data.batch}.\n"
        f"Measured step by step on {setting.device}{threads}; everything else is computed."
    )


def _parts(outlook: Outlook) -> str:
    rows = [
        ["part", "flow steps", "parameters", "forward", "backward", "update", "share", "memory", "hands on a batch"]
    ]
    for row in outlook.parts:
        first, last = row.flow_steps
        sent = f"{_shape(row.sent_shape)}  {amount(row.sent_bytes)}" if row.sent_shape else "–"
        times = [duration(seconds) for seconds in (row.forward_s, row.backward_s, row.update_s)]
        rows.append(
            [
                *(str(row.part), f"{first} … {last}", f"{row.parameters:,}", *times, f"{100 * row.share:.0f} %"),
                *(amount(row.memory_bytes) + _no(row.fits), sent),
            ]
        )
    memory = (
        f"A device has {amount(outlook.setting.memory_bytes)}. Counted: weights, gradients, moments, what is kept for "
    )
    memory += "the backward pass, packets"
    memory += (
        " and working memory."
        if outlook.setting.cuda
        else ";\nnot counted: working memory, of which the CPU says nothing."
    )
    return f"{columns(rows)}\n{memory}"


def _ways(outlook: Outlook) -> str:
    link, first = outlook.setting.link, outlook.ways[0]
    rows = [["", "devices", "images/s", "× one device", "idle", "memory", "sends a batch", "cut, flow steps a part"]]
    for way in outlook.ways:
        times = f"{way.images_per_s / first.images_per_s:.2f}"
        memory = amount(way.memory_bytes) + _no(outlook.fits(way))
        cut = "–" if way.at is None else _sizes(outlook.profile, way.at)
        sent = amount(way.sent_bytes) if way.sent_bytes else "–"
        rows.append(
            [
                _name(way),
                str(way.devices),
                rate(way.images_per_s),
                times,
                f"{100 * way.idle:.0f} %",
                memory,
                sent,
                cut,
            ]
        )
    text = (
        f"Expected with links of {speed(link.bits_per_s)}, memory and bytes of the device with most:\n{columns(rows)}"
    )
    for ours in (way for way in outlook.ways if way.way == "by parts"):
        least = speed(outlook.least_link)
        text += f"\nBy parts, {ours.bound} sets the pace; with links of {least} or more no border does."
    return text


def _best(outlook: Outlook) -> str:
    """For every number of devices: the best cut, and what the other ways do."""
    rows = [["devices", "best cut, flow steps a part", "by parts", "DDP", "GPipe", "1F1B", "memory by parts"]]
    for devices, ways in enumerate(outlook.best, 1):
        by_way = {way.way: way for way in ways}
        ours = by_way.get("by parts", by_way["one device"])
        others = ("DDP", "GPipe", "1F1B")
        speeds = [rate(by_way[way].images_per_s) if way in by_way else "–" for way in others]
        cut, memory = _sizes(outlook.profile, ours.at or ()), amount(ours.memory_bytes) + _no(outlook.fits(ours))
        rows.append([str(devices), cut, rate(ours.images_per_s), *speeds, memory])
    return f"The best cut for every number of devices, in images/s:\n{columns(rows)}"


def _phases(outlook: Outlook) -> str:
    rows = [["phase", "schedule", "steps", *outlook.crews]]
    for row in outlook.phases:
        cells = [
            f"{duration(seconds)}, {rate(speed)} images/s"
            for seconds, speed in zip(row.seconds, row.images_per_s, strict=True)
        ]
        rows.append([str(row.number), row.schedule, f"{row.steps:,}", *cells])
    return f"The phases, without evaluations and checkpoints:\n{columns(rows)}"


def _placement(placement: Placement) -> str:
    stages = range(placement.stages)
    parts = [
        f"part {parts[0] + 1}" if len(parts) == 1 else f"parts {parts[0] + 1}–{parts[-1] + 1}"
        for parts in (seat.parts for seat in placement.chain(0))
    ]
    rows = [["replica", *parts]]
    for replica in range(placement.replicas):
        chain, crossed = placement.chain(replica), placement.crossings(replica)
        cells = [f"{seat.host}:{seat.gpu} rank {seat.rank}" + (" →" if seat.stage in crossed else "") for seat in chain]
        rows.append([str(replica + 1), *cells])
    crossing = [replica for replica in range(placement.replicas) if placement.crossings(replica)]
    inside = placement.replicas - len(crossing)
    said = f"{inside} of {placement.replicas} chain{'s' * (placement.replicas != 1)} within a host"
    more = "; → goes to another host" if crossing else ""
    head = (
        f"{placement.hosts} hosts × {placement.gpus_per_host} GPUs = {placement.stages} stages × {placement.replicas} "
    )
    head += f"replicas (host:GPU, from 0; {said}{more}):"
    assert len(parts) == len(stages)
    return f"{head}\n{columns(rows)}"


def _name(way: Forecast) -> str:
    many = way.micro_batches
    return way.way if many is None else f"{way.way}, {many} micro-batch{'es' * (many != 1)}"


def _sizes(profile: Profile, at: Sequence[int]) -> str:
    return " + ".join(str(end - start) for start, end in pairwise([0, *at, len(profile.steps)]))


def _shape(event: Sequence[int]) -> str:
    return "×".join(map(str, event))


def _no(fits: bool) -> str:
    return "" if fits else " too much"
