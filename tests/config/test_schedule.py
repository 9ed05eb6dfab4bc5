"""Plans as literal tables: phases → turns → segments, and where evaluations fall."""

import pytest

from pipeflow.config import PhaseConfig, Segment, Turn, micro_batches, phase_steps, segments, stops, turns
from pipeflow.config.schedule import steps_of

EVERYONE = (0, 1, 2)


def plan(schedule, parts=3, images=100, batch=10, **settings):
    """Turns as (learners, steps), of a training set of 10 steps an epoch."""
    return [tuple(turn) for turn in turns(PhaseConfig(schedule, **settings), parts, images, batch)]


def in_turn(*steps, parts=3):
    """One learner a turn, from the first part on, again and again."""
    return [((number % parts,), count) for number, count in enumerate(steps)]


@pytest.mark.parametrize(
    ("epochs", "images", "batch", "steps"),
    [
        (1, 100, 10, 10),
        (90, 50_000, 64, 70_312),
        (30, 1500, 50, 900),
        (2, 1500, 64, 47),  # 46.9
        (0.5, 100, 10, 5),
        (0.25, 10, 10, 1),  # never none
        (1, 1, 1, 1),
    ],
)
def test_steps_of(epochs, images, batch, steps):
    assert steps_of(epochs, images, batch) == steps


def test_phase_steps_takes_steps_as_they_are():
    assert phase_steps(PhaseConfig("end_to_end", steps=7), 100, 10) == 7
    assert phase_steps(PhaseConfig("end_to_end", epochs=1.5), 100, 10) == 15


@pytest.mark.parametrize("schedule", ["simultaneous", "end_to_end"])
@pytest.mark.parametrize(("length", "steps"), [({"epochs": 3}, 30), ({"steps": 7}, 7), ({"epochs": 0.01}, 1)])
@pytest.mark.parametrize("parts", [1, 3])
def test_all_learn_in_one_turn(schedule, length, steps, parts):
    assert plan(schedule, parts, **length) == [(tuple(range(parts)), steps)]


@pytest.mark.parametrize(
    ("parts", "length", "steps"),
    [
        (3, {"epochs": 3}, [10, 10, 10]),
        (3, {"steps": 7}, [3, 2, 2]),
        (3, {"steps": 8}, [3, 3, 2]),
        (3, {"steps": 3}, [1, 1, 1]),
        (2, {"epochs": 0.5}, [3, 2]),
        (1, {"steps": 5}, [5]),
    ],
)
def test_sequential_is_one_long_turn_a_part(parts, length, steps):
    assert plan("sequential", parts, **length) == in_turn(*steps, parts=parts)


def test_sequential_needs_a_step_a_part():
    with pytest.raises(ValueError, match="sequential phase of 2 steps cannot be shared by 3 parts"):
        plan("sequential", steps=2)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 4}, [10, 10, 10, 10]),  # a turn is an epoch by default
        ({"epochs": 3.5}, [10, 10, 10, 5]),
        ({"epochs": 2, "turn_epochs": 0.5}, [5, 5, 5, 5]),
        ({"epochs": 1, "turn_steps": 4}, [4, 4, 2]),
        ({"steps": 7, "turn_steps": 2}, [2, 2, 2, 1]),
        ({"steps": 7, "turn_epochs": 0.3}, [3, 3, 1]),
        ({"steps": 7, "turn_epochs": 0.01}, [1] * 7),
        ({"steps": 2, "turn_steps": 50}, [2]),  # parts 2 and 3 get no turn
        ({"steps": 12}, [10, 2]),
    ],
)
def test_alternate_deals_turns_out(settings, steps):
    assert plan("alternate", **settings) == in_turn(*steps)


def test_alternate_with_one_part_is_that_part_again_and_again():
    assert plan("alternate", parts=1, epochs=3) == [((0,), 10)] * 3


def test_the_rows_of_the_table():
    """60 epochs in turns of one are 60 turns, 20 a part, though an epoch of CIFAR-10 is 781¼ batches of 64."""
    dealt = plan("alternate", images=50_000, batch=64, epochs=60, turn_epochs=1)
    assert len(dealt) == 60 and sum(steps for _, steps in dealt) == 46_875
    assert {steps for _, steps in dealt} == {781, 782}
    assert [learners for learners, _ in dealt] == [(0,), (1,), (2,)] * 20


@pytest.mark.parametrize("schedule", ["simultaneous", "alternate", "sequential", "end_to_end"])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("length", [{"epochs": 1.7}, {"steps": 23}])
def test_turns_add_up_to_the_phase(schedule, parts, length):
    phase = PhaseConfig(schedule, **length)
    dealt = turns(phase, parts, 97, 10)
    assert sum(turn.steps for turn in dealt) == phase_steps(phase, 97, 10)
    assert all(turn.steps > 0 for turn in dealt)


# --- where a run pauses to evaluate


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "start", "end", "steps"),
    [
        (100, 10, 1, 0, 35, [10, 20, 30]),
        (100, 10, 1, 10, 30, [20, 30]),  # counted from the start of the run, not of the phase; the end is included
        (100, 10, 0.5, 0, 12, [5, 10]),
        (100, 10, 2, 15, 45, [20, 40]),
        (95, 10, 1, 0, 40, [10, 19, 29, 38]),  # the first batch behind 95, 190, 285, 380 images
        (10, 10, 0.25, 0, 3, [1, 2, 3]),  # no more than one a step
        (100, 10, 50, 0, 40, []),
        (100, 10, 1, 5, 5, []),
    ],
)
def test_stops(images, batch, epochs, start, end, steps):
    assert stops(images, batch, epochs, start, end) == steps


def test_segments_cut_turns_at_the_pauses():
    dealt = [Turn((0,), 10), Turn((1,), 10), Turn((0,), 5)]
    assert list(segments(dealt, 100, [104, 108, 110, 121])) == [
        Segment(0, (0,), 100, 4),
        Segment(0, (0,), 104, 4),
        Segment(0, (0,), 108, 2),  # a pause at the end of a turn cuts nothing
        Segment(1, (1,), 110, 10),
        Segment(2, (0,), 120, 1),
        Segment(2, (0,), 121, 4),
    ]


def test_segments_without_pauses_are_the_turns():
    dealt = [Turn(EVERYONE, 7)]
    assert list(segments(dealt, 3, [])) == list(segments(dealt, 3, [3, 10, 11])) == [Segment(0, EVERYONE, 3, 7)]


# --- learning rates


@pytest.mark.parametrize(
    ("wanted", "images", "stages", "pieces"),
    [(None, 48, 3, 3), (None, 50, 3, 5), (None, 7, 2, 7), (None, 3, 3, 3), (6, 48, 3, 6), (48, 48, 2, 48)],
)
def test_micro_batches_are_equal_and_one_a_process_at_least(wanted, images, stages, pieces):
    assert micro_batches(wanted, images, stages) == pieces


def test_lr_of():
    phase = PhaseConfig("alternate", steps=1, lr=[1e-3, 2e-3, 3e-3])
    assert [phase.lr_of(part) for part in range(3)] == [1e-3, 2e-3, 3e-3]
    assert [PhaseConfig("end_to_end", steps=1, lr=5e-4).lr_of(part) for part in (0, 2)] == [5e-4, 5e-4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a length in epochs or in steps"),
        ({"epochs": 1, "steps": 1}, "one of the two"),
        ({"epochs": 0}, r"phases\.epochs is 0; it must be a positive, finite number"),
        ({"steps": -3}, "steps is -3"),
        ({"epochs": float("nan")}, "epochs is nan"),
        ({"steps": 1, "turn_steps": 1, "turn_epochs": 1}, "turn_epochs or turn_steps, not both"),
        ({"steps": 1, "turn_steps": 0}, "turn_steps is 0"),
        ({"steps": 1, "turn_epochs": -1}, "turn_epochs is -1"),
        ({"steps": 1, "lr": 0}, "lr is 0"),
        ({"steps": 1, "lr": [1e-3, -1.0]}, r"lr holds -1\.0"),
        ({"steps": 1, "clip": 0}, "clip is 0"),
        ({"steps": 1, "warmup_steps": -1}, "warmup_steps is -1"),
    ],
)
def test_phase_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        PhaseConfig("alternate", **settings)


@pytest.mark.parametrize("schedule", ["simultaneous", "sequential", "end_to_end"])
def test_only_alternate_has_turns(schedule):
    with pytest.raises(ValueError, match=f"belong to the schedule alternate, not to {schedule}"):
        PhaseConfig(schedule, steps=1, turn_steps=1)


def test_the_whole_model_has_one_learning_rate():
    with pytest.raises(ValueError, match="end_to_end phase has one lr, not a list"):
        PhaseConfig("end_to_end", steps=1, lr=[1e-3])
