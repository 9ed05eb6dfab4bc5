"""Pipelines on a time line: orders as literal tables, equal stages against the formula, uneven ones by definition."""

from functools import cache

import pytest
import torch

from pipeflow.planning.timeline import Operation, Stages, order, period


def words(operations):
    return " ".join(f"{kind[0].upper()}{micro}" if kind != "update" else "U" for kind, micro in operations)


@pytest.mark.parametrize(
    ("stage", "table"),
    [
        (0, "F0 F1 F2 B0 F3 B1 B2 B3 U"),
        (1, "F0 F1 B0 F2 B1 F3 B2 B3 U"),
        (2, "F0 B0 F1 B1 F2 B2 F3 B3 U"),
    ],
)
def test_orders_of_three_stages_and_four_micro_batches(stage, table):
    assert words(order(stage, 3, 4)) == table


def test_a_stage_keeps_no_more_than_1f1b_promises():
    for stage in range(8):
        kept = most = 0
        for kind, _ in order(stage, 8, 32):
            kept += {"forward": 1, "backward": -1, "update": 0}[kind]
            most = max(most, kept)
        assert kept == 0 and most == 8 - stage


@pytest.mark.parametrize("stages", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("micros", [1, 2, 4, 8])
def test_equal_stages_lose_what_the_paper_says(stages, micros):
    """Of all time (P − 1)/(M + P − 1) is lost: a batch takes (M + P − 1) (f + b)."""
    forward, backward = 3.0, 5.0
    given = Stages([[forward] * micros] * stages, [[backward] * micros] * stages, [0.0] * stages, [[0.0] * micros] * 7)
    seconds = period(given)
    assert seconds == (micros + stages - 1) * (forward + backward)
    lost = 1 - micros * (forward + backward) / seconds
    assert lost == pytest.approx((stages - 1) / (micros + stages - 1))


def by_definition(stages, batches):
    """When stage 0 has updated for the last two batches: the longest path through everything that must come before."""
    many, micros = len(stages.forward_s), len(stages.forward_s[0])
    plans = [order(stage, many, micros) for stage in range(many)]

    def seconds(stage, kind, micro):
        if kind == "update":
            return stages.update_s[stage]
        return {"forward": stages.forward_s, "backward": stages.backward_s}[kind][stage][micro]

    @cache
    def ends(batch, stage, number):
        kind, micro = plans[stage][number]
        before = (
            ends(batch, stage, number - 1) if number else ends(batch - 1, stage, len(plans[stage]) - 1) if batch else 0
        )
        sender = stage - 1 if kind == "forward" else stage + 1
        given = arrives(batch, sender, stage, kind, micro) if kind != "update" and 0 <= sender < many else 0
        return max(before, given) + seconds(stage, kind, micro)

    @cache
    def arrives(batch, sender, stage, kind, micro):
        """Micro-batches travel in their order, one after another."""
        made = ends(batch, sender, plans[sender].index(Operation(kind, micro)))
        last = (batch, micro - 1) if micro else (batch - 1, micros - 1)
        busy = arrives(last[0], sender, stage, kind, last[1]) if last[0] >= 0 else 0
        return max(made, busy) + stages.carry_s[min(sender, stage)][micro]

    return [ends(batch, 0, len(plans[0]) - 1) for batch in (batches - 2, batches - 1)]


@pytest.mark.parametrize("seed", range(12))
def test_uneven_stages_and_links_follow_from_what_must_come_before(seed):
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape):  # whole numbers: sums are exact in any order
        return torch.randint(1, 20, shape, generator=generator).double().tolist()

    many, micros = 1 + seed % 4, 1 + seed % 5
    stages = Stages(whole(many, micros), whole(many, micros), whole(many), whole(max(1, many - 1), micros))
    before, after = by_definition(stages, 3)
    assert period(stages) == after - before
    # No batch can be faster than the busiest stage, and none is slower than everything one after another.
    busiest = max(
        sum(f) + sum(b) + u for f, b, u in zip(stages.forward_s, stages.backward_s, stages.update_s, strict=True)
    )
    everything = sum(map(sum, stages.forward_s)) + sum(map(sum, stages.backward_s)) + sum(stages.update_s)
    carried = 2 * sum(map(sum, stages.carry_s))
    assert busiest <= after - before <= everything + carried


def test_a_link_that_is_slower_than_every_stage_sets_the_pace():
    stages = Stages([[1.0] * 8] * 2, [[1.0] * 8] * 2, [0.0] * 2, [[100.0] * 8])
    assert period(stages) >= 8 * 100
