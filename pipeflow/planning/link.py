"""Seconds and bytes of what travels between two devices."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """What joins two devices.

    Attributes:
        bits_per_s: in each direction; both directions work at once.
    """

    bits_per_s: float

    def seconds(self, size: float) -> float:
        """Seconds that `size` bytes take."""
        return 8 * size / self.bits_per_s


def ring_bytes(parameters: int, processes: int) -> float:
    """Bytes that each process sends to average float32 gradients over a ring: 2 (N − 1)/N · 4 per parameter.

    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009.
    """
    return 2 * (processes - 1) / processes * 4 * parameters
