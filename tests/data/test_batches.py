"""Batches: one integer says where in the data a run is, whoever asks and in how many pieces."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from pipeflow.config import PhaseConfig
from pipeflow.data import Batches, DataConfig, InOrder, MicroBatches, Pixels, Purpose, check_enough, resident
from pipeflow.flow import Packet
from pipeflow.training import run
from tests.support.small_runs import fit_in, small_config

CPU = torch.device("cpu")
PIXELS = Pixels((3, 4, 4))
# Every image is recognisable by its first pixel, and differs from its mirror image.
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(50)
IMAGES[:, 0, 3, 0] = np.arange(50) + 100


def batches(batch=8, flip=False, seed=0, images=IMAGES, **others):
    return Batches(images, PIXELS, seed, batch, flip, CPU, **others)


def numbers(packet):
    """Which images a packet holds, flipped or not."""
    first = PIXELS.quantise(packet.z)[:, 0, 0]
    return torch.where(first[:, 0] < 50, first[:, 0], first[:, 3]).tolist()


def test_a_batch_does_not_depend_on_what_was_asked_before():
    one, other = batches(flip=True), batches(flip=True, start=9)
    for _ in range(9):
        one.recv()
    expected = batches(flip=True).at(9)
    for packet in (one.recv(), other.recv()):
        assert torch.equal(packet.z, expected.z) and torch.equal(packet.logp, expected.logp)


def test_epochs_laid_end_to_end_show_every_image_once_each():
    source = batches(batch=8)
    seen = [number for t in range(25) for number in numbers(source.at(t))]  # 200 images, 4 epochs of 50
    for epoch in range(4):
        assert sorted(seen[50 * epoch : 50 * (epoch + 1)]) == list(range(50))
    assert len({tuple(seen[50 * epoch : 50 * (epoch + 1)]) for epoch in range(4)}) == 4, "every epoch has its own order"
    assert source.at(6).z.shape == (8, 3, 4, 4), "a batch across two epochs is as large as any"
    assert [source.indices(t).tolist() for t in (0, 6)] == [numbers(source.at(t)) for t in (0, 6)]


@pytest.mark.parametrize("processes", [2, 4])
def test_shards_are_slices_of_the_batch(processes):
    for t in (0, 6, 13):
        whole = batches(flip=True).at(t)
        shares = [batches(flip=True, shard=(rank, processes)).at(t) for rank in range(processes)]
        assert torch.equal(torch.cat([share.z for share in shares]), whole.z)
        assert torch.equal(torch.cat([share.logp for share in shares]), whole.logp)


def test_flips_leave_pixels_whole_and_take_about_half():
    plain, flipped = batches(50).at(0), batches(50, flip=True).at(0)
    assert numbers(plain) == numbers(flipped)
    a, b = PIXELS.quantise(plain.z), PIXELS.quantise(flipped.z)
    same = (a == b).flatten(1).all(1)
    mirrored = (a.flip(3) == b).flatten(1).all(1)
    assert torch.equal(mirrored, ~same) and 10 < mirrored.sum() < 40


def test_noise_changes_with_the_epoch_and_the_seed():
    """The same image in another epoch, or in a run of another seed, lies elsewhere in its cell."""
    source = batches(50)
    by_number = [dict(zip(numbers(source.at(t)), source.at(t).z, strict=True)) for t in (0, 1)]
    assert not any(torch.equal(by_number[0][n], by_number[1][n]) for n in range(50))
    assert not torch.equal(batches(seed=1).at(0).z, batches(seed=2).at(0).z)


def test_in_order_shows_each_image_once_and_ends_with_what_is_left():
    head = InOrder(IMAGES, torch.arange(50), PIXELS, 0, Purpose.EVALUATE, 16, CPU)
    packets = [head.recv() for _ in range(4)]
    assert [len(packet.z) for packet in packets] == [16, 16, 16, 2]
    assert [n for packet in packets for n in numbers(packet)] == list(range(50))
    again = InOrder(IMAGES, torch.arange(50), PIXELS, 0, Purpose.EVALUATE, 50, CPU).recv()
    assert torch.equal(torch.cat([packet.z for packet in packets]), again.z), (
        "noise belongs to the image, not the batch"
    )


def test_a_memory_map_is_left_as_it_was(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert torch.equal(batches(images=mapped, flip=True).at(3).z, batches(flip=True).at(3).z)


@pytest.mark.parametrize("name", ["batch", "init_batch"])
def test_too_few_images(name):
    with pytest.raises(ValueError, match=rf"data\.{name} is 51, but digits has only 50 training images"):
        check_enough(DataConfig(**{"batch": 8, "init_batch": 8, name: 51}), 50)


@pytest.mark.parametrize("name", ["batch", "init_batch"])
def test_too_few_images_beside_those_held_out(name):
    few = {"batch": 8, "init_batch": 8, "validation": 10}
    assert check_enough(DataConfig(**few | {name: 40}), 50) == 40
    with pytest.raises(ValueError, match=rf"data\.{name} is 41, .* only 40 training images without the 10 held out"):
        check_enough(DataConfig(**few | {name: 41}), 50)


@pytest.mark.parametrize("levels", [256, 17])
def test_images_that_live_on_the_device_make_the_same_packets(device, levels):
    """With --device cuda: a GPU sees what the CPU sees, to the bit, wherever the images are."""
    given, pixels = np.minimum(IMAGES, levels - 1), dataclasses.replace(PIXELS, levels=levels)
    expected = Batches(given, pixels, 0, 8, True, CPU, start=3).recv()
    for images in (given, torch.from_numpy(given).to(device), resident(given, device)):
        found = Batches(images, pixels, 0, 8, True, device, start=3).recv()
        assert found.z.device.type == device.type
        assert torch.equal(found.z.cpu(), expected.z) and torch.equal(found.logp.cpu(), expected.logp)


def test_images_stay_in_host_memory_where_that_is_what_computes():
    assert resident(IMAGES, CPU) is IMAGES


def test_they_are_copied_to_the_device_once_a_run(tmp_path, monkeypatch):
    """Whatever its phases, and once more where it is resumed."""
    copied = []

    def copy(images, device):
        copied.append(torch.from_numpy(images.copy()))
        return copied[-1]

    monkeypatch.setattr(run, "resident", copy)
    phases = [PhaseConfig("alternate", steps=4, turn_steps=2), PhaseConfig("simultaneous", steps=6)]
    whole, again = (small_config(tmp_path / name, phases) for name in ("whole", "again"))
    expected = fit_in("", whole)["test_bits_per_dim"]
    assert len(copied) == 1
    shutil.copytree(tmp_path / "whole", tmp_path / "again", ignore=shutil.ignore_patterns("step-10", "result.json"))
    assert fit_in("", again, "auto")["test_bits_per_dim"] == expected
    assert len(copied) == 2


@pytest.mark.parametrize("sizes", [(8,), (3, 3, 2), (1,) * 8])
def test_packets_of_a_batch_hold_what_the_batch_does(sizes):
    """Over the end of an epoch, where a packet is of two."""
    whole, cut = (batches(flip=True, start=4) for _ in range(2))
    packets = MicroBatches(cut, sizes)
    for _ in range(4):
        found = [packets.recv() for _ in sizes]
        assert tuple(len(packet.z) for packet in found) == sizes
        expected, together = whole.recv(), Packet.joined(found)
        assert torch.equal(together.z, expected.z) and torch.equal(together.logp, expected.logp)
