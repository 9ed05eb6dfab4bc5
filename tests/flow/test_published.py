"""The flows on patches compute what the published implementations do (tests/fixtures/README.md)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeflow.flow import SPATIAL, Packet, Patches, spatial_order
from pipeflow.model import JetConfig, TarFlowConfig, family_steps
from pipeflow.model.part import Part

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONFIGS = {
    "jet": JetConfig(couplings=8, depth=2, width=8, heads=2, patch=2),
    "tarflow": TarFlowConfig(blocks=3, depth=2, width=8, heads=2, patch=2),
}
IMAGE = (3, 8, 8)


@pytest.fixture(params=CONFIGS)
def published(request):
    """(what the published implementation has computed, our flow with its weights)."""
    given = load_file(FIXTURES / f"{request.param}.safetensors")
    part = Part(dict(enumerate(family_steps(CONFIGS[request.param], IMAGE))), IMAGE)
    part.load_state_dict({f"steps.{name[8:]}": value for name, value in given.items() if name.startswith("weights.")})
    return given, part


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def latents(given):
    """As our flows have them; a published pixel lies in (−1, 1), ours in (−½, ½)."""
    return Patches(2)(given / 2)[0]


def test_forward_and_log_det(published):
    given, part = published
    images = given["images"] / 2
    packet = part(Packet(images, -Patches(2)(images)[1]))
    close(packet.z, latents(given["latents"]))
    close(packet.logp, given["log_det"])


def test_inverse(published):
    given, part = published
    for name, images in (("latents", "images"), ("other_latents", "other_images")):
        close(2 * part.inverse(latents(given[name]), {}), given[images])


@pytest.mark.parametrize("kind", SPATIAL)
def test_halves_of_the_spatial_couplings(kind):
    """The fixture's couplings 2 to 7 are the spatial ones, in the order of the paper's configuration."""
    given = load_file(FIXTURES / "jet.safetensors")
    event = Patches(2).out_shape(IMAGE)
    assert torch.equal(spatial_order(event, kind), given[f"weights.{2 + SPATIAL.index(kind)}.order"].flatten())
