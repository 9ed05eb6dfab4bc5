"""Studies of many runs: in which order, at which learning rate, and what is made of them."""

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path
from statistics import stdev

import pytest

from benchmarks.learning import paper_table
from benchmarks.learning.comparison import TITLES, read_lines, rows, tables
from benchmarks.learning.heads import ALL, ARMS, E2E, LARGER, TAILS, TIERS, Study, study
from benchmarks.learning.paper_table import pair_jobs, pair_rows
from benchmarks.learning.recipe import Recipe
from benchmarks.learning.runs import Job, train_in_order
from benchmarks.learning.tasks import digits
from benchmarks.learning.what_is_left import SOURCES
from tests.benchmarks.quick_runs import quick, run
from tests.support.command_line import parse

OPTIONS = {"data": "digits", "quick": False, "steps": None, "device": "cpu", "cuda_graphs": False, "lrs": None}


def digits_study(**others) -> Study:
    arguments = {"flow": "glow", "parts": [2, 3], "arms": ARMS, "clip": "adaptive", "seeds": 3, "searched": 2}
    return study(argparse.Namespace(**{**OPTIONS, **arguments, **others}))


def carried_out(plan: Study, bits) -> list[Job]:
    """The jobs in order, one at a time, of runs that end at `bits(labels)` on the held-out images."""
    done, order = {}, []
    while job := next((job for job in plan.wanted(done) if job.run.directory not in done), None):
        order.append(job)
        done[job.run.directory] = {**job.labels, "validation": bits(job.labels)}
    return order


def best_at(lr):
    """Bits/dim that are lowest at a learning rate, and with the narrow head."""
    return lambda labels: 3 + abs(math.log2(labels["lr"] / lr)) / 9 - 0.1 * (labels["arm"] == "head_1_quarter")


def test_every_arm_gets_its_rates_and_seeds_and_the_most_informative_come_first():
    order = carried_out(digits_study(), best_at(0.016))
    tiers = [next(number for number, tier in enumerate(TIERS) if job.labels["arm"] in tier) for job in order]
    assert tiers == sorted(tiers)
    main = [job for job, tier in zip(order, tiers, strict=True) if tier == 0]
    assert len(main) == 5 * (2 * 3 + 1), "end to end once, two arms with 2 and 3 parts; the third seed at the best rate"
    assert all(job.run.seed < 2 for job in main[: 5 * 6])
    assert {(job.run.seed, job.labels["lr"]) for job in main[5 * 6 :]} == {(2, 0.016)}
    assert {(job.labels["parts"], job.labels["arm"]) for job in order} == {(1, E2E)} | {
        (parts, arm) for parts in (2, 3) for arm in ARMS if arm != E2E
    }
    assert len({job.run.directory for job in order}) == len(order)


@pytest.mark.parametrize(("best", "rates"), [(0.004, {0.004, 0.008, 0.016, 0.032}), (9, {0.008, 0.016, 0.032, 0.064})])
def test_the_grid_grows_once_at_its_edge(best, rates):
    order = carried_out(digits_study(arms=["by_parts"], parts=[2]), best_at(best))
    assert {job.labels["lr"] for job in order} == rates
    assert [job.labels["lr"] for job in order if job.run.seed == 2] == [min(rates) if best < 1 else max(rates)]


def test_one_rate_is_taken_as_it_is():
    order = carried_out(digits_study(lrs=[0.1], arms=["by_parts", "head_1_half", "tail_10"], parts=[2]), best_at(9))
    assert [(job.labels["arm"], job.run.seed, job.labels["lr"]) for job in order] == [
        *(("by_parts", seed, 0.1) for seed in (0, 1)),
        *(("head_1_half", seed, 0.1) for seed in (0, 1)),
        *((arm, 2, 0.1) for arm in ("by_parts", "head_1_half")),
        *(("tail_10", seed, 0.1) for seed in (0, 1, 2)),
    ]


def test_tails_go_on_from_the_best_head():
    order = carried_out(digits_study(parts=[3]), best_at(0.016))
    heads = {job.labels["arm"]: job.labels["words"] for job in order if job.labels["arm"].startswith("head")}
    assert len(set(heads.values())) == len(heads) == 4
    tails = [job for job in order if job.labels["arm"] in TAILS]
    assert {job.labels["words"] for job in tails} == {heads["head_1_quarter"]}
    for job in tails:
        joined = sum(phase["steps"] for phase in job.run.phases if phase["schedule"] == "end_to_end")
        assert joined == round(600 * TAILS[job.labels["arm"]])


def test_a_learning_rate_that_diverges_is_not_chosen():
    order = carried_out(
        digits_study(arms=["by_parts"], parts=[2]), lambda labels: None if labels["lr"] == 0.008 else 3.0
    )
    assert [job.labels["lr"] for job in order if job.run.seed == 2] == [0.016]


@pytest.mark.parametrize("jobs", [carried_out(digits_study(), best_at(0.016)), None], ids=["heads", "paper's table"])
def test_arms_draw_equally_many_images_and_their_settings_parse(jobs):
    jobs = jobs or pair_jobs(argparse.Namespace(**OPTIONS, seeds=1))
    for job in jobs:
        config = parse(job.run.options(Path("runs/x"))[:-2])
        assert sum(phase.steps for phase in config.phases) * config.data.batch == 28_800
        assert config.data.validation == 200 and config.cut.parts in (1, job.processes)
    heads = {parse(job.run.options(Path("runs/x"))[:-2]).cut.head.hidden for job in jobs}
    assert heads in ({None}, {None, 8, 16, 32})


def test_the_pairs_are_cut_as_in_the_configs():
    jobs = pair_jobs(argparse.Namespace(**OPTIONS, seeds=2))
    cuts = {(job.labels["pair"], config.cut.parts, config.cut.scheme) for job in jobs if (config := parsed(job))}
    assert cuts == {(pair, parts, "across_blocks") for pair, many in paper_table.PAIRS.items() for parts in (1, many)}
    rates = {pair: {job.labels["lr"] for job in jobs if job.labels["pair"] == pair} for pair in paper_table.PAIRS}
    assert all(len(lrs) == 1 for lrs in rates.values()) and len(set.union(*rates.values())) == 2


@pytest.mark.parametrize("flow", ["jet", "tarflow"])
def test_other_flows_have_equal_parts_and_heads_of_their_own_width(flow):
    order = carried_out(digits_study(flow=flow, arms=[E2E, "by_parts", "head_1_half"], seeds=1), best_at(0.002))
    assert {job.labels["data"] for job in order} == {f"digits, {flow}"}
    for job in order:
        config = parsed(job)
        assert config.flow == flow and config.cut.parts == job.labels["parts"]
        borders = [0, *(config.cut.at or ()), config.family.steps]
        assert len({end - start for start, end in pairwise(borders)}) == 1
        assert config.cut.head.hidden == (32 if job.labels["arm"] == "head_1_half" else None)


def test_heads_for_transformers_are_trained_where_they_are_named():
    """Deep ones have the layers of the model, all others one; steps beyond those that remain are none."""
    found = {}
    for flow, layers in {"jet": 1, "tarflow": 2}.items():
        for job in carried_out(digits_study(flow=flow, arms=LARGER, parts=[3], seeds=1), best_at(0.002)):
            head, arm = parsed(job).cut.head, job.labels["arm"]
            assert head.depth == (layers if arm.endswith("deep") else 1)
            assert head.start == ("model" if arm.startswith("like") else "random")
            found[arm] = (head.steps, head.hidden)
    assert found.keys() == LARGER.keys() and not LARGER.keys() & set(ARMS)
    assert LARGER.keys() | set(ARMS) == TITLES.keys()
    assert (found["like_2_half_deep"], found["like_all_full_deep"]) == ((2, 32), (ALL, 64))


def parsed(job):
    return parse(job.run.options(Path("runs/x"))[:-2])


# --- what becomes of the runs


def line(parts, arm, seed, lr, test, validation=0.0, **others):
    settings = {"data": "digits", "steps": 600, "batch": 48, "clip": "none", "device": "cpu", "words": ""}
    result = (
        {"test": test, "validation": validation, "seconds": 9.0, "bytes": 2**20} if test else {"failed": "not finite"}
    )
    return {**settings, "parts": parts, "arm": arm, "seed": seed, "lr": lr, **result, **others}


LINES = [
    *(line(1, E2E, seed, 0.01, test) for seed, test in enumerate((2.3, 2.4, 2.5))),
    line(1, E2E, 0, 0.02, 2.0),
    *(line(3, "by_parts", seed, 0.01, test) for seed, test in enumerate((2.5, 2.6, None))),
    *(line(3, "by_parts", seed, 0.02, test, validation=0.1) for seed, test in enumerate((2.1, 2.2, 2.3))),
    *(line(3, "head_1_half", seed, 0.02, test) for seed, test in enumerate((2.32, 2.46, 2.58))),
]


def test_a_row_is_paired_seed_by_seed_at_the_chosen_rate():
    end_to_end, by_parts, head = rows(LINES)
    assert (end_to_end["lr"], end_to_end["test"], end_to_end["seeds"], end_to_end["runs"]) == (0.01, 2.4, 3, 4)
    assert end_to_end["bytes"] == 2 * 2**20, "recorded for two processes, and there are three"
    assert (by_parts["lr"], by_parts["rates_tried"], by_parts["diverged"]) == (0.02, [0.01, 0.02], 0)
    assert by_parts["minus_end_to_end"] == pytest.approx(-0.2)
    assert head["minus_end_to_end"] == pytest.approx(0.16 / 3)
    assert head["standard_error"] == pytest.approx(stdev([0.02, 0.06, 0.08]) / math.sqrt(3))


def test_runs_of_two_machines_are_not_compared():
    elsewhere = [{**one, "hardware": "another"} | ({"test": one["test"] + 1} if "test" in one else {}) for one in LINES]
    found = rows([*LINES, *elsewhere])
    assert [row["minus_end_to_end"] for row in found[3:]] == pytest.approx(
        [row["minus_end_to_end"] for row in found[:3]]
    )
    assert len(found) == 6 and found[3]["test"] == found[0]["test"] + 1


def test_a_seed_that_diverges_counts_and_has_no_pair():
    worse = [one for one in LINES if (one["arm"], one["lr"]) != ("by_parts", 0.02)]
    _, by_parts, head = rows(worse)
    assert (by_parts["seeds"], by_parts["diverged"]) == (3, 1)
    assert by_parts["minus_end_to_end"] == pytest.approx(0.2)
    assert head["gap_closed"] == pytest.approx(1 - (0.16 / 3) / 0.2)
    text = tables([by_parts, head])
    assert "| by parts | 2.550 | +0.200 ± 0.000 |" in text and "1 diverged" in text and "| 73% |" in text


def test_ratios_of_a_pair():
    def run(arm, seed, seconds, test):
        result = {"test": test, "seconds": seconds} if test else {"failed": "not finite"}
        return {"data": "digits", "steps": 6, "pair": "across2", "arm": arm, "lr": 0.1, "seed": seed, **result}

    paper = "by parts, last third end to end"
    lines = [run(paper, 0, 60, 2.6), run(paper, 1, 90, 2.8), run(paper, 2, 1, None)]
    lines += [run("end to end", seed, 120, 2.5) for seed in range(3)]
    end_to_end, by_parts = pair_rows(lines)
    assert (end_to_end["minutes"], end_to_end["minutes_ratio"]) == (2, 1)
    assert (by_parts["minutes"], by_parts["minutes_ratio"], by_parts["diverged"]) == (1.25, 0.625, 1)
    assert by_parts["minus_end_to_end"] == pytest.approx(0.2)


def test_a_study_goes_on_where_it_stopped(tmp_path):
    task = digits(2, quick=True)[0]
    recipes = [Recipe("simultaneous", 0.0, lr=lr, words=("--max_bad_steps", "1")) for lr in (0.01, 1e30)]
    jobs = [Job(task.run(recipe), {"lr": recipe.lr}, 2) for recipe in recipes]
    file = tmp_path / "runs.jsonl"
    assert train_in_order(lambda done: jobs, file, 1, minutes=0) == [] and not file.read_text()
    good, bad = train_in_order(lambda done: jobs, file, 1)
    assert good["test"] > 0 and good["validation"] > 0 and good["bytes"] > 0 and good["lr"] == 0.01
    assert "not finite" in bad["failed"]
    assert list(tmp_path.iterdir()) == [file], "run directories are removed"
    whole = file.read_text()
    file.write_text(whole[:-20])  # killed while it wrote
    assert read_lines(file) == [good]
    assert train_in_order(lambda done: jobs, file, 1) == [good, bad] == read_lines(file)


def test_a_run_that_cannot_be_trained_does_not_stop_the_others(tmp_path):
    task = digits(2, quick=True)[0]
    recipes = [Recipe("simultaneous", 0.0, words=words) for words in (("--glow.levels", "9"), ())]
    jobs = [Job(task.run(recipe), {}, 2) for recipe in recipes]
    with pytest.raises(RuntimeError, match="ended with 2"):
        train_in_order(lambda done: jobs, tmp_path / "runs.jsonl", 1)
    assert [one["key"] for one in read_lines(tmp_path / "runs.jsonl")] == [jobs[1].run.directory]


@pytest.mark.slow
def test_quick_heads(tmp_path):
    found = quick("learning.heads", tmp_path, "--arms", "end_to_end", "by_parts", "head_1_half", "tail_20")
    assert [row["arm"] for row in found["rows"]] == ["end_to_end", "by_parts", "head_1_half", "tail_20"]
    assert all(row["seeds"] == 2 and row["test"] > 0 and row["bytes"] > 0 for row in found["rows"])
    assert rows(found["runs"]) == found["rows"], "the table can be made again from the results file"


@pytest.mark.slow
def test_the_work_of_a_head_is_counted_and_grows_with_its_steps(tmp_path):
    ratios = quick("learning.head_cost", tmp_path)["ratios"]
    assert list(ratios) == ["like_1_half", "like_2_half"]
    for flow in ("jet", "tarflow"):
        one, two = (row[flow] - 1 for row in ratios.values())
        assert one > 0 and two == pytest.approx(2 * one, rel=0.05)


@pytest.mark.slow
def test_quick_paper_table(tmp_path):
    found = quick("learning.paper_table", tmp_path)
    assert [(row["pair"], row["arm"]) for row in found["rows"]] == [
        (pair, arm) for pair in paper_table.PAIRS for arm in paper_table.ARMS
    ]


@pytest.mark.slow
def test_a_rest_is_trained_after_every_kind_of_frozen_part(tmp_path):
    out, table = tmp_path / "left.jsonl", tmp_path / "left.json"
    run("-m", "benchmarks.learning.what_is_left", "--steps", "9", "--seeds", "1", "--parts", "2", "--out", out)
    run("-m", "benchmarks.learning.what_is_left", "--table", out, "--json", table)
    lines = json.loads(table.read_text())["runs"]
    found = {(line["source"], line["what"]) for line in lines}
    assert found == {(source, what) for source in SOURCES for what in ("itself", "rest from scratch after 4")}
    assert all(2 < line["validation"] < 5 and line["hardware"] for line in lines)


@pytest.mark.slow
def test_a_part_learns_what_the_head_before_it_learns_where_both_start_alike_and_are_as_large(tmp_path):
    arms = ["end to end", "heads 1 × half", "2 × full, like the model", "heads 2 × full, averages sent, copied at 2/3"]
    out, table = tmp_path / "inputs.jsonl", tmp_path / "inputs.json"
    words = ("--steps", "9", "--seeds", "1", "--parts", "4", "--out", out, "--arms", *arms)
    run("-m", "benchmarks.learning.moving_inputs", *words)
    run("-m", "benchmarks.learning.moving_inputs", *words)
    run("-m", "benchmarks.learning.moving_inputs", "--table", out, "--json", table)
    lines = json.loads(table.read_text())["runs"]
    assert [line["arm"] for line in lines] == arms, "nothing is done twice"
    _, random, like, copied = (line["validation_of_parts"] for line in lines)
    assert abs(random[0] - random[1]) > 1e-2
    assert abs(like[0] - like[1]) < 1e-3
    assert abs(copied[0] - copied[1]) < 1e-2
