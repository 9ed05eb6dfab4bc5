"""Options and fixtures of every test: where and how precisely to compute, and weights that are worth testing."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tests that compute on one: cpu, cuda, cuda:1, …")
    parser.addoption("--dtype", default="float64", choices=["float32", "float64"], help="precision of the flow laws")


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture
def exact(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compared to the bit between cuts: on a GPU that holds in PyTorch's deterministic mode only."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(device.type == "cuda")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def same_start() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def perturb() -> Callable[[nn.Module], nn.Module]:
    """Moves every parameter off its start: much of a Glow starts at zero, where a law would say nothing."""

    @torch.no_grad()
    def perturb(module: nn.Module) -> nn.Module:
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape).to(parameter)
        return module

    return perturb
