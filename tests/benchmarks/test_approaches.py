"""No approach of the speed benchmarks is broken: each has, after one batch, the gradients of one process."""

import zlib

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from benchmarks.lib.workload import Workload
from benchmarks.speed.approaches import make_approach
from pipeflow.distributed import ParallelConfig, full_tensor, open_world, spread_like
from pipeflow.model import bits_per_dim
from tests.support.processes import in_processes

WORKLOAD = Workload(levels=2, steps=2, hidden=8, size=8, cut=(2,), batch=8)  # after a split: the latent is a slice
APPROACHES = {
    "parts": {},
    "parts 3": {"micro": 3},
    **{f"gpipe {micro}": {"micro": micro} for micro in (1, 2, 4)},
    **{f"1f1b {micro}": {"micro": micro} for micro in (2, 4)},
    "ddp": {"bucket_mb": 25},
    "fsdp": {},
    "one": {"threads": 1},
}


@torch.no_grad()
def move(parameters: dict[str, nn.Parameter]) -> None:
    """Off the start, where much of a Glow is zero; the same in every process and cut."""
    for name, parameter in parameters.items():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        parameter += spread_like(0.05 * noise, parameter)


def gradients(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: full_tensor(p.grad).clone() for name, p in parameters.items() if p.grad is not None}


def train(init_method: str) -> bytes:
    """The gradients of each approach in this process, as "<approach>/<name>"."""
    world = open_world(ParallelConfig(), 2, "cpu", init_method)
    found, groups = {}, {}
    for label, setting in APPROACHES.items():
        approach = make_approach(label.split()[0], WORKLOAD, world, groups, setting)
        move(approach.parameters())
        approach.begin(1)
        approach.step()
        approach.end()
        found |= {f"{label}/{name}": gradient for name, gradient in gradients(approach.parameters()).items()}
    world.barrier()
    return save(found)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """approach → gradients by name, of both processes together, and of each process."""
    saved = [load(data) for data in in_processes(2, train, directory=tmp_path_factory.mktemp("train"))]
    ranks = [
        {
            approach: {key.split("/", 1)[1]: t for key, t in one.items() if key.split("/")[0] == approach}
            for approach in APPROACHES
        }
        for one in saved
    ]
    return {approach: ranks[0][approach] | ranks[1][approach] for approach in APPROACHES}, ranks


@pytest.fixture(scope="module")
def expected():
    _, flow = WORKLOAD.build()
    parameters = dict(flow.named_global_parameters())
    move(parameters)
    _, nll = flow(WORKLOAD.batches().recv())
    bits_per_dim(nll, WORKLOAD.pixels.dims).mean().backward()
    return gradients(parameters)


@pytest.mark.parametrize("approach", [approach for approach in APPROACHES if not approach.startswith("parts")])
def test_an_approach_has_the_gradients_of_one_process(found, expected, approach):
    gradients = found[0][approach]
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-6), name


def test_the_pipelines_train_a_part_per_process(found, expected):
    _, (first, second) = found
    for approach in ("1f1b 2", "gpipe 4", "parts"):
        assert not first[approach].keys() & second[approach].keys()
        assert first[approach] and second[approach]
    assert first["ddp"].keys() == second["ddp"].keys() == expected.keys()


def test_by_parts_the_last_part_has_the_gradients_of_one_process_and_the_first_its_own(found, expected):
    _, (first, second) = found
    for approach in ("parts", "parts 3"):
        for name, gradient in second[approach].items():
            assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name
        for name, gradient in first[approach].items():
            assert torch.allclose(gradient, first["parts"][name], rtol=1e-4, atol=1e-6), name
    assert any(not torch.allclose(gradient, expected[name], rtol=1e-2) for name, gradient in first["parts"].items())
