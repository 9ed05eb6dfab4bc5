"""Which device a process takes, which backend all processes take, and which groups they open."""

import os
import time

import pytest
import torch
import torch.distributed as dist

import pipeflow.plan
from pipeflow.distributed import ParallelConfig, World, choose_device, open_world, process_world
from pipeflow.distributed.device import choose_backend
from pipeflow.distributed.process_groups import ProcessGroups
from tests.support.processes import in_processes

CUDA = torch.device("cuda", 0)


@pytest.fixture
def touched(monkeypatch):
    """What touches CUDA on a pretended host with four GPUs, in order."""
    calls = []
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(str(device)))
    for name in ("_lazy_init", "current_stream", "synchronize", "Stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: calls.append(name))
    return calls


def test_the_device_of_a_world_is_the_current_one_before_all_else(touched):
    assert World(ParallelConfig(), 3, "auto").device == torch.device("cuda", 2)
    assert touched == ["cuda:2"]


def test_a_plan_makes_its_device_the_current_one(touched, monkeypatch):
    monkeypatch.setattr(pipeflow.plan, "report_plan", lambda *_, **__: touched.append("plan"))
    assert pipeflow.plan.main(["--device", "cuda"]) == 0
    assert touched == ["cuda:0", "plan"]


def test_on_the_cpu_nothing_touches_cuda(touched):
    assert choose_device("cpu").type == "cpu" and touched == []


OWN_GPU = "not every process has a GPU of its own"
SHARED = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("backend", "device", "environment", "nccl", "expected"),
    [
        ("auto", CUDA, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, (2, 27), "nccl"),
        ("auto", CUDA, SHARED, (2, 30), "gloo"),
        ("auto", CUDA, {**SHARED, "NCCL_MULTI_RANK_GPU_ENABLE": "1"}, (2, 30), "gloo"),
        ("auto", torch.device("cpu"), {}, (2, 30), "gloo"),
        ("gloo", CUDA, {}, (2, 30), "gloo"),
        ("nccl", CUDA, {"LOCAL_RANK": "0"}, (2, 27), "nccl"),
        ("nccl", CUDA, SHARED, (2, 30), OWN_GPU),
        ("nccl", CUDA, {**SHARED, "NCCL_MULTI_RANK_GPU_ENABLE": "1"}, (2, 29, 7), OWN_GPU),
        ("nccl", CUDA, {**SHARED, "NCCL_MULTI_RANK_GPU_ENABLE": "1"}, (2, 30, 7), "nccl"),
        ("nccl", CUDA, {"LOCAL_RANK": "0", "REJOIN": "1"}, (2, 27), "rejoin_s needs links that can be opened again"),
        ("auto", CUDA, {"LOCAL_RANK": "0", "REJOIN": "1"}, (2, 27), "gloo"),
        ("auto", CUDA, {}, (2, 30), "LOCAL_RANK is not set; start the processes with torchrun"),
        ("nccl", CUDA, {}, (2, 30), "LOCAL_RANK is not set; start the processes with torchrun"),
    ],
)
def test_the_backend_of_a_process_on_a_host_with_one_gpu(backend, device, environment, nccl, expected, monkeypatch):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "NCCL_MULTI_RANK_GPU_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: nccl)
    config = ParallelConfig(backend=backend, rejoin_s=float("REJOIN" in environment))
    if expected in ("gloo", "nccl"):
        assert choose_backend(config, device) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            choose_backend(config, device)


def meets(init_method, backends, choices):
    """The backend that two processes come to, or the sentence that they end with."""
    rank = int(os.environ["RANK"])

    def choose(config, device):
        if choices[rank] == "refuses":
            raise ValueError("not here")
        return choices[rank]

    process_world.choose_backend = choose
    try:
        world = open_world(ParallelConfig(backend=backends[rank]), 2, "cpu", init_method)
    except ValueError as error:
        return str(error)
    return world.backend


DISAGREE = "The processes disagree about parallel.backend: rank 0 has auto, rank 1 has gloo."


@pytest.mark.parametrize(
    ("backends", "choices", "expected"),
    [
        (("auto", "auto"), ("nccl", "gloo"), "gloo"),
        (("auto", "auto"), ("gloo", "nccl"), "gloo"),
        (("auto", "gloo"), ("nccl", "gloo"), DISAGREE),
        (("auto", "auto"), ("nccl", "refuses"), "not here"),
    ],
)
def test_all_processes_take_one_backend(tmp_path, backends, choices, expected):
    found = in_processes(2, meets, backends, choices, directory=tmp_path, timeout_s=60)
    assert found[0] == found[1] and found[0].startswith(expected)


def meets_late(init_method):
    world = open_world(ParallelConfig(timeout_s=3), 2, "cpu", init_method)
    time.sleep(5 * world.rank)
    return world.gather(world.rank)


def test_a_process_waits_for_another_turn_for_longer_than_for_a_packet(tmp_path):
    assert in_processes(2, meets_late, directory=tmp_path, timeout_s=60) == [[0, 1], [0, 1]]


def opens(init_method, parts, replicas, backend):
    """The groups that were opened at the start, and by the time that those of an end-to-end phase were asked for."""
    config = ParallelConfig(replicas=replicas)
    world = open_world(config, parts, "cpu", init_method)
    new_group, ranks = dist.new_group, []
    dist.new_group = lambda members, **_: (ranks.append(members), new_group(members, backend="gloo"))[1]
    groups = ProcessGroups(world, config, backend)
    at_start = list(ranks)
    groups.of("chain"), groups.of("everyone")
    assert groups.of("everyone") is groups.of("everyone")
    assert (groups.of("chain") is groups.of("everyone")) is (replicas == 1)
    return at_start, ranks


@pytest.mark.parametrize(
    ("size", "parts", "replicas", "at_start", "later"),
    [
        (3, 3, 1, [[0, 1], [1, 2]], [[0, 1, 2]]),
        (2, 1, 2, [[0, 1]], []),
        (4, 2, 2, [[0, 2], [1, 3], [0, 1], [2, 3]], [[0, 1], [2, 3], [0, 1, 2, 3]]),
    ],
)
def test_groups_are_opened_where_they_are_needed_and_none_of_one_process(
    tmp_path, size, parts, replicas, at_start, later
):
    arguments = (parts, replicas, "nccl")
    for found, ranks in in_processes(size, opens, *arguments, directory=tmp_path / "nccl", timeout_s=60):
        assert found == at_start and ranks == at_start + later
    for found, ranks in in_processes(size, opens, parts, replicas, "gloo", directory=tmp_path / "gloo", timeout_s=60):
        assert found == ranks and sorted(ranks) == sorted(at_start + later)
        assert ranks[0] == list(range(size)), "everyone's group is the first, whatever the grid"
