"""The moving average of the weights is what the formula says, survives every phase, and is what is looked at."""

from pathlib import Path

import pytest
import torch

from pipeflow.config import PhaseConfig
from pipeflow.inference import read
from pipeflow.model import averaged
from pipeflow.stage import Average
from pipeflow.storage import CheckpointConfig, checkpoint
from pipeflow.training import fit
from tests.support.command_line import parse
from tests.support.small_runs import small_config

PHASES = [
    PhaseConfig("simultaneous", steps=3),
    PhaseConfig("end_to_end", steps=3, optimizer="adamax"),
    PhaseConfig("simultaneous", steps=2, optimizer="adamax"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("average") / "run"
    fit(small_config(directory, PHASES, ema=0.7, checkpoint=CheckpointConfig(every=1, keep=99)))
    return Path(directory)


def test_by_the_formula_at_every_step_of_every_phase(run):
    """The weights behind every step are known, so the average can be made again by hand, across optimizers."""
    steps = [checkpoint.load(run / "checkpoints" / f"step-{step}")[0] for step in range(1, 9)]
    for name in ("steps.1.coupling.network.0.weight", "steps.3.actnorm.bias", "prior.mean"):
        average = steps[0][name]
        assert torch.equal(steps[0][f"ema/{name}"], average)
        for tensors in steps[1:]:
            average = torch.lerp(average, tensors[name], 1.0 - 0.7)
            assert torch.equal(tensors[f"ema/{name}"], average), name
        assert not torch.equal(average, steps[-1][name])


def test_it_is_what_is_looked_at(run):
    tensors, _ = checkpoint.load(run / "checkpoints" / "step-8")
    found = read(run).model.global_state()
    name = "steps.1.coupling.network.0.weight"
    assert torch.equal(found[name], tensors[f"ema/{name}"]) and not torch.equal(found[name], tensors[name])
    assert torch.equal(found["steps.1.actnorm.initialised"], tensors["steps.1.actnorm.initialised"])
    assert averaged({"a": torch.ones(1)}) == {"a": torch.ones(1)}


def test_it_goes_on_with_what_it_knows_of_its_own():
    parameter = torch.nn.Parameter(torch.ones(2))
    assert Average([("a", parameter)], None, {}).values == {}
    average = Average([("a", parameter)], 0.5, {"ema/a": torch.zeros(2), "ema/b": torch.zeros(3)})
    average.update()
    assert set(average.values) == {"ema/a"} and average.values["ema/a"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("decay", ["0", "1", "-0.5", "2"])
def test_a_decay_lies_between_0_and_1(decay):
    with pytest.raises(ValueError, match=r"ema is .*; it must be a number between 0 and 1"):
        parse(["--ema", decay])
