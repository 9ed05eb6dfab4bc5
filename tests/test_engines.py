"""End to end, a model that is spread over the processes is the model of one process, and resumes like it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from distributed import in_processes
from small import fit_in, small_config

from pipeflow.checkpoint import load
from pipeflow.config import Config
from pipeflow.schedule import EndToEndConfig, PhaseConfig
from pipeflow.world import ParallelConfig

PHASES = [
    PhaseConfig("simultaneous", steps=3, lr=2e-3),
    PhaseConfig("end_to_end", steps=6, lr=2e-3, clip=0.5, warmup_steps=2),
    PhaseConfig("end_to_end", steps=2, lr=1e-3),
    PhaseConfig("simultaneous", steps=2),
]


def carry_out(init_method: str, configs: list[Config], resume: Path) -> None:
    for number, config in enumerate(configs):
        fit_in(f"{init_method}-{number}", config, resume if config.run.endswith("resumed") else None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process under DDP and under FSDP, two under FSDP, whole and resumed at step 6 and as two replicas."""
    directory = tmp_path_factory.mktemp("engines")
    names = ("one", "alone", "two", "replicas", "resumed")
    given = {"ema": 0.9, "eval_every": 4 / 125}
    one, alone, two, replicas, resumed = (small_config(directory / name, PHASES, **given) for name in names)
    saved = dataclasses.replace(one.checkpoint, every=3, keep=9)
    one, alone, two, replicas, resumed = (
        dataclasses.replace(config, checkpoint=saved, end_to_end=EndToEndConfig("ddp" if config is one else "fsdp"))
        for config in (one, alone, two, replicas, resumed)
    )
    replicas = dataclasses.replace(replicas, parallel=ParallelConfig(replicas=2))
    source = directory / "two" / "checkpoints" / "step-6"
    for config in (one, alone):
        fit_in("", config)
    in_processes(2, carry_out, [two, replicas, resumed], source, directory=directory / "meet")
    return {name: directory / name for name in names}


def tensors(run: Path, step: int):
    return load(run / "checkpoints" / f"step-{step}")[0]


@pytest.mark.parametrize("name", ["alone", "two", "replicas"])
def test_it_is_the_model_of_one_process(runs, name):
    for step in (3, 6, 9, 11, 13):
        expected, found = tensors(runs["one"], step), tensors(runs[name], step)
        assert expected.keys() == found.keys()
        for key in expected:
            torch.testing.assert_close(
                found[key], expected[key], rtol=1e-3, atol=5e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
    results = [json.loads((runs[run] / "result.json").read_text()) for run in ("one", name)]
    assert results[0]["test_bits_per_dim"] == pytest.approx(results[1]["test_bits_per_dim"], abs=1e-4)


def test_resumed_it_is_the_same_to_the_bit(runs):
    for step in (9, 11, 13):
        expected, found = tensors(runs["two"], step), tensors(runs["resumed"], step)
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
