"""What is to be expected, against values worked out by hand and against a stream that is played through."""

import itertools

import pytest
import torch

from pipeflow.config import EndToEndConfig, Turn
from pipeflow.distributed import ParallelConfig
from pipeflow.planning import Link, Profile, balanced_cut, compare
from pipeflow.planning.forecast import by_parts, data_parallel, part_memory, pipelined, share
from pipeflow.planning.phase_forecast import Processes, phase_seconds
from pipeflow.planning.profile import Cost, ring_bytes

FAST = Link(1e18)
NOTHING = Cost((1, 100), (0.0, 0.0), (0.0, 0.0))


def flat(forward, backward, update=0.0, parameters=0, saved=0.0):
    """A step whose seconds an image are always the same."""
    return Cost((1, 100), (forward, 100 * forward), (backward, 100 * backward), update, parameters, 0.0, saved)


def profile(steps, sent=None, priors=None):
    many = len(steps)
    return Profile(tuple(steps), tuple(priors or [NOTHING] * many), ((1,),) * many, tuple(sent or [0] * many), 16)


SMALL = profile(
    [flat(1, 2, 3, 1000, 7), flat(2, 4, 1, 500, 5), flat(1, 1, 1, 2000, 3)],
    sent=[40, 20, 10],
    priors=[flat(0.5, 0.5), NOTHING, flat(0, 1)],
)


# --- a cost


def test_seconds_between_measured_batches_lie_on_a_line_and_outside_are_never_too_good():
    cost = Cost((4, 8, 16), (10.0, 12.0, 20.0), (1.0, 2.0, 4.0))
    assert [cost.forward(images) for images in (4, 6, 8, 12, 16, 24)] == [10, 11, 12, 16, 20, 28]
    assert cost.forward(2) == 9  # the line through 4 and 8: overheads stay
    assert cost.backward(2) == 0.5 and cost.backward(1) == 0.25
    falling = Cost((4, 8), (1.0, 8.0), (1.0, 1.0))
    assert falling.forward(2) == 0.5  # the line would say less than nothing
    assert falling.seconds(8) == 9


def test_a_part_is_the_sum_of_its_steps_and_its_prior():
    first, second = SMALL.parts((1,))
    assert (first.forward(10), first.backward(10), first.update_s, first.parameters) == (15, 25, 3, 1000)
    assert (second.forward(10), second.backward(10), second.update_s, second.parameters) == (30, 60, 2, 2500)
    assert [cost.forward(10) for cost in SMALL.end_to_end().parts((1,))] == [10, 30]
    assert SMALL.border_bytes((1, 2)) == [40, 20]
    assert SMALL.memory(second, 10, 10) == 16 * 2500 + (5 + 3) * 10


def test_working_memory_is_needed_once():
    one = Cost((1,), (1.0,), (1.0,), working_bytes=5.0, saved_bytes=2.0)
    two = Cost((1,), (1.0,), (1.0,), working_bytes=3.0, saved_bytes=2.0)
    assert ((one + two).working_bytes, (one + two).saved_bytes) == (5, 4)
    assert profile([one, two]).memory(one + two, kept=10, at_a_time=3) == 4 * 10 + 5 * 3


# --- the formulas, by hand


def test_one_device():
    alone = data_parallel(SMALL, 10, 1, FAST)
    assert alone.seconds == (40 + 0) + (70 + 10) + 5
    assert (alone.way, alone.images_per_s, alone.idle, alone.sent_bytes) == ("one device", 10 / 125, 0, 0)
    assert alone.memory_bytes == 16 * 3500 + 15 * 10
    assert data_parallel(SMALL, 10, 1, FAST, ParallelConfig(micro_batches=5)).memory_bytes == 16 * 3500 + 15 * 2


def test_ddp_hides_its_gradients_behind_the_backward_pass_as_far_as_it_can():
    sent = 2 * 4 / 5 * 4 * 3500
    assert ring_bytes(3500, 5) == sent and ring_bytes(3500, 1) == 0
    hidden = data_parallel(SMALL, 10, 5, Link(8 * sent / 16))
    assert (hidden.seconds, hidden.bound) == (8 + 16 + 5, "device")
    shown = data_parallel(SMALL, 10, 5, Link(8 * sent / 100))
    assert (shown.seconds, shown.bound, shown.sent_bytes) == (8 + 100 + 5, "gradients", sent)
    assert shown.idle == pytest.approx(1 - (8 + 16 + 5) / 113)
    assert shown.memory_bytes == 16 * 3500 + 15 * 2 + 4 * 3500
    assert share(10, 3) == 4  # the process with most images sets the pace
    assert data_parallel(SMALL, 10, 3, FAST).seconds == pytest.approx(16 + 32 + 5)


def test_by_parts_goes_at_the_pace_of_the_slowest_part():
    found = by_parts(SMALL, (1, 2), 10, FAST)
    assert (found.seconds, found.bound, found.devices) == (20 + 40 + 1, "part 2", 3)
    busy = [15 + 25 + 3, 61, 10 + 20 + 1]
    assert found.idle == pytest.approx(1 - sum(busy) / (3 * 61))
    assert found.sent_bytes == 400
    assert part_memory(SMALL, (1, 2), 10, parallel=ParallelConfig(depth=3)) == [
        16 * 1000 + 70 + 3 * 400,
        16 * 500 + 50 + 2 * 400 + 3 * 200,
        16 * 2000 + 30 + 2 * 200,
    ]


def test_with_micro_batches_a_part_needs_the_memory_of_the_largest_packet():
    in_packets = part_memory(SMALL, (1, 2), 10, parallel=ParallelConfig(micro_batches=4))
    assert in_packets == part_memory(SMALL, (1, 2), 3)
    assert max(in_packets) < max(part_memory(SMALL, (1, 2), 10))


def test_by_parts_goes_at_the_pace_of_the_slowest_link_where_that_is_slower():
    found = by_parts(SMALL, (1, 2), 10, Link(8 * 400 / 80))
    assert (found.seconds, found.bound) == (80, "border 1")


def test_a_part_with_replicas_of_its_own_takes_as_long_as_its_share():
    found = by_parts(SMALL, (1, 2), 12, Link(8 * ring_bytes(500, 2) / 20), replicas=(1, 2, 1))
    busy = [12 + 12 * 0.5 + 24 + 12 * 0.5 + 3, 2 * 6 + 4 * 6 + 1, 12 + 12 + 12 + 1]
    assert (found.seconds, found.bound, found.devices, found.replicas) == (51, "part 1", 4, (1, 2, 1))
    assert busy[0] == 51 and found.idle == pytest.approx(1 - (51 + 2 * 37 + 37) / (4 * 51))
    assert found.sent_bytes == 6 * 20 + ring_bytes(500, 2), "a replica of part 2 sends its half of each packet"
    light = profile([flat(1, 2), flat(2, 4), flat(1, 1)], sent=[10, 20, 10])
    slow = by_parts(light, (1, 2), 12, Link(8 * 12 * 20 / 60), replicas=(2, 2, 1))
    assert (slow.bound, slow.seconds) == ("border 2", 60), "part 3 takes a whole packet through one link"
    alone, shared = (part_memory(SMALL, (1, 2), 12, counts) for counts in (1, (1, 2, 1)))
    assert shared[1] == part_memory(SMALL, (1, 2), 6)[1] + 4 * 500 and shared[::2] == alone[::2]
    assert [way.devices for way in compare(SMALL, (1, 2), 12, FAST, (1, 2, 1))] == [1, 4, 4], "no 4 stages of 3 steps"


def test_replicas_share_the_batch_and_average_the_gradients_of_their_part():
    link = Link(8 * ring_bytes(2000, 2) / 50)
    found = by_parts(SMALL, (1, 2), 10, link, replicas=2)
    # forward of 5 images, the gradients' 50 s behind a backward pass of 10 s, update
    assert (found.seconds, found.bound, found.devices) == (5 + 50 + 1, "part 3", 6)
    assert found.images_per_s == 10 / 56
    assert found.sent_bytes == max(200 + ring_bytes(1000, 2), ring_bytes(2000, 2))


def stream(busy, carrying, depth, batches=60):
    """Seconds a batch of a chain of stages that is played through: one-way links that carry one packet after another.

    A stage computes as soon as it has a packet and its own last batch is done, and hands on once there is room.
    """
    many = len(busy)
    done = [[0.0] * many for _ in range(batches)]
    arrived = [[0.0] * many for _ in range(batches)]
    for batch, stage in itertools.product(range(batches), range(many)):
        last = done[batch - 1][stage] if batch else 0.0
        begin = max(arrived[batch][stage] if stage else 0.0, last)
        if stage + 1 < many and batch >= depth:
            begin = max(begin, arrived[batch - depth][stage + 1])  # the oldest packet has left
        done[batch][stage] = begin + busy[stage]
        if stage + 1 < many:
            free = arrived[batch - 1][stage + 1] if batch else 0.0
            arrived[batch][stage + 1] = max(done[batch][stage], free) + carrying[stage]
    return done[-1][-1] - done[-2][-1]


@pytest.mark.parametrize("seed", range(20))
def test_by_parts_is_what_a_stream_does(seed):
    generator = torch.Generator().manual_seed(seed)

    def whole(size, most):
        return torch.randint(1, most, (size,), generator=generator).double().tolist()

    many = 2 + seed % 4
    flow = profile(
        [flat(a, b, c) for a, b, c in zip(*(whole(many, 30) for _ in range(3)), strict=True)], whole(many, 90)
    )
    found = by_parts(flow, tuple(range(1, many)), 1, Link(8.0))
    busy = [cost.seconds(1) for cost in flow.steps]
    assert found.seconds == stream(busy, list(flow.packet_bytes[:-1]), depth=2)


def test_pipelines_with_equal_stages_and_the_best_number_of_micro_batches():
    steps = [flat(1, 2)] * 4
    found = pipelined(profile(steps), (1, 2, 3), 32, FAST)
    # seconds are in proportion to images, so the more micro-batches the better: 32 of 1 image
    assert (found.micro_batches, found.seconds) == (32, (32 + 3) * 3)
    assert found.idle == pytest.approx(3 / 35)
    # where a micro-batch costs as much as the batch, one is best
    slow = Cost((1, 100), (1.0, 1.0), (2.0, 2.0))
    assert pipelined(profile([slow] * 4), (1, 2, 3), 32, FAST).micro_batches == 1


def test_a_pipeline_keeps_what_is_on_its_way_and_not_the_whole_batch():
    steps = [flat(1, 2, saved=100.0)] * 2
    assert pipelined(profile(steps), (1,), 32, FAST).memory_bytes == 2 * 100


def test_pipelines_carry_latents_forward_and_gradients_back():
    found = pipelined(SMALL, (1, 2), 8, FAST)
    assert found.sent_bytes == (40 + 20) * 8


def test_a_pipeline_hides_gradients_of_replicas_behind_the_last_backward_pass():
    fast = pipelined(profile([flat(1, 2, 0, 1000)] * 2), (1,), 4, FAST, replicas=2)
    assert fast.micro_batches == 2
    hidden = Link(8 * ring_bytes(1000, 2) / 2)  # 2 s, as long as the last of two backward passes
    assert pipelined(profile([flat(1, 2, 0, 1000)] * 2), (1,), 4, hidden, replicas=2).seconds == fast.seconds
    shown = Link(8 * ring_bytes(1000, 2) / 3)
    assert pipelined(profile([flat(1, 2, 0, 1000)] * 2), (1,), 4, shown, replicas=2).seconds > fast.seconds


def test_all_ways_get_the_same_devices_and_pipelines_their_balanced_cut():
    ways = {way.way: way for way in compare(SMALL, (1, 2), 12, FAST)}
    assert [(name, way.devices) for name, way in ways.items()] == [
        ("one device", 1), ("by parts", 3), ("DDP", 3), ("1F1B", 3),
    ]  # fmt: skip
    uneven = profile([flat(9, 9), flat(1, 1), flat(1, 1), flat(1, 1)])
    ways = {way.way: way for way in compare(uneven, (3,), 12, FAST)}
    assert (ways["by parts"].at, ways["1F1B"].at) == ((3,), (1,))


def test_no_device_without_an_image():
    assert [way.way for way in compare(SMALL, (1, 2), 2, FAST)] == ["one device", "by parts", "1F1B"]
    assert [way.way for way in compare(SMALL, (), 8, FAST)] == ["one device"]


def test_the_best_cut_avoids_a_border_that_a_link_is_too_slow_for():
    even = profile([flat(1, 1)] * 4, sent=[10, 1000, 10, 10])
    assert balanced_cut(even, 2, 10, FAST) == (2,)
    assert balanced_cut(even, 2, 10, Link(8 * 10000 / 1e6)) in {(1,), (3,)}


# --- phases


def processes(stages, at_once, replicas=1):
    return Processes(tuple(stages), replicas, at_once)


@pytest.mark.parametrize(
    ("turns", "owner", "at_once", "seconds"),
    [
        ([Turn((0, 1, 2), 4)], (0, 1, 2), 3, 4 * 61),
        ([Turn((0, 1, 2), 4)], (0, 0, 0), 1, 4 * (43 + 61 + 31)),
        ([Turn((0, 1, 2), 4)], (0, 0, 1), 2, 4 * (43 + 61)),
        ([Turn((0, 1, 2), 4)], (0, 1, 2), 2, 4 * 67.5),  # three processes take turns on two cores
        ([Turn((0,), 2), Turn((1,), 3)], (0, 1, 2), 3, 2 * 43 + 3 * 61),
        ([Turn((0,), 2), Turn((1,), 3)], (0, 0, 0), 1, 2 * 43 + 3 * (15 + 61)),
        ([Turn((2,), 1)], (0, 1, 2), 3, 31),  # the parts before it forward: 15 and 20
    ],
)
def test_phases_by_parts(turns, owner, at_once, seconds):
    found = phase_seconds(SMALL, (1, 2), turns, None, 10, FAST, processes(owner, at_once))
    assert found == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("size", "at_once", "seconds"), [(1, 1, 125), (2, 2, 20 + 40 + 5), (2, 1, 2 * (20 + 40 + 5)), (5, 2, 2.5 * 29)]
)
def test_phases_end_to_end(size, at_once, seconds):
    found = phase_seconds(
        SMALL, (1, 2), [Turn((0, 1, 2), 3)], EndToEndConfig(), 10, FAST, processes(range(size), at_once)
    )
    assert found == pytest.approx(3 * seconds)


@pytest.mark.parametrize(
    ("owner", "micros", "at_once", "seconds"),
    [
        ((0, 0, 1), None, 2, 112),  # the first of two is never idle: 2 · (18 + 36) + 4
        ((0, 1, 1), 2, 2, 6 + 2 * (18 + 36) + 12 + 3),  # each waits for the other once: for 6 images, for gradients
        ((0, 0, 1), None, 1, 149),  # two processes take turns on one core
        ((0, 0, 0), None, 1, 149),  # one process: no pipeline
    ],
)
def test_phases_end_to_end_as_a_pipeline(owner, micros, at_once, seconds):
    joined = EndToEndConfig("pipeline", micros)
    found = phase_seconds(SMALL, (1, 2), [Turn((0, 1, 2), 4)], joined, 12, FAST, processes(owner, at_once))
    assert found == pytest.approx(4 * seconds)


def test_phases_in_replicas():
    assert processes((0, 1, 2), 6, replicas=2).size == 6
    found = phase_seconds(SMALL, (1, 2), [Turn((0, 1, 2), 4)], None, 20, FAST, processes((0, 1, 2), 6, replicas=2))
    assert found == pytest.approx(4 * 61)
    line, turns = Link(8 * ring_bytes(500, 2) / 1000), [Turn((0, 1, 2), 1)]
    averaging = [
        phase_seconds(SMALL, (1, 2), turns, None, 20, line, processes((0, 1, 2), at_once, replicas=2))
        for at_once in (2, 6)
    ]
    assert averaging[0] == averaging[1] == 10 + 4 * 1000 + 1, "what goes over the network needs no core"


def test_a_link_within_a_process_takes_no_time():
    slow = Link(8 * 400 / 1000)
    across = phase_seconds(SMALL, (1, 2), [Turn((0, 1, 2), 1)], None, 10, slow, processes((0, 1, 1), 2))
    within = phase_seconds(SMALL, (1, 2), [Turn((0, 1, 2), 1)], None, 10, slow, processes((0, 0, 0), 1))
    assert (across, within) == (1000, 135)
