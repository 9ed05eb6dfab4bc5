"""Recipes that are compared differ in what they are meant to differ in, and in nothing else."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.learning.recipe import Recipe
from benchmarks.learning.runs import TrainingRun, train_all
from benchmarks.learning.sweep import Tried, next_rates
from benchmarks.learning.tasks import digits
from benchmarks.learning.time_to_bpd import RECIPES, crossing
from benchmarks.lib.results import _without_paths
from benchmarks.lib.workload import Workload
from benchmarks.speed.replicas import ENGINES, Layout, by_parts_only, layouts, training_run
from benchmarks.step.matrix_products import matrix_products, operations
from benchmarks.step.peer_glows import peers
from pipeflow import Glow
from pipeflow.config import EndToEndConfig
from pipeflow.distributed import ParallelConfig, grid
from tests.benchmarks.quick_runs import quick
from tests.support.command_line import parse


def shares(recipe):
    return [(phase["schedule"], phase["steps"], phase["lr"]) for phase in recipe.phases(60, 5)]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (1.0, [("end_to_end", 40, 1.0), ("end_to_end", 20, 0.5)]),
        (2 / 3, [("simultaneous", 20, 1.0), ("end_to_end", 20, 1.0), ("end_to_end", 20, 0.5)]),
        (1 / 3, [("simultaneous", 40, 1.0), ("end_to_end", 20, 0.5)]),
        (1 / 6, [("simultaneous", 40, 1.0), ("simultaneous", 10, 0.5), ("end_to_end", 10, 0.5)]),
        (0.0, [("simultaneous", 40, 1.0), ("simultaneous", 20, 0.5)]),
    ],
)
def test_the_phases_of_a_tail(tail, expected):
    assert shares(Recipe("simultaneous", tail, lr=1.0, cool=0.5)) == expected


def test_alternate_takes_turns_and_every_phase_clips():
    phases = Recipe("alternate", 1 / 3, lr=1.0, cool=0.5, clip="adaptive").phases(60, 5)
    assert [phase.get("turn_steps") for phase in phases] == [5, None]
    assert [phase["clip"] for phase in phases] == ["adaptive"] * 2 and "warmup_steps" in phases[0]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes_draw_equally_many_images_and_their_settings_parse(recipe):
    task, _ = digits(2)
    config = parse(task.run(recipe).options(Path("runs/x"))[:-2])
    assert sum(phase.steps for phase in config.phases) == task.steps and config.data.batch == task.batch
    assert sum(p.steps for p in config.phases if p.schedule == "end_to_end") == round(recipe.tail * task.steps)


def test_replicas_of_a_chain_are_one_run_but_for_the_grid():
    lineup = layouts(4)
    grids = [(one.parts, one.stages, one.replicas) for one in lineup if one.engine == ENGINES[0]]
    two = [(2, 1, 1), (2, 2, 1), (2, 1, 2), (2, 1, 3), (2, 2, 2), (2, 1, 4)]
    assert grids == [*two, (4, 1, 1), (4, 3, 1), (4, 4, 1)]
    assert {one.engine for one in lineup if (one.parts, one.stages, one.replicas) == (2, 2, 1)} == set(ENGINES)
    for layout in lineup:
        one, half = training_run(layout, 0, quick=False), by_parts_only(layout, 0, quick=False)
        config = parse(one.options(Path("runs/x"))[:-2])
        config.check_world(layout.processes, grid(layout.parts, layout.processes, config.parallel.replicas).replicas)
        same = dataclasses.replace(config, parallel=ParallelConfig(replicas=1), end_to_end=EndToEndConfig())
        assert same == parse(training_run(Layout(layout.parts, 1, 1), 0, quick=False).options(Path("runs/x"))[:-2])
        assert (config.parallel.replicas, config.end_to_end.engine) == (layout.replicas, layout.engine)
        assert [phase.schedule for phase in config.phases] == ["simultaneous", "end_to_end"]
        assert half.phases == one.phases[:1] and half.processes == one.processes
    assert len({training_run(layout, seed, False).directory for layout in lineup for seed in (0, 1)}) == 2 * len(lineup)


def test_a_run_is_named_by_its_settings():
    task, _ = digits(2)
    names = {task.run(recipe, seed).directory for recipe in RECIPES for seed in (0, 1)}
    names |= {task.run(RECIPES[0], 0, processes=2).directory, task.run(RECIPES[0].but(clip=1.0)).directory}
    assert len(names) == 2 * len(RECIPES) + 2
    assert task.run(RECIPES[0]).directory == task.run(RECIPES[0]).directory


def test_runs_are_done_once_and_a_divergence_is_a_result(tmp_path, capsys):
    words = ("--glow.levels", "2", "--glow.steps", "2", "--glow.hidden", "4", "--max_bad_steps", "1")
    words += ("--data.batch", "50", "--eval_every", "0.1")
    phase = {"schedule": "simultaneous", "steps": 6}
    runs = [TrainingRun(f"lr {lr:g}", words, ({**phase, "lr": lr},)) for lr in (1e-3, 1e30)]
    good, bad = train_all([*runs, runs[0]], tmp_path)[:2]
    assert "2 of 3 runs to do" in capsys.readouterr().out
    assert [point["images"] for point in good["curve"]] == [150, 300] and good["final"] == good["curve"][-1][
        "bits_per_dim"
    ]
    assert "not finite" in bad["failed"] and "final" not in bad
    assert train_all(runs, tmp_path) == [good, bad]
    assert "to do" not in capsys.readouterr().out


def test_the_grid_grows_where_the_best_is_at_its_edge():
    def best(lr):
        return [
            Tried(Recipe("alternate", 1 / 3, rate), abs(rate - lr))
            for rate in sorted((1, 2, 4), key=lambda x: abs(x - lr))
        ]

    assert (next_rates(best(1)), next_rates(best(2)), next_rates(best(4))) == ([0.5], [], [8])


def test_when_a_curve_reaches_a_target():
    curve = [{"bits_per_dim": bits, "seconds": seconds} for bits, seconds in ((None, 1), (4.0, 2), (3.0, 4), (3.5, 5))]
    assert crossing(curve, 3.5) == 3.0
    assert crossing(curve, 4.5) == 2.0
    assert crossing(curve, 2.9) is None


def test_the_floor_counts_the_products_of_the_convolutions():
    """As PyTorch's own counter does, forward and backward."""
    workload = Workload(levels=2, steps=3, hidden=16, size=16, batch=4, split_prior="standard")
    flow = Glow(workload.glow, workload.pixels.shape)
    images = torch.randint(0, 256, (workload.batch, *workload.pixels.shape), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        flow.log_prob(images).sum().backward()
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "convolution" in str(op))
    assert counted == operations(matrix_products(workload))


@pytest.mark.parametrize("library", ["normflows", "FrEIA", "nflows"])
@pytest.mark.filterwarnings("ignore")
def test_peers_have_the_same_networks_and_learn(library):
    pytest.importorskip(library)
    workload = Workload(levels=2, steps=2, hidden=8, size=8, batch=4, split_prior="standard")
    expected = convolutions(Glow(workload.glow, workload.pixels.shape))
    x = torch.rand(4, *workload.pixels.shape) - 0.5
    for build in peers(workload)[library].values():
        flow = build()
        logp = flow(x)
        logp.mean().backward()
        assert logp.shape == (4,) and logp.isfinite().all()
        assert convolutions(flow) == expected
        assert all(p.grad is not None for p in flow.parameters() if p.requires_grad)


def convolutions(flow):
    """Shapes of the networks' weights."""
    return Counter(tuple(m.weight.shape) for m in flow.modules() if isinstance(m, torch.nn.Conv2d))


def test_a_command_is_kept_without_paths():
    words = ["--json", "/x", "--root", "/data", "--runs=/y", "--root=/data", "--png", "/z", "--seeds", "3"]
    assert _without_paths(words) == ["--root", "DIR", "--root=DIR", "--seeds", "3"]


# --- each in its quick form: that it works, not how fast


def images(results):
    return {result["curve"][-1]["images"] for result in results}


@pytest.mark.slow
def test_quick_peers(tmp_path):
    found = quick("step.peers", tmp_path)
    assert found["floor_s"] > 0 and found["candidates"][0]["library"] == "pipeflow"
    for candidate in found["candidates"]:
        assert len(candidate["seconds"]) == found["config"]["rounds"]
        assert candidate["bits"][-1] < candidate["bits"][0]


@pytest.mark.slow
def test_quick_time_to_bpd(tmp_path):
    found = quick("learning.time_to_bpd", tmp_path)
    assert len(images([result for results in found["runs"].values() for result in results] + found["alone"])) == 1
    alone = {(one["name"], one["processes"], one["threads"]): one for one in found["alone"]}
    many = [one for one in found["alone"] if one["processes"] > 1]
    assert len(many) == len(alone) // 2 and all(one["measured_bytes"] > one["curve"][-1]["bytes"] > 0 for one in many)
    for (name, processes, threads), one in alone.items():
        if threads == 1:  # a process more adds up in another order
            assert one["final"] == pytest.approx(alone[name, 1, 1]["final"], abs=1e-3), processes


@pytest.mark.slow
def test_quick_equal_devices(tmp_path):
    found = quick("learning.equal_devices", tmp_path)
    rows = {row["way"]: row for row in found["rows"]}
    assert rows["DDP"]["computed_bytes"] > rows["by parts, last tenth DDP"]["computed_bytes"] > 0
    assert rows["by parts"]["computed_bytes"] < rows["by parts, last tenth DDP"]["computed_bytes"]
    assert all(row["measured_bytes"] > 0 for name, row in rows.items() if "end to end" not in name)
    same = [rows[way]["test"] for way in rows if "by parts" not in way]
    assert max(same) - min(same) < 1e-3, "end to end is the same training however it is spread"
