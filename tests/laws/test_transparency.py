"""Law 4: by parts, the same bits in any number of processes; and what end to end does to that."""

import json
from pathlib import Path

import pytest
import torch

from pipeflow.config import Config, PhaseConfig
from pipeflow.storage.checkpoint import load
from tests.support.processes import in_processes
from tests.support.small_runs import FLOWS, fit_each, small_config

SCHEDULES = {
    "simultaneous": [PhaseConfig("simultaneous", steps=7, lr=[2e-3, 1e-3, 3e-3], warmup_steps=3, clip=0.5)],
    "alternate": [PhaseConfig("alternate", steps=14, turn_steps=2, lr=2e-3, optimizer="adamax")],
    "sequential": [PhaseConfig("sequential", steps=8, lr=2e-3, optimizer="adamw")],
    "all, one after another": [
        PhaseConfig("sequential", steps=4),
        PhaseConfig("simultaneous", steps=4),
        PhaseConfig("alternate", steps=6, turn_steps=1),
    ],
}
JOINED = {
    "by parts, then end to end": [
        PhaseConfig("simultaneous", steps=5, clip=1.0),
        PhaseConfig("end_to_end", steps=8, clip=1.0),
    ],
    "there and back": [
        PhaseConfig("end_to_end", steps=2),
        PhaseConfig("simultaneous", steps=3),
        PhaseConfig("end_to_end", steps=2),
    ],
}
RUNS = {name: (phases, FLOWS["glow"]) for name, phases in (SCHEDULES | JOINED).items()} | {
    f"{flow}, {name}": ((SCHEDULES | JOINED)[name], FLOWS[flow])
    for flow in ("jet with labels", "tarflow")  # with heads, all families are in tests/model/test_families.py
    for name in ("all, one after another", "by parts, then end to end")
}
ENDING_JOINED = [name for name, (phases, _) in RUNS.items() if phases[-1].schedule == "end_to_end"]
# Phases pause for evaluations within their turns: 125 steps an epoch with batches of 12.
EVERY_FEW_STEPS = 5 / 125


def schedule_configs(directory: Path, size: int) -> list[Config]:
    return [
        small_config(directory / f"{size}-{number}", phases, eval_every=EVERY_FEW_STEPS, **flow)
        for number, (phases, flow) in enumerate(RUNS.values())
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every schedule in 1, 2 and 3 processes: size → name → run directory."""
    directory = tmp_path_factory.mktemp("transparency")
    configs = {size: schedule_configs(directory, size) for size in (1, 2, 3)}
    for size in configs:
        in_processes(size, fit_each, configs[size], directory=directory / f"meet-{size}")
    return {size: dict(zip(RUNS, (Path(config.run_dir) for config in configs[size]), strict=True)) for size in configs}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", [name for name in RUNS if name not in ENDING_JOINED])
def test_weights_moments_and_losses_are_equal_to_the_bit(runs, size, name):
    one, many = runs[1][name], runs[size][name]
    steps = sorted_steps(one)
    assert steps == sorted_steps(many)
    assert len(steps) == len(RUNS[name][0])
    for step in steps:
        expected, _ = load(one / "checkpoints" / step)
        found, _ = load(many / "checkpoints" / step)
        assert expected.keys() == found.keys()
        assert any("/" in name for name in expected), "moments are part of a checkpoint"
        for name in expected:
            assert torch.equal(expected[name], found[name]), name
    for part in (1, 2, 3):
        losses = [_losses(run / "metrics" / f"part-{part}.jsonl") for run in (one, many)]
        assert losses[0] == losses[1]
    assert _evaluations(one) == _evaluations(many)


def test_training_changed_every_parameter(runs):
    """Equality means nothing if nothing moved."""
    start, _ = load(runs[1]["all, one after another"] / "checkpoints" / "step-4")
    end, _ = load(runs[1]["all, one after another"] / "checkpoints" / "step-14")
    same = [
        name
        for name in start
        if "/" not in name and start[name].is_floating_point() and torch.equal(start[name], end[name])
    ]
    assert all(name.endswith(("conv1x1.sign", "conv1x1.permutation")) for name in same), same


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ENDING_JOINED)
def test_end_to_end_agrees_within_float_tolerance(runs, size, name):
    """DDP adds gradients up in another order; what came before it is equal to the bit."""
    one, many = runs[1][name], runs[size][name]
    learned_apart = True
    for phase, step in zip(RUNS[name][0], sorted_steps(one), strict=True):
        learned_apart &= phase.schedule != "end_to_end"
        expected, found = (load(run / "checkpoints" / step)[0] for run in (one, many))
        assert expected.keys() == found.keys()
        for key in expected:
            if learned_apart:
                assert torch.equal(expected[key], found[key]), key
            torch.testing.assert_close(
                found[key], expected[key], rtol=1e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
    results = [json.loads((run / "result.json").read_text())["test_bits_per_dim"] for run in (one, many)]
    assert results[0] == pytest.approx(results[1], abs=1e-4)


def test_moments_go_on_across_the_switch_and_back(runs):
    end, _ = load(runs[3]["there and back"] / "checkpoints" / "step-7")
    assert end["step/steps.1.actnorm.bias"] == 7


def sorted_steps(run: Path) -> list[str]:
    names = [path.name for path in (run / "checkpoints").iterdir()]
    return sorted(names, key=lambda name: int(name.removeprefix("step-")))


def _losses(path: Path) -> list[tuple[int, bool, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines
    return [(line["step"], line["learn"], line["bits_per_dim"]) for line in lines]


def _evaluations(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics" / "evaluation.jsonl").read_text().splitlines()]
    assert lines
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]
