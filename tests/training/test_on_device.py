"""Small runs on the device of the tests: what a GPU computes in its own way, in one process and in three that share it.

With --device cuda these are the first runs on a GPU: packets through pinned memory, losses read late, updates that the
device skips, CUDA graphs, compiled steps.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeflow.config import Config, EndToEndConfig, PhaseConfig
from pipeflow.distributed import ParallelConfig
from pipeflow.model import Flow
from pipeflow.storage.checkpoint import load
from tests.support.processes import in_processes
from tests.support.small_runs import fit_each, fit_in, small_config

PHASES = [
    PhaseConfig("simultaneous", steps=8, lr=1e-3, warmup_steps=4, clip=1.0),
    PhaseConfig("alternate", steps=12, turn_steps=3, lr=1e-3, optimizer="adamw"),
    PhaseConfig("end_to_end", steps=8, lr=1e-3),
]
STEPS, BY_PARTS = (8, 20, 28), (8, 20)
BF16 = {"precision": "bf16", "layout": "channels_last"}
# Settings, and how far a loss may be from that of the plain run, in bits/dim.
VARIANTS: dict[str, tuple[dict, float]] = {
    "again": ({}, 0),
    "checkpoint": ({"activations": "checkpoint"}, 1e-5),
    "invert": ({"activations": "invert"}, 1e-3),
    "bf16": (BF16, 0.05),
    "CUDA graphs": ({"cuda_graphs": True}, 1e-5),
    "CUDA graphs, invert": ({"cuda_graphs": True, "activations": "invert"}, 1e-3),
    "CUDA graphs, bf16": ({"cuda_graphs": True, **BF16}, 0.05),
    "compiled": ({"compile": "steps"}, 1e-3),
    "compiled, invert": ({"compile": "steps", "activations": "invert"}, 1e-3),
    "compiled, CUDA graphs, bf16": ({"compile": "steps", "cuda_graphs": True, **BF16}, 0.05),
}


def config_of(run: Path, device: torch.device, **others) -> Config:
    return small_config(run, PHASES, device=device.type, deterministic=True, ema=0.9, **others)


def tensors(run: Path, step: int):
    return load(run / "checkpoints" / f"step-{step}")[0]


def losses(run: Path):
    """(stream, step) → bits/dim."""
    files = [run / "metrics" / f"{name}.jsonl" for name in ("part-1", "part-2", "part-3", "end_to_end")]
    lines = [(file.stem, json.loads(line)) for file in files for line in file.read_text().splitlines()]
    return {(name, line["step"]): line["bits_per_dim"] for name, line in lines}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, device):
    directory = tmp_path_factory.mktemp("plain") / "run"
    fit_in("", config_of(directory, device))
    return directory


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_computes_what_the_plain_one_does(plain, tmp_path, device, name):
    settings, within = VARIANTS[name]
    if device.type != "cuda" and {"cuda_graphs", "compile"} & settings.keys():
        pytest.skip("needs a GPU; on the CPU, tests/stage/test_cuda_graphs.py and tests/model/test_activations.py")
    fit_in("", config_of(tmp_path / "run", device, **settings))
    expected, found = losses(plain), losses(tmp_path / "run")
    assert found.keys() == expected.keys() and len(found) > 8 * 3 + 8
    assert max(abs(found[key] - expected[key]) for key in expected) <= within
    if not within:
        for step in STEPS:
            there, here = tensors(plain, step), tensors(tmp_path / "run", step)
            assert [key for key in there if not torch.equal(here[key], there[key])] == []


def test_processes_that_share_the_device_compute_the_bits_of_one(plain, tmp_path, device):
    parallel = ParallelConfig(backend="gloo")
    variants = {"plain": {}} | ({"graphs": {"cuda_graphs": True}} if device.type == "cuda" else {})
    configs = [config_of(tmp_path / key, device, parallel=parallel, **more) for key, more in variants.items()]
    in_processes(3, fit_each, configs, directory=tmp_path / "meet")
    for step in BY_PARTS:
        there, here = tensors(plain, step), tensors(tmp_path / "plain", step)
        assert [key for key in there if not torch.equal(here[key], there[key])] == []
    for name in variants:
        results = [json.loads((run / "result.json").read_text()) for run in (plain, tmp_path / name)]
        assert results[0]["test_bits_per_dim"] == pytest.approx(results[1]["test_bits_per_dim"], abs=1e-3)


def test_a_resumed_run_is_the_run(plain, tmp_path, device):
    fit_in("", config_of(tmp_path / "run", device), plain / "checkpoints" / "step-8")
    for step in STEPS[1:]:
        there, here = tensors(plain, step), tensors(tmp_path / "run", step)
        assert [key for key in there if not torch.equal(here[key], there[key])] == []


def uploads(init_method: str, config: Config) -> int:
    """How often this process copied the training images to its device; it trains."""
    count = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeflow.training.run.resident", lambda images, device: count.append(1) or images)
        fit_in(init_method, config)
    return len(count)


@pytest.mark.parametrize(
    ("schedule", "engine", "expected"),
    [("simultaneous", "ddp", [1, 0, 0]), ("end_to_end", "ddp", [1, 1, 1]), ("end_to_end", "pipeline", [1, 0, 0])],
)
def test_only_processes_that_draw_images_keep_them_on_their_device(tmp_path, schedule, engine, expected):
    phases = [PhaseConfig(schedule, steps=2), PhaseConfig(schedule, steps=1)]
    config = small_config(tmp_path / "run", phases, end_to_end=EndToEndConfig(engine))
    assert in_processes(3, uploads, config, directory=tmp_path / "meet") == expected


def test_samples_are_drawn_on_the_device(tmp_path, device, monkeypatch):
    seen = []
    monkeypatch.setattr(Flow, "to", lambda self, *where: seen.append(where) or nn.Module.to(self, *where))
    fit_in("", small_config(tmp_path / "run", [PhaseConfig("simultaneous", steps=1)], device=device.type))
    assert [where.type for (where,) in seen] == [device.type]


def test_bad_updates_are_skipped_and_counted(tmp_path, device):
    phases = [PhaseConfig("simultaneous", steps=12, lr=[1e-3, 1e30, 1e-3])]
    config = small_config(tmp_path / "run", phases, device=device.type, max_bad_steps=2)
    with pytest.raises(FloatingPointError, match=r"part 2 .* stops at step .* 2 times in a row"):
        fit_in("", config)
