"""The laws of training by parts, for every family of flows that settings describe."""

import dataclasses
import json

import pytest
import torch

import pipeflow
from pipeflow import evaluate, plan, report, sample
from pipeflow.config import PhaseConfig, settle
from pipeflow.data import Pixels, Purpose
from pipeflow.flow import FlowPrior, Packet
from pipeflow.model import (
    CutConfig,
    HeadConfig,
    bits_per_dim,
    build,
    family_caution,
    family_cut,
    family_steps,
    make_passage,
    scheme_cut,
    set_precision,
)
from pipeflow.model.jet import JetConfig
from pipeflow.storage import CheckpointConfig
from pipeflow.storage.checkpoint import load
from pipeflow.training import fit
from tests.flow.test_flow_laws import change_of_variables
from tests.support.processes import in_processes
from tests.support.small_runs import FLOWS, fit_in, small_config

IMAGE = (1, 8, 8)
HEADS = CutConfig("explicit", 3, [1, 4], "flow", HeadConfig(hidden=16))
PHASES = [PhaseConfig("simultaneous", steps=4, lr=2e-3), PhaseConfig("end_to_end", steps=2)]


def config_in(run, flow, **others):
    return small_config(run, PHASES, **FLOWS[flow], cut=HEADS, checkpoint=CheckpointConfig(every=1, keep=9), **others)


@pytest.fixture(params=FLOWS)
def flow(request):
    return request.param


@pytest.fixture
def pieces(flow, perturb, tmp_path):
    """(slices with heads, whole), perturbed."""
    slices, whole = build(config_in(tmp_path, flow).model, Pixels(IMAGE, classes=10 * ("labels" in flow)))
    for module in (whole, *(piece.prior for piece in list(slices.values())[:-1])):
        perturb(module)
    return list(slices.values()), whole


def images(batch=4, dtype=torch.float32):
    """With labels, of which one is not known; a flow without labels never sees them."""
    z, label = torch.rand(batch, *IMAGE, dtype=dtype) - 0.5, torch.arange(batch) - 1
    return Packet(z, torch.zeros(batch, dtype=dtype), label)


def test_any_cut_composes_to_the_whole_and_inverts(pieces):
    slices, whole = pieces
    packet = given = images()
    expected, nll = whole(given)
    for piece in slices:
        packet, last = piece(packet.sealed())
    assert torch.equal(packet.z, expected.z) and torch.equal(last, nll)
    encoded, eps = whole.part.encode(given)
    torch.testing.assert_close(whole.part.inverse(encoded.z, eps, given.label), given.z, rtol=0, atol=1e-4)


def test_the_density_is_the_jacobians(pieces):
    label = torch.tensor([3])
    whole, given = pieces[1].double(), images(2, torch.float64)._replace(label=label.repeat(2))

    def latents_of(x):
        packet, eps = whole.part.encode(Packet(x, x.new_zeros(1), label))
        top = whole.prior.standardise(packet.z).flatten()
        return top[:0], torch.cat([*(left.flatten() for left in eps.values()), top])

    torch.testing.assert_close(-whole(given)[1], change_of_variables(latents_of, given.z), rtol=1e-8, atol=1e-8)


def test_gradients_reach_part_and_head_and_no_neighbours(pieces):
    slices, _ = pieces
    parameters = {name: value for piece in slices for name, value in piece.named_global_parameters()}
    packet = images()
    for piece in slices:
        for value in parameters.values():
            value.grad = None
        packet, nll = piece(packet.sealed())
        bits_per_dim(nll, 64).mean().backward()
        own = {name for name, _ in piece.named_global_parameters()}
        assert own == {name for name, value in parameters.items() if value.grad is not None}
        assert not [name for name in own if parameters[name].grad.abs().max() == 0]


def test_a_head_standardises_and_inverts(pieces):
    prior, label = pieces[0][0].prior.double(), torch.tensor([2, -1])
    z = torch.randn(2, *prior.event, dtype=torch.float64)
    eps = prior.standardise(z, label)
    assert isinstance(prior, FlowPrior) and not torch.allclose(eps, z)
    torch.testing.assert_close(prior.unstandardise(eps, label), z, rtol=0, atol=1e-9)


def test_a_head_can_begin_as_the_model_goes_on(flow, tmp_path):
    for start in ("model", "random"):
        cut = dataclasses.replace(HEADS, head=HeadConfig(hidden=8, start=start))
        config = dataclasses.replace(config_in(tmp_path, flow), cut=cut)
        first, second, _ = build(config.model, Pixels(IMAGE))[0].values()
        mine, theirs = first.prior.chain()[0].state_dict(), second.part.chain()[0][1].state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine) == (start == "model")


def following(flow, tmp_path, **head):
    """A head, and the steps of the model after its border at 1."""
    family = dataclasses.replace(FLOWS[flow][flow.split()[0]], depth=2)
    cut = CutConfig("explicit", 2, [1], "flow", HeadConfig(**head))
    config = dataclasses.replace(config_in(tmp_path, flow), cut=cut, **{flow.split()[0]: family})
    first, second = build(config.model, Pixels(IMAGE))[0].values()
    return first.prior.chain(), [step for _, step in second.part.chain()]


@pytest.mark.parametrize("flow", ["jet", "tarflow"], indirect=True)
@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_a_head_has_the_layers_and_steps_that_are_asked_for_and_remain(flow, steps, tmp_path):
    """In the directions, or with the orders, of the model, and with its weights where they are as large."""
    head, model = following(flow, tmp_path, steps=steps, hidden=8, start="model", depth=2)
    assert (len(head), len(model)) == (min(steps, 5), 5)
    for mine, theirs in zip(head, model, strict=False):
        assert getattr(mine, "backward", None) == getattr(theirs, "backward", None)
        found, expected = mine.state_dict(), theirs.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    shallow, _ = following(flow, tmp_path, steps=steps, hidden=8, start="model")
    assert {len(step.network.layers) for step in shallow} == {1}


@pytest.mark.parametrize("flow", ["jet", "tarflow", "jet with labels"], indirect=True)
def test_a_head_as_large_as_the_rest_learns_what_the_next_part_learns(flow, tmp_path):
    """Both begin alike and see the same latents, so that a part hands on what the next part knows how to use."""
    cut = CutConfig("explicit", 2, [2], "flow", HeadConfig(steps=4, hidden=8, start="model"))
    fit(dataclasses.replace(config_in(tmp_path / "run", flow), cut=cut, phases=PHASES[:1]))
    found = tensors(tmp_path / "run", 4)
    heads = {name: tensor for name, tensor in found.items() if name.startswith("provisional.2.steps.")}
    assert len(heads) > 40
    for name, tensor in heads.items():
        number, rest = name.removeprefix("provisional.2.steps.").split(".", 1)
        torch.testing.assert_close(tensor, found[f"steps.{int(number) + 3}.{rest}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("flow", ["jet", "tarflow"], indirect=True)
def test_a_narrow_head_begins_with_queries_keys_and_values_of_the_model(flow, tmp_path):
    cut = dataclasses.replace(HEADS, head=HeadConfig(hidden=4, start="model"))
    first, second, _ = build(dataclasses.replace(config_in(tmp_path, flow), cut=cut).model, Pixels(IMAGE))[0].values()
    mine, theirs = first.prior.chain()[0].state_dict(), second.part.chain()[0][1].state_dict()
    names = [name for name in mine if name.endswith("qkv.weight")]
    assert names and mine[names[0]].shape == (12, 4) and theirs[names[0]].shape == (24, 8)
    for name in names:
        for kind in range(3):
            assert torch.equal(mine[name][4 * kind :][:4], theirs[name][8 * kind :][:4, :4])


def test_initial_weights_depend_on_the_seed_only(flow, tmp_path):
    family = config_in(tmp_path, flow).family
    first, again, other = (torch.nn.ModuleList(family_steps(family, IMAGE, seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def gradients(whole, passage):
    whole.part.passage = passage
    whole.zero_grad()
    torch.manual_seed(5)
    whole(images(dtype=torch.float64))[1].sum().backward()
    return [parameter.grad for parameter in whole.parameters()]


@pytest.mark.parametrize("activations", ["checkpoint", "invert"])
def test_activations_change_no_gradient(pieces, activations, flow):
    if "tarflow" in flow and activations == "invert":
        pytest.skip("refused; see below")
    whole = pieces[1].double()
    for found, expected in zip(
        gradients(whole, make_passage(activations)), gradients(whole, make_passage()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_bf16_rounds_the_networks_and_no_latent(pieces):
    _, whole = pieces
    exact = whole(images())[0]
    set_precision(whole, "bf16")
    torch.manual_seed(0)
    given = images()
    rough = whole(given)[0]
    assert rough.z.dtype == rough.logp.dtype == torch.float32 and not torch.equal(rough.z, exact.z)


# --- runs


@pytest.fixture(scope="module", params=FLOWS)
def runs(request, tmp_path_factory):
    """(flow, run in one process, the same in two)."""
    directory = tmp_path_factory.mktemp(request.param)
    for size in (1, 2):
        config = config_in(directory / f"{size}", request.param)
        in_processes(size, fit_in, config, directory=directory / f"meet-{size}")
    return request.param, directory / "1", directory / "2"


def tensors(run, step):
    return load(run / "checkpoints" / f"step-{step}")[0]


def same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_with_heads_the_bits_do_not_depend_on_the_processes(runs):
    same(tensors(runs[1], 4), tensors(runs[2], 4))


@pytest.mark.parametrize("step", [3, 5])
def test_resumed_to_the_bit(runs, step, tmp_path):
    fit(config_in(tmp_path / "run", runs[0]), resume=runs[1] / "checkpoints" / f"step-{step}")
    same(tensors(runs[1], 6), tensors(tmp_path / "run", 6))


def test_cut_anew_the_joined_model_learns_the_same(runs, tmp_path):
    config = dataclasses.replace(config_in(tmp_path / "run", runs[0]), cut=CutConfig("explicit", 2, [3], "flow"))
    fit(config, resume=runs[1] / "checkpoints" / "step-4")
    one, other = (tensors(run, 6) for run in (runs[1], tmp_path / "run"))
    same(*({name: value for name, value in found.items() if "provisional" not in name} for found in (one, other)))


def test_a_cut_that_the_default_flow_could_not_have(runs, tmp_path):
    flow, run, _ = runs
    if flow == "glow":
        pytest.skip("two levels make two parts")
    words = ["--run_dir", str(tmp_path), "--resume", str(run / "checkpoints" / "step-4")]
    config, _ = settle([*words, "--cut.scheme", "by_blocks", "--cut.parts", "3"])
    assert (config.flow, family_cut(config.cut, config.family)) == (flow.split()[0], (2, 4))


def test_commands(runs, tmp_path, capsys):
    flow, run, _ = runs
    file = tmp_path / "config.yaml"
    file.write_text(config_in(tmp_path / "new", flow).as_yaml())
    named = {"glow": "Glow 2 × 3 × 8", "jet": "Jet 6 × 1 × 8", "tarflow": "TarFlow 6 × 1 × 8"}[flow.split()[0]]
    assert plan.main(["--config", str(file), "--cut.scheme", "balanced", "--cut.at", "null"]) == 0
    assert named in capsys.readouterr().out
    assert evaluate.main([str(run)]) == 0
    assert sample.main([str(run), "--each-part", "--out", str(tmp_path / "parts.png"), "--images", "2"]) == 0
    assert report.main([str(run)]) == 0
    assert named in (run / "report.html").read_text(encoding="utf-8")


def test_load_export_and_sample(runs, tmp_path):
    flow, run, _ = runs
    trained = pipeflow.load(run)
    labels = [4, -1, 9] if "labels" in flow else None
    drawn = trained.sample(3, labels=labels)
    assert torch.equal(trained.decode(trained.encode(drawn, labels, seed=3), labels), drawn)
    pipeflow.export(run, tmp_path / "flow.safetensors")
    exported = pipeflow.load(tmp_path / "flow.safetensors")
    assert torch.equal(exported.bits_per_dim(drawn, labels), trained.bits_per_dim(drawn, labels))
    assert json.loads((tmp_path / "flow.json").read_text())["flow"] == flow.split()[0]
    assert pipeflow.load(run, parts=1).sample(3, labels=labels).shape == (3, *IMAGE)


# --- settings


@pytest.mark.parametrize("scheme", ["by_blocks", "across_blocks"])
def test_without_levels_parts_are_equal(scheme):
    assert scheme_cut(CutConfig(scheme, 3), 0, 32) == (10, 21)
    with pytest.raises(ValueError, match=r"cut\.parts is 3, but the flow has only 2 flow steps"):
        scheme_cut(CutConfig(scheme, 3), 0, 2)


def test_a_width_that_heads_do_not_divide():
    with pytest.raises(ValueError, match=r"jet.width is 10, which 4 heads \(jet.heads\) do not divide evenly"):
        JetConfig(width=10, heads=4)


@pytest.mark.parametrize(
    ("image", "patch", "message"),
    [
        ((1, 8, 8), 3, r"Images of 8×8 are no whole number of patches of 3×3 \(jet.patch\)"),
        ((1, 8, 8), 8, r"1×1 patches of 64 numbers .* must be even"),
        ((3, 8, 8), 1, r"8×8 patches of 3 numbers .* must be even"),
        ((5,), 2, r"The flow jet is one on images \(C, H, W\), and this data has the shape \(5,\)"),
    ],
)
def test_images_that_do_not_fit(image, patch, message):
    with pytest.raises(ValueError, match=message):
        family_steps(JetConfig(couplings=2, depth=1, width=8, heads=2, patch=patch), image)


def test_a_transformer_has_no_layout(tmp_path):
    with pytest.raises(ValueError, match="layout is channels_last, but the flow jet has no convolutions"):
        config_in(tmp_path, "jet", layout="channels_last")


def test_a_glow_has_no_layers_to_count(tmp_path):
    cut = dataclasses.replace(HEADS, head=HeadConfig(depth=2))
    with pytest.raises(ValueError, match=r"cut\.head\.depth is 2, but a Glow has no transformers"):
        dataclasses.replace(config_in(tmp_path, "glow"), cut=cut)


def test_a_tarflow_is_not_inverted_in_backward_passes(tmp_path):
    with pytest.raises(ValueError, match="activations is invert, but a TarFlow is inverted patch by patch"):
        config_in(tmp_path, "tarflow", activations="invert")


def test_a_part_of_one_direction_is_pointed_out(capsys, tmp_path):
    fit(config_in(tmp_path, "tarflow"))  # parts of 1 + 3 + 2 blocks
    assert "Part 1 has a single block, which goes through the patches in one direction only" in capsys.readouterr().out
    assert family_caution(FLOWS["jet"]["jet"], [1, 4, 6]) == family_caution(FLOWS["tarflow"]["tarflow"], [2, 6]) == []


# --- Gaussian noise


def test_gaussian_noise_is_that_of_the_image_and_has_a_density():
    pixels = Pixels(IMAGE, 17, noise=0.025)
    batch = torch.randint(0, 17, (64, *IMAGE), dtype=torch.uint8)
    packet = pixels.noisy(batch, 0, Purpose.EVALUATE, 0, torch.arange(64))
    away = packet.z - pixels.dequantise(batch, None).z
    assert away.std().item() == pytest.approx(0.025, rel=0.05) and abs(away.mean().item()) < 1e-3
    assert torch.equal(packet.logp, torch.zeros(64))
    assert torch.equal(pixels.noisy(batch[5:6], 0, Purpose.EVALUATE, 0, torch.tensor([5])).z, packet.z[5:6])


def test_with_gaussian_noise_no_bits_per_dim_are_claimed(tmp_path, capsys):
    noisy = dataclasses.replace(FLOWS["tarflow"]["tarflow"], noise=0.05)
    config = dataclasses.replace(config_in(tmp_path / "run", "tarflow"), tarflow=noisy)
    assert config.noise == 0.025
    assert fit(config)["test_bits_per_dim"] is None
    assert "bits/dim are those of a density" in capsys.readouterr().out
    assert pipeflow.load(tmp_path / "run").pixels.noise == 0.025
    pipeflow.export(tmp_path / "run", tmp_path / "flow.safetensors")
    assert pipeflow.load(tmp_path / "flow.safetensors").pixels.noise == 0.025
    assert evaluate.main([str(tmp_path / "run")]) == 0
    assert "bits/dim are those of a density" in capsys.readouterr().out
    assert report.main([str(tmp_path / "run")]) == 0
    assert "bits/dim are those of a density" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
