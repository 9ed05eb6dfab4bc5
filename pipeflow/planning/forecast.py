"""What a measured flow will do: images a second by parts, and in the other ways to use the same devices.

Pure arithmetic, from a `Profile` to seconds a batch of B images. f, b and u are seconds of forward, backward and update
of a part, s(·) the seconds that its bytes take over a link; every device has a link of its own, which carries both ways
at once and beside the computing. Latency, and the time that copying to a link takes, are in no formula, so slow links
with little to carry are slower than this says; all ways are helped alike.

    one device   f(B) + b(B) + u of the whole flow
    by parts     max over parts of f(B) + b(B) + u, and over borders of s(packet): nothing comes back, no part waits for
                 a later one, so the slowest part or link sets the pace and all others keep up
    DDP          f(B/N) + max(b(B/N), s(2 (N − 1)/N · 4 bytes a parameter)) + u: a ring all-reduce that is hidden
                 behind the backward pass as far as it can be
    GPipe, 1F1B  simulated (pipeline_simulation), latents forward and their gradients backward, with the best of
                 1, 2, 4, …, 32 micro-batches and nothing computed twice

With R replicas a chain takes B/R images, and each part's gradient is averaged over R processes as in DDP; in a pipeline
that is hidden behind the backward passes of all micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .balance import balanced_cut
from .pipeline_simulation import PipelineName, Stages, period
from .profile import Cost, Profile

Way = Literal["one device", "by parts", "DDP", "GPipe", "1F1B"]
MICROS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Link:
    """What joins two devices.

    Attributes:
        bits_per_s: one way; both ways at once.
    """

    bits_per_s: float

    def seconds(self, carried_bytes: float) -> float:
        """How long so many bytes take."""
        return 8 * carried_bytes / self.bits_per_s


@dataclass(frozen=True)
class Forecast:
    """What one way to train does with a batch.

    Attributes:
        way: which.
        devices: that it uses.
        seconds: from one batch to the next.
        images_per_s: all devices together.
        idle: share of the devices' time in which they compute nothing.
        memory_bytes: on the device that needs most.
        sent_bytes: a batch, by the device that sends most.
        at: flow steps before each border; None where there are none.
        micro_batches: a pipeline's; None of the others.
        bound: what sets the pace: "part 2", "border 1", "gradients", "device".
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


def ring_bytes(parameters: int, processes: int) -> float:
    """What each process sends to average float32 gradients over a ring: 2 (N − 1)/N of them (Patarasuk and Yuan, 2009,
    "Bandwidth optimal all-reduce algorithms for clusters of workstations").
    """  # fmt: skip
    return 2 * (processes - 1) / processes * 4 * parameters


def share(batch: int, processes: int) -> int:
    """Images of the process that gets most of a batch; it sets the pace."""
    return -(-batch // processes)


def data_parallel(profile: Profile, batch: int, processes: int, link: Link) -> Forecast:
    """The whole flow on every device, a share of the batch each; with one device, no gradients travel."""
    whole = profile.parts(())[0]
    images = share(batch, processes)
    sent = ring_bytes(whole.parameters, processes)
    forward, backward, averaging = whole.forward(images), whole.backward(images), link.seconds(sent)
    seconds = forward + max(backward, averaging) + whole.update_s
    # DDP copies gradients into buckets of its own, unless told otherwise.
    memory = profile.memory(whole, images, images) + (4 * whole.parameters if processes > 1 else 0)
    return Forecast(
        way="DDP" if processes > 1 else "one device",
        devices=processes,
        seconds=seconds,
        images_per_s=batch / seconds,
        idle=1 - (forward + backward + whole.update_s) / seconds,
        memory_bytes=memory,
        sent_bytes=sent,
        bound="gradients" if averaging > backward else "device",
    )


def part_seconds(cost: Cost, images: int, link: Link, replicas: int = 1) -> float:
    """A part's time a batch: forward, backward with its gradients averaged beside it, update."""
    averaging = link.seconds(ring_bytes(cost.parameters, replicas))
    return cost.forward(images) + max(cost.backward(images), averaging) + cost.update_s


def by_parts(
    profile: Profile, at: Sequence[int], batch: int, link: Link, replicas: int = 1, depth: int = 2
) -> Forecast:
    """A device a part, every part learning from every batch.

    Args:
        profile: what was measured.
        at: flow steps before each border.
        batch: images, over all replicas.
        link: between two devices.
        replicas: chains side by side.
        depth: packets in flight over a border, for the memory that they take.
    """
    images, costs = share(batch, replicas), profile.parts(at)
    packets = [sent * images for sent in profile.sent(at)]
    busy = [part_seconds(cost, images, link, replicas) for cost in costs]
    carrying = [link.seconds(packet) for packet in packets]
    seconds = max([*busy, *carrying])
    sent = [packet + ring_bytes(cost.parameters, replicas) for cost, packet in zip(costs, [*packets, 0], strict=True)]
    slow = busy.index(seconds) if seconds in busy else carrying.index(seconds)
    return Forecast(
        way="by parts",
        devices=len(costs) * replicas,
        seconds=seconds,
        images_per_s=batch / seconds,
        idle=1 - sum(cost.tick(images) for cost in costs) / (len(costs) * seconds),
        memory_bytes=max(part_memory(profile, at, batch, replicas, depth)),
        sent_bytes=max(sent),
        at=tuple(at),
        bound=f"part {slow + 1}" if seconds in busy else f"border {slow + 1}",
    )


def part_memory(profile: Profile, at: Sequence[int], batch: int, replicas: int = 1, depth: int = 2) -> list[float]:
    """Bytes that each part needs: weights, gradients, moments, what its backward pass keeps, packets on their way."""
    images, costs = share(batch, replicas), profile.parts(at)
    packets = [sent * images for sent in profile.sent(at)]
    buckets = 4 if replicas > 1 else 0  # of DDP, a parameter
    return [
        profile.memory(cost, images, images) + 2 * arriving + depth * leaving + buckets * cost.parameters
        for cost, arriving, leaving in zip(costs, [0, *packets], [*packets, 0], strict=True)
    ]


def pipelined(
    name: PipelineName, profile: Profile, at: Sequence[int], batch: int, link: Link, replicas: int = 1
) -> Forecast:
    """GPipe or 1F1B with a device a stage, and the number of micro-batches that suits it best."""
    images = share(batch, replicas)
    tried = [with_micros(name, profile, at, images, micros, link, replicas) for micros in MICROS if micros <= images]
    best = min(tried, key=lambda forecast: forecast.seconds)
    return replace(best, images_per_s=batch / best.seconds)


def with_micros(
    name: PipelineName, profile: Profile, at: Sequence[int], images: int, micros: int, link: Link, replicas: int
) -> Forecast:
    """GPipe or 1F1B with a device a stage, on so many images in so many micro-batches, as even as can be."""
    costs, sent = profile.slices(at), profile.sent(at)
    sizes = [(images + micro) // micros for micro in range(micros)][::-1]  # as even as can be, the larger ones first
    backward = [[cost.backward(size) for size in sizes] for cost in costs]
    averaging = [link.seconds(ring_bytes(cost.parameters, replicas)) for cost in costs]
    stages = Stages(
        forward_s=[[cost.forward(size) for size in sizes] for cost in costs],
        backward_s=backward,
        update_s=[
            cost.update_s + max(0.0, wait - sum(busy))
            for cost, wait, busy in zip(costs, averaging, backward, strict=True)
        ],
        carry_s=[[link.seconds(packet * size) for size in sizes] for packet in sent],
    )
    seconds = period(name, stages)
    computing = sum(map(sum, stages.forward_s)) + sum(map(sum, backward)) + sum(cost.update_s for cost in costs)
    kept = [images if name == "GPipe" else min(micros, len(costs) - stage) * sizes[0] for stage in range(len(costs))]
    memory = [
        profile.memory(cost, min(images, many), sizes[0]) + (4 * cost.parameters if replicas > 1 else 0)
        for cost, many in zip(costs, kept, strict=True)
    ]
    # A stage sends its latents on, and the gradients of those that it got back.
    carried = [(before + after) * images for before, after in zip([0, *sent], [*sent, 0], strict=True)]
    return Forecast(
        way=name,
        devices=len(costs) * replicas,
        seconds=seconds,
        images_per_s=images / seconds,
        idle=1 - computing / (len(costs) * seconds),
        memory_bytes=max(memory),
        sent_bytes=max(many + ring_bytes(cost.parameters, replicas) for many, cost in zip(carried, costs, strict=True)),
        at=tuple(at),
        micro_batches=micros,
        bound="bubble",
    )


def best_cut(profile: Profile, parts: int, batch: int, link: Link) -> tuple[int, ...]:
    """The borders with which `parts` parts take the fewest seconds a batch, links included."""
    costs = [cost.tick(batch) for cost in profile.steps]
    return balanced_cut(costs, parts, [link.seconds(sent * batch) for sent in profile.sent_bytes])


def compare(
    profile: Profile, at: Sequence[int], batch: int, link: Link, replicas: int = 1, depth: int = 2
) -> list[Forecast]:
    """Every way to use as many devices as a cut has parts, times the replicas; one device first.

    A pipeline gets the cut that is best for it, links included, not the one that is asked about. Ways that would leave
    a device without an image are left out.
    """
    devices = (len(at) + 1) * replicas
    ways = [data_parallel(profile, batch, 1, link)]
    if at and replicas <= batch:
        ways.append(by_parts(profile, at, batch, link, replicas, depth))
    if 1 < devices <= batch:
        ways.append(data_parallel(profile, batch, devices, link))
    if at and replicas <= batch:
        own = best_cut(profile, len(at) + 1, share(batch, replicas), link)
        names: tuple[PipelineName, ...] = ("GPipe", "1F1B")
        ways += [pipelined(name, profile, own, batch, link, replicas) for name in names]
    return ways
