"""How many devices each part of a cut should have: a cut whose parts are unequal fills its devices all the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..distributed import ParallelConfig
from .forecast import Forecast, by_parts, part_seconds, share
from .profile import Link, Profile


def with_replicas(
    profile: Profile, at: Sequence[int], batch: int, link: Link, devices: int, parallel: ParallelConfig
) -> Forecast:
    """A cut by parts with the best replicas of each part on so many devices; the arguments are those of `compare`."""
    costs = profile.parts(at)

    def seconds(part: int, count: int) -> float:
        return part_seconds(costs[part], share(batch, count), link, count)

    counts = best_replicas(seconds, len(costs), batch, devices)
    return replace(by_parts(profile, at, batch, link, counts, parallel), way="replicas")


def best_replicas(seconds: Callable[[int, int], float], parts: int, batch: int, devices: int) -> tuple[int, ...]:
    """Replicas of each part with which the slowest part takes the fewest seconds.

    The slowest part gets the next number that makes it faster, as long as devices are left: whatever is given to the
    others, nothing gets faster without it.

    Args:
        seconds: part, counted from 0, and its replicas → seconds per batch.
        parts: number of parts.
        batch: images, which each number of replicas must divide.
        devices: for all replicas of all parts; not all of them may be of use.
    """
    counts = [1] * parts
    while True:
        slowest = max(range(parts), key=lambda part: seconds(part, counts[part]))
        now, most = counts[slowest], counts[slowest] + devices - sum(counts)
        more = [count for count in range(now + 1, most + 1) if batch % count == 0]
        faster = [count for count in more if seconds(slowest, count) < seconds(slowest, now)]
        if not faster:
            return tuple(counts)
        counts[slowest] = faster[0]
