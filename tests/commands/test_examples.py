"""The examples as people run them: real commands, in one process and under torchrun, and what comes of them."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import pipeflow
from pipeflow.evaluate import main as evaluate
from pipeflow.report import main as report
from pipeflow.storage import checkpoint
from pipeflow.train import main as train

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def example(name, *words, cwd, two=False):
    """Runs `python examples/<name>.py words` in one process, or as two."""
    command = [
        sys.executable,
        *(TORCHRUN if two else []),
        str(EXAMPLES / f"{name}.py"),
        *words,
    ]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def module(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def figures(output):
    """The lines that a run prints, but for how many processes, how long, how fast and where."""
    text = re.sub(r"on (1 process|2 processes)|, about [^:]*left|^\S+: (?=test)", "", output, flags=re.M)
    return [line for line in text.splitlines() if line and not line.startswith("images/s: ")]


def assert_equal_ends(one, other, step):
    tensors, others = (checkpoint.load(run / "checkpoints" / f"step-{step}")[0] for run in (one, other))
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


# --- a RealNVP on points

STEPS = 300
PHASE = "{{schedule: simultaneous, steps: {}, lr: {}, clip: 1}}"
SHORT = ["--phases", f"[{PHASE.format(220, 5e-3)}, {PHASE.format(80, 5e-4)}]", "--checkpoint.every", "150"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return tmp_path_factory.mktemp("realnvp")


@pytest.fixture(scope="module")
def one(here):
    return example("realnvp", "--run_dir", "one", "--out", "one.png", *SHORT, cwd=here)


@pytest.fixture(scope="module")
def two(here):
    return example("realnvp", "--run_dir", "two", "--out", "two.png", *SHORT, cwd=here, two=True)


def test_one_and_two_processes_print_and_save_the_same(one, two, here):
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert len(figures(one.stdout)) > 6 and figures(one.stdout) == figures(two.stdout)
    assert "2 processes" in two.stdout and "bits/dim are those of a density" in one.stdout
    assert_equal_ends(here / "one", here / "two", STEPS)
    assert (imread(here / "one.png") == imread(here / "two.png")).all()


def test_every_truncation_beats_a_gaussian(one, here):
    moons = module("realnvp").moons
    data, test = moons(20_000, 0), moons(5_000, 1)
    mean, covariance = data.mean(0), np.cov(data.T)
    away = test - mean
    squared = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away).mean()
    nats = 0.5 * (squared + np.linalg.slogdet(2 * math.pi * covariance)[1])
    result = json.loads((here / "one" / "result.json").read_text())
    bits = [part["bits_per_dim"] for part in result["ledger"]["parts"]]
    assert len(bits) == 3 and max(bits) < nats / (2 * math.log(2)) - 0.1
    assert result["test_bits_per_dim"] == bits[2] < bits[1] < bits[0]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_every_truncation_is_a_density_and_draws_from_it(parts, one, here):
    own = module("realnvp")
    flow = pipeflow.load(here / "one", own.realnvp, parts)
    side = torch.linspace(-8, 8, 800)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp() * (side[1] - side[0]) ** 2
    assert mass.sum().item() == pytest.approx(1, abs=0.02)
    mean = mass @ grid
    covariance = (grid - mean).T @ (mass[:, None] * (grid - mean))
    drawn = flow.sample(20_000)
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0.1, atol=0.1)


def test_the_picture_shows_four_panels_none_of_them_blank(one, here):
    image = imread(here / "one.png")[:, :, :3]
    height, width, _ = image.shape
    panels = [image[height // 4 :, i * width // 4 : (i + 1) * width // 4] for i in range(4)]
    for panel in panels:
        assert panel.min() < 0.1 and len(np.unique((panel * 255).astype(int).reshape(-1, 3), axis=0)) > 10
    assert all(np.abs(panels[1] - panel).mean() > 0.005 for panel in panels[2:])


def test_an_interrupted_run_ends_with_the_same_bits(one, here):
    source = here / "one" / "checkpoints" / "step-150"
    done = example("realnvp", "--run_dir", "resumed", "--resume", str(source), *SHORT, cwd=here, two=True)
    assert done.returncode == 0, done.stderr
    assert f"goes on from {source}" in done.stdout
    assert_equal_ends(here / "one", here / "resumed", STEPS)
    again = example("realnvp", "--run_dir", "resumed", "--resume", "auto", *SHORT, cwd=here)
    assert again.returncode == 0 and "is complete" in again.stdout


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--cut.scheme", "explicit", "--cut.at", "[2, 99]"], ("cut at [2, 99]", "between 1 and 23")),
        (["--sed", "1"], ("Did you mean seed?",)),
        (["--run_dir", "one", "--resume", "auto", "--seed", "5"], ("seed is 5, but 0", "cannot change")),
    ],
    ids=["cut", "unknown setting", "another past"],
)
def test_wrong_words_get_a_sentence(words, fragments, one, here):
    done = example("realnvp", "--run_dir", "refused", *words, cwd=here)
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("pipeflow: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert not [fragment for fragment in fragments if fragment not in sentence], sentence
    assert not (here / "refused").exists()


def test_commands_that_have_no_flow_say_so_and_the_report_does_without(one, here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert evaluate(["one"]) == 2
    assert train(["--run_dir", "one", "--resume", "auto"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.startswith("pipeflow: ") and "script's own" in line for line in said), said
    assert report(["one"]) == 0
    assert "own: realnvp in 3 parts" in (here / "one" / "report.html").read_text()


# --- a step of one's own in a Glow

FEW = ["--phases", "[{schedule: simultaneous, steps: 60, lr: 2e-3, warmup_steps: 20}]"]


def test_a_step_of_ones_own_in_a_glow(tmp_path):
    for run, two in (("one", False), ("two", True)):
        done = example("additive_coupling", "--run_dir", run, *FEW, cwd=tmp_path, two=two)
        assert done.returncode == 0, done.stderr
        assert "additive_glow" in done.stdout and (tmp_path / run / "samples" / "step-60.png").is_file()
    assert_equal_ends(tmp_path / "one", tmp_path / "two", 60)
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert result["test_bits_per_dim"] < math.log2(17), "better than a uniform guess"
    own = module("additive_coupling")
    tensors, _ = checkpoint.load(tmp_path / "one" / "checkpoints" / "step-60")
    assert any(name.startswith("steps.8.coupling.network") for name in tensors)
    flow = pipeflow.load(tmp_path / "one", own.additive_glow)
    assert sum(isinstance(module, own.Additive) for module in flow.modules()) == 8
    digits = flow.sample(4)
    assert digits.shape == (4, 1, 8, 8) and torch.equal(flow.decode(flow.encode(digits)), digits)
