"""Activations kept, computed again or inverted, eager or compiled: the same training; and how much is kept."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeflow.config import Config, PhaseConfig
from pipeflow.flow import Packet, Step
from pipeflow.model import Drift, GlowConfig, glow_steps, make_passage, set_precision
from pipeflow.model import activations as passages
from pipeflow.model.glow import FlowStep
from pipeflow.model.truncated import truncate
from pipeflow.reporting import page, read_run
from pipeflow.storage.checkpoint import load
from tests.support.processes import in_processes
from tests.support.small_runs import fit_each, fit_in, small_config

AGAIN = ["checkpoint", "invert"]
IMAGE = (1, 8, 8)


def whole_glow(perturb, steps=3, hidden=8, **variant):
    _, whole = truncate(glow_steps(GlowConfig(2, steps, hidden, **variant), IMAGE), (), IMAGE, "learned", "standard")
    torch.manual_seed(1)
    return perturb(whole)


def packet(dtype=torch.float32, batch=6, requires_grad=False, device="cpu"):
    generator = torch.Generator().manual_seed(2)
    z = (torch.rand(batch, *IMAGE, generator=generator) - 0.5).to(device, dtype).requires_grad_(requires_grad)
    return Packet(z, torch.arange(batch, dtype=dtype, device=device).requires_grad_(requires_grad))


def learn(whole, given, passage):
    """(what came out, nll, gradients by name and of z and logp)."""
    whole.part.passage = passage
    whole.zero_grad()
    out, nll = whole(given)
    # An uneven weight an image: a gradient that mixes images up would show.
    (nll * torch.linspace(0.5, 2, len(nll)).to(nll)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    return out, nll, gradients | {"z": given.z.grad, "logp": given.logp.grad}


def kept_bytes(whole, given, passage):
    """What the forward pass keeps for the backward pass, besides parameters and the packet itself."""
    known = {
        tensor.untyped_storage().data_ptr() for tensor in [*whole.parameters(), *whole.buffers(), given.z, given.logp]
    }
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = passage([step for _, step in whole.part.chain()], given)
    assert result.z.requires_grad
    return sum(kept.values())


@pytest.mark.usefixtures("backward_in_a_thread")
@pytest.mark.parametrize("activations", AGAIN)
@pytest.mark.parametrize("inside", [False, True], ids=["images enter", "latents that learn enter"])
@pytest.mark.parametrize(
    "variant",
    [{}, {"coupling": "additive", "conv1x1": "plain"}, {"split_prior": "standard", "top_prior": "learned"}],
    ids=lambda variant: " ".join(variant.values()) or "default",
)
def test_gradients_are_those_of_kept_activations(perturb, activations, inside, variant, device):
    whole = whole_glow(perturb, **variant).double().to(device)
    expected, found = (
        learn(whole, packet(torch.float64, requires_grad=inside, device=device), make_passage(kind))
        for kind in ("keep", activations)
    )
    # On a GPU a product takes another kernel where no gradient is wanted, and inverting wants none.
    same = torch.equal if device.type == "cpu" else torch.allclose
    assert same(found[0].z, expected[0].z) and same(found[1], expected[1])
    assert found[2].keys() == expected[2].keys()
    assert (expected[2]["z"] is not None) is inside
    for name, gradient in expected[2].items():
        assert (gradient is None) == (found[2][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(found[2][name], gradient, rtol=1e-8, atol=1e-10, msg=name)


def test_checkpointed_gradients_are_equal_to_the_bit(perturb, device):
    whole = whole_glow(perturb).to(device)
    expected, found = (learn(whole, packet(device=device), make_passage(kind)) for kind in ("keep", "checkpoint"))
    assert all(torch.equal(found[2][name], expected[2][name]) for name, _ in whole.named_parameters())


def test_frozen_parameters_get_no_gradient(perturb):
    whole = whole_glow(perturb)
    frozen = whole.part.steps["2"].actnorm.bias.requires_grad_(False)
    _, _, gradients = learn(whole, packet(), make_passage("invert"))
    assert frozen.grad is None
    assert gradients["part.steps.2.actnorm.log_scale"] is not None


def test_inverted_memory_does_not_grow_with_depth(perturb):
    """Of what grows with the batch; the weights that a pass makes of the parameters are kept whatever the batch."""

    def kept(kind, steps):
        whole, passage = whole_glow(perturb, steps), make_passage(kind)
        return kept_bytes(whole, packet(batch=12), passage) - kept_bytes(whole, packet(batch=6), passage)

    size = {kind: [kept(kind, steps) for steps in (4, 8)] for kind in ("keep", "checkpoint", "invert")}
    assert size["invert"][1] == size["invert"][0]
    assert size["keep"][1] > 1.8 * size["keep"][0]
    assert size["checkpoint"][1] > 1.8 * size["checkpoint"][0] > 1.8 * 2 * size["invert"][0]
    assert size["keep"][0] > 4 * size["checkpoint"][0]


def test_nothing_is_kept_where_nothing_learns(perturb):
    whole = whole_glow(perturb)
    whole.part.passage = make_passage("invert")
    with torch.no_grad():
        out = whole.part(packet())
    assert not out.z.requires_grad
    assert torch.equal(out.z, whole.part.ledger(packet())[0].z)


def test_drift_is_the_error_of_the_inverse(perturb, device):
    whole = whole_glow(perturb).to(device)
    assert 0 < whole.part.drift(packet(device=device)) < 1e-5
    assert whole.double().part.drift(packet(torch.float64, device=device)) < 1e-13


def drifts(whole, given):
    """(largest distance, relative) of a backward pass."""
    drift = Drift()
    learn(whole, given, make_passage("invert", drift=drift))
    return [number.item() for number in drift.numbers]


def test_the_backward_pass_tells_how_far_it_drifted(perturb):
    whole = whole_glow(perturb)
    healthy, relative = drifts(whole, packet())
    assert healthy == pytest.approx(whole.part.drift(packet()), rel=0.5) and 0 < healthy < 1e-5
    assert relative == pytest.approx(healthy / packet().z.abs().max().item())
    with torch.no_grad():  # small numbers beside a large one: what the scale takes away, the bias buries
        whole.part.steps["2"].actnorm.log_scale -= 7
        whole.part.steps["3"].actnorm.bias += 1
    assert drifts(whole, packet())[0] > 20 * healthy


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_says_how_far_inverted_inputs_drifted(tmp_path, size):
    """In every line of a batch that was learned from, and nowhere else."""
    phases = [PhaseConfig("alternate", steps=6, turn_steps=2), PhaseConfig("end_to_end", steps=3)]
    configs = [small_config(tmp_path / kind, phases, activations=kind) for kind in ("keep", "invert")]
    in_processes(size, fit_each, configs, directory=tmp_path / "meet")
    for config in configs:
        for name in ("part-1", "part-2", "part-3", "end_to_end"):
            text = (Path(config.run_dir) / "metrics" / f"{name}.jsonl").read_text()
            for line in map(json.loads, text.splitlines()):
                for figure in ("drift", "relative_drift"):
                    assert (figure in line) is (line["learn"] and config.activations == "invert")
                    assert 0 <= line.get(figure, 0) < 1e-5
    kept, inverted = histories = [read_run(config.run_dir) for config in configs]
    most = max(np.nanmax(stream.in_phase(1).drift) for stream in inverted.streams if stream.part is not None)
    assert f"{most:.1e}" in page(histories, [[], []], None) and "drift of inverted" not in page([kept], [[]], None)


def two_hundred_steps(tmp_path, activations, precision):
    phases = [PhaseConfig("end_to_end", steps=200, lr=2e-3, warmup_steps=20)]
    config = small_config(tmp_path / f"{activations}-{precision}", phases, activations=activations, precision=precision)
    return fit_in("", config)


@pytest.mark.parametrize(("precision", "within"), [("fp32", 0.001), ("bf16", 0.01)])
def test_two_hundred_steps_of_reversible_training_end_where_ordinary_ones_do(tmp_path, precision, within):
    """In bf16, ordinary training itself ends 0.0035 elsewhere where the learning rate differs by 0.001 %."""
    kept, inverted = (two_hundred_steps(tmp_path, kind, precision) for kind in ("keep", "invert"))
    assert kept["test_bits_per_dim"] < 4.0
    assert abs(kept["test_bits_per_dim"] - inverted["test_bits_per_dim"]) < within


MODES = {
    "checkpoint": {"activations": "checkpoint"},
    "invert": {"activations": "invert"},
    "invert, bf16": {"activations": "invert", "precision": "bf16"},
}


def test_by_parts_the_bits_do_not_depend_on_the_processes(tmp_path):
    """Law 4, in every mode."""
    phases = [PhaseConfig("simultaneous", steps=4, lr=[2e-3, 1e-3, 3e-3], clip=0.5), PhaseConfig("alternate", steps=5)]
    phases[1] = dataclasses.replace(phases[1], turn_steps=2)
    configs = {
        size: [small_config(tmp_path / f"{size}-{name}", phases, **mode) for name, mode in MODES.items()]
        for size in (1, 3)
    }
    for size in configs:
        in_processes(size, fit_each, configs[size], directory=tmp_path / f"meet-{size}")
    for one, many in zip(configs[1], configs[3], strict=True):
        expected, found = (load(Path(config.run_dir) / "checkpoints" / "step-9")[0] for config in (one, many))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), one.run


def test_end_to_end_processes_agree_with_one(tmp_path):
    """DDP finds every gradient, though they come from one node of the graph."""
    phases = [PhaseConfig("end_to_end", steps=5, lr=2e-3)]
    configs = [small_config(tmp_path / str(size), phases, activations="invert") for size in (1, 2)]
    for size, config in enumerate(configs, 1):
        in_processes(size, fit_each, [config], directory=tmp_path / f"meet-{size}")
    expected, found = (load(Path(config.run_dir) / "checkpoints" / "step-5")[0] for config in configs)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-5, msg=name)


# --- compiled


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(ValueError, match="compile is part and activations is invert"):
        Config(compile="part", activations="invert")


@pytest.fixture
def count(monkeypatch):
    """The graphs that were compiled, by a backend that runs them as they are."""
    graphs = []

    def backend(graph, inputs):
        assert not torch._dynamo.config.optimize_ddp, "DDP would split what is compiled"
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield graphs
    torch.compiler.reset()


def test_the_limits_of_the_compiler_are_those_of_the_thread_that_compiles(perturb, count, backward_in_a_thread):
    """Beyond them a function stays eager, and only a log says so; each batch size is a shape of its own."""
    whole = whole_glow(perturb, steps=2, hidden=4)
    passage = make_passage("invert", "steps")
    for batch in (2, 3, 4):
        learn(whole, packet(batch=batch), passage)
    # Two levels forward, without gradients; backward two more.
    assert len(count) == 3 * 4


def test_all_steps_of_a_shape_share_one_graph(perturb, count):
    """Compile time does not grow with depth."""
    whole = whole_glow(perturb, steps=5)
    expected = learn(whole, packet(), make_passage("keep"))
    found = learn(whole, packet(), make_passage("keep", "steps"))
    # Two levels, and the first step of all, into which no gradient flows.
    assert len(count) == 3
    for name, _ in whole.named_parameters():
        assert torch.equal(found[2][name], expected[2][name]), name


def test_a_part_as_a_whole_is_one_graph(perturb, count):
    whole = whole_glow(perturb)
    expected = learn(whole, packet(), make_passage("keep"))
    found = learn(whole, packet(), make_passage("keep", "part"))
    assert len(count) == 1
    for name, _ in whole.named_parameters():
        assert torch.equal(found[2][name], expected[2][name]), name


needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="on the CPU torch.compile needs g++")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("activations", ["keep", "invert"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_steps_agree_with_eager_ones(perturb, activations, precision):
    torch.compiler.reset()
    whole = whole_glow(perturb)
    set_precision(whole, precision)
    expected = learn(whole, packet(), make_passage(activations))
    found = learn(whole, packet(), make_passage(activations, "steps"))
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}[precision]
    torch.testing.assert_close(found[1], expected[1], rtol=tolerance, atol=tolerance)
    for name, _ in whole.named_parameters():
        difference = (found[2][name] - expected[2][name]).norm()
        assert difference <= 5 * tolerance * expected[2][name].norm() + tolerance, name


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_ends_where_an_eager_one_does(tmp_path):
    phases = [PhaseConfig("simultaneous", steps=8, lr=2e-3, clip=1.0), PhaseConfig("end_to_end", steps=4)]
    results = [fit_in("", small_config(tmp_path / kind, phases, compile=kind)) for kind in ("none", "steps")]
    assert results[0]["test_bits_per_dim"] == pytest.approx(results[1]["test_bits_per_dim"], abs=1e-3)


def test_a_step_of_ones_own_that_hands_out_eps_needs_no_name(perturb):
    """Which steps hand something out is seen from the method that they define, not from their place."""

    class Drop(Step):
        def forward(self, z):
            z, dlogp, _ = self.encode(z)
            return z, dlogp

        def encode(self, z):
            return z[:, 1:], -0.5 * z[:, 0].square().flatten(1).sum(1), z[:, :1]

        def inverse(self, z, eps=None):
            return torch.cat([eps, z], 1)

        def out_shape(self, event):
            return event[0] - 1, *event[1:]

    steps = [perturb(FlowStep(4, GlowConfig(hidden=4))), Drop(), perturb(FlowStep(3, GlowConfig(hidden=4)))]
    given = Packet(torch.randn(5, 4, 2, 2), torch.zeros(5))
    parameters = [parameter for step in steps for parameter in step.parameters()]

    def gradients(passage):
        out = passage(steps, given)
        return torch.autograd.grad((out.z.square().sum() - out.logp.sum()), parameters)

    for expected, found in zip(gradients(passages.keep), gradients(passages.invert), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
