"""What an earlier version left is read, resumed, evaluated, sampled and reported by this one (tests/fixtures)."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import pipeflow.evaluate
import pipeflow.report
import pipeflow.sample
from pipeflow import load
from pipeflow.storage import RunDirectory, checkpoint
from pipeflow.train import main

FIXTURE = RunDirectory(Path(__file__).parents[1] / "fixtures" / "run_98f3799")
TOLERANCE = 1e-4  # processors and versions of torch add in orders of their own
BITS_PER_DIM = 4.158790409423593


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy where its settings say that it is: runs/old."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIXTURE.path, "runs/old")
    return RunDirectory(Path("runs/old"))


def lines(run, stream):
    return [json.loads(line) for line in run.stream(stream).read_text().splitlines()]


def test_it_is_read(old):
    assert [checkpoint.newest(old.path)[0], old.saved_steps()] == [old.checkpoint(30), [10, 20, 30]]
    _, manifest = checkpoint.load(old.checkpoint(10))
    assert (manifest.step, manifest.at, manifest.image, manifest.levels) == (10, [1], [1, 8, 8], 17)
    assert load(old.path).sample(2).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    "words", [["--run_dir", "runs/old", "--resume", "auto"], ["--resume", "runs/old/checkpoints/step-10"]]
)
def test_it_is_resumed_to_the_same_losses(old, words):
    for step in (20, 30):
        shutil.rmtree(old.checkpoint(step))
    old.result.unlink()
    assert main(words) == 0
    for stream in ("part-1", "part-2", "end_to_end", "evaluation"):
        found, expected = lines(old, stream), lines(FIXTURE, stream)
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        for line, other in zip(found, expected, strict=True):
            assert line["bits_per_dim"] == pytest.approx(other["bits_per_dim"], abs=TOLERANCE)
    for step in (20, 30):
        tensors, others = (checkpoint.load(run.checkpoint(step))[0] for run in (old, FIXTURE))
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=TOLERANCE, msg=name)
    assert json.loads(old.result.read_text())["test_bits_per_dim"] == pytest.approx(BITS_PER_DIM, abs=TOLERANCE)


def test_a_finished_one_has_nothing_left_to_do(old, capsys):
    assert main(["--run_dir", "runs/old", "--resume", "auto"]) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert sorted(path.name for path in old.path.iterdir()) == sorted(path.name for path in FIXTURE.path.iterdir())


def test_it_is_evaluated_sampled_and_reported(old, capsys):
    assert pipeflow.evaluate.main(["runs/old"]) == 0
    (found,) = re.findall(r"^model +(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert float(found) == pytest.approx(BITS_PER_DIM, abs=TOLERANCE)
    assert pipeflow.sample.main(["runs/old", "--n", "4", "--out", "images.png"]) == 0
    assert Path("images.png").read_bytes().startswith(b"\x89PNG")
    assert pipeflow.report.main(["runs/old"]) == 0
    assert "old" in (old.path / "report.html").read_text()
