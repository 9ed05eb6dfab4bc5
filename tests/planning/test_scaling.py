"""A cluster on a time line, against closed formulas, and failures against what must follow from them."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from pipeflow.distributed import ParallelConfig
from pipeflow.planning import Cluster, Link, Simulation, elapsed, limit
from pipeflow.planning.forecast import by_parts, data_parallel, with_micro_batches
from pipeflow.planning.profile import Cost, Profile, ring_bytes
from pipeflow.planning.timeline import Stages, updates

NOTHING = Cost((1, 100), (0.0, 0.0), (0.0, 0.0))


def flow(seed: int, many: int) -> Profile:
    """Steps of random costs, in proportion to the images, and an update."""
    draw = np.random.default_rng(seed).integers
    steps = tuple(
        Cost((1, 100), (f, 100 * f), (b, 100 * b), float(draw(1, 20)), int(draw(1, 50)))
        for f, b in zip(draw(1, 9, many).astype(float), draw(1, 9, many).astype(float), strict=True)
    )
    packets = tuple(int(size) for size in draw(1, 40, many))
    return Profile(steps, (NOTHING,) * many, ((1,),) * many, packets, 16)


def cluster(devices: int, bits_per_s: float = 1e18, **others) -> Cluster:
    return Cluster(devices, Link(bits_per_s), **others)


SEEDS = pytest.mark.parametrize("seed", range(8))


# --- the closed formulas


@SEEDS
def test_without_jitter_and_failures_a_chain_has_the_pace_of_its_slowest_part_or_link(seed):
    profile, many, bits_per_s = flow(seed, 6), 2 + seed % 4, [1e18, 8.0, 1.0][seed % 3]
    found = Simulation(profile, cluster(many, bits_per_s), 12).play("by parts", many, 1, 1)
    at = tuple(range(1, many))
    played = Simulation(profile, cluster(many, bits_per_s), 12).play("by parts", many, 1, 1, at=at)
    assert played.images_per_s == pytest.approx(by_parts(profile, at, 12, Link(bits_per_s)).images_per_s)
    assert found.images_per_s >= played.images_per_s * (1 - 1e-9), "the cut of its own is the best"
    assert found.goodput == found.images_per_s


@SEEDS
def test_replicas_average_as_the_formulas_say(seed):
    profile, replicas, link = flow(seed, 4), 2 + seed, Link(float(8 * (1 + seed)))
    simulation = Simulation(profile, Cluster(3 * replicas, link), 24)
    played = simulation.play("by parts", 3, replicas, 1, at=(1, 3))
    assert played.images_per_s == pytest.approx(by_parts(profile, (1, 3), 24, link, replicas).images_per_s)
    ddp = simulation.play("DDP", 1, 3 * replicas, 1)
    assert ddp.images_per_s == pytest.approx(data_parallel(profile, 24, 3 * replicas, link).images_per_s)
    assert ddp.line_bytes == ring_bytes(sum(step.parameters for step in profile.steps), 3 * replicas)
    pipeline = simulation.play("1F1B", 3, replicas, 2, at=(1, 3))
    formula = with_micro_batches(profile, (1, 3), 24, 2, link, replicas)
    assert pipeline.images_per_s == pytest.approx(formula.images_per_s)


def test_a_line_between_hosts_is_shared_by_the_rings_of_its_devices_and_slows_only_what_crosses_it():
    profile = flow(0, 4)
    apart = cluster(8, hosts=2, between=Link(1e-3))
    chain = Simulation(profile, apart, 8).play("by parts", 4, 1, 1)
    assert chain.images_per_s == Simulation(profile, cluster(8), 8).play("by parts", 4, 1, 1).images_per_s
    rings = Simulation(profile, apart, 8).play("by parts", 4, 2, 1, at=(1, 2, 3))
    together = sum(ring_bytes(step.parameters, 2) for step in profile.steps)
    assert rings.bound == "gradients" and rings.line_bytes == together
    assert 8 / rings.images_per_s == pytest.approx(8 * together / 1e-3, rel=1e-4)


def test_the_links_of_a_chain_cross_where_its_ranks_change_hosts():
    crossing = cluster(12, hosts=3).crossing(6, 2)
    assert crossing[:, 0].tolist() == [False, False, False, True, False]
    assert crossing[:, 1].tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("latency", [0.5, 5.0])
def test_latency_delays_the_first_batch_and_sets_the_pace_only_where_it_is_longer_than_a_batch(latency):
    """A receive is posted one ahead, so a packet comes at most one latency after the one before it was taken."""
    stages = Stages([[1.0]] * 3, [[1.0]] * 3, [0.0] * 3, [[0.0]] * 2, depth=2)
    late = updates(replace(stages, latency_s=[latency, latency]), 6)
    assert late[0] == 4 + 2 * latency and np.allclose(np.diff(late), max(2, latency))
    end_to_end = updates(replace(stages, latency_s=[latency, latency], depth=None), 3)
    assert np.allclose(np.diff(end_to_end), 6 + 4 * latency), "a batch goes there and back"


# --- devices that differ


@pytest.mark.parametrize("depth", [1, 2, None])
def test_jitter_changes_times_and_not_counts(depth):
    stages = Stages([[1.0, 1.0]] * 4, [[2.0, 2.0]] * 4, [0.5] * 4, [[0.3, 0.3]] * 3, depth=depth, replicas=3)
    stretch = np.random.default_rng(0).uniform(0.5, 3, (4, 20, 3))
    slow, even = updates(stages, 20, stretch), updates(stages, 20)
    assert len(slow) == len(even) == 20 and all((np.diff([end[0] for end in ends]) > 0).all() for ends in (slow, even))
    work = 6.5 * stretch
    last = 0 if depth is None else 3
    assert slow[-1].min() >= work[last].sum(axis=0).min() and slow[-1].max() <= work.sum() + 20 * 2 * 2 * 3 * 0.3


def test_every_device_slower_by_a_half_makes_everything_slower_by_a_half():
    stages = Stages([[2.0]] * 3, [[4.0]] * 3, [1.0] * 3, [[0.0]] * 2, depth=2)
    assert np.allclose(updates(stages, 5, np.full((3, 5, 1), 1.5)), np.multiply(updates(stages, 5), 1.5))


def test_unevenness_costs_images_and_is_the_same_each_time():
    profile = flow(1, 6)
    even, uneven = (Simulation(profile, cluster(4, uneven=share), 12).play("by parts", 4, 1, 1) for share in (0, 0.2))
    again = Simulation(profile, cluster(4, jitter=(0.9, 1.0, 1.5)), 12).play("DDP", 1, 4, 1)
    assert uneven.images_per_s != even.images_per_s
    assert again == Simulation(profile, cluster(4, jitter=(0.9, 1.0, 1.5)), 12).play("DDP", 1, 4, 1)
    assert again.images_per_s < Simulation(profile, cluster(4), 12).play("DDP", 1, 4, 1).images_per_s


@pytest.mark.parametrize(("way", "grid"), [("by parts", (4, 1)), ("DDP", (1, 4))])
def test_devices_that_compute_in_turns_do_all_work_with_as_many_as_can(way, grid):
    profile = replace(flow(2, 4), packet_bytes=(0,) * 4)
    at = (1, 2, 3) if way == "by parts" else None
    free, two, one = (
        Simulation(profile, cluster(4, at_once=count), 12).play(way, *grid, 1, at=at) for count in (None, 2, 1)
    )
    work = sum(step.seconds(12) for step in profile.steps) if at else 4 * sum(step.seconds(3) for step in profile.steps)
    assert 12 / one.images_per_s == pytest.approx(work, rel=0.02)
    assert one.images_per_s < two.images_per_s <= free.images_per_s
    assert 12 / two.images_per_s >= work / 2 * 0.98


# --- failures


def test_what_a_failure_costs_by_hand():
    # fails after 25 s, 5 s after a checkpoint; 3 s to come back and 5 s to catch up
    assert elapsed(100, [25], 3, 1, 10) == (108, 100)
    assert elapsed(100, [25], 3, 0.5, 10) == (105.5, 100)
    assert elapsed(100, [25, 6], 3, 1, 10) == (114, 100)  # lost again before it had caught up
    assert elapsed(100, [200], 3, 1, 10) == (100, 100)
    assert elapsed(inf, [25, 20], 3, 1, 10) == (45, 37)


def test_goodput_falls_with_devices_and_with_what_a_failure_costs():
    def useful(devices, **others):
        one = cluster(1024, **{"mtbf_s": 1e6, **others})
        return one.useful(devices, one.restart_s, 1.0, 100.0)

    assert 1 > useful(1) > useful(64) > useful(1024) > 0
    assert useful(1024, restart_s=60.0) < useful(1024) < useful(1024, mtbf_s=1e7) < useful(1, mtbf_s=None) == 1
    # rare failures cost a restart and half an interval each
    assert useful(1) == pytest.approx(1 - (6 + 50) / 1e6, abs=1e-5)


def test_one_process_that_comes_back_costs_a_chain_less_than_a_restart():
    profile = flow(0, 4)
    kept = Simulation(profile, cluster(4, mtbf_s=1e7, restart_s=600.0, rejoin_s=60.0), 12, every=100)
    chain, end_to_end = kept.play("by parts", 4, 1, 1), kept.play("1F1B", 4, 1, 4)
    assert chain.goodput / chain.images_per_s > end_to_end.goodput / end_to_end.images_per_s


# --- tables of all counts


def test_rows_grow_by_doubling_and_stop_where_they_cannot_go_on():
    rows = Simulation(flow(0, 6), cluster(12), 8).rows
    assert [row.devices for row in rows["by parts"]] == [1, 2, 4, 8, 12]
    assert [row.devices for row in rows["DDP"]] == [1, 2, 4, 8]
    assert limit(rows["DDP"], 12) is not None
    for parts, tail in zip(rows["by parts"], rows["by parts + tail"], strict=False):
        ends = [
            row.images_per_s for way in ("by parts", "DDP", "1F1B") for row in rows[way] if row.devices == tail.devices
        ]
        assert parts.devices == tail.devices and min(ends) * (1 - 1e-9) <= tail.images_per_s <= max(ends) * (1 + 1e-9)
    assert all(row.stages * row.replicas == row.devices for found in rows.values() for row in found)


def test_limits():
    row = Simulation(flow(0, 6), cluster(1), 8).play("DDP", 1, 1, 1)
    one, two, four = (replace(row, devices=2**n, images_per_s=rate) for n, rate in enumerate((10.0, 19.0, 20.0)))
    assert limit([one, two, replace(four, bound="bubble")], 4) == (2, "bubble")
    assert limit([one, two], 2) is None and limit([one, two], 4)[0] == 2


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: cluster(8, bits_per_s=0), "speed 0"),
        (lambda: cluster(8, hosts=2, between=Link(0)), "speed 0"),
        (lambda: cluster(8, hosts=3), "8 devices are not 3 equal hosts"),
        (lambda: cluster(8, mtbf_s=-5.0), "mean time between failures is -5 s"),
        (lambda: cluster(8, uneven=1.5), "uneven"),
        (lambda: cluster(8, at_once=0), "at least 1"),
        (lambda: Simulation(flow(0, 4), cluster(7), 12).rows, "7 devices are no stages × replicas"),
    ],
)
def test_what_no_cluster_is(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_micro_batches_fill_a_chain_sooner_and_keep_its_pace():
    profile, four = (
        replace(flow(3, 4), steps=tuple(replace(s, update_s=0.0) for s in flow(3, 4).steps)),
        ParallelConfig(micro_batches=4),
    )
    one = Simulation(profile, cluster(4), 12).play("by parts", 4, 1, 1, at=(1, 2, 3))
    assert Simulation(profile, cluster(4), 12, four).best("by parts", 4).micro_batches == 4
    assert Simulation(profile, cluster(4), 12).play("by parts", 4, 1, 4, at=(1, 2, 3)).images_per_s == pytest.approx(
        one.images_per_s
    )
