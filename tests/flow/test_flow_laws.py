"""Law 1: inverse(encode(x)) = x and log-dets equal autodiff Jacobians, for every step and for a whole small Glow.

A new step is one new line of `STEPS`.
"""

import itertools

import pytest
import torch
from torch.distributions import Normal

from pipeflow.flow import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    JetCoupling,
    LUConv1x1,
    Packet,
    Patches,
    PlainConv1x1,
    Split,
    Squeeze,
    StandardNormal,
    TarFlowBlock,
    channel_order,
    spatial_order,
)
from pipeflow.flow.prior import ChannelGaussian
from pipeflow.model import GlowConfig, glow_steps
from pipeflow.model.glow import FlowStep
from pipeflow.model.part import Part
from pipeflow.model.truncated import truncate

STEPS = {  # name → (constructor, shape of what enters)
    "ActNorm images": (lambda: ActNorm(3), (3, 2, 3)),
    "ActNorm vectors": (lambda: ActNorm(5), (5,)),
    "PlainConv1x1": (lambda: PlainConv1x1(4), (4, 2, 3)),
    "LUConv1x1": (lambda: LUConv1x1(4), (4, 2, 3)),
    "AffineCoupling": (lambda: AffineCoupling(4, 8), (4, 2, 3)),
    "AffineCoupling odd": (lambda: AffineCoupling(5, 8), (5, 2, 3)),
    "AdditiveCoupling": (lambda: AdditiveCoupling(4, 8), (4, 2, 3)),
    "AdditiveCoupling odd": (lambda: AdditiveCoupling(5, 8), (5, 2, 3)),
    "Squeeze": (lambda: Squeeze(), (3, 4, 2)),
    "Split learned": (lambda: Split(4), (4, 2, 3)),
    "Split learned odd": (lambda: Split(5), (5, 2, 3)),
    "Split standard": (lambda: Split(4, learned=False), (4, 2, 3)),
    "FlowStep affine lu": (lambda: FlowStep(4, GlowConfig(hidden=8)), (4, 2, 3)),
    "FlowStep affine plain": (lambda: FlowStep(4, GlowConfig(hidden=8, conv1x1="plain")), (4, 2, 3)),
    "FlowStep additive lu": (lambda: FlowStep(4, GlowConfig(hidden=8, coupling="additive")), (4, 2, 3)),
    "FlowStep additive plain odd": (
        lambda: FlowStep(5, GlowConfig(hidden=8, coupling="additive", conv1x1="plain")),
        (5, 2, 3),
    ),
    "Patches": (lambda: Patches(2), (3, 4, 2)),
    "JetCoupling channels": (lambda: JetCoupling((4, 2, 2), channel_order((4, 2, 2)), 1, 8, 2), (4, 2, 2)),
    "JetCoupling spatial": (lambda: JetCoupling((4, 2, 2), spatial_order((4, 2, 2), "hstripes"), 2, 8, 2), (4, 2, 2)),
    "TarFlowBlock": (lambda: TarFlowBlock((3, 2, 2), False, 1, 8, 2), (3, 2, 2)),
    "TarFlowBlock backward": (lambda: TarFlowBlock((3, 1, 3), True, 2, 8, 2), (3, 1, 3)),
    "JetCoupling labels": (lambda: JetCoupling((4, 2, 2), channel_order((4, 2, 2)), 1, 8, 2, classes=3), (4, 2, 2)),
    "TarFlowBlock labels": (lambda: TarFlowBlock((3, 2, 2), True, 1, 8, 2, classes=3), (3, 2, 2)),
}
GLOWS = {  # name → (config, image)
    " ".join(variant): (
        GlowConfig(2, 2, 8, coupling=variant[0], conv1x1=variant[1], split_prior=variant[2], top_prior=variant[3]),
        (1, 4, 4),
    )
    for variant in itertools.product(
        ("affine", "additive"), ("lu", "plain"), ("learned", "standard"), ("standard", "learned")
    )
} | {"three levels": (GlowConfig(3, 1, 8), (1, 8, 8))}


@pytest.fixture(params=STEPS)
def case(request, perturb, device, dtype):
    """(step with perturbed weights, a batch of 3 that fits it)."""
    build, event = STEPS[request.param]
    step = perturb(build().to(device, dtype))
    return step, torch.randn(3, *event, device=device, dtype=dtype)


@pytest.fixture(params=GLOWS)
def glow(request, perturb, device, dtype):
    """(the whole of a perturbed Glow with its prior, a batch of 3 images)."""
    config, image = GLOWS[request.param]
    _, whole = truncate(glow_steps(config, image), (), image, config.top_prior, "standard")
    return perturb(whole.to(device, dtype)), torch.randn(3, *image, device=device, dtype=dtype)


@pytest.fixture(scope="session")
def close(dtype):
    """Asserts two tensors equal within what the precision of the run allows."""
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}[dtype]
    return lambda actual, expected: torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def change_of_variables(latents_of, z):
    """log|det ∂latents/∂z| + Σ log N(latents that left; 0, 1) of each z, by autodiff: (B,).

    `latents_of` maps z (1, …) to (what goes on, what left), both flat.
    """
    terms = []
    for one in z.split(1):
        jacobian = torch.autograd.functional.jacobian(lambda one: torch.cat(latents_of(one)), one)
        log_det = torch.linalg.slogdet(jacobian.reshape(len(jacobian), -1)).logabsdet
        terms.append(log_det + Normal(0, 1).log_prob(latents_of(one)[1]).sum())
    return torch.stack(terms)


def test_step_inverse(case, close):
    step, z = case
    out, _, eps = step.encode(z)
    close(step.inverse(out, eps), z)


def test_step_log_det_is_the_jacobians(case, close):
    step, z = case

    def latents_of(z):
        out, _, eps = step.encode(z)
        return out.flatten(), z.new_zeros(0) if eps is None else eps.flatten()

    close(step(z)[1], change_of_variables(latents_of, z))


def test_step_keeps_the_contract(case):
    step, z = case
    out, dlogp = step(z)
    encoded, dlogp_encoded, eps = step.encode(z)
    event = tuple(z.shape[1:])
    assert torch.equal(out, encoded) and torch.equal(dlogp, dlogp_encoded)
    assert (dlogp.shape, dlogp.dtype, out.dtype) == ((3,), z.dtype, z.dtype)
    assert out.shape[1:] == step.out_shape(event)
    assert step.eps_shape(event) == (None if eps is None else tuple(eps.shape[1:]))


def test_step_never_writes_into_its_input(case):
    step, z = case
    out, _, eps = step.encode(z)
    given = [tensor for tensor in (z, out.detach().clone(), eps) if tensor is not None]
    before = [(tensor.clone(), tensor._version) for tensor in given]
    for act in (step, step.encode, step.initialise):
        act(z)
    step.inverse(given[1], eps)
    for tensor, (values, version) in zip(given, before, strict=True):
        assert torch.equal(tensor, values) and tensor._version == version


def test_step_gradient_reaches_every_parameter_and_the_input(case):
    step, z = case
    out, dlogp = step(z.requires_grad_())
    ((out * torch.randn_like(out)).sum() + dlogp.sum()).backward()
    for name, tensor in (*step.named_parameters(), ("z", z)):
        assert tensor.grad is not None and tensor.grad.abs().max() > 0, name


def test_step_gradient_is_the_slope(case):
    step, z = case[0].double(), case[1].double()
    weight, away = torch.randn_like(step(z)[0]), [torch.randn_like(parameter) for parameter in step.parameters()]

    def value(distance):
        moved = [p.detach() + distance * v for p, v in zip(step.parameters(), away, strict=True)]
        names = [name for name, _ in step.named_parameters()]
        out, dlogp = torch.func.functional_call(step, dict(zip(names, moved, strict=True)), z)
        return (out * weight).sum() + 3 * dlogp.sum()

    distance = torch.tensor(0.0, dtype=torch.double, device=z.device, requires_grad=True)
    slope = torch.autograd.grad(value(distance) + 0 * distance, distance)[0]
    torch.testing.assert_close(slope, (value(1e-5) - value(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-6)


def test_glow_inverse(glow, close):
    whole, x = glow
    packet, eps = whole.part.encode(Packet(x, x.new_zeros(3)))
    close(whole.part.inverse(packet.z, eps), x)


def test_glow_density_is_the_jacobians(glow, close):
    whole, x = glow

    def latents_of(x):
        packet, eps = whole.part.encode(Packet(x, x.new_zeros(1)))
        top = whole.prior.standardise(packet.z).flatten()
        return top[:0], torch.cat([*(left.flatten() for left in eps.values()), top])

    _, nll = whole(Packet(x, x.new_zeros(3)))
    close(-nll, change_of_variables(latents_of, x))


def test_glow_encode_ledger_and_shapes_agree_with_forward(glow, close):
    whole, x = glow
    part: Part = whole.part
    logp = torch.randn(3, device=x.device, dtype=x.dtype)
    packet = part(Packet(x, logp))
    encoded, eps = part.encode(Packet(x, logp))
    listed, entries = part.ledger(Packet(x, logp))
    for other in (encoded, listed):
        assert torch.equal(other.z, packet.z) and torch.equal(other.logp, packet.logp)
    assert packet.z.shape[1:] == part.event_out and packet.logp.dtype == x.dtype
    assert {index: tuple(left.shape[1:]) for index, left in eps.items()} == part.eps_shapes()
    close(sum(entries.values()).to(x.dtype), packet.logp - logp)
    assert set(entries) == {"log_det", "split_prior"}


def test_glow_initialise_starts_each_step_behind_started_ones(device, dtype):
    part = Part(dict(enumerate(glow_steps(GlowConfig(2, 2, 8), (1, 8, 8)))), (1, 8, 8)).to(device, dtype)
    x = 3 + 2 * torch.randn(16, 1, 8, 8, device=device, dtype=dtype)
    after = part.initialise(Packet(x, x.new_zeros(16)))
    packet = part(Packet(x, x.new_zeros(16)))
    assert torch.equal(after.z, packet.z) and torch.equal(after.logp, packet.logp)
    z = x
    for _, step in part.chain():
        if isinstance(step, FlowStep):
            values = step.actnorm(z)[0].transpose(0, 1).flatten(1)
            torch.testing.assert_close(values.mean(1), torch.zeros_like(values[:, 0]), atol=1e-4, rtol=0)
            torch.testing.assert_close(values.var(1, correction=0), torch.ones_like(values[:, 0]), atol=1e-3, rtol=0)
        z, _ = step(z)


@pytest.mark.parametrize("event", [(3, 2, 2), (5,)])
def test_priors_are_normals(event, device, dtype, close, perturb):
    z = 2 * torch.randn(4, *event, device=device, dtype=dtype)
    standard = StandardNormal(event).to(device, dtype)
    close(standard.log_prob(z), Normal(0, 1).log_prob(z).flatten(1).sum(1))
    learned = perturb(ChannelGaussian(event).to(device, dtype))
    close(learned.log_prob(z), Normal(learned.mean, learned.log_sd.exp()).log_prob(z).flatten(1).sum(1))
    for prior in (standard, learned):
        close(prior.unstandardise(prior.standardise(z)), z)
    close(learned.standardise(z), (z - learned.mean) / learned.log_sd.exp())


@pytest.mark.parametrize("event", [(3, 4, 4), (3,)])
def test_actnorm_starts_from_its_first_batch_only(event, device, dtype):
    actnorm = ActNorm(3).to(device, dtype)
    z = 5 + 7 * torch.randn(64, *event, device=device, dtype=dtype)
    actnorm.initialise(z)
    values = actnorm(z)[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), values.new_zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.var(1, correction=0), values.new_ones(3), atol=1e-5, rtol=0)

    reloaded = ActNorm(3).to(device, dtype)
    reloaded.load_state_dict(actnorm.state_dict())
    for other in (actnorm, reloaded):
        before = [parameter.clone() for parameter in other.parameters()]
        other.initialise(3 * z - 1)
        assert all(map(torch.equal, before, other.parameters()))


def test_actnorm_survives_a_constant_channel(device):
    actnorm = ActNorm(2).to(device)
    z = torch.stack([torch.full((8, 4), 0.5), torch.randn(8, 4)], 1).to(device)
    actnorm.initialise(z)
    out, dlogp = actnorm(z)
    assert out.isfinite().all() and dlogp.isfinite().all()
    torch.testing.assert_close(actnorm.inverse(out), z)


@pytest.mark.parametrize("channels", [2, 5, 48])
def test_conv1x1_starts_as_the_same_rotation_in_both_forms(channels):
    weights = []
    for form in (PlainConv1x1, LUConv1x1):
        torch.manual_seed(1)
        weight, log_det = form(channels).weight_and_log_det()
        torch.testing.assert_close(weight @ weight.T, torch.eye(channels), atol=1e-5, rtol=0)
        torch.testing.assert_close(log_det, torch.tensor(0.0), atol=1e-4, rtol=0)
        weights.append(weight)
    torch.testing.assert_close(*weights, atol=1e-5, rtol=0)
    assert not torch.allclose(weights[0], torch.eye(channels), atol=0.01)


def test_lu_log_det_is_slogdet(perturb, dtype, close):
    weight, log_det = perturb(LUConv1x1(7).to(dtype)).weight_and_log_det()
    close(log_det, torch.linalg.slogdet(weight).logabsdet)
    assert log_det.abs() > 1e-3


@pytest.mark.parametrize("name", [name for name in STEPS if "Coupling" in name])
def test_couplings_start_at_a_constant_scale(name, device):
    build, event = STEPS[name]
    step = build().to(device)
    z = torch.randn(3, *event, device=device)
    gain = torch.ones_like(z)
    if isinstance(step, AffineCoupling):
        gain[:, step.kept :] = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(step(z)[0], gain * z)


def test_squeeze_refuses_odd_sizes():
    with pytest.raises(RuntimeError):
        Squeeze()(torch.zeros(1, 1, 3, 2))


def test_split_inverse_without_eps_says_what_it_needs():
    with pytest.raises(ValueError, match="needs eps"):
        Split(4).inverse(torch.zeros(1, 2, 2, 2))
