"""Options and fixtures of every test: where and how precisely to compute, and weights that are worth testing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from pipeflow.distributed import deterministic_kernels
from pipeflow.model import set_tensor_cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tests that compute on one: cpu, cuda, cuda:1, …")
    parser.addoption("--dtype", default="float64", choices=["float32", "float64"], help="precision of the flow laws")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if torch.device(config.getoption("--device")).type == "cuda":
        set_tensor_cores("fp32")
        flags = ExitStack()
        flags.enter_context(deterministic_kernels(True))
        config.add_cleanup(flags.close)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another device than the CPU, only tests that compute on the device."""
    if config.getoption("--device") == "cpu":
        return
    chosen = [item for item in items if "device" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.config.getoption("--dtype"))


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


@pytest.fixture
def backward_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass in a thread of its own, as on a GPU, where settings of the caller's thread do not hold."""
    backward = torch.autograd.backward

    def elsewhere(*arguments: Any, **options: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(backward, *arguments, **options).result()

    monkeypatch.setattr(torch.autograd, "backward", elsewhere)
