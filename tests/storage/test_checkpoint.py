"""Checkpoints are whole or not there, and the moments of an optimizer belong to names, not to a cut."""

import dataclasses
import json
import math

import pytest
import torch

from pipeflow.distributed import ParallelConfig, World
from pipeflow.errors import LostError, SaveError
from pipeflow.model import GlowConfig, glow_steps
from pipeflow.model.truncated import truncate
from pipeflow.stage import load_moments, make_optimizer, named_moments
from pipeflow.storage import CheckpointConfig, Manifest, Saver, checkpoint

IMAGE = (1, 8, 8)
KINDS = ("adam", "adamax", "adamw")


def cut(at, seed=0):
    """A small flow in len(at) + 1 parts."""
    steps = glow_steps(GlowConfig(levels=2, steps=2, hidden=4, top_prior="learned"), IMAGE, seed)
    return truncate(steps, at, IMAGE, "learned", "standard")[0]


def state_of(slices):
    return {name: tensor for piece in slices for name, tensor in piece.global_state().items()}


# --- save and load


@pytest.fixture
def parts(perturb):
    """position → tensors, as a run has them: weights, a bool buffer, moments, and one that is not contiguous."""
    slices = cut((1, 3))
    tensors = {position: dict(perturb(piece).global_state()) for position, piece in enumerate(slices)}
    tensors[0]["exp_avg/steps.1.actnorm.bias"] = torch.randn(6, 4)[:, 1]
    tensors[0]["step/steps.1.actnorm.bias"] = torch.tensor(17.0)
    tensors[2]["something.int64"] = torch.arange(3)
    return tensors


def manifest_of(step, **others):
    about = {"config": {"seed": 3}, "at": [1, 3], "begun": 0, "phases": [], "started": 4, "moments_of": "adam"}
    about |= {"image": list(IMAGE), "levels": 17}
    elapsed = {"seconds": 1.0, "train_seconds": 0.5}
    return Manifest(
        **{"step": step, "elapsed": elapsed, "test_bits_per_dim": None, **about, **others}, versions={}, files={}
    )


def save(run, parts, *steps, keep=100, scores=None):
    """Checkpoints of the same tensors, one after another."""
    saver = Saver(World(ParallelConfig(), len(parts), "cpu"), run, CheckpointConfig(keep=keep), 10**9)
    for step in steps:
        borders = [1, 3] if len(parts) == 3 else list(range(1, len(parts)))
        directory = saver.save(parts, manifest_of(step, at=borders, test_bits_per_dim=(scores or {}).get(step)))
        saver.settle()
    return directory


@pytest.fixture
def saved(tmp_path, parts):
    return save(tmp_path / "run", parts, 12)


def test_what_was_saved_is_loaded(saved, parts, tmp_path):
    assert saved == tmp_path / "run" / "checkpoints" / "step-12"
    tensors, manifest = checkpoint.load(saved)
    expected = {name: tensor for part in parts.values() for name, tensor in part.items()}
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype, name
    assert dataclasses.replace(manifest, files={}) == manifest_of(12)


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path, parts):
    saver = Saver(World(ParallelConfig(), len(parts), "cpu"), tmp_path, CheckpointConfig())
    expected = {name: tensor.clone() for part in parts.values() for name, tensor in part.items()}
    directory = saver.save(parts, manifest_of(3))
    with torch.no_grad():
        for part in parts.values():
            for tensor in part.values():
                tensor.zero_()
    saver.settle()
    tensors, _ = checkpoint.load(directory)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


class Unreachable(World):
    """A world whose store is gone."""

    @property
    def store(self):
        raise LostError("the store where the processes meet is gone")

    @store.setter
    def store(self, store):
        pass


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("world", "kind"), [(Unreachable, torch.float32), (World, torch.complex128)])
def test_whatever_goes_wrong_in_the_background_the_loop_raises(tmp_path, world, kind):
    """The store is gone, or the format has no such kind of number."""
    saver = Saver(world(ParallelConfig(), 1, "cpu"), tmp_path, CheckpointConfig())
    saver.save({0: {"steps.0.bias": torch.ones(3, dtype=kind)}}, manifest_of(1))
    with pytest.raises(SaveError, match=r"step 0: the checkpoint of step 1 cannot be written: ."):
        saver.wait()


def test_a_file_a_part_and_a_manifest_and_nothing_else(saved):
    assert [path.name for path in sorted(saved.iterdir())] == [
        "manifest.json",
        *(f"part-{number}.safetensors" for number in (1, 2, 3)),
    ]
    assert [path.name for path in saved.parent.iterdir()] == ["step-12"], "no .partial is left"
    assert set(json.loads((saved / "manifest.json").read_text())["files"]) == {
        f"part-{number}.safetensors" for number in (1, 2, 3)
    }


def test_the_remains_of_a_save_that_was_cut_off_are_in_nobodys_way(tmp_path, parts):
    remains = tmp_path / "checkpoints" / "step-5.partial"
    remains.mkdir(parents=True)
    (remains / "part-7.safetensors").write_bytes(b"half")
    directory = save(tmp_path, parts, 5)
    tensors, _ = checkpoint.load(directory)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in parts[0].items())
    assert not remains.exists() and not (directory / "part-7.safetensors").exists()


def test_a_checkpoint_that_was_copied_in_half_is_kept_aside(tmp_path, parts):
    for step in (3, 5):
        half = tmp_path / "checkpoints" / f"step-{step}"
        half.mkdir(parents=True)
        (half / "part-1.safetensors").write_bytes(b"half")
    saver = Saver(World(ParallelConfig(), len(parts), "cpu"), tmp_path, CheckpointConfig(), 4)
    saver.save(parts, manifest_of(5))
    saver.settle()
    assert checkpoint.steps_saved(tmp_path) == [5]
    (aside,) = (tmp_path / "checkpoints").glob("step-5.damaged-*")
    assert (aside / "part-1.safetensors").read_bytes() == b"half"
    assert (tmp_path / "checkpoints" / "step-3").is_dir(), "what lies before is in nobody's way"


KEPT = {
    "the newest": (2, {}, {4, 5}),
    "and the best": (2, {1: 3.5, 2: 3.2, 3: 3.4}, {2, 4, 5}),
    "and the best of those that are numbers": (2, {1: math.nan, 2: 3.0, 3: 4.0, 4: 4.1, 5: 4.2}, {2, 4, 5}),
    "which may be the newest": (1, {2: 3.2, 5: 3.1}, {5}),
    "all, where few": (9, {1: 1.0}, {1, 2, 3, 4, 5}),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays(name, tmp_path, parts):
    keep, scores, left = KEPT[name]
    save(tmp_path, parts, 1, 2, 3, 4, 5, keep=keep, scores=scores)
    assert set(checkpoint.steps_saved(tmp_path)) == left
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {f"step-{step}" for step in left}


def test_the_best_is_that_of_the_validation_split(tmp_path, parts):
    saver = Saver(World(ParallelConfig(), len(parts), "cpu"), tmp_path, CheckpointConfig(keep=1), 10**9)
    for step, bits in ((1, 3.5), (2, 3.2), (3, 3.4)):
        saver.save(parts, manifest_of(step, validation_bits_per_dim=bits))
        saver.settle()
    assert checkpoint.steps_saved(tmp_path) == [2, 3]


def test_a_damaged_manifest_does_not_keep_others_from_being_removed(tmp_path, parts):
    save(tmp_path, parts, 1, 2)
    (tmp_path / "checkpoints" / "step-2" / "manifest.json").write_text("{")
    save(tmp_path, parts, 3, 4, keep=2)
    assert checkpoint.steps_saved(tmp_path) == [3, 4]


def test_the_newest_whole_one_is_found_behind_damaged_ones(tmp_path, parts):
    save(tmp_path, parts, 9, 10, 11)
    (tmp_path / "checkpoints" / "step-11" / "part-1.safetensors").unlink()
    (tmp_path / "checkpoints" / "step-10" / "manifest.json").write_text("{}")
    (tmp_path / "checkpoints" / "step-12").mkdir()
    found, wrong = checkpoint.newest(tmp_path)
    assert found == tmp_path / "checkpoints" / "step-9"
    assert len(wrong) == 2 and "step-11/part-1.safetensors is missing" in wrong[0] and "step-10" in wrong[1]
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])


def test_a_checkpoint_of_one_cut_loads_into_another(saved, parts):
    tensors, _ = checkpoint.load(saved)
    for at in ((), (2,), (1, 2, 3)):
        slices = cut(at, seed=1)
        for piece in slices:
            piece.load_global_state(tensors)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in state_of(slices).items())


# --- moments by name


def step(slices, optimizers, number):
    """An update with gradients that depend on the parameter's name and the step's number alone."""
    for piece in slices:
        for name, parameter in piece.named_global_parameters():
            seed = sum(map(ord, name)) * 1000 + number
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    for optimizer in optimizers:
        optimizer.step()


def optimizers_of(kind, slices):
    return [make_optimizer(kind, piece.named_global_parameters(), 1e-2) for piece in slices]


def moments_of(slices, optimizers):
    moments = {}
    for piece, optimizer in zip(slices, optimizers, strict=True):
        moments |= named_moments(optimizer, piece.named_global_parameters())
    return moments


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [(1, 3), (2,), (), (1, 2, 3)])
def test_training_goes_on_in_another_cut_as_if_nothing_had_happened(kind, at, tmp_path):
    slices = cut((1, 3))
    optimizers = optimizers_of(kind, slices)
    for number in range(3):
        step(slices, optimizers, number)
    weights = {name: tensor.clone() for name, tensor in state_of(slices).items()}
    moments = {name: tensor.clone() for name, tensor in moments_of(slices, optimizers).items()}
    tensors, _ = checkpoint.load(save(tmp_path, {0: weights | moments}, 3))
    for number in range(3, 6):
        step(slices, optimizers, number)

    others = cut(at, seed=1)
    for piece in others:
        piece.load_global_state(tensors)
    others_optimizers = optimizers_of(kind, others)
    for piece, optimizer in zip(others, others_optimizers, strict=True):
        load_moments(optimizer, piece.named_global_parameters(), {k: v for k, v in tensors.items() if "/" in k})
    for number in range(3, 6):
        step(others, others_optimizers, number)

    expected, found = state_of(slices), state_of(others)
    assert set(expected) == set(found)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not any(torch.equal(weights[name], found[name]) for name in weights if name.endswith("bias"))
    expected, found = moments_of(slices, optimizers), moments_of(others, others_optimizers)
    assert set(expected) == set(found) and all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("kind", "slots"),
    [
        ("adam", {"step", "exp_avg", "exp_avg_sq"}),
        ("adamw", {"step", "exp_avg", "exp_avg_sq"}),
        ("adamax", {"step", "exp_avg", "exp_inf"}),
    ],
)
def test_names_of_moments(kind, slots):
    slices = cut((2,))
    optimizers = optimizers_of(kind, slices)
    assert moments_of(slices, optimizers) == {}
    step(slices, optimizers, 0)
    named = [name for piece in slices for name, _ in piece.named_global_parameters()]
    assert set(moments_of(slices, optimizers)) == {f"{slot}/{name}" for slot in slots for name in named}
    assert all(
        float(moment) == 1 for name, moment in moments_of(slices, optimizers).items() if name.startswith("step/")
    )


def test_moments_are_copied_and_the_rest_is_left_alone():
    slices = cut((2,))
    optimizers = optimizers_of("adam", slices)
    step(slices, optimizers, 0)
    moments = moments_of(slices, optimizers)
    piece = cut((2,))[1]
    named = piece.named_global_parameters()
    optimizer = make_optimizer("adam", named, 1e-2)
    some = {key: value for key, value in moments.items() if key.endswith("steps.6.actnorm.bias")}
    load_moments(optimizer, named, some)
    found = named_moments(optimizer, named)
    assert set(found) == set(some) and len(some) == 3
    assert all(torch.equal(found[key], some[key]) and found[key].data_ptr() != some[key].data_ptr() for key in some)
