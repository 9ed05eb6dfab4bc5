"""benchmarks/: arms that are compared differ in what they are meant to differ in, and in nothing else."""

import dataclasses
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from answers import helps
from arm import Arm, carry_out
from matrix_products import matrix_products
from peer_glows import Size, peers
from questions import changes, contested, rates, together
from recipe import Recipe
from replicas import ENGINES, Layout, arm, by_parts_alone, layouts
from results_file import _without_places
from subjects import digits
from sweep import Tried, _next
from time_to_bpd import ARMS, crossing

from pipeflow import Glow, GlowConfig
from pipeflow.config import EndToEndConfig
from pipeflow.config.parser import parse
from pipeflow.distributed import ParallelConfig, grid

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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


def test_another_schedule_first_and_a_rate_a_part():
    recipe = Recipe("alternate", 1 / 3, lr=1.0, parts=(1, 2, 3), cool=0.5, first=("sequential", 6), clip=2.0)
    assert shares(recipe) == [
        ("sequential", 6, [1.0, 2.0, 3.0]),
        ("alternate", 34, [1.0, 2.0, 3.0]),
        ("end_to_end", 20, 0.5),
    ]
    phases = recipe.phases(60, 5)
    assert [phase.get("turn_steps") for phase in phases] == [None, 5, None]
    assert [phase["clip"] for phase in phases] == [2.0] * 3 and "warmup_steps" in phases[0]


@pytest.mark.parametrize("recipe", ARMS, ids=lambda recipe: recipe.name)
def test_arms_draw_equally_many_images_and_their_settings_parse(recipe):
    subject, _ = digits(2)
    arm = subject.arm(recipe)
    config = parse([*arm.command(Path("runs/x"))[:-2]])
    assert sum(phase.steps for phase in config.phases) == subject.steps and config.data.batch == subject.batch
    assert sum(p.steps for p in config.phases if p.schedule == "end_to_end") == round(recipe.tail * subject.steps)


def test_replicas_of_a_chain_are_one_run_but_for_the_grid():
    lineup = layouts(4)
    grids = [(one.parts, one.stages, one.replicas) for one in lineup if one.engine == ENGINES[0]]
    two = [(2, 1, 1), (2, 2, 1), (2, 1, 2), (2, 1, 3), (2, 2, 2), (2, 1, 4)]
    assert grids == [*two, (4, 1, 1), (4, 3, 1), (4, 4, 1)]
    assert {one.engine for one in lineup if (one.parts, one.stages, one.replicas) == (2, 2, 1)} == set(ENGINES)
    for layout in lineup:
        one, half = arm(layout, 0, quick=False), by_parts_alone(layout, 0, quick=False)
        config = parse([*one.command(Path("runs/x"))[:-2]])
        config.check_world(layout.processes, grid(layout.parts, layout.processes, config.parallel.replicas).replicas)
        same = dataclasses.replace(config, parallel=ParallelConfig(replicas=1), end_to_end=EndToEndConfig())
        assert same == parse([*arm(Layout(layout.parts, 1, 1), 0, quick=False).command(Path("runs/x"))[:-2]])
        assert (config.parallel.replicas, config.end_to_end.engine) == (layout.replicas, layout.engine)
        assert [phase.schedule for phase in config.phases] == ["simultaneous", "end_to_end"]
        assert half.phases == one.phases[:1] and half.processes == one.processes
    assert len({arm(layout, seed, False).directory for layout in lineup for seed in (0, 1)}) == 2 * len(lineup)


def test_a_run_is_named_by_its_settings():
    subject, _ = digits(2)
    names = {subject.arm(recipe, seed).directory for recipe in ARMS for seed in (0, 1)}
    names |= {subject.arm(ARMS[0], 0, processes=2).directory, subject.arm(ARMS[0].but(clip=1.0)).directory}
    assert len(names) == 2 * len(ARMS) + 2
    assert subject.arm(ARMS[0]).directory == subject.arm(ARMS[0]).directory


def test_runs_are_done_once_and_a_divergence_is_an_outcome(tmp_path, capsys):
    words = ("--glow.levels", "2", "--glow.steps", "2", "--glow.hidden", "4", "--max_bad_steps", "1")
    words += ("--data.batch", "50", "--eval_every", "0.1")
    arms = [Arm(f"lr {lr:g}", words, ({"schedule": "simultaneous", "steps": 6, "lr": lr},)) for lr in (1e-3, 1e30)]
    good, bad = carry_out([*arms, arms[0]], tmp_path)[:2]
    assert "2 of 3 runs to do" in capsys.readouterr().out
    assert [point["images"] for point in good["curve"]] == [150, 300] and good["final"] == good["curve"][-1][
        "bits_per_dim"
    ]
    assert "not finite" in bad["failed"] and "final" not in bad
    assert carry_out(arms, tmp_path) == [good, bad]
    assert "to do" not in capsys.readouterr().out


def test_the_grid_grows_where_the_best_is_at_its_edge():
    def best(lr):
        return [
            Tried(Recipe("alternate", 1 / 3, rate), abs(rate - lr))
            for rate in sorted((1, 2, 4), key=lambda x: abs(x - lr))
        ]

    assert (_next(best(1)), _next(best(2)), _next(best(4))) == ([0.5], [], [8])


def test_when_a_curve_reaches_a_target():
    curve = [{"bits_per_dim": bits, "seconds": seconds} for bits, seconds in ((None, 1), (4.0, 2), (3.0, 4), (3.5, 5))]
    assert crossing(curve, 3.5) == 3.0
    assert crossing(curve, 4.5) == 2.0
    assert crossing(curve, 2.9) is None


def test_changes_are_one_at_a_time_and_the_recipe_is_all_that_help():
    base = Recipe("simultaneous", 1 / 3, lr=1e-2)
    arms = rates(base) | changes(base, 600)
    for name, recipe in arms.items():
        changed = [key for key, value in vars(recipe).items() if value != getattr(base, key)]
        assert len(changed) == 1, name
    some = ("part 1: lr × 2", "part 3: lr × 0.5", "clip 1", "clip 10", "learned provisional priors")
    recipe = together(base, {name: arms[name] for name in some})
    assert (recipe.parts, recipe.clip, recipe.words) == ((2.0, 1.0, 0.5), 1.0, arms[some[-1]].words)
    assert together(base, {}) == base


def test_a_recipe_is_contested_by_other_schedules_and_by_what_costs():
    recipe = Recipe("simultaneous", 1 / 3, 0.016)
    best = [
        recipe.but(schedule="alternate", lr=0.032),
        recipe.but(lr=0.016),
        recipe.but(schedule="sequential", lr=0.064),
    ]
    arms = contested(recipe, best)
    assert list(arms.values())[:3] == [recipe, best[0], best[2]]
    assert len({str(arm) for arm in arms.values()}) == len(arms) == 6


def test_a_change_helps_by_more_than_its_standard_error():
    def runs(*bits):
        return [{"final": value} if value else {"failed": "not finite"} for value in bits]

    base = {"no change": runs(3.0, 3.1, 3.2)}
    assert helps(runs(2.9, 3.0, 3.0), base)
    assert not helps(runs(2.9, 3.3, 3.1), base)
    assert not helps(runs(2.0, 2.0, None), base)


def test_the_floor_counts_the_products_of_the_convolutions():
    """As PyTorch's own counter does, forward and backward."""
    size, batch = Size(2, 3, 16, (3, 16, 16)), 4
    flow = Glow(GlowConfig(size.levels, size.steps, size.hidden, split_prior="standard"), size.image)
    images = torch.randint(0, 256, (batch, *size.image), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        flow.log_prob(images).sum().backward()
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "convolution" in str(op))
    products: Counter = matrix_products(size, batch)
    assert counted == sum(2 * count * math.prod(shape) for shape, count in products.items())


@pytest.mark.parametrize("library", ["normflows", "FrEIA", "nflows"])
@pytest.mark.filterwarnings("ignore")
def test_peers_have_the_same_networks_and_learn(library):
    pytest.importorskip(library)
    size = Size(2, 2, 8, (3, 8, 8))
    own = Glow(GlowConfig(size.levels, size.steps, size.hidden, split_prior="standard"), size.image)
    x = torch.rand(4, *size.image) - 0.5
    for build in peers(size)[library].values():
        flow = build()
        logp = flow(x)
        logp.mean().backward()
        assert logp.shape == (4,) and logp.isfinite().all()
        assert convolutions(flow) == convolutions(own)
        assert all(p.grad is not None for p in flow.parameters() if p.requires_grad)


def convolutions(flow):
    """Shapes of the networks' weights."""
    return Counter(tuple(m.weight.shape) for m in flow.modules() if isinstance(m, torch.nn.Conv2d))


def test_a_command_is_kept_without_places():
    words = ["--json", "/x", "--root", "/data", "--runs=/y", "--root=/data", "--png", "/z", "--seeds", "3"]
    assert _without_places(words) == ["--root", "DIR", "--root=DIR", "--seeds", "3"]


# --- each as a whole, in its quick form: that it works, not how fast


def quick(name, directory):
    """What a quick run wrote; nothing is left beside it."""
    file = directory / f"{name}.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in directory.iterdir()} == {file.name, file.with_suffix(".png").name}
    assert str(directory) not in file.read_text(), "no paths of this machine"
    found = json.loads(file.read_text())
    assert {"date", "command", "hardware", "versions", "config"} <= found.keys()
    return found


def images(outcomes):
    return {outcome["curve"][-1]["images"] for outcome in outcomes}


@pytest.mark.slow
def test_quick_peers(tmp_path):
    found = quick("peers", tmp_path)
    assert found["floor_s"] > 0 and found["contenders"][0]["library"] == "pipeflow"
    for contender in found["contenders"]:
        assert len(contender["seconds"]) == found["config"]["rounds"]
        assert contender["bits"][-1] < contender["bits"][0]


@pytest.mark.slow
def test_quick_time_to_bpd(tmp_path):
    found = quick("time_to_bpd", tmp_path)
    assert len(images([outcome for outcomes in found["arms"].values() for outcome in outcomes] + found["alone"])) == 1
    alone = {(one["name"], one["processes"], one["threads"]): one for one in found["alone"]}
    many = [one for one in found["alone"] if one["processes"] > 1]
    assert len(many) == len(alone) // 2 and all(one["measured_bytes"] > one["curve"][-1]["bytes"] > 0 for one in many)
    for (name, processes, threads), one in alone.items():
        if threads == 1:  # a process more adds up in another order
            assert one["final"] == pytest.approx(alone[name, 1, 1]["final"], abs=1e-3), processes


@pytest.mark.slow
def test_quick_questions(tmp_path):
    found = quick("questions", tmp_path)
    asked = [found[key] for key in ("schedules", "rates", "changes", "recipe")]
    assert len(images([outcome for arms in asked for outcomes in arms.values() for outcome in outcomes])) == 1
    assert len(found["schedules"]) == 3 and "learned provisional priors" in found["changes"]
    chose, fresh = ({one["seed"] for one in found[key]["recipe"]} for key in ("recipe", "recipe_on_fresh_seeds"))
    assert chose and fresh and chose.isdisjoint(fresh)


@pytest.mark.slow
def test_quick_alternate(tmp_path):
    found = quick("alternate", tmp_path)
    names = [stream["name"] for stream in found["training"]]
    assert names == ["part 1", "part 2", "part 3", "end to end"]
    learned = [[bits is not None for bits in stream["bits_per_dim"]] for stream in found["training"]]
    assert all(sum(now) == 1 for now in zip(*learned, strict=True)), "one learns at a time"
