"""The grid over hosts: chains as close as they can be, against every grouping there is and as literal tables."""

from itertools import combinations
from math import gcd

import pytest

from pipeflow.distributed import owners
from pipeflow.planning import place_processes


def test_a_grid_of_whole_chains():
    grid = place_processes(4, hosts=4, gpus_per_host=8)
    assert (grid.stages, grid.replicas, len(grid.processes)) == (4, 8, 32)
    assert [seat.rank for seat in grid.chain(3)] == [12, 13, 14, 15]
    assert {(seat.host, seat.replica) for seat in grid.chain(3)} == {(1, 3)}
    assert [seat.host for seat in grid.processes if seat.stage == 1] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not any(grid.crossings(replica) for replica in range(8))


def test_a_chain_fills_a_host_before_it_crosses():
    grid = place_processes(6, hosts=3, gpus_per_host=4)
    assert [[(seat.host, seat.gpu) for seat in grid.chain(replica)] for replica in range(2)] == [
        [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)],
        [(1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)],
    ]
    assert [grid.crossings(replica) for replica in range(2)] == [(3,), (1,)]


@pytest.mark.parametrize(("parts", "hosts", "gpus"), [(3, 3, 8), (4, 4, 8), (1, 2, 3), (6, 3, 4), (8, 2, 2), (5, 1, 2)])
def test_rank_is_replica_times_stages_plus_stage(parts, hosts, gpus):
    grid = place_processes(parts, hosts, gpus)
    for rank, seat in enumerate(grid.processes):
        assert seat.rank == rank == seat.replica * grid.stages + seat.stage == seat.host * gpus + seat.gpu
    assert grid.stages * grid.replicas == hosts * gpus


@pytest.mark.parametrize(("parts", "hosts", "gpus"), [(8, 2, 2), (5, 1, 2), (7, 1, 3), (3, 1, 3), (3, 1, 1)])
def test_one_chain_holds_its_parts_as_the_world_does(parts, hosts, gpus):
    grid = place_processes(parts, hosts, gpus)
    assert grid.replicas == 1
    held = [seat.rank for seat in grid.processes for _ in seat.parts]
    assert tuple(held) == owners(parts, hosts * gpus)


def fewest_crossings(stages, hosts, gpus):
    """By trying every way to fill chains from hosts: the smallest number of host borders that all streams cross."""

    def fill(left):
        """left: free GPUs a host → the fewest crossings of the chains still to be placed."""
        left = tuple(sorted((free for free in left if free), reverse=True))
        if not left:
            return 0
        if left in known:
            return known[left]
        best = 10**9
        for many in range(1, len(left) + 1):
            for used in combinations(range(len(left)), many):
                for takes in shares(stages, [left[host] for host in used]):
                    after = list(left)
                    for host, take in zip(used, takes, strict=True):
                        after[host] -= take
                    best = min(best, many - 1 + fill(tuple(after)))
        known[left] = best
        return best

    def shares(total, limits):
        if not limits:
            yield from [()] if total == 0 else []
            return
        for take in range(1, min(total, limits[0]) + 1):
            for rest in shares(total - take, limits[1:]):
                yield (take, *rest)

    known = {}
    return fill((gpus,) * hosts)


@pytest.mark.parametrize(
    ("parts", "hosts", "gpus"), [(4, 2, 6), (6, 3, 4), (3, 3, 4), (2, 2, 3), (6, 3, 2), (4, 3, 4), (5, 5, 3), (6, 4, 3)]
)
def test_no_placement_crosses_hosts_less(parts, hosts, gpus):
    grid = place_processes(parts, hosts, gpus)
    crossed = sum(len(grid.crossings(replica)) for replica in range(grid.replicas))
    assert crossed == fewest_crossings(parts, hosts, gpus) == hosts - hosts * gcd(parts, gpus) // parts


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((3, 4, 8), "32 processes do not fit 3 parts"),
        ((0, 1, 1), "0 parts cannot be placed"),
        ((1, 0, 1), "0 hosts cannot be placed"),
        ((1, 1, -2), "-2 GPUs a host cannot be placed"),
    ],
)
def test_what_cannot_be_placed_is_said(sizes, words):
    with pytest.raises(ValueError, match=words):
        place_processes(*sizes)
