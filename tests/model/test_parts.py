"""Laws 2 and 3: any cut composes to the whole, and a part's gradient is that of its own truncated objective."""

import math

import pytest
import torch

from pipeflow.flow import Packet, Split, Squeeze
from pipeflow.model import (
    CutConfig,
    GlowConfig,
    Truncated,
    bits_per_dim,
    check_cut,
    cut_steps,
    flow_step_positions,
    glow_steps,
    scheme_cut,
)
from pipeflow.model.glow import FlowStep
from pipeflow.model.part import Part
from pipeflow.model.truncated import truncate

CONFIG = GlowConfig(levels=3, steps=2, hidden=8)
IMAGE = (2, 8, 8)
CUTS = [(border,) for border in range(1, 6)] + [(1, 2), (2, 4), (1, 3), (3, 5), (1, 3, 5), (1, 2, 3, 4, 5), ()]


@pytest.fixture(params=CUTS, ids=str)
def cut(request, perturb, device):
    """(slices, whole) of one perturbed flow, every prior learned."""
    slices, whole = truncate(glow_steps(CONFIG, IMAGE), request.param, IMAGE, "learned", "learned")
    for module in (whole, *(piece.prior for piece in slices[:-1])):
        perturb(module.to(device))
    return slices, whole


@pytest.fixture
def given(device):
    return Packet(torch.randn(4, *IMAGE, device=device), torch.randn(4, device=device))


def parameters_of(slices):
    """global name → parameter, of every slice."""
    return {name: parameter for piece in slices for name, parameter in piece.named_global_parameters()}


def test_cut_partitions_the_parameter_names(cut):
    slices, whole = cut
    names = [name for piece in slices for name, _ in piece.part.named_parameters()]
    assert names == [name for name, _ in whole.part.named_parameters()]
    assert len(names) == len(set(names)) and all(name.startswith("steps.") for name in names)


def test_cut_composes_to_the_whole(cut, given):
    slices, whole = cut
    expected, expected_nll = whole(given)
    for seal in (True, False):
        packet = given
        for piece in slices:
            packet, nll = piece(packet.sealed() if seal else packet)
        assert torch.equal(packet.z, expected.z) and torch.equal(packet.logp, expected.logp)
        assert torch.equal(bits_per_dim(nll, 128), bits_per_dim(expected_nll, 128))


def test_cut_composes_backwards(cut, given):
    slices, whole = cut
    packet, eps = whole.part.encode(given)
    z = packet.z
    for piece in reversed(slices):
        z = piece.part.inverse(z, eps)
    assert torch.equal(z, whole.part.inverse(packet.z, eps))
    assert {index: shape for piece in slices for index, shape in piece.part.eps_shapes().items()} == {
        index: tuple(left.shape[1:]) for index, left in eps.items()
    }


def test_cut_shapes_chain(cut, given):
    slices, whole = cut
    assert (slices[0].part.event_in, slices[-1].part.event_out) == (IMAGE, whole.part.event_out)
    packet = given
    for piece in slices:
        assert packet.z.shape[1:] == piece.part.event_in
        packet = piece.part(packet)
        assert packet.z.shape[1:] == piece.part.event_out == piece.prior.event


def test_global_state_of_the_slices_is_that_of_the_whole(cut, perturb):
    slices, whole = cut
    state = {name: tensor for piece in slices for name, tensor in piece.global_state().items()}
    own = {name: tensor for name, tensor in state.items() if not name.startswith("provisional.")}
    assert {name: tensor.data_ptr() for name, tensor in own.items()} == {
        name: tensor.data_ptr() for name, tensor in whole.global_state().items()
    }
    assert all(name.startswith(("steps.", "prior.")) for name in own)
    assert {name.rsplit(".", 1)[0] for name in set(state) - set(own)} == {piece.prior_name for piece in slices[:-1]}

    saved = {name: tensor.clone() for name, tensor in state.items()}
    perturb(whole)
    for piece in slices:
        piece.load_global_state(saved)
    assert all(torch.equal(state[name], saved[name]) for name in saved)


@pytest.mark.parametrize(
    ("at", "kinds"),
    [
        ((1, 2), ["squeeze step", "step split", "squeeze step step split squeeze step step"]),
        ((2, 4), ["squeeze step step split", "squeeze step step split", "squeeze step step"]),
        ((3, 5), ["squeeze step step split squeeze step", "step split squeeze step", "step"]),
    ],
)
def test_squeeze_opens_the_next_part_and_split_closes_the_one_before(at, kinds):
    parts = cut_steps(glow_steps(CONFIG, IMAGE), at, IMAGE)
    names = {Squeeze: "squeeze", FlowStep: "step", Split: "split"}
    assert [" ".join(names[type(step)] for _, step in part.chain()) for part in parts] == kinds
    assert [index for part in parts for index, _ in part.chain()] == list(range(11))


def test_glow_is_a_flat_list():
    steps = glow_steps(CONFIG, IMAGE)
    assert [type(step).__name__ for step in steps] == [
        *("Squeeze", "FlowStep", "FlowStep", "Split"),
        *("Squeeze", "FlowStep", "FlowStep", "Split"),
        *("Squeeze", "FlowStep", "FlowStep"),
    ]
    assert flow_step_positions(steps) == [1, 2, 5, 6, 9, 10]
    part = Part(dict(enumerate(steps)), IMAGE)
    assert (part.event_out, part.eps_shapes()) == ((32, 1, 1), {3: (4, 4, 4), 7: (8, 2, 2)})


def test_part_gradient_is_that_of_its_truncated_objective(cut, given):
    slices, _ = cut
    sealed = full = given
    for piece in slices:
        own = dict(piece.named_parameters())
        # The whole graph from the images on, with no wall in it: held constant is whatever is not differentiated for.
        full, nll_full = piece(full)
        expected = torch.autograd.grad(nll_full.mean(), own.values(), retain_graph=True)
        sealed, nll = piece(sealed.sealed())
        assert torch.equal(nll, nll_full)
        gradients = torch.autograd.grad(nll.mean(), own.values())
        for name, gradient, reference in zip(own, gradients, expected, strict=True):
            assert torch.equal(gradient, reference), name


def test_gradients_reach_the_own_parameters_and_no_neighbours(cut, given):
    slices, _ = cut
    parameters = parameters_of(slices)
    losses, packet = [], given
    for piece in slices:
        packet, nll = piece(packet.sealed())
        losses.append(bits_per_dim(nll, 128).mean())
    for piece, loss in zip(slices, losses, strict=True):
        for parameter in parameters.values():
            parameter.grad = None
        loss.backward()
        own = {name for name, _ in piece.named_global_parameters()}
        assert own == {name for name, parameter in parameters.items() if parameter.grad is not None}
        assert not [name for name in own if parameters[name].grad.abs().max() == 0]


def test_without_the_seal_gradients_would_cross(given, perturb, device):
    slices, whole = truncate(glow_steps(CONFIG, IMAGE), (3,), IMAGE, "standard", "standard")
    perturb(whole.to(device))
    packet, _ = slices[0](given)
    slices[1](packet)[1].mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in slices[0].parameters())


def test_sealed_packet_is_the_same_numbers_outside_the_graph():
    z = torch.randn(3, 4, 5, requires_grad=True)
    packet = Packet((2 * z).transpose(1, 2), z.sum((1, 2)))
    sealed = packet.sealed()
    for before, after in zip(packet[:2], sealed[:2], strict=True):
        assert torch.equal(before, after) and not after.requires_grad and after.is_contiguous()


def test_bits_per_dim():
    assert bits_per_dim(torch.tensor([24 * math.log(256)]), 24).item() == pytest.approx(8)


def test_print_reads_like_the_design():
    truncated = truncate(glow_steps(CONFIG, IMAGE), (), IMAGE, "standard", "standard")[1]
    assert isinstance(truncated, Truncated) and "(2, 8, 8) → (32, 1, 1)" in repr(truncated)


@pytest.mark.parametrize(
    ("config", "levels", "steps", "at"),
    [
        (CutConfig("by_blocks", 3), 3, 32, (32, 64)),
        (CutConfig("by_blocks", 2), 3, 32, (32,)),
        (CutConfig("by_blocks", 1), 3, 32, ()),
        (CutConfig("by_blocks", 3), 3, 1, (1, 2)),
        (CutConfig("across_blocks", 1), 3, 32, ()),
        (CutConfig("across_blocks", 2), 3, 32, (16,)),
        (CutConfig("across_blocks", 3), 3, 32, (16, 48)),
        (CutConfig("across_blocks", 4), 3, 32, (16, 48, 80)),
        (CutConfig("across_blocks", 3), 2, 4, (2, 6)),
        (CutConfig("across_blocks", 3), 2, 3, (1, 4)),
        (CutConfig("explicit", 4, [1, 33, 95]), 3, 32, (1, 33, 95)),
        (CutConfig("explicit", 1, []), 1, 1, ()),
    ],
)
def test_scheme_cut(config, levels, steps, at):
    assert scheme_cut(config, levels, steps) == at


@pytest.mark.parametrize(
    ("config", "levels", "steps", "message"),
    [
        (CutConfig("by_blocks", 4), 3, 32, "by_blocks makes at most 3 parts of 3 levels of 32 flow steps, not 4"),
        (CutConfig("across_blocks", 5), 3, 32, "across_blocks makes at most 4 parts"),
        (CutConfig("across_blocks", 2), 3, 1, "at most 1 parts"),
        (CutConfig("explicit", 2, [96]), 3, 32, "each between 1 and 95"),
    ],
)
def test_scheme_cut_says_why_it_cannot(config, levels, steps, message):
    with pytest.raises(ValueError, match=message):
        scheme_cut(config, levels, steps)


@pytest.mark.parametrize("at", [[0], [6], [-1], [3, 2], [2, 2], [1, 7]])
def test_check_cut_says_why_it_cuts_nothing(at):
    with pytest.raises(ValueError, match=r"A cut at \[.*\] is not possible.*the flow has 6 flow steps"):
        check_cut(at, 6)
    with pytest.raises(ValueError, match="is not possible"):
        cut_steps(glow_steps(CONFIG, IMAGE), at, IMAGE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": 0}, "cut.parts is 0"),
        ({"scheme": "explicit"}, "cut.at is None with cut.scheme explicit"),
        ({"scheme": "by_blocks", "at": [1, 2]}, r"cut.at is \[1, 2\] with cut.scheme by_blocks"),
        ({"scheme": "explicit", "parts": 3, "at": [1]}, r"lists 1 borders, but 3 parts \(cut.parts\) have 2"),
    ],
)
def test_cut_config_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        CutConfig(**settings)


@pytest.mark.parametrize("name", ["levels", "steps", "hidden"])
def test_glow_config_errors(name):
    with pytest.raises(ValueError, match=rf"glow.{name} is 0; it must be a whole number of at least 1"):
        GlowConfig(**{name: 0})


@pytest.mark.parametrize(
    ("image", "nearest"),
    [((1, 28, 28), "32×32"), ((3, 33, 64), "32×64"), ((1, 2, 8), "8×8"), ((3, 32, 17), "32×16")],
)
def test_image_size_error_names_the_nearest_size(image, nearest):
    with pytest.raises(ValueError, match=f"multiples of 8. The nearest size is {nearest}"):
        glow_steps(CONFIG, image)


def test_initial_weights_depend_on_the_seed_only():
    before = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    first = torch.nn.ModuleList(glow_steps(CONFIG, IMAGE, seed=1)).state_dict()
    assert all(map(torch.equal, [torch.get_rng_state(), *torch.cuda.get_rng_state_all()], before))
    torch.rand(3)
    again = torch.nn.ModuleList(glow_steps(CONFIG, IMAGE, seed=1)).state_dict()
    other = torch.nn.ModuleList(glow_steps(CONFIG, IMAGE, seed=2)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("network.0.weight"))
