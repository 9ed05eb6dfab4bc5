"""Many devices, what joins them, and how often one of them fails: what a simulated run is played on."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..units import bits_per_second, seconds_of
from .profile import Link

CLUSTER_OPTIONS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "--devices": (int, "N", "simulates 1, 2, 4, … N devices, in --hosts equal hosts"),
    "--between-hosts": (bits_per_second, "SPEED", "of a host's line to the others; that of --link"),
    "--latency": (seconds_of, "TIME", "of a link, such as 5us; 0"),
    "--between-latency": (seconds_of, "TIME", "of a host's line; that of --latency"),
    "--mtbf": (seconds_of, "TIME", "mean time between two failures of a device, such as 5000h; no failures"),
    "--restart": (seconds_of, "TIME", "until all train again after a failure; 6s"),
    "--rejoin": (seconds_of, "TIME", "the same, where one process alone comes back; 2s"),
    "--uneven": (float, "SHARE", "standard deviation of the devices' times; 0"),
    "--at-once": (int, "N", "devices that can compute at the same time; all"),
    "--jitter-from": (str, "DIR", "a run whose metrics say how much the times of a batch differ"),
}


def make_cluster(link: float, hosts: int | None, jitter: Sequence[float] = (), **options: Any) -> "Cluster | None":
    """The cluster that the options of `plan` describe; None without `devices`. A ValueError if it cannot be."""
    given = {name: value for name, value in options.items() if value is not None}
    names = {"mtbf": "mtbf_s", "restart": "restart_s", "rejoin": "rejoin_s"}
    latency, devices = given.pop("latency", 0.0), given.pop("devices", None)
    line = Link(given.pop("between_hosts", link), given.pop("between_latency", latency))
    if devices is None:
        if alone := [*(name for name, value in options.items() if value is not None), *["jitter_from"] * bool(jitter)]:
            raise ValueError(f"--{alone[0].replace('_', '-')} is for a simulation; give --devices as well.")
        return None
    given = {names.get(name, name): value for name, value in given.items()}
    return Cluster(devices, Link(link, latency), hosts or 1, line, jitter=tuple(jitter), **given)


@dataclass(frozen=True)
class Cluster:
    """Devices in equal hosts, ranks host by host.

    Attributes:
        devices, hosts: how many.
        link: between two devices of a host.
        between: the line of a host to the others, which its devices share; like `link` if None.
        mtbf_s: mean seconds between two failures of one device; None for no failures.
        restart_s: from a failure until all processes train again, apart from steps that are done twice.
        rejoin_s: the same where one process alone comes back: in a single chain, by parts.
        uneven: standard deviation of the devices' times, as a share of their mean.
        jitter: measured seconds of a batch divided by their median; one is drawn per device and batch.
        handling_s: seconds that a device computes per byte that it sends to average gradients, where its own processor
            copies and adds them.
        at_once: how many of the devices can compute at the same time; None for all of them.

    Raises:
        ValueError: a figure that no cluster has.
    """

    devices: int
    link: Link
    hosts: int = 1
    between: Link | None = None
    mtbf_s: float | None = None
    restart_s: float = 6.0
    rejoin_s: float = 2.0
    uneven: float = 0.0
    jitter: tuple[float, ...] = ()
    handling_s: float = 0.0
    at_once: int | None = None

    def __post_init__(self) -> None:
        if self.devices < 1 or self.hosts < 1 or self.devices % self.hosts:
            raise ValueError(f"{self.devices} devices are not {self.hosts} equal hosts; give a multiple of the hosts.")
        if min(link.bits_per_s for link in (self.link, self.line)) <= 0:
            raise ValueError("A line of speed 0 carries nothing; give a speed such as 10Gb/s.")
        if self.mtbf_s is not None and self.mtbf_s <= 0:
            raise ValueError(f"The mean time between failures is {self.mtbf_s:g} s; it must be more than 0.")
        if not 0 <= self.uneven < 1 or (self.at_once is not None and self.at_once < 1):
            raise ValueError("Devices are uneven by a share from 0 to below 1, and at least 1 computes at a time.")

    @property
    def per_host(self) -> int:
        return self.devices // self.hosts

    @property
    def line(self) -> Link:
        """Of a host to the others."""
        return self.between or self.link

    def slowest(self, devices: int) -> Link:
        """The link that a ring over the first so many devices waits for."""
        return self.line if devices > self.per_host else self.link

    def grids(self, devices: int, flow_steps: int, batch: int) -> list[tuple[int, int]]:
        """(stages, replicas) by parts: 2 or more stages with a flow step each, and an image for each replica.

        Raises:
            ValueError: all devices of the cluster have no such grid.
        """
        chains = range(1 + (devices > 1), 1 + min(devices, flow_steps))
        found = [(one, devices // one) for one in chains if devices % one == 0 and devices // one <= batch]
        if devices == self.devices and not found:
            raise ValueError(
                f"{devices} devices are no stages × replicas with 2 to {flow_steps} stages (a flow step each) and at "
                f"most {batch} replicas (an image each); give another --devices or data.batch."
            )
        return found

    def crossing(self, stages: int, replicas: int) -> NDArray[np.bool_]:
        """(borders, replicas): whether the link goes to another host; a chain has consecutive ranks."""
        rank = np.arange(stages - 1)[:, None] + stages * np.arange(replicas)
        crossing: NDArray[np.bool_] = rank // self.per_host != (rank + 1) // self.per_host
        return crossing

    def lines(self, stages: int, replicas: int) -> list[int]:
        """Stage → the line over which its replicas average: of its own, or the one that its host's devices share."""
        return [stage // self.per_host if stages * replicas > self.per_host else stage for stage in range(stages)]

    def stretch(self, stages: int, batches: int, replicas: int) -> NDArray[np.float64] | None:
        """(stages, batches, replicas): seconds of a device with a batch, divided by what they are on average."""
        if not self.uneven and not self.jitter:
            return None
        generator = np.random.default_rng(0)
        devices = 1 + self.uneven * generator.standard_normal((stages, 1, replicas))
        jitter = generator.choice(self.jitter or (1.0,), (stages, batches, replicas))
        stretch: NDArray[np.float64] = np.maximum(devices, 0.1) * jitter
        return stretch

    def useful(self, devices: int, cost_s: float, again: float, every_s: float) -> float:
        """Share of the time of so many devices that goes into steps that count; the others are as for `elapsed`."""
        if self.mtbf_s is None:
            return 1.0
        intervals = np.random.default_rng(0).exponential(self.mtbf_s / devices, size=5_000)
        return elapsed(inf, intervals, cost_s, again, every_s)[1] / float(intervals.sum())


def elapsed(
    work_s: float, intervals: Iterable[float], cost_s: float, again: float, every_s: float
) -> tuple[float, float]:
    """(seconds passed, seconds of steps that count) when a run is done, or after its last failure before that.

    Args:
        work_s: seconds that the run takes undisturbed.
        intervals: seconds from its beginning to the first failure, and from each to the next.
        cost_s: seconds of each failure, until training goes on from the last checkpoint.
        again: seconds to do a second of steps again.
        every_s: seconds of steps between two checkpoints.
    """
    clock = done = behind = recovering = 0.0
    for interval in intervals:
        if (useful := max(0.0, interval - recovering)) + done >= work_s:
            break
        clock, done = clock + interval, done + useful
        behind = (behind + useful) % every_s
        recovering = cost_s + again * behind
    return (clock, done) if work_s == inf else (clock + recovering + work_s - done, work_s)
