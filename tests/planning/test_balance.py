"""Balanced cuts against all cuts there are, and the measurement that they come from."""

from itertools import combinations, product

import pytest
import torch

from pipeflow.flow import Split, Squeeze
from pipeflow.model import CutConfig, GlowConfig, check_cut, glow_steps, scheme_cut
from pipeflow.planning import Profile, balanced_cut, measure_steps
from pipeflow.planning.balance import smallest_maximum
from pipeflow.planning.replicas import best_replicas
from pipeflow.planning.run_profile import flow_step_groups


def largest(costs, at):
    """The slowest part of a cut."""
    return max(sum(costs[start:end]) for start, end in zip([0, *at], [*at, len(costs)], strict=True))


@pytest.mark.parametrize("size", range(1, 9))
def test_no_cut_is_better(size):
    generator = torch.Generator().manual_seed(size)
    for parts in range(1, size + 1):
        for _ in range(10):
            # Small whole numbers: sums are exact, and ties are common.
            costs = torch.randint(1, 6, (size,), generator=generator).double().tolist()
            cuts = list(combinations(range(1, size), parts - 1))
            at = smallest_maximum(costs, parts)
            assert len(at) == parts - 1 and at in cuts
            assert largest(costs, at) == min(largest(costs, cut) for cut in cuts)


@pytest.mark.parametrize("averaging", [0.0, 1.5])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_no_replicas_are_better(parts, averaging):
    generator = torch.Generator().manual_seed(parts)
    for devices in range(parts, 9):
        costs = torch.randint(1, 30, (parts,), generator=generator).double().tolist()

        def seconds(part, count, costs=costs):
            return costs[part] / count + averaging * (count > 1)

        def slowest(counts):
            return max(seconds(*each) for each in enumerate(counts))

        every = [counts for counts in product([1, 2, 3, 4, 6], repeat=parts) if sum(counts) <= devices]
        found = best_replicas(seconds, parts, 12, devices)
        assert found in every and slowest(found) == min(map(slowest, every))


@pytest.mark.parametrize("size", range(2, 8))
def test_no_cut_is_better_where_links_take_time(size):
    generator = torch.Generator().manual_seed(size)
    for parts in range(2, size + 1):
        for _ in range(10):
            costs = torch.randint(1, 6, (size,), generator=generator).double().tolist()
            carry = torch.randint(1, 12, (size,), generator=generator).double().tolist()

            def slowest(at, costs=costs, carry=carry):
                return max(largest(costs, at), *(carry[border - 1] for border in at))

            cuts = list(combinations(range(1, size), parts - 1))
            assert slowest(smallest_maximum(costs, parts, carry=carry)) == min(slowest(cut) for cut in cuts)


@pytest.mark.parametrize("size", range(2, 8))
def test_no_cut_is_better_where_the_end_of_a_part_costs_something(size):
    generator = torch.Generator().manual_seed(size)
    for parts in range(1, size + 1):
        for _ in range(10):
            costs, endings = torch.randint(1, 6, (2, size), generator=generator).double().tolist()

            def slowest(at, costs=costs, endings=endings):
                borders = zip([0, *at], [*at, len(costs)], strict=True)
                return max(sum(costs[start:end]) + endings[end - 1] for start, end in borders)

            cuts = list(combinations(range(1, size), parts - 1))
            assert slowest(smallest_maximum(costs, parts, endings)) == min(slowest(cut) for cut in cuts)


@pytest.mark.parametrize(
    ("costs", "parts", "at"),
    [
        ([1, 1, 1, 1, 1, 1], 3, (2, 4)),
        ([1, 1, 1, 1, 1, 1], 1, ()),
        ([1, 1, 1], 3, (1, 2)),
        ([5, 1, 1, 1, 1, 1], 2, (1,)),
        ([1, 1, 1, 1, 1, 5], 2, (5,)),
        ([1, 1, 1], 2, (1,)),  # 1 | 2 is as good as 2 | 1: the earlier border
        ([3, 3, 1, 1, 1, 1, 1, 1], 3, (1, 3)),  # 3 | 4 | 5 is as good as 3 | 5 | 4
        (
            [1, 2, 3, 100],
            3,
            (2, 3),
        ),  # nothing is gained over 1 | 5 | 100, but the parts before the largest are balanced
        ([9, 1, 1], 2, (1,)),
        ([7], 1, ()),
    ],
)
def test_smallest_maximum(costs, parts, at):
    assert smallest_maximum(costs, parts) == at


def test_more_parts_than_flow_steps():
    with pytest.raises(ValueError, match=r"cut\.parts is 4, but the flow has only 3 flow steps"):
        smallest_maximum([1.0, 1.0, 1.0], 4)


def test_balanced_beats_the_other_schemes_where_levels_differ():
    """With the multiply-adds of the 3 × 32 × 512 model, parts by blocks can never do better than 0.705."""
    costs = [share / 32 for share in (0.705, 0.219, 0.076) for _ in range(32)]
    by_blocks = scheme_cut(CutConfig("by_blocks", 3), 3, 32)
    across = scheme_cut(CutConfig("across_blocks", 3), 3, 32)
    at = smallest_maximum(costs, 3)
    assert check_cut(at, 96) == at
    assert largest(costs, by_blocks) == pytest.approx(0.705)
    assert largest(costs, at) < largest(costs, across) < largest(costs, by_blocks)
    assert largest(costs, at) < 0.36


# --- measuring


@pytest.fixture(scope="module")
def steps():
    return glow_steps(GlowConfig(levels=3, steps=2, hidden=8), (1, 8, 8))


def test_squeeze_counts_with_the_step_after_it_and_split_with_the_step_before(steps):
    kinds = [type(step).__name__ for step in steps]
    assert kinds[:5] == ["Squeeze", "FlowStep", "FlowStep", "Split", "Squeeze"] and len(kinds) == 11
    groups = [list(range(11))[group] for group in flow_step_groups(steps)]
    assert groups == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]


def test_steps_are_measured_and_left_as_they_were(steps, device, perturb):
    model = torch.nn.ModuleList(steps)
    perturb(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    devices = {parameter.device for parameter in model.parameters()}
    costs = measure_steps(steps, (1, 8, 8), (4,), device)
    assert len(costs) == len(steps) and all(cost.seconds(4) > 0 for cost in costs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {parameter.device for parameter in model.parameters()} == devices


def test_one_kind_at_one_shape_is_measured_once(steps, device):
    seconds = [cost.seconds(4) for cost in measure_steps(steps, (1, 8, 8), (4,), device)]
    assert seconds[1] == seconds[2] and seconds[5] == seconds[6]
    different = [seconds[index] for index in (0, 1, 3, 4, 5, 7, 8, 9)]
    assert len(set(different)) == len(different)


def test_a_measured_cut_is_a_cut(steps, device):
    measured = measure_steps(steps, (1, 8, 8), (4,), device)
    costs = tuple(sum(measured[group][1:], measured[group][0]) for group in flow_step_groups(steps))
    assert len(costs) == 6 == sum(not isinstance(step, Squeeze | Split) for step in steps)
    at = balanced_cut(Profile(costs, costs, ((1,),) * 6, (4,) * 6, 16), 3, 4)
    assert check_cut(at, 6) == at


def test_steps_of_one_kind_and_several_widths_are_measured_apart(device):
    narrow, wide = (glow_steps(GlowConfig(levels=1, steps=1, hidden=hidden), (1, 8, 8)) for hidden in (4, 64))
    measured = measure_steps([*narrow, narrow[1], wide[1]], (1, 8, 8), (4,), device)
    assert measured[1] is measured[2] and measured[3].parameters > measured[2].parameters


def test_seconds_of_a_step_hold_its_update(steps, device, monkeypatch):
    monkeypatch.setattr("pipeflow.planning.measure._update_seconds", lambda *_: 100.0)
    assert all(cost.seconds(4) >= 100 for cost in measure_steps(steps, (1, 8, 8), (4,), device))
