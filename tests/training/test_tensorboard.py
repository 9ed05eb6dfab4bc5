"""TensorBoard finds what the JSONL streams say, at the same steps, also after an interruption."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeflow.config import PhaseConfig
from pipeflow.storage import CheckpointConfig
from pipeflow.training import fit
from tests.support.small_runs import small_config

PHASES = [PhaseConfig("simultaneous", steps=20), PhaseConfig("end_to_end", steps=20)]


def events(run, name):
    board = EventAccumulator(str(run / "tensorboard" / name))
    board.Reload()
    return board


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = small_config(
        tmp_path_factory.mktemp("board") / "run", PHASES, checkpoint=CheckpointConfig(every=15, keep=9)
    )
    fit(config)
    return Path(config.run_dir)


def lines(run, name):
    return [json.loads(line) for line in (run / "metrics" / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "steps"), [("part-1", [10, 20]), ("part-3", [10, 20]), ("end_to_end", [30, 40])])
def test_every_tenth_batch_of_every_part(run, name, steps):
    found = {event.step: event.value for event in events(run, name).Scalars("train/bits_per_dim")}
    said = {line["step"]: line["bits_per_dim"] for line in lines(run, name)}
    assert list(found) == steps
    assert all(value == pytest.approx(said[step], rel=1e-6) for step, value in found.items())
    assert {"seconds/wait", "seconds/compute", "seconds/send"} <= set(events(run, name).Tags()["scalars"])


def test_evaluations_and_samples_of_the_model(run):
    board = events(run, "model")
    found = {event.step: event.value for event in board.Scalars("test/model")}
    assert found == {line["step"]: pytest.approx(line["bits_per_dim"], rel=1e-6) for line in lines(run, "evaluation")}
    assert {"test/truncated after part 1", "test/truncated after part 2"} <= set(board.Tags()["scalars"])
    assert [image.step for image in board.Images("samples")] == [20, 40] and board.Images("samples")[0].width == 8 * 8


def test_what_comes_again_is_shown_once(run):
    (run / "result.json").unlink()
    for step in (40, 30):
        for path in (run / "checkpoints" / f"step-{step}").iterdir():
            path.unlink()
    config = small_config(run, PHASES, checkpoint=CheckpointConfig(every=15, keep=9))
    fit(config, resume="auto")
    assert [event.step for event in events(run, "end_to_end").Scalars("train/bits_per_dim")] == [30, 40]
    assert [event.step for event in events(run, "model").Scalars("test/model")] == [20, 40]
