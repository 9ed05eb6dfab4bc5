"""Heads: provisional priors that are small flows. All laws of training by parts hold with them."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Normal

import pipeflow
from pipeflow.config import PhaseConfig
from pipeflow.data import Pixels
from pipeflow.data.datasets import load as load_images
from pipeflow.flow import ActNorm, FlowPrior, LUConv1x1, Packet, Split, Squeeze
from pipeflow.model import CutConfig, GlowConfig, HeadConfig, UserFlow, bits_per_dim
from pipeflow.model.build import ModelSettings, build
from pipeflow.model.glow import FlowStep
from pipeflow.storage import CheckpointConfig
from pipeflow.storage.checkpoint import load
from pipeflow.training import fit
from tests.support.processes import in_processes
from tests.support.small_runs import fit_in, small_config

GLOW = GlowConfig(levels=3, steps=4, hidden=8)
IMAGE = (1, 8, 8)


def settings(at, **head):
    cut = CutConfig("explicit", len(at) + 1, list(at), "flow", HeadConfig(**head))
    return ModelSettings("glow", GLOW, cut, "fp32", "contiguous", 0)


def slices(at=(2, 8, 10), **head):
    return list(build(settings(at, **head), Pixels(IMAGE))[0].values())


@pytest.fixture(params=["random", "model"])
def prior(perturb, request):
    return perturb(slices(start=request.param)[0].prior).double()


# --- what a head is


@pytest.mark.parametrize(
    ("border", "steps", "expected"),
    [
        (2, 1, ["step", "turn", "split", "squeeze", "step", "turn", "split", "squeeze", "step", "turn"]),
        (3, 2, ["step", "split", "squeeze", "step", "step", "turn", "split", "squeeze", "step", "step", "turn"]),
        (4, 1, ["squeeze", "step", "turn", "split", "squeeze", "step", "turn"]),
        (8, 2, ["squeeze", "step", "step", "turn"]),
        (10, 1, ["step", "turn"]),
    ],
)
def test_a_head_is_what_remains_of_the_model_in_few_steps(border, steps, expected):
    """In few steps, with a rotation for those that are left out; none where it starts at random."""
    head, random = (slices((border,), steps=steps, start=start)[0].prior for start in ("model", "random"))
    kinds = {FlowStep: "step", LUConv1x1: "turn", Split: "split", Squeeze: "squeeze"}
    assert [kinds[type(step)] for step in head.chain()] == expected
    assert [kinds[type(step)] for step in random.chain()] == [kind for kind in expected if kind != "turn"]
    assert all(s.coupling.network[0].weight.shape[0] == 4 for s in head.chain() if isinstance(s, FlowStep)), (
        "half as wide"
    )


def test_its_width_can_be_set():
    head = slices((4,), hidden=3)[0].prior
    assert {s.coupling.network[0].weight.shape[0] for s in head.chain() if isinstance(s, FlowStep)} == {3}


def test_only_the_last_part_has_none():
    *others, last = slices()
    assert all(isinstance(piece.prior, FlowPrior) for piece in others) and not isinstance(last.prior, FlowPrior)
    assert [piece.prior_name for piece in others] == ["provisional.2", "provisional.8", "provisional.10"]


def test_its_weights_depend_on_seed_and_border_alone():
    first, again = slices((2, 8))[1].global_state(), slices((5, 8))[1].global_state()
    names = [name for name in first if name.startswith("provisional.8.")]
    assert names and all(torch.equal(first[name], again[name]) for name in names)


@pytest.mark.parametrize("hidden", [3, 8, 12])
@pytest.mark.parametrize("conv1x1", ["lu", "plain"])
def test_a_head_can_begin_as_what_it_stands_for(conv1x1, hidden):
    """At their initial weights additive couplings do nothing, so head and model turn the channels in the same way."""
    glow = dataclasses.replace(GLOW, coupling="additive", conv1x1=conv1x1)
    like, random = (
        dataclasses.replace(settings((2,), hidden=hidden, start=start), family=glow) for start in ("model", "random")
    )
    part, following = build(like, Pixels(IMAGE))[0].values()
    z = torch.randn(5, *part.part.event_out)
    packet, left = following.part.encode(Packet(z, torch.zeros(5)))
    expected = torch.cat([eps.flatten(1) for eps in (*left.values(), packet.z)], 1).view(z.shape)
    torch.testing.assert_close(part.prior.standardise(z), expected, rtol=0, atol=1e-4)
    other = build(random, Pixels(IMAGE))[0][0].prior
    assert not torch.allclose(other.standardise(z), expected, atol=1e-2)
    firsts = part.prior.chain()[0], following.part.chain()[0][1], other.chain()[0]
    own, model, drawn = (step.coupling.network[2].weight for step in firsts)
    assert torch.equal(own[:8, :8], model[:hidden, :hidden])
    assert torch.equal(own[8:], drawn[8:])


def test_a_head_as_large_as_the_rest_learns_what_the_next_part_learns(tmp_path):
    """Both begin alike and see the same latents, so that a part hands on what the next part knows how to use."""
    cut = CutConfig("explicit", 2, [1], "flow", HeadConfig(steps=3, hidden=8, start="model"))
    glow = GlowConfig(levels=2, steps=3, hidden=8)
    fit(small_config(tmp_path / "run", [PhaseConfig("simultaneous", steps=6, lr=1e-2)], glow=glow, cut=cut))
    found = tensors(tmp_path / "run", 6)
    heads = {name: tensor for name, tensor in found.items() if name.startswith("provisional.1.steps.")}
    assert len(heads) > 20
    for name, tensor in heads.items():
        number, rest = name.removeprefix("provisional.1.steps.").split(".", 1)
        torch.testing.assert_close(tensor, found[f"steps.{int(number) + 2}.{rest}"], rtol=0, atol=1e-5)


# --- it is a density


def test_log_prob_is_the_change_of_variables(prior):
    z = torch.randn(2, *prior.event, dtype=torch.float64)
    for row in z:
        jacobian = torch.func.jacrev(lambda v: prior.standardise(v[None]).flatten())(row).flatten(1)
        eps = prior.standardise(row[None])
        expected = Normal(0.0, 1.0).log_prob(eps).sum() + torch.linalg.slogdet(jacobian).logabsdet
        assert prior.log_prob(row[None]).item() == pytest.approx(expected.item(), abs=1e-9)


def test_standardise_and_its_inverse(prior):
    z = torch.randn(3, *prior.event, dtype=torch.float64)
    eps = prior.standardise(z)
    assert eps.shape == z.shape and not torch.allclose(eps, z)
    torch.testing.assert_close(prior.unstandardise(eps), z, rtol=0, atol=1e-9)


# --- the gradient wall


def test_gradients_reach_part_and_head_and_no_neighbours(perturb):
    pieces = [perturb(piece) for piece in slices()]
    parameters = {name: value for piece in pieces for name, value in piece.named_global_parameters()}
    packet = Packet(torch.randn(4, *IMAGE), torch.zeros(4))
    for piece in pieces:
        for value in parameters.values():
            value.grad = None
        packet, nll = piece(packet.sealed())
        bits_per_dim(nll, math.prod(IMAGE)).mean().backward()
        own = {name for name, _ in piece.named_global_parameters()}
        assert own == {name for name, value in parameters.items() if value.grad is not None}
        assert not [name for name in own if parameters[name].grad.abs().max() == 0]


# --- runs with heads

CUT = CutConfig("explicit", 3, [1, 4], "flow", HeadConfig(start="model"))
PHASES = [
    PhaseConfig("simultaneous", steps=5, lr=2e-3, clip=0.5),
    PhaseConfig("alternate", steps=6, turn_steps=1, lr=2e-3),
    PhaseConfig("end_to_end", steps=3),
    PhaseConfig("simultaneous", steps=2),
]


def config_in(directory, phases=PHASES, **others):
    return small_config(directory, phases, cut=CUT, checkpoint=CheckpointConfig(every=1, keep=100), **others)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """processes → run directory of the same run."""
    directory = tmp_path_factory.mktemp("heads")
    for size in (1, 2, 3):
        in_processes(size, fit_in, config_in(directory / f"{size}"), directory=directory / f"meet-{size}")
    return {size: directory / f"{size}" for size in (1, 2, 3)}


def tensors(run, step):
    return load(run / "checkpoints" / f"step-{step}")[0]


@pytest.mark.parametrize("size", [2, 3])
def test_by_parts_the_bits_do_not_depend_on_the_processes(runs, size):
    one, many = tensors(runs[1], 11), tensors(runs[size], 11)
    assert one.keys() == many.keys() and any(name.startswith("exp_avg/provisional.4.steps.") for name in one)
    assert [name for name in one if not torch.equal(one[name], many[name])] == []


def test_heads_learn_by_parts_and_rest_end_to_end(runs):
    names = [name for name in tensors(runs[1], 1) if name.startswith("provisional.1.steps.0.coupling")]
    early, late, joined, back = (tensors(runs[1], step) for step in (1, 11, 14, 16))
    assert all(not torch.equal(early[name], late[name]) for name in names)
    assert all(torch.equal(late[name], joined[name]) for name in names)
    assert any(not torch.equal(joined[name], back[name]) for name in names)


@pytest.mark.parametrize("step", [3, 9, 13, 15])
def test_resumed_to_the_bit(runs, step, tmp_path):
    fit(config_in(tmp_path / "run"), resume=runs[1] / "checkpoints" / f"step-{step}")
    expected, found = tensors(runs[1], 16), tensors(tmp_path / "run", 16)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_the_flow_that_stops_behind_a_part_is_a_valid_one(runs):
    """Its bits/dim are those of the evaluation, and what is encoded is decoded, through the head."""
    evaluations = [json.loads(line) for line in (runs[1] / "metrics" / "evaluation.jsonl").read_text().splitlines()]
    images = torch.from_numpy(load_images("digits", "data", None).test).permute(0, 3, 1, 2)
    flow = pipeflow.load(runs[1], parts=1)
    found = flow.bits_per_dim(images).mean().item()
    assert found == pytest.approx(evaluations[-1]["parts"][0]["bits_per_dim"], abs=1e-4)
    assert torch.equal(flow.decode(flow.encode(images[:8])), images[:8])
    assert flow.sample(4).shape == (4, *images.shape[1:])


def test_cut_anew_new_heads_start_from_data(runs, tmp_path, capsys):
    """A head whose border is gone is named, and so is one that is new; that one is started like any ActNorm."""
    cut = dataclasses.replace(CUT, at=[1, 3])
    config = dataclasses.replace(config_in(tmp_path / "run"), cut=cut, phases=[PhaseConfig("simultaneous", steps=2)])
    fit(config, resume=runs[1] / "checkpoints" / "step-11")
    said = capsys.readouterr().out
    assert "provisional.3 starts afresh" in said
    assert "provisional.4 is not carried over" in said
    found = tensors(tmp_path / "run", 13)
    started = [tensor for name, tensor in found.items() if name.startswith("provisional.3.") and "initialised" in name]
    assert started and all(started)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (HeadConfig(steps=2, start="model"), r"lacks provisional\.1\.steps\.\d\..*: its heads have another size"),
        (HeadConfig(start="random"), r"lacks provisional\.1\.steps\.1\..*: its heads have another size"),
        (HeadConfig(hidden=3, start="model"), r"holds \S*provisional\.\d\.steps\.\S+ of shape .*; here it must be"),
    ],
)
def test_a_head_of_another_size_is_not_gone_on_with(runs, tmp_path, head, message):
    """None of it would be as the checkpoint has it, and some of it would start afresh without a word."""
    config = dataclasses.replace(config_in(tmp_path / "run"), cut=dataclasses.replace(CUT, head=head))
    with pytest.raises(ValueError, match=message):
        fit(config, resume=runs[1] / "checkpoints" / "step-3")


def test_an_export_holds_no_head(runs, tmp_path):
    pipeflow.export(runs[1], tmp_path / "flow.safetensors")
    assert not [name for name in load_file(tmp_path / "flow.safetensors") if "provisional" in name]


# --- bad input


@pytest.mark.parametrize("head", [{"steps": 0}, {"hidden": 0}])
def test_a_head_of_no_size(head):
    with pytest.raises(ValueError, match=r"cut\.head\.\w+ is 0; it must be a whole number of at least 1"):
        HeadConfig(**head)


def test_a_flow_without_heads():
    cut = CutConfig("explicit", 2, [1], "flow")
    with pytest.raises(ValueError, match="comes without heads"):
        build(
            ModelSettings("mine", GLOW, cut, "fp32", "contiguous", 0), Pixels(IMAGE), lambda: [ActNorm(1), ActNorm(1)]
        )


def test_heads_of_ones_own():
    flow = UserFlow(lambda: [ActNorm(1), ActNorm(1)], lambda event: [ActNorm(event[0])])
    cut = CutConfig("explicit", 2, [1], "flow")
    pieces, _ = build(ModelSettings("mine", GLOW, cut, "fp32", "contiguous", 0), Pixels(IMAGE), flow)
    assert [type(step) for step in pieces[0].prior.chain()] == [ActNorm]
