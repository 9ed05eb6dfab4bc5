"""Losses read late and updates skipped by the device: the same decisions as those of a host that looks every time.

What a GPU does by default is done here on the CPU: PyTorch's fused optimizers skip on both.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeflow.config import Config, PhaseConfig
from pipeflow.flow import Packet, StandardNormal, Step
from pipeflow.model import Truncated
from pipeflow.model.part import Part
from pipeflow.stage import Average, Stage, Update, load_moments, make_optimizer
from pipeflow.stage.async_scalars import AsyncScalars
from pipeflow.stage.optimizer import can_skip
from pipeflow.stream import Discard
from pipeflow.training.monitor import Monitor
from tests.support.small_runs import fit_in, small_config


class Scale(Step):
    """A scale a number."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(8))

    def forward(self, z):
        return z * self.log_scale.exp(), z.new_zeros(len(z)) + self.log_scale.sum()


class Poisoned:
    """Packets by number; those in `bad` hold a NaN."""

    def __init__(self, bad, device):
        self.count, self.bad, self.device = 0, bad, device

    def recv(self):
        self.count += 1
        z = torch.linspace(0.5, 2, 32).view(4, 8) * self.count
        z[0, 0] = math.nan if self.count in self.bad else z[0, 0]
        return Packet(z.to(self.device), torch.zeros(4, device=self.device))


def make_stage(fused, bad=(), name="adam", ema=0.9, device="cpu"):
    truncated = Truncated(Part({0: Scale()}, (8,)), StandardNormal((8,)), "prior").to(device)
    named = truncated.named_global_parameters()
    optimizer = make_optimizer(name, named, 0.1, fused=fused)
    stage = Stage(truncated, Update(named, optimizer, 0.1, 3, 1.0, Average(named, ema, {})), 8)
    stage.connect(Poisoned(bad, device), Discard())
    return stage


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_device_skips_what_the_host_would_skip(name, device):
    bad = (2, 4, 5)
    looking, going_on = (make_stage(fused, bad, name, device=device) for fused in (False, True))
    assert not can_skip(looking.update.optimizer) and can_skip(going_on.update.optimizer)
    for number in range(1, 8):
        before = going_on.truncated.part.steps["0"].log_scale.clone()
        expected, found = looking.tick(), going_on.tick()
        assert (expected.updated, expected.bad) == (found.updated, found.bad) == (number not in bad, number in bad)
        assert torch.equal(before, going_on.truncated.part.steps["0"].log_scale) is (number in bad)
    slots = [stage.update.moments() | stage.update.average.values for stage in (looking, going_on)]
    assert slots[0].keys() == slots[1].keys()
    for key, value in slots[0].items():
        torch.testing.assert_close(slots[1][key].cpu(), value.cpu(), rtol=1e-5, atol=1e-6, msg=key)
    assert slots[1]["step/steps.0.log_scale"] == 7 - len(bad), "a skipped update does not count"


def test_moments_go_from_one_kind_to_the_other(device):
    one = make_stage(True, device=device)
    for _ in range(3):
        one.tick()
    moments = one.update.moments()
    for fused in (False, True):
        other = make_stage(fused, device=device)
        load_moments(other.update.optimizer, other.update.named, moments)
        assert other.tick().updated
        assert other.update.moments()["step/steps.0.log_scale"] == 4


def test_adamax_is_never_fused():
    assert not can_skip(make_optimizer("adamax", [("a", nn.Parameter(torch.ones(1)))], 0.1, fused=True))
    assert not can_skip(make_optimizer("adam", [("a", nn.Parameter(torch.ones(1)))], 0.1)), "nor anything on the CPU"


def test_numbers_are_read_as_they_were(device):
    """Also from a device that is behind."""
    source, load = torch.tensor(1.5, device=device), torch.rand(2048 if device.type == "cuda" else 2, 1, device=device)
    for _ in range(100):
        load = (load @ load.T).clamp(0, 1)[:, :1]
    source += 0 * load[0, 0]
    late = AsyncScalars(source, torch.tensor(True, device=device))
    source.fill_(7)
    assert late.read() == [1.5, 1.0] == late.read()


@pytest.fixture
def lagging(monkeypatch):
    """Reports are read four batches late."""
    init = Monitor.__init__

    def lag(self, *arguments):
        init(self, *arguments)
        self.lag = 4

    monkeypatch.setattr(Monitor, "__init__", lag)


PHASES = [PhaseConfig("simultaneous", steps=5, lr=2e-3), PhaseConfig("end_to_end", steps=3)]


def lines(config: Config) -> dict[str, list]:
    streams = sorted((Path(config.run_dir) / "metrics").glob("*.jsonl"))
    found = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in streams}
    return {
        name: [
            {key: line[key] for key in ("step", "phase", "turn", "bits_per_dim", "learn", "updated")} for line in read
        ]
        for name, read in found.items()
        if name not in ("evaluation", "checkpoints")
    }


def test_a_run_that_reads_late_says_the_same(tmp_path, request):
    prompt = small_config(tmp_path / "prompt", PHASES)
    fit_in("", prompt)
    request.getfixturevalue("lagging")
    late = small_config(tmp_path / "late", PHASES)
    fit_in("", late)
    assert lines(late) == lines(prompt)
    assert [line["step"] for line in lines(late)["part-2"]] == [1, 2, 3, 4, 5]


def test_bad_updates_are_counted_late_but_exactly(tmp_path, lagging):
    phases = [PhaseConfig("simultaneous", steps=12, lr=[1e-3, 1e30, 1e-3])]
    with pytest.raises(FloatingPointError, match=r"part 2 .* stops at step .* 2 times in a row") as late:
        fit_in("", small_config(tmp_path / "late", phases, max_bad_steps=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "read", Monitor.flush)
        with pytest.raises(FloatingPointError) as prompt:
            fit_in("", small_config(tmp_path / "prompt", phases, max_bad_steps=2))
    assert str(late.value) == str(prompt.value)
