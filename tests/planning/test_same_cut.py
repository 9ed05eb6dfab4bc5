"""`plan` and `train` measure a balanced cut alike: as the run will run, each part with all that it does for a batch."""

import json

import pytest
import torch
import yaml

from pipeflow.config import Config, PhaseConfig
from pipeflow.data import DataConfig
from pipeflow.distributed import ParallelConfig
from pipeflow.flow import Step
from pipeflow.model import CutConfig
from pipeflow.plan import main as plan
from pipeflow.train import main as train
from pipeflow.training import fit
from tests.planning.fake_clock import FakeClock
from tests.support.processes import in_processes
from tests.support.small_runs import fit_in, small_config

SETTINGS = [
    *("--glow.levels", "2", "--glow.steps", "3", "--glow.hidden", "8", "--data.batch", "12", "--data.init_batch", "32"),
    *("--cut.scheme", "balanced", "--cut.parts", "2", "--cut.provisional_prior", "standard"),
    *("--device", "cpu", "--eval_every", "1e9"),
    *("--phases", "[{schedule: simultaneous, steps: 1}]"),
]
ADAMAX = ["--phases", "[{schedule: simultaneous, steps: 1, optimizer: adamax}, {schedule: alternate, steps: 2}]"]


@pytest.mark.parametrize(
    ("words", "rates", "at"),
    [
        pytest.param([], {}, 2, id="flow steps"),
        pytest.param([], {"adam": 100}, 3, id="update"),
        pytest.param(ADAMAX, {"adamax": 100}, 3, id="optimizer of the first phase"),
        pytest.param(["--ema", "0.9"], {"ema": 100}, 3, id="EMA"),
        pytest.param(["--precision", "bf16"], {"bf16": 0.25}, 3, id="precision"),
        pytest.param(["--layout", "channels_last"], {"channels_last": 0.25}, 3, id="layout"),
        pytest.param(["--compile", "steps"], {"compiled": 0.25}, 3, id="steps compiled"),
        pytest.param(["--compile", "part"], {"compiled": 0.25}, 3, id="parts compiled"),
        pytest.param([], {"draw": 2}, 1, id="drawing a batch"),
        pytest.param(["--activations", "checkpoint"], {"draw": 2}, 2, id="activations computed again"),
        pytest.param(["--activations", "invert"], {"inverse": 5}, 3, id="activations inverted"),
        pytest.param([], {"prior": 8}, 3, id="prior before the border"),
        pytest.param([], {"call": 8}, 3, id="whole batch"),
    ],
)
def test_plan_and_train_choose_the_same_cut(words, rates, at, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FakeClock(**rates).install(monkeypatch.setattr)
    assert plan(["--run_dir", "planned", *SETTINGS, *words]) == 0
    assert json.loads((tmp_path / "planned/plan.json").read_text())["at"] == [at]
    assert train(["--run_dir", "trained", *SETTINGS, *words]) == 0
    assert yaml.safe_load((tmp_path / "trained/config.yaml").read_text())["cut"]["at"] == [at]


def fit_by_the_fake_clock(init_method: str, config: Config):
    FakeClock(call=8).install()
    return fit_in(init_method, config)


def test_a_cut_is_balanced_for_a_replicas_share_of_the_batch(tmp_path, monkeypatch):
    """6 of 12 images: what a call costs, whatever the images, weighs more."""
    cut = CutConfig("balanced", 2, provisional_prior="learned")
    two = ParallelConfig(replicas=2)
    config = small_config(tmp_path / "run", [PhaseConfig("simultaneous", steps=1)], cut=cut, parallel=two)
    in_processes(2, fit_by_the_fake_clock, config, directory=tmp_path / "meet")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["cut"]["at"] == [4]
    FakeClock(call=8).install(monkeypatch.setattr)
    words = [*SETTINGS, "--parallel.replicas", "2", "--cut.provisional_prior", "learned"]
    assert plan(["--run_dir", str(tmp_path / "planned"), *words]) == 0
    planned = json.loads((tmp_path / "planned/plan.json").read_text())
    assert planned["at"] == [4] and planned["parts"][0]["sent_shape"][0] == 6


class Slow(Step):
    """A script's own step, for vectors (B, D), that costs 3 seconds per image and twice that in the backward pass."""

    clock = None

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(3))

    def forward(self, z):
        self.clock.charge(3.0 * len(z))
        out = z + self.bias
        if out.requires_grad:
            out.register_hook(lambda _: self.clock.charge(6.0 * len(z)))
        return out, z.new_zeros(len(z))

    def inverse(self, z, eps=None):
        return z - self.bias


class Quick(Step):
    """A script's own step that takes no time and has nothing to learn."""

    def forward(self, z):
        return -z, z.new_zeros(len(z))

    def inverse(self, z, eps=None):
        return -z


class Learning(Slow):
    """A script's own step that takes no time, and whose weights are updated."""

    def forward(self, z):
        return z + self.bias, z.new_zeros(len(z))


@pytest.mark.parametrize(
    ("kinds", "rates", "ema", "at"),
    [
        ((Learning, Slow, Slow, Quick), {}, None, 2),
        ((Learning, Slow, Slow, Quick), {"draw": 18}, None, 1),
        ((Slow, Slow, Learning, Learning), {}, None, 1),
        ((Slow, Slow, Learning, Learning), {"ema": 50}, 0.9, 2),
    ],
)
def test_a_flow_that_a_script_hands_over_is_measured_alike(kinds, rates, ema, at, tmp_path, monkeypatch):
    clock = FakeClock(**rates)
    clock.install(monkeypatch.setattr)
    monkeypatch.setattr(Slow, "clock", clock)
    config = Config(
        run_dir=str(tmp_path / "run"), device="cpu", flow="mine", data=DataConfig("own", batch=4, init_batch=8),
        cut=CutConfig("balanced", 2), phases=[PhaseConfig("simultaneous", steps=1)], eval_every=1e9, ema=ema,
    )  # fmt: skip
    points = torch.randn(24, 3).numpy()
    fit(config, flow=lambda: [kind() for kind in kinds], data=(points[:16], points[16:]))
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["cut"]["at"] == [at]
