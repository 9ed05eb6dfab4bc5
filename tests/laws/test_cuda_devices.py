"""Whatever asks CUDA for a stream or for memory says of which device: the current device may be another."""

import ast
from unittest import mock

import pytest
import torch

from pipeflow.stage.async_scalars import AsyncScalars
from tests.laws.test_architecture import TREES, every_file
from tests.support.fake_cuda import DEVICE, fake_cuda

WITHOUT_DEVICE = {"is_available", "device_count", "CUDAGraph", "graph_pool_handle", "graph", "stream", "Event"}


def without_device(tree: ast.AST) -> list[str]:
    """Calls of `torch.cuda` that take a device and are given none, and events recorded on no named stream."""
    found = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and not (call.args or call.keywords):
            owner, name = ast.unparse(call.func.value), call.func.attr
            if (owner == "torch.cuda" and name not in WITHOUT_DEVICE) or name == "record":
                found.append(ast.unparse(call))
    return found


@every_file
def test_every_call_names_its_device(file):
    assert without_device(TREES[file]) == []


@pytest.mark.parametrize("call", ["torch.cuda.synchronize()", "torch.cuda.Stream()", "self._arrived.record()"])
def test_the_check_sees_a_call_that_names_none(call):
    assert without_device(ast.parse(f"x = {call}")) == [call]
    assert without_device(ast.parse(call.replace("()", "(device)"))) == []


def test_late_numbers_wait_for_the_stream_of_their_device():
    with fake_cuda() as cuda:
        AsyncScalars(torch.zeros((), device=DEVICE), torch.ones((), device=DEVICE))
    cuda.current_stream.assert_called_once_with(DEVICE)
    cuda.Event.assert_called_once_with(blocking=True)  # whoever waits leaves the core to others
    assert cuda.Event.return_value.record.mock_calls == [mock.call(cuda.current_stream.return_value)]
