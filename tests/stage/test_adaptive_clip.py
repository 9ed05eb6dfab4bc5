"""Clipping at twice the usual norm: the rule, and the same mean in any processes, engines and after a resume."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from pipeflow.config import EndToEndConfig, PhaseConfig
from pipeflow.distributed import ParallelConfig
from pipeflow.model import CutConfig
from pipeflow.stage import AdaptiveClip, Update, make_optimizer
from pipeflow.storage import CheckpointConfig, checkpoint
from pipeflow.storage.verify import check_values
from tests.support.processes import in_processes
from tests.support.small_runs import fit_each_from, fit_in, small_config

JOINED = PhaseConfig("end_to_end", steps=6, lr=3e-2, clip="adaptive")  # rates so high that norms double
APART = PhaseConfig("simultaneous", steps=6, lr=2e-2, clip="adaptive", restart_optimizer=True)
FIXED = PhaseConfig("simultaneous", steps=2, clip=1.0)


# --- the rule


def weights(*sizes):
    return [(f"steps.{number}.weight", nn.Parameter(torch.ones(size))) for number, size in enumerate(sizes)]


def test_the_mean_follows_norms_as_far_as_they_count():
    clip = AdaptiveClip(weights(2, 3), {"norm/steps.1.weight": torch.tensor(9.0)})
    usual, nan, inf = None, math.nan, math.inf
    for norm in (nan, 3.0, 5.0, 100.0, inf, 1.0, nan, 0.0):
        limit = clip.limit(torch.tensor(norm), torch.tensor(math.isfinite(norm)))
        assert limit.item() == (inf if usual is None else pytest.approx(2 * usual, rel=1e-5))
        if math.isfinite(norm):
            usual = norm if usual is None else 0.98 * usual + 0.02 * min(norm, 2 * usual)
        assert clip.usual.item() == pytest.approx(usual or 0.0, rel=1e-5)


def test_it_goes_on_with_the_mean_of_its_first_parameter():
    known = {"norm/steps.0.weight": torch.tensor(9.0)}
    clip = AdaptiveClip(weights(2, 3), known)
    assert clip.name == "norm/steps.0.weight" and clip.limit(torch.tensor(1.0), torch.tensor(True)).item() == 18
    assert known["norm/steps.0.weight"].item() == 9, "what was handed over stays as it was"


def test_gradients_are_shortened_together_and_only_as_far_as_needed():
    named = weights(4, 5)
    update = Update(named, make_optimizer("adam", named, 1e-3), 1e-3, clip=AdaptiveClip(named, {}))
    for scale, shortened in ((1.0, 1.0), (1.9, 1.0), (9.0, None), (0.1, 1.0)):
        for _, parameter in named:
            parameter.grad = torch.full_like(parameter, scale)
        usual, norm = update.clip.usual.item(), nn.utils.get_total_norm(update.gradients())
        update.begin()
        update(norm, norm.isfinite())
        expected = 2 * usual / norm.item() if shortened is None else shortened
        for _, parameter in named:
            exact = shortened is not None
            torch.testing.assert_close(
                parameter.grad, torch.full_like(parameter, scale * expected), rtol=0 if exact else 1e-5, atol=0
            )
    assert update.moments()["norm/steps.0.weight"] is update.clip.usual


def test_a_mean_is_a_finite_scalar(tmp_path):
    expected = {"steps.0.weight": torch.ones(3)}
    check_values(expected, {"norm/steps.0.weight": torch.tensor(2.0)}, tmp_path)
    for wrong, what in ((torch.ones(3), "shape"), (torch.tensor(math.nan), "not finite"), (torch.tensor(2), "int64")):
        with pytest.raises(ValueError, match=what):
            check_values(expected, {"norm/steps.0.weight": wrong}, tmp_path)


# --- runs


def config_of(run, *phases, **others):
    saves = CheckpointConfig(every=1, keep=99)
    return small_config(run, list(phases), ema=0.9, checkpoint=saves, **others)


def tensors(run, step):
    return checkpoint.load(run / "checkpoints" / f"step-{step}")[0]


def norms(run, step):
    return {name: tensor.item() for name, tensor in tensors(run, step).items() if name.startswith("norm/")}


def differing(one, other, step):
    there, here = tensors(one, step), tensors(other, step)
    assert there.keys() == here.keys()
    return [name for name in there if not torch.equal(there[name], here[name])]


def assert_close(one, other, *steps):
    for step in steps:
        there, here = tensors(one, step), tensors(other, step)
        assert there.keys() == here.keys()
        for name in there:
            torch.testing.assert_close(here[name], there[name], rtol=1e-2, atol=1e-3, msg=lambda text, name=name: name)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process: by parts, end to end, by parts with a fixed norm."""
    run = tmp_path_factory.mktemp("adaptive") / "one"
    fit_in("", config_of(run, APART, JOINED, FIXED))
    return run


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """One process: end to end alone."""
    run = tmp_path_factory.mktemp("joined") / "one"
    fit_in("", config_of(run, JOINED))
    return run


@pytest.mark.parametrize("phase", [APART, JOINED], ids=lambda phase: phase.schedule)
def test_these_runs_do_clip(phase, tmp_path):
    """The laws below would hold of a clip that does nothing."""
    for name, clip in (("with", "adaptive"), ("without", None)):
        fit_in("", config_of(tmp_path / name, dataclasses.replace(phase, clip=clip)))
    ends = [tensors(tmp_path / name, 6) for name in ("with", "without")]
    assert ends[0].keys() - ends[1].keys() == set(norms(tmp_path / "with", 6))
    assert not torch.equal(*(end["steps.2.conv1x1.lower"] for end in ends))


def test_a_mean_for_each_part_and_one_end_to_end_anew_in_every_phase(one):
    first = norms(one, 1)
    assert len(first) == 3 and all(value > 0 for value in first.values())
    assert norms(one, 6).keys() == first.keys() and norms(one, 6) != first
    assert list(norms(one, 7)) == list(first)[:1] and norms(one, 13) == {}
    assert norms(one, 7) != {name: norms(one, 6)[name] for name in norms(one, 7)}


def test_three_processes_by_parts_are_one_to_the_bit(one, tmp_path):
    run = tmp_path / "run"
    in_processes(3, fit_in, config_of(run, APART), directory=tmp_path / "meet")
    assert [differing(one, run, step) for step in (1, 3, 6)] == [[]] * 3


@pytest.mark.parametrize("step", [3, 6, 8])
def test_a_resumed_run_is_the_same_to_the_bit(step, one, tmp_path):
    run = tmp_path / "run"
    fit_in("", config_of(run, APART, JOINED, FIXED), one / "checkpoints" / f"step-{step}")
    assert [differing(one, run, later) for later in range(step + 1, 15)] == [[]] * (14 - step)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "pipeline"])
def test_two_processes_end_to_end_clip_by_the_norm_of_the_model(engine, joined, tmp_path):
    """Every engine as one process, and it goes on to the bit; from one process, so that what was saved is common."""
    config = config_of(tmp_path / "two", JOINED, end_to_end=EndToEndConfig(engine))
    resumed, other = (dataclasses.replace(config, run_dir=str(tmp_path / name)) for name in ("resumed", "other"))
    given = [(config, None), (resumed, tmp_path / "two" / "checkpoints" / "step-3")]
    given.append((other, joined / "checkpoints" / "step-3"))
    in_processes(2, fit_each_from, given, directory=tmp_path / "meet")
    assert_close(joined, tmp_path / "two", 1, 2, 3)
    assert_close(joined, tmp_path / "other", 4, 6)
    assert differing(tmp_path / "two", tmp_path / "resumed", 6) == []


def test_replicas_of_parts_clip_as_one(one, tmp_path):
    config = config_of(tmp_path / "two", APART, parallel=ParallelConfig(replicas=2))
    in_processes(2, fit_in, config, directory=tmp_path / "meet")
    assert_close(one, tmp_path / "two", 1, 3)


def test_cut_anew_a_part_that_begins_where_one_began_keeps_its_mean(one, tmp_path):
    cut = CutConfig("explicit", 3, [2, 4], provisional_prior="learned")
    fit_in("", config_of(tmp_path / "run", APART, cut=cut), one / "checkpoints" / "step-3")
    before, after = norms(one, 3), norms(tmp_path / "run", 4)
    kept = [name for name in before if name in after]
    assert len(before) == 3 and len(kept) == 2 and len(after) == 3, "the third is new, and the old one gone"
    assert all(abs(after[name] / before[name] - 1) < 0.03 for name in kept)
