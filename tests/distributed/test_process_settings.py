"""A notebook keeps its threads, its allocator and its environment; only a command changes those of its process."""

import os

import pytest
import torch

from pipeflow import evaluate, sample, train
from pipeflow.config import PhaseConfig
from pipeflow.distributed import ParallelConfig, open_world, prepare_process
from pipeflow.inference import load, read, score
from pipeflow.training import fit
from tests.support.small_runs import small_config

THREADS_OF_THE_USER = 3


@pytest.fixture
def process(monkeypatch):
    """A process whose user has chosen a number of threads; the list names every change of the allocator."""
    before, changes = torch.get_num_threads(), []
    monkeypatch.setattr("pipeflow.distributed.process_settings.keep_memory", lambda: changes.append("mallopt"))
    torch.set_num_threads(THREADS_OF_THE_USER)
    yield changes
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "run"
    fit(small_config(directory, [PhaseConfig("simultaneous", steps=2)]))
    return directory


def test_a_library_call_changes_nothing(process, run, tmp_path):
    environment = dict(os.environ)
    open_world(ParallelConfig(), 1, "cpu")
    load(run)
    trained = read(run)
    score(trained, torch.zeros(2, 8, 8, 1, dtype=torch.uint8).numpy())
    seen = []
    during = lambda chain, *_: seen.append(torch.get_num_threads())  # noqa: E731
    config = small_config(tmp_path / "run", [PhaseConfig("simultaneous", steps=1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeflow.stage.Stage.connect", _before(during, "pipeflow.stage.Stage.connect"))
        fit(config)
    assert seen and set(seen) == {config.parallel.threads}, "fit trains with the threads of its settings"
    assert torch.get_num_threads() == THREADS_OF_THE_USER
    assert dict(os.environ) == environment and process == []


def test_fit_restores_the_threads_after_an_error(process, run):
    with pytest.raises(ValueError, match="already holds a run"):
        fit(small_config(run, [PhaseConfig("simultaneous", steps=2)]))
    assert torch.get_num_threads() == THREADS_OF_THE_USER


def test_commands_prepare_their_process(process, run, tmp_path):
    words = ["--run_dir", str(tmp_path / "trained"), "--glow.levels", "1", "--glow.steps", "2", "--glow.hidden", "4"]
    words += ["--cut.parts", "1", "--phases", '[{"schedule": "simultaneous", "steps": 1}]', "--device", "cpu"]
    commands = [
        lambda: train.main(words),
        lambda: evaluate.main([str(run), "--device", "cpu"]),
        lambda: sample.main([str(run), "--out", str(tmp_path / "x.png"), "--n", "1", "--device", "cpu"]),
    ]
    for command in commands:
        torch.set_num_threads(THREADS_OF_THE_USER)
        process.clear()
        assert command() == 0
        assert torch.get_num_threads() == 1 and process == ["mallopt"]


def test_the_allocator_of_a_gpu_process_stays(process):
    prepare_process(2, torch.device("cuda"))
    assert torch.get_num_threads() == 2 and process == []


def _before(look, name):
    """The method of that name, after a call of `look`."""
    from pydoc import locate

    method = locate(name)

    def called(*arguments, **options):
        look(*arguments)
        return method(*arguments, **options)

    return called


def test_deterministic_kernels_are_asked_for_during_the_run_alone(process, tmp_path, monkeypatch):
    def state():
        memory = torch.utils.deterministic.fill_uninitialized_memory
        kernels = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
        return *kernels, memory, os.environ.get("CUBLAS_WORKSPACE_CONFIG")

    before, seen = state(), []
    monkeypatch.setattr(
        "pipeflow.stage.Stage.connect", _before(lambda *_: seen.append(state()), "pipeflow.stage.Stage.connect")
    )
    for name, deterministic in (("asked", True), ("not asked", False)):
        fit(small_config(tmp_path / name, [PhaseConfig("simultaneous", steps=1)], deterministic=deterministic))
        assert state() == before
    assert set(seen) == {(True, True, False, ":4096:8"), before}
