"""No competitor of the benchmarks is broken: each has, after one batch, the gradients of one process."""

import sys
import zlib
from pathlib import Path

import pytest
import torch

from tests.support.processes import in_processes

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from course import Course
from rivals import make
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeflow.distributed import ParallelConfig, open_world
from pipeflow.model import bits_per_dim

COURSE = Course(levels=2, steps=2, hidden=8, size=8, at=(2,), batch=8)  # behind a split: the latent is a slice
RIVALS = {
    "parts": {},
    **{f"gpipe {micro}": {"micro": micro} for micro in (1, 2, 4)},
    **{f"1f1b {micro}": {"micro": micro} for micro in (2, 4)},
    "ddp": {"bucket_mb": 25},
    "one": {"threads": 1},
}


@torch.no_grad()
def move(parameters: dict[str, nn.Parameter]) -> None:
    """Off the start, where much of a Glow is zero; the same in every process and cut."""
    for name, parameter in parameters.items():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        parameter += 0.05 * noise


def gradients(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def race(init_method: str) -> bytes:
    """The gradients that this process has of each rival, as "<rival>/<name>"."""
    world = open_world(ParallelConfig(), 2, "cpu", init_method)
    found, groups = {}, {}
    for rival, setting in RIVALS.items():
        contestant = make(rival.split()[0], COURSE, world, groups, **setting)
        move(contestant.parameters())
        contestant.begin(1)
        contestant.step()
        contestant.end()
        found |= {f"{rival}/{name}": gradient for name, gradient in gradients(contestant.parameters()).items()}
    world.exchange(b"")
    return save(found)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """rival → gradients by name, of both processes together."""
    saved = [load(data) for data in in_processes(2, race, directory=tmp_path_factory.mktemp("race"))]
    ranks = [
        {rival: {key.split("/", 1)[1]: t for key, t in one.items() if key.split("/")[0] == rival} for rival in RIVALS}
        for one in saved
    ]
    return {rival: ranks[0][rival] | ranks[1][rival] for rival in RIVALS}, ranks


@pytest.fixture(scope="module")
def expected():
    _, whole = COURSE.build()
    parameters = dict(whole.named_global_parameters())
    move(parameters)
    _, nll = whole(COURSE.head().recv())
    bits_per_dim(nll, COURSE.pixels.dims).mean().backward()
    return gradients(parameters)


@pytest.mark.parametrize("rival", [rival for rival in RIVALS if rival != "parts"])
def test_a_rival_has_the_gradients_of_one_process(found, expected, rival):
    gradients = found[0][rival]
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-6), name


def test_the_pipelines_train_a_slice_a_process(found, expected):
    _, (first, second) = found
    for rival in ("1f1b 2", "gpipe 4", "parts"):
        assert not first[rival].keys() & second[rival].keys()
        assert first[rival] and second[rival]
    assert first["ddp"].keys() == second["ddp"].keys() == expected.keys()


def test_by_parts_the_last_part_has_the_gradients_of_one_process_and_the_first_its_own(found, expected):
    _, (first, second) = found
    for name, gradient in second["parts"].items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name
    assert any(not torch.allclose(gradient, expected[name], rtol=1e-2) for name, gradient in first["parts"].items())
