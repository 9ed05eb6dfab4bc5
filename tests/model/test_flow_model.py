"""The public API: uint8 images in, nats out, samples back."""

import math

import pytest
import torch
from torch.distributions import Normal

import pipeflow
from pipeflow.data import Pixels, Purpose
from pipeflow.data.rng import uniform
from pipeflow.flow import Packet
from pipeflow.model import GlowConfig, glow_steps
from pipeflow.model.truncated import truncate

IMAGE = (3, 8, 8)
DIMS = 192
SMALL = {"levels": 2, "steps": 2, "hidden": 8}


@pytest.fixture(params=["standard", "learned"])
def flow(request, perturb, device):
    return perturb(pipeflow.Glow(GlowConfig(**SMALL, top_prior=request.param), IMAGE).to(device))


@pytest.fixture
def images(device):
    return torch.randint(256, (6, *IMAGE), dtype=torch.uint8).to(device)


@pytest.fixture
def sliced(perturb, device):
    """(slices, whole, pixels) of a perturbed flow in 3 parts, its provisional priors learned."""
    slices, whole = truncate(glow_steps(GlowConfig(**SMALL), IMAGE), (1, 3), IMAGE, "standard", "learned")
    for module in (whole, *(piece.prior for piece in slices[:-1])):
        perturb(module.to(device))
    return slices, whole, Pixels(IMAGE)


def same(first, second):
    """Two results of the same model agree within float32."""
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-2)


def steps_of(flow):
    return [step for part in flow.parts() for _, step in part.chain()]


def test_log_prob_is_the_formula(flow, images):
    index = torch.tensor([4, 0, 3, 9, 1, 7], device=images.device)
    z = (images + uniform(5, Purpose.EVALUATE, 0, index, DIMS).view(images.shape)) / 256 - 0.5
    expected = torch.full((6,), -DIMS * math.log(256), device=images.device)
    for step in steps_of(flow):
        z, dlogp = step(z)
        expected = expected + dlogp
    prior = flow.prior
    normal = Normal(prior.mean, prior.log_sd.exp()) if hasattr(prior, "mean") else Normal(0, 1)
    same(flow.log_prob(images, seed=5, index=index), expected + normal.log_prob(z).flatten(1).sum(1))


def test_bits_per_dim_is_log_prob(flow, images):
    torch.testing.assert_close(flow.bits_per_dim(images, seed=2), -flow.log_prob(images, seed=2) / (DIMS * math.log(2)))


def test_log_prob_depends_on_seed_and_index_only(flow, images):
    logp = flow.log_prob(images)
    assert torch.equal(flow.log_prob(images), logp)
    assert not (flow.log_prob(images, seed=1) == logp).any()
    order = torch.tensor([3, 1], device=images.device)
    same(flow.log_prob(images[order], index=order), logp[order])


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(("levels", "bits"), [(256, 8), (256, 3), (17, 8)])
def test_decode_encode_gives_the_same_images(levels, bits, seed, perturb, device):
    flow = perturb(pipeflow.Glow(GlowConfig(**SMALL), IMAGE, bits, levels)).to(device, torch.float64)
    images = torch.randint(levels, (16, *IMAGE), dtype=torch.uint8).to(device)
    latents = flow.encode(images, seed=seed)
    assert {name: tuple(latent.shape[1:]) for name, latent in latents.items()} == flow.latent_shapes()
    assert torch.equal(flow.decode(latents), images >> (8 - bits) << (8 - bits))


def test_decode_encode_in_float32(flow, images):
    assert torch.equal(flow.decode(flow.encode(images)), images)


def test_encoded_latents_score_what_log_prob_says(flow, images):
    """log p(x) = constant + log|det ∂latents/∂x| + log N(latents; 0, 1), the latents being those of `encode`."""
    latents = flow.encode(images, seed=4)
    packet = flow.pixels.noisy(images, 4, Purpose.EVALUATE, 0, torch.arange(6, device=images.device))
    score = sum(Normal(0, 1).log_prob(latent).flatten(1).sum(1) for latent in latents.values())
    log_det = flow.log_prob(images, seed=4) - packet.logp - score

    def standardised(x):
        encoded, eps = flow.parts()[0].encode(Packet(x, x.new_zeros(1)))
        top = flow.prior.standardise(encoded.z)
        return torch.cat([latent.flatten() for latent in (*eps.values(), top)])

    jacobian = torch.autograd.functional.jacobian(standardised, packet.z[:1]).view(DIMS, DIMS)
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-3, atol=1e-2)


def test_sample(flow):
    images = flow.sample(5, seed=1)
    assert (images.shape, images.dtype) == ((5, *IMAGE), torch.uint8)
    assert torch.equal(flow.sample(2, seed=1), images[:2])
    assert torch.equal(flow.sample(5, seed=1), images)
    assert len({bytes(image.cpu().flatten().tolist()) for image in (*images, *flow.sample(5, seed=2))}) == 10


def test_sample_scales_its_latents_by_temperature(flow):
    still = flow.sample(3, temperature=0, seed=1)
    assert torch.equal(still, flow.sample(3, temperature=0, seed=2))
    assert torch.equal(still, still[:1].expand_as(still))
    spread = [flow.sample(8, temperature).float().std(0).mean() for temperature in (0.02, 0.1)]
    assert 0 < spread[0] < spread[1]


@pytest.mark.parametrize(("n", "temperature"), [(0, 1.0), (-1, 1.0), (1, -0.1)])
def test_sample_errors(flow, n, temperature):
    with pytest.raises(ValueError, match=rf"Cannot draw {n} images at temperature {temperature}"):
        flow.sample(n, temperature)


@pytest.mark.parametrize("images", [torch.zeros(2, *IMAGE), torch.zeros(2, 3, 8, 9, dtype=torch.uint8)])
@pytest.mark.parametrize("call", ["log_prob", "bits_per_dim", "encode", "initialise"])
def test_image_errors(flow, call, images, device):
    with pytest.raises(ValueError, match="Expected uint8 images of shape"):
        getattr(flow, call)(images.to(device))


@pytest.mark.parametrize("change", [{"top": None}, {"split.9": torch.zeros(6, 1)}, {"top": torch.zeros(6, 24, 2, 1)}])
def test_decode_errors(flow, images, change):
    latents = {name: latent for name, latent in (flow.encode(images) | change).items() if latent is not None}
    with pytest.raises(ValueError, match="do not fit this flow"):
        flow.decode(latents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"image": (3, 9, 8)}, "nearest size is 8×8"), ({"image": IMAGE, "bits": 0}, "between 1 and 8")],
)
def test_constructor_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeflow.Glow(GlowConfig(**SMALL), **arguments)


def test_seed_chooses_the_weights():
    flows = [pipeflow.Glow(GlowConfig(**SMALL), IMAGE, seed=seed) for seed in (0, 0, 1)]
    weights = [torch.cat([parameter.flatten() for parameter in flow.parameters()]) for flow in flows]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_initialise_normalises(images, device):
    flow = pipeflow.Glow(GlowConfig(**SMALL), IMAGE).to(device)
    flow.initialise(images)
    packet = flow.pixels.noisy(images, 0, Purpose.INITIALISE, 0, torch.arange(6, device=device))
    squeeze, first = steps_of(flow)[:2]
    values = first.actnorm(squeeze(packet.z)[0])[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(12, device=device), atol=1e-3, rtol=0)
    assert all(flag for name, flag in flow.named_buffers() if name.endswith("initialised"))


def test_parameters_are_unique_and_the_state_reloads(flow, images):
    parameters = list(flow.parameters())
    assert len({parameter.data_ptr() for parameter in parameters}) == len(parameters)
    assert len(parameters) == len([*flow.parts()[0].parameters(), *flow.prior.parameters()])
    saved = [tensor.data_ptr() for tensor in flow.state_dict().values()]
    assert len(set(saved)) == len(saved), "a tensor would be saved twice"
    config = GlowConfig(**SMALL, top_prior="learned" if hasattr(flow.prior, "mean") else "standard")
    other = pipeflow.Glow(config, IMAGE, seed=9).to(images.device)
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other.log_prob(images), flow.log_prob(images))


def test_every_parameter_learns_from_log_prob(flow, images):
    flow.log_prob(images).mean().backward()
    assert not [name for name, parameter in flow.named_parameters() if not parameter.grad.abs().max() > 0]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_flow_that_stops_at_a_border(sliced, images, k):
    slices, whole, pixels = sliced
    flow = pipeflow.Flow([piece.part for piece in slices[:k]], slices[k - 1].prior, pixels)
    packet = pixels.noisy(images, 0, Purpose.EVALUATE, 0, torch.arange(6, device=images.device))
    for piece in slices[:k]:
        packet, nll = piece(packet)
    assert torch.equal(flow.log_prob(images), -nll)
    assert torch.equal(flow.decode(flow.encode(images)), images)
    assert flow.sample(2).shape == (2, *IMAGE)
    if k == 3:
        one = pipeflow.Flow([whole.part], whole.prior, pixels)
        assert torch.equal(flow.log_prob(images), one.log_prob(images))
        assert torch.equal(flow.sample(2), one.sample(2))


def test_a_flow_works_without_gradients(flow, images):
    with torch.no_grad():
        logp = flow.log_prob(images)
        assert torch.equal(flow.decode(flow.encode(images)), images)
    assert not logp.requires_grad and torch.equal(logp, flow.log_prob(images))


def test_a_flow_works_in_double(flow, images):
    logp, latents = flow.log_prob(images), flow.encode(images)
    sample = flow.sample(3, temperature=0.1)
    flow.double()
    same(flow.log_prob(images).float(), logp)
    for name, latent in flow.encode(images).items():
        torch.testing.assert_close(latent.float(), latents[name], rtol=1e-3, atol=1e-3)
    assert torch.equal(flow.decode(flow.encode(images)), images)
    assert (flow.sample(3, temperature=0.1).int() - sample.int()).abs().max() <= 1
