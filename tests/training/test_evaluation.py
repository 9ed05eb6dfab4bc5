"""The ledger against a float64 copy of the flow: what the parts contribute adds up to the model's bits/dim."""

import copy
import math

import numpy as np
import pytest
import torch

from pipeflow.data import Pixels, Purpose
from pipeflow.distributed import ParallelConfig, World
from pipeflow.flow import Packet
from pipeflow.model import GlowConfig, glow_steps
from pipeflow.model.truncated import truncate
from pipeflow.stream import Chain
from pipeflow.training.evaluation import evaluate

IMAGE = (3, 8, 8)
PIXELS = Pixels(IMAGE)
AT = (1, 3)
SEED = 7


@pytest.fixture(params=["standard", "learned"])
def flow(request, perturb):
    """(slices, whole), float32, off its start in every parameter, its priors of either kind."""
    steps = glow_steps(GlowConfig(levels=2, steps=2, hidden=16, top_prior=request.param), IMAGE)
    slices, whole = truncate(steps, AT, IMAGE, request.param, request.param)
    for module in (whole, *(piece.prior for piece in slices[:-1])):
        perturb(module)
    return slices, whole


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


def score(slices, images, batch=10, last=2, pixels=PIXELS):
    world = World(ParallelConfig(), len(slices), "cpu")
    chain = Chain(world, [piece.part.event_out for piece in slices], "no settings")
    return evaluate(chain, dict(enumerate(slices)), images, pixels, SEED, batch, last)


def dequantised(images, pixels=PIXELS):
    """The images as the ledger sees them, the constant in float64."""
    packet = pixels.noisy(
        torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), SEED, Purpose.EVALUATE, 0, torch.arange(len(images))
    )
    logp = torch.full((len(images),), -pixels.dims * math.log(pixels.n), dtype=torch.float64)
    return Packet(packet.z.double(), logp)


@torch.no_grad()
def bits(truncated, packet):
    """Bits/dim in float64 of a flow that starts at the images."""
    _, nll = copy.deepcopy(truncated).double()(packet)
    return (nll.mean() / (math.prod(IMAGE) * math.log(2))).item()


def close(value):
    return pytest.approx(value, rel=0, abs=1e-6)


def test_the_entries_add_up_to_the_models_bits_per_dim(flow, images):
    slices, whole = flow
    ledger = score(slices, images)
    assert ledger.complete and ledger.images == 10 and len(ledger.parts) == 3
    total = ledger.dequantisation + ledger.parts[-1]["prior"]
    total += sum(part["log_det"] + part["split_prior"] for part in ledger.parts)
    expected = bits(whole, dequantised(images))
    assert math.isfinite(expected) and total == close(expected)
    assert ledger.bits_per_dim == ledger.parts[-1]["bits_per_dim"] == close(expected)


def test_every_truncation_is_the_stand_alone_flow_that_ends_there(flow, images):
    slices, _ = flow
    ledger = score(slices, images)
    for number, (border, part) in enumerate(zip((*AT, 4), ledger.parts, strict=True)):
        steps = [step for piece in slices[: number + 1] for _, step in piece.part.chain()]
        alone = truncate(steps, (), IMAGE, "standard", "standard")[1]
        alone.prior = slices[number].prior
        assert sum(step.place == "step" for step in steps) == border
        assert part["bits_per_dim"] == close(bits(alone, dequantised(images)))


def test_the_entries_of_a_part_are_its_own(flow, images):
    """Only the part that splits has a split prior; the constant is log2 of the levels."""
    ledger = score(flow[0], images)
    assert ledger.dequantisation == 8
    assert [part["split_prior"] != 0 for part in ledger.parts] == [False, True, False]
    assert all(part["log_det"] != 0 and part["prior"] != 0 for part in ledger.parts)


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 7, 16])
def test_a_short_last_batch_changes_nothing(flow, images, batch):
    together, apart = score(flow[0], images, 10), score(flow[0], images, batch)
    assert apart.images == together.images == 10
    for one, other in zip(together.parts, apart.parts, strict=True):
        assert one == {entry: close(value) for entry, value in other.items()}


def test_the_host_reads_the_device_once(flow, images, monkeypatch):
    """Not after every batch: each number is asked for when all of them are computed."""
    slices, _ = flow
    item, reads = torch.Tensor.item, []
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: reads.append(1) or item(tensor))
    counts = []
    for batch in (10, 1):
        reads.clear()
        score(slices, images, batch)
        counts.append(len(reads))
    assert counts[0] == counts[1] > 0


def test_a_part_that_has_not_started_is_not_evaluated(flow, images):
    whole = score(flow[0], images)
    for last in (0, 1):
        ledger = score(flow[0], images, last=last)
        assert not ledger.complete and ledger.bits_per_dim is None
        assert ledger.parts == whole.parts[: last + 1]


def test_few_bits_and_few_levels_have_their_own_constant(flow, images):
    for pixels, levels, given in (
        (Pixels(IMAGE, bits=5), 32, images),
        (Pixels(IMAGE, levels=17), 17, images % 17),
    ):
        ledger = score(flow[0], given, pixels=pixels)
        assert ledger.dequantisation == close(math.log2(levels))
        assert ledger.bits_per_dim == close(bits(flow[1], dequantised(given, pixels)))


def test_the_table_labels_what_is_the_models_and_what_is_not(flow, images):
    ledger = score(flow[0], images)
    first, second, third = ledger.table().splitlines()[1:]
    assert "truncated after part 1" in first and "truncated after part 2" in second
    assert "(model)" in third and f"{ledger.bits_per_dim:.4f} bits/dim" in third
    assert "(model)" not in score(flow[0], images, last=1).table()
