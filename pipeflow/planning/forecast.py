"""Seconds per batch of a measured flow: trained by parts, and in the other ways to use the same devices.

Pure arithmetic, from a `Profile` to seconds per batch of B images. f, b and u are seconds of forward, backward and
update of a part, s(·) the seconds that its bytes take over a link; every device has a link of its own, which carries
both ways at once and beside the computing. The time that copying to a link takes is in no formula, so slow links with
little to carry are slower than this says; all ways are helped alike.

    one device   f(B) + b(B) + u of the whole flow
    by parts     max over parts of f(B) + b(B) + u, and over borders of s(packet): nothing comes back, no part waits for
                 a later one, so the slowest part or link sets the pace and all others keep up
    DDP          f(B/N) + max(b(B/N), s(2 (N − 1)/N · 4 bytes per parameter)) + u: a ring all-reduce that is hidden
                 behind the backward pass as far as it can be
    1F1B         simulated (timeline), latents forward and their gradients backward, with the best of
                 1, 2, 4, …, 32 micro-batches and nothing computed twice

With R replicas a chain, or a part that has R of its own, takes B/R images, and each part's gradient is averaged over R
processes as in DDP, behind the backward pass of the last micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from typing import Any, Literal

from ..data import packet_sizes
from ..distributed import ParallelConfig
from .balance import balanced_cut
from .profile import Cost, Link, Profile, ring_bytes
from .timeline import Stages, period

KINDS = ("forward", "backward")
Way = Literal["one device", "by parts", "replicas", "DDP", "1F1B"]
Replicas = int | tuple[int, ...]
"""Of each part: one number for all, or one for each."""
MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
DEFAULT = ParallelConfig()


@dataclass(frozen=True)
class Forecast:
    """What one way to train does with a batch.

    Attributes:
        way, devices: how it trains, and on how many devices; "replicas" is by parts with as many devices for each part
            as suit it.
        seconds: from one batch to the next.
        images_per_s: of all devices together.
        idle: share of the devices' time in which they compute nothing.
        memory_bytes: on the device that needs most.
        sent_bytes: per batch, by the device that sends most.
        at: flow steps before each border; None where there are none.
        micro_batches: of a pipeline; None of the others.
        bound: what sets the pace: "part 2", "border 1", "gradients", "bubble", "device".
        replicas: of each part, by parts; None of the others.
    """

    way: Way
    devices: int
    seconds: float
    images_per_s: float
    idle: float
    memory_bytes: float
    sent_bytes: float
    at: tuple[int, ...] | None = None
    micro_batches: int | None = None
    bound: str = "device"
    replicas: tuple[int, ...] | None = None


def per_part(replicas: Replicas, parts: int) -> tuple[int, ...]:
    """Replicas of each part."""
    return replicas if isinstance(replicas, tuple) else (replicas,) * parts


def share(batch: int, processes: int) -> int:
    """Images of the process that gets most of a batch; it sets the pace."""
    return -(-batch // processes)


def part_seconds(cost: Cost, images: int, link: Link, replicas: int) -> float:
    """Seconds of a part per batch: forward, backward with its gradients averaged beside it, update."""
    averaging = link.averaging(cost.parameters, replicas)
    return cost.forward(images) + max(cost.backward(images), averaging) + cost.update_s


def by_parts(
    profile: Profile,
    at: Sequence[int],
    batch: int,
    link: Link,
    replicas: Replicas = 1,
    parallel: ParallelConfig = DEFAULT,
) -> Forecast:
    """A device per replica of a part, every part learning from every batch; the arguments are those of `compare`."""
    costs, counts = profile.parts(at), per_part(replicas, len(at) + 1)
    images, packets = [share(batch, count) for count in counts], profile.border_bytes(at)
    busy = [part_seconds(*each) for each in zip(costs, images, repeat(link), counts, strict=False)]
    # Of the devices on both sides of a border, those of the part with fewer carry most.
    carrying = [link.seconds(size * max(both)) for size, both in zip(packets, pairwise(images), strict=True)]
    seconds = max([*busy, *carrying])
    leaving = [size * many for size, many in zip([*packets, 0], images, strict=True)]
    gradients = [ring_bytes(cost.parameters, count) for cost, count in zip(costs, counts, strict=True)]
    computing = sum(cost.seconds(many) * count for cost, many, count in zip(costs, images, counts, strict=True))
    bound = f"part {busy.index(seconds) + 1}" if seconds in busy else f"border {carrying.index(seconds) + 1}"
    return Forecast(
        way="by parts",
        devices=sum(counts),
        seconds=seconds,
        images_per_s=batch / seconds,
        idle=1 - computing / (sum(counts) * seconds),
        memory_bytes=max(part_memory(profile, at, batch, replicas, parallel)),
        sent_bytes=max(map(sum, zip(leaving, gradients, strict=True))),
        at=tuple(at),
        bound=bound,
        replicas=counts,
    )


def part_memory(
    profile: Profile, at: Sequence[int], batch: int, replicas: Replicas = 1, parallel: ParallelConfig = DEFAULT
) -> list[float]:
    """Bytes that each part needs: weights, gradients, moments, what its backward pass keeps, packets on their way."""
    counts, packets = per_part(replicas, len(at) + 1), profile.border_bytes(at)
    found = []
    for cost, count, arriving, leaving in zip(profile.parts(at), counts, [0, *packets], [*packets, 0], strict=True):
        images = packet_sizes(share(batch, count), parallel.packets)[0]
        packets_bytes = images * (2 * arriving + parallel.depth * leaving)
        found.append(profile.memory(cost, images, images) + packets_bytes + _bucket_bytes(cost, count))
    return found


def data_parallel(
    profile: Profile, batch: int, processes: int, link: Link, parallel: ParallelConfig = DEFAULT
) -> Forecast:
    """The whole flow on every device, a share of the batch each: a chain of one part with so many replicas."""
    flow = profile.parts(())[0]
    shown = link.averaging(flow.parameters, processes) > flow.backward(share(batch, processes))
    return replace(
        by_parts(profile, (), batch, link, processes, parallel),
        replicas=None,
        way="DDP" if processes > 1 else "one device",
        at=None,
        bound="gradients" if shown else "device",
    )


def pipelined(profile: Profile, at: Sequence[int], batch: int, link: Link, replicas: int = 1) -> Forecast:
    """1F1B with a device per stage, and the number of micro-batches that suits it best."""
    counts = [count for count in MICRO_BATCHES if count <= share(batch, replicas)]
    tried = [with_micro_batches(profile, at, batch, count, link, replicas) for count in counts]
    return min(tried, key=lambda forecast: forecast.seconds)


def with_micro_batches(
    profile: Profile, at: Sequence[int], batch: int, count: int, link: Link, replicas: int
) -> Forecast:
    """1F1B with a device per stage, and each replica's images in `count` micro-batches, as even as can be."""
    images, costs, packets = share(batch, replicas), profile.end_to_end().parts(at), profile.border_bytes(at)
    sizes = packet_sizes(images, count)
    averaging = [link.averaging(cost.parameters, replicas) for cost in costs]
    stages = at_work(costs, sizes, [link.seconds(packet) for packet in packets], average_s=averaging)
    seconds = period(stages)
    computing = sum(map(sum, [*stages.forward_s, *stages.backward_s])) + sum(stages.update_s)
    memory = [
        profile.memory(cost, min(images, min(count, len(costs) - stage) * sizes[0]), sizes[0])
        + _bucket_bytes(cost, replicas)
        for stage, cost in enumerate(costs)
    ]
    # A stage sends its latents on, and the gradients of those that it received back.
    leaving = [
        (before + after) * images + ring_bytes(cost.parameters, replicas)
        for before, after, cost in zip([0, *packets], [*packets, 0], costs, strict=True)
    ]
    return Forecast(
        way="1F1B",
        devices=len(costs) * replicas,
        seconds=seconds,
        images_per_s=batch / seconds,
        idle=1 - computing / (len(costs) * seconds),
        memory_bytes=max(memory),
        sent_bytes=max(leaving),
        at=tuple(at),
        micro_batches=count,
        bound="bubble",
    )


def at_work(costs: Sequence[Cost], sizes: Sequence[int], image_s: Sequence[Any], **others: Any) -> Stages:
    """Stages of these costs, on micro-batches of these `sizes`.

    `image_s` are seconds of a link per image that crosses each border; the others are further attributes of `Stages`.
    """
    forward, backward = ([[getattr(cost, kind)(size) for size in sizes] for cost in costs] for kind in KINDS)
    carry = [[seconds * size for size in sizes] for seconds in image_s]
    return Stages(forward, backward, [cost.update_s for cost in costs], carry, **others)


def compare(
    profile: Profile,
    at: Sequence[int],
    batch: int,
    link: Link,
    replicas: Replicas = 1,
    parallel: ParallelConfig = DEFAULT,
) -> list[Forecast]:
    """Every way to use as many devices as a cut has parts, times the replicas; one device first.

    A pipeline gets the cut that is best for it, links included, not the one that is asked about; where parts have
    unequal replicas, of as many stages as there are devices. Ways that would leave a device without an image, or
    without a flow step, are left out.

    Args:
        profile: what was measured.
        at: flow steps before each border.
        batch: images, over all replicas.
        link: between two devices.
        replicas: chains side by side, or those of each part.
        parallel: packets per batch and in flight over a border, for the memory that they take.
    """
    counts = per_part(replicas, len(at) + 1)
    devices, chains = sum(counts), 1 if len(set(counts)) > 1 else counts[0]
    ways = [data_parallel(profile, batch, 1, link, parallel)]
    if at and max(counts) <= batch:
        ways.append(by_parts(profile, at, batch, link, replicas, parallel))
    if 1 < devices <= batch:
        ways.append(data_parallel(profile, batch, devices, link, parallel))
    if at and chains <= batch and devices // chains <= len(profile.steps):
        stages = balanced_cut(profile.end_to_end(), devices // chains, share(batch, chains), link)
        ways.append(pipelined(profile, stages, batch, link, chains))
    return ways


def _bucket_bytes(cost: Cost, processes: int) -> int:
    """Bytes of the buckets into which DDP copies the gradients that several processes average."""
    return 4 * cost.parameters if processes > 1 else 0
