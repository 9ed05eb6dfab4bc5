"""Training images held out for validation: evaluated on them while it trains, a run is tested once, at its end."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeflow.config import PhaseConfig
from pipeflow.data import DataConfig
from pipeflow.data.datasets import load
from pipeflow.evaluate import main as evaluate
from pipeflow.reporting import read_run, write_report
from pipeflow.storage import CheckpointConfig, checkpoint
from pipeflow.training import fit, pauses
from tests.support.processes import in_processes
from tests.support.small_runs import fit_in, small_config

HELD_OUT = 50
DATA = DataConfig(batch=12, init_batch=32, validation=HELD_OUT)
PHASES = [PhaseConfig("simultaneous", steps=6), PhaseConfig("alternate", steps=6, turn_steps=2)]
EVERY_3_STEPS = 3 * 12 / (1500 - HELD_OUT)


def config_in(run, phases=PHASES, data=DATA, **others):
    saves = CheckpointConfig(every=3, keep=100)
    return small_config(run, phases, data=data, eval_every=EVERY_3_STEPS, checkpoint=saves, seed=5, **others)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("validation") / "run"
    fit(config_in(directory))
    return directory


def lines(run):
    return [json.loads(line) for line in (run / "metrics" / "evaluation.jsonl").read_text().splitlines()]


def curve(run):
    return [(line["step"], line["images"], line["parts"]) for line in lines(run)]


def result(run):
    return json.loads((run / "result.json").read_text())


def assert_equal_runs(one, other, steps=(3, 6, 9, 12)):
    assert curve(one) == curve(other)
    for step in steps:
        tensors, others = (checkpoint.load(run / "checkpoints" / f"step-{step}")[0] for run in (one, other))
        assert tensors.keys() == others.keys()
        assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


def test_it_is_the_run_of_a_script_that_holds_the_images_out_itself(tmp_path):
    """Equal bits, though the second run has no other images than those that are left, and those held out as its test
    split: so none that is held out is trained on, and evaluations are on nothing else."""
    digits = load("digits", None, None)
    mine = digits.hold_out(HELD_OUT, seed=5)
    own = dataclasses.replace(DATA, name="own", validation=0)
    apart, held = tmp_path / "apart", tmp_path / "held"
    fit(config_in(apart, data=own), data=(mine.train, mine.validation))
    held_out = dataclasses.replace(own, validation=HELD_OUT)
    fit(config_in(held, data=held_out), data=(digits.train, digits.test))
    assert_equal_runs(apart, held)
    assert result(held)["validation_bits_per_dim"] == result(apart)["test_bits_per_dim"]
    assert result(held)["test_bits_per_dim"] != result(apart)["test_bits_per_dim"]


def test_three_processes_hold_out_the_same_images(run, tmp_path):
    in_processes(3, fit_in, config_in(tmp_path / "run"), directory=tmp_path / "meet")
    assert_equal_runs(run, tmp_path / "run")
    for name in ("test_bits_per_dim", "validation_bits_per_dim"):
        assert result(run)[name] == result(tmp_path / "run")[name]


def test_a_resumed_run_holds_out_the_same_images(run, tmp_path):
    fit(config_in(tmp_path / "run"), resume=run / "checkpoints" / "step-3")
    assert curve(tmp_path / "run") == [line for line in curve(run) if line[0] > 3]
    for name in ("test_bits_per_dim", "validation_bits_per_dim"):
        assert result(run)[name] == result(tmp_path / "run")[name]


def test_how_many_are_held_out_cannot_change(run, tmp_path):
    config = config_in(tmp_path / "run", data=dataclasses.replace(DATA, validation=49))
    with pytest.raises(ValueError, match=r"data\.validation is 49, but 50 in .*cannot change"):
        fit(config, resume=run / "checkpoints" / "step-3")


def test_the_test_split_is_looked_at_once_and_last(tmp_path, monkeypatch):
    scored, score = [], pauses.evaluate

    def counted(chain, slices, images, *others):
        scored.append(len(images))
        return score(chain, slices, images, *others)

    monkeypatch.setattr(pauses, "evaluate", counted)
    fit(config_in(tmp_path / "run"))
    assert scored == [HELD_OUT] * 4 + [297]


def test_every_figure_names_its_split(tmp_path, capsys):
    run = tmp_path / "run"
    fit(config_in(run, [PhaseConfig("simultaneous", steps=6)]))
    said = capsys.readouterr().out
    assert "digits: 1450 training, 50 validation and 297 test images" in said
    *while_training, last, summary = [line for line in said.splitlines() if "bits/dim of the model" in line]
    assert len(while_training) == 2 and all(": validation bits/dim of the model" in line for line in while_training)
    assert f": test bits/dim of the model {result(run)['test_bits_per_dim']:.4f}" in last
    assert ": test bits/dim" in summary and "result.json" in summary
    assert [(line["step"], line["split"], line["images"]) for line in lines(run)] == [
        (3, "validation", HELD_OUT),
        (6, "validation", HELD_OUT),
    ]
    assert result(run)["ledger"]["images"] == 297
    manifest = checkpoint.read_manifest(run / "checkpoints" / "step-6")
    assert manifest.validation_bits_per_dim == result(run)["validation_bits_per_dim"] == lines(run)[-1]["bits_per_dim"]
    assert manifest.test_bits_per_dim is None
    board = EventAccumulator(str(run / "tensorboard" / "model"))
    board.Reload()
    assert [event.step for event in board.Scalars("validation/model")] == [3, 6]
    assert [event.step for event in board.Scalars("test/model")] == [6]


def test_the_report_names_the_split(run, tmp_path):
    page = " ".join(Path(write_report([run])).read_text().split())
    for split in ("test", "validation"):
        bits = result(run)[f"{split}_bits_per_dim"]
        assert f'{split} bits/dim</th><td><data value="{bits!r}">{bits:.4f}</data></td>' in page
    assert "</data> test bits/dim of the model" in page and "Points: the validation split." in page
    assert read_run(run).checkpoints[-1].bits_per_dim == result(run)["validation_bits_per_dim"]


def test_the_command_evaluate_scores_either_split(run, tmp_path, capsys):
    for split, images in (("validation", HELD_OUT), ("test", 297)):
        file = tmp_path / f"{split}.json"
        assert evaluate([str(run), "--split", split, "--json", str(file)]) == 0
        assert f": {images} {split} images of digits" in capsys.readouterr().out
        (found,) = json.loads(file.read_text())["results"]
        assert (found["split"], found["images"]) == (split, images)
        bits = found["truncations"][-1]["bits_per_dim"]["mean"]
        assert bits == pytest.approx(result(run)[f"{split}_bits_per_dim"], rel=0, abs=1e-6)


def test_a_validation_split_that_is_not_there(run, tmp_path, capsys):
    assert evaluate([str(run), "--split", "validation", "--data", "digits"]) != 0
    assert "--split validation is of the run's own data" in capsys.readouterr().err
    without = tmp_path / "without"
    fit(config_in(without, [PhaseConfig("simultaneous", steps=1)], data=dataclasses.replace(DATA, validation=0)))
    assert evaluate([str(without), "--split", "validation"]) != 0
    assert "has no validation split: data.validation is 0" in capsys.readouterr().err
