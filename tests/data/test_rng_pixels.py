"""Noise depends on what it is for only; pixels come back from the flow's space exactly."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeflow.data import Pixels, Purpose, normal
from pipeflow.data.rng import permutation, uniform, words


def python_words(seed, purpose, epoch, image, count):
    """The words of one image by whole numbers alone: an independent copy of the definition, with no tensor in it."""
    mask, golden = 2**32 - 1, 0x9E3779B9

    def lowbias32(h):
        h ^= h >> 16
        h = h * 0x7FEB352D % 2**32
        h ^= h >> 15
        h = h * 0x846CA68B % 2**32
        return h ^ h >> 16

    keys = []
    for key in (1, 2):
        for part in (seed & mask, seed >> 32 & mask, int(purpose), epoch):
            key = lowbias32((key * golden + part) & mask)
        keys.append(lowbias32((image * golden + key) & mask))
    return [lowbias32(lowbias32((keys[0] + position * golden) & mask) ^ keys[1]) for position in range(count)]


PINNED = {  # (seed, purpose, epoch, image) → the first words. Other words would be another run: never edit.
    (0, Purpose.SHUFFLE, 0, 0): [0xE97273B9, 0xEC363E37, 0xC189C8B4],
    (0, Purpose.DEQUANTISE, 0, 1): [0x2A98AC5E, 0x41BBA691, 0x72CD2727],
    (7, Purpose.FLIP, 59, 49999): [0xC6F607BE, 0x2E95C644, 0x563CE706],
    (1099511627781, Purpose.SAMPLE, 2147483648, 8589934593): [0x4D2C7461, 0x83A8258D, 0xFBC18552],
}


@pytest.mark.parametrize("key", PINNED, ids=str)
def test_words_are_pinned(key, device):
    *head, image = key
    assert python_words(*key, 3) == PINNED[key]
    assert words(*head, torch.tensor([image], device=device), 3).tolist() == [PINNED[key]]


@pytest.mark.parametrize("key", PINNED, ids=str)
def test_uniform_and_normal_are_made_of_the_words(key, device):
    *head, image = key
    index = torch.tensor([image], device=device)
    row = python_words(*key, 6)
    assert uniform(*head, index, 6).tolist() == [[(word // 2**17 + 0.5) / 2**15 for word in row]]
    halves = [(word + 0.5) / 2**32 for word in row]
    expected = [
        math.sqrt(-2 * math.log(r)) * math.cos(2 * math.pi * a) for r, a in zip(halves[:3], halves[3:], strict=True)
    ]
    torch.testing.assert_close(normal(*head, index, 3).cpu(), torch.tensor([expected]))


def test_purposes_are_pinned():
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "SHUFFLE": 1,
        "FLIP": 2,
        "DEQUANTISE": 3,
        "EVALUATE": 4,
        "INITIALISE": 5,
        "SAMPLE": 6,
        "VALIDATION": 7,
        "LABEL": 8,
    }


@pytest.mark.parametrize("draw", [words, uniform, normal])
def test_an_images_noise_does_not_depend_on_its_company(draw, device):
    index = torch.arange(100, device=device)
    rows = draw(3, Purpose.DEQUANTISE, 2, index, 40)
    for company in (index[10:20], index.flip(0), torch.tensor([7, 7, 93], device=device)):
        assert torch.equal(draw(3, Purpose.DEQUANTISE, 2, company, 40), rows[company])


@pytest.mark.parametrize("draw", [words, uniform, normal])
def test_noise_differs_by_seed_purpose_epoch_and_image(draw, device):
    index = torch.arange(4, device=device)
    keys = [(0, Purpose.FLIP, 0), (1, Purpose.FLIP, 0), (2**32, Purpose.FLIP, 0)]
    keys += [(0, purpose, 0) for purpose in Purpose if purpose != Purpose.FLIP] + [(0, Purpose.FLIP, 1)]
    rows = torch.cat([draw(*key, index, 16) for key in keys]).tolist()
    assert len({tuple(row) for row in rows}) == len(rows) == 4 * len(keys)


def test_uniform_is_uniform(device):
    u = uniform(0, Purpose.DEQUANTISE, 0, torch.arange(200, device=device), 1000).double().flatten()
    n = len(u)
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    rank = torch.arange(n, device=device) / n
    assert (u.sort().values - rank).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov–Smirnov, p = 0.001
    counts = torch.bincount((u * 256).long(), minlength=256).double()
    chi_square = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


def test_uniform_is_exact_beside_a_pixel_of_8_bits():
    u = uniform(0, Purpose.DEQUANTISE, 0, torch.arange(8), 1000)
    assert torch.equal((255 + u).double(), 255 + u.double())


def test_normal_is_normal(device):
    z = normal(0, Purpose.SAMPLE, 0, torch.arange(200, device=device), 1000).double().flatten()
    n = len(z)
    assert z.isfinite().all()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / n), power
    cdf = torch.special.ndtr(z.sort().values)
    assert (cdf - torch.arange(n, device=device) / n).abs().max() < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_images_pixels_epochs_and_purposes_are_uncorrelated(draw, device):
    index = torch.arange(512, device=device)
    noise = draw(0, Purpose.DEQUANTISE, 0, index, 512).double()
    others = [draw(0, Purpose.DEQUANTISE, 1, index, 512), draw(0, Purpose.EVALUATE, 0, index, 512)]
    for rows in (noise, noise.T):
        correlation = rows.corrcoef() - torch.eye(512, device=device)
        assert correlation.abs().max() < 6 / math.sqrt(512)
    for other in [noise.roll(1, 0), noise.roll(1, 1), *others]:
        assert torch.stack([noise.flatten(), other.double().flatten()]).corrcoef()[0, 1].abs() < 5 / 512


def test_permutation():
    orders = [permutation(seed, epoch, 1000) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
        assert (order == torch.arange(1000)).sum() < 10
    assert not any(torch.equal(*pair) for pair in ((orders[0], orders[1]), (orders[0], orders[2])))
    assert torch.equal(permutation(0, 0, 1000), orders[0])


@pytest.mark.parametrize(("levels", "bits"), [*((256, bits) for bits in range(1, 9)), (17, 8)])
def test_pixels_come_back_exactly(levels, bits, device):
    pixels = Pixels((1, 1, levels), levels, bits)
    images = torch.arange(levels, dtype=torch.uint8, device=device).expand(64, 1, 1, levels)
    kept = images >> (8 - bits) << (8 - bits)
    edges = [torch.full((64, levels), edge, device=device) for edge in (2.0**-16, 1 - 2.0**-16)]
    noise = uniform(0, Purpose.DEQUANTISE, 0, torch.arange(64, device=device), levels)
    for u in (None, noise, *edges):
        packet = pixels.dequantise(images, u)
        assert packet.z.abs().max() < 0.5 and packet.z.dtype == torch.float32
        assert torch.equal(pixels.quantise(packet.z), kept)
    assert pixels.n == (levels if bits == 8 else 2**bits) == len(kept.unique())


@pytest.mark.parametrize(("levels", "bits", "n"), [(256, 8, 256), (256, 5, 32), (256, 1, 2), (17, 8, 17)])
def test_pixels_constant(levels, bits, n, device):
    pixels = Pixels((3, 4, 2), levels, bits)
    images = torch.zeros(5, 3, 4, 2, dtype=torch.uint8, device=device)
    logp = pixels.dequantise(images, None).logp
    torch.testing.assert_close(logp, torch.full((5,), -24 * math.log(n), device=device))
    assert logp.dtype == torch.float32
    assert pixels.bits_per_dim(-24 * math.log(n)) == pytest.approx(math.log2(n))


def test_pixels_noisy_is_dequantise_with_the_images_own_noise(device):
    pixels = Pixels((1, 2, 2))
    images = torch.randint(256, (6, 1, 2, 2), dtype=torch.uint8, device=device)
    index = torch.tensor([5, 9, 2, 0, 7, 1], device=device)
    packet = pixels.noisy(images, 3, Purpose.EVALUATE, 4, index)
    u = uniform(3, Purpose.EVALUATE, 4, index, 4).view(6, 1, 2, 2)
    assert torch.equal(packet.z, (images.float() + u) / 256 - 0.5)


def test_quantise_puts_what_is_outside_at_the_edge(device):
    z = torch.tensor([-math.inf, -9.0, -0.5, 0.5, 9.0, math.inf], device=device).view(1, 1, 1, 6)
    assert Pixels((1, 1, 6)).quantise(z).flatten().tolist() == [0, 0, 0, 255, 255, 255]
    assert Pixels((1, 1, 6), bits=2).quantise(z).flatten().tolist() == [0, 0, 0, 192, 192, 192]
    assert Pixels((1, 1, 1)).quantise(torch.full((1, 1, 1, 1), math.nan, device=device)).item() == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 4, 4), "got torch.float32"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), r"of shape \(2, 3, 4, 5\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"Expected uint8 images of shape \(B, 3, 4, 4\)"),
    ],
)
def test_dequantise_names_what_does_not_fit(images, message):
    with pytest.raises(ValueError, match=message):
        Pixels((3, 4, 4)).dequantise(images, None)


def test_dequantise_refuses_values_that_are_no_levels():
    images = torch.full((1, 1, 1, 1), 17, dtype=torch.uint8)
    with pytest.raises(ValueError):
        Pixels((1, 1, 1), levels=17).dequantise(images, None)


class Divisors(TorchDispatchMode):
    """By what is divided."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.div:
            self.seen.append(args[1])
        return func(*args, **(kwargs or {}))


def test_pixels_are_divided_by_a_tensor():
    """By a number, a GPU would multiply by its reciprocal, which is not what a CPU computes."""
    with Divisors() as divisors:
        Pixels((1, 1, 1), levels=17).dequantise(torch.full((1, 1, 1, 1), 16, dtype=torch.uint8), None)
    assert [tensor.device.type for tensor in divisors.seen] == ["cpu"]


@pytest.mark.parametrize("bits", [0, 9])
def test_pixels_refuse_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="between 1 and 8"):
        Pixels((1, 2, 2), bits=bits)


def test_pixels_refuse_fewer_bits_of_other_levels():
    with pytest.raises(ValueError, match="17 levels; leave it at 8"):
        Pixels((1, 2, 2), levels=17, bits=5)
