"""Latents in half the bytes: rounded alike in one process and in many, while training by parts and nowhere else."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pipeflow.config import PhaseConfig
from pipeflow.distributed import ParallelConfig, Pulse
from pipeflow.flow import Packet
from pipeflow.storage.checkpoint import load
from pipeflow.stream.links import LocalLink
from pipeflow.stream.process_links import Border
from tests.support.processes import in_processes
from tests.support.small_runs import fit_each, small_config

PHASES = [PhaseConfig("simultaneous", steps=6, lr=2e-3), PhaseConfig("end_to_end", steps=2, lr=1e-3)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(wire, processes) → run directory; by parts, then end to end."""
    directory = tmp_path_factory.mktemp("wire")
    configs = {
        (wire, size): dataclasses.replace(
            small_config(directory / f"{wire}-{size}", PHASES), parallel=ParallelConfig(wire=wire)
        )
        for wire, size in (("fp32", 1), ("bf16", 1), ("bf16", 3))
    }
    for size in (1, 3):
        chosen = [config for (_, number), config in configs.items() if number == size]
        in_processes(size, fit_each, chosen, directory=directory / f"meet-{size}")
    return {key: Path(config.run_dir) for key, config in configs.items()}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load(run / "checkpoints" / "step-6")[0]


def test_one_process_rounds_as_three_do(runs):
    one, three = weights(runs["bf16", 1]), weights(runs["bf16", 3])
    assert one.keys() == three.keys()
    for name in one:
        assert torch.equal(one[name], three[name]), name


def test_the_first_part_is_not_touched_and_the_others_are(runs):
    """Nothing crosses a border before part 1; part 2 learns from rounded latents."""
    exact, rounded = weights(runs["fp32", 1]), weights(runs["bf16", 1])
    same = {name for name in exact if torch.equal(exact[name], rounded[name])}
    first = {
        name for name in exact if ("steps.1." in name or "steps.0." in name) and exact[name].dtype.is_floating_point
    }
    assert first and first <= same
    assert any(not name.startswith("provisional") and "/" not in name for name in exact.keys() - same)


def test_what_is_evaluated_is_not_rounded(runs):
    """The join compares the chain of parts with the joined model; the truncation after part 1 is that of fp32."""
    evaluations = {
        wire: json.loads((runs[wire, 1] / "metrics" / "evaluation.jsonl").read_text().splitlines()[0])
        for wire in ("fp32", "bf16")
    }
    first = [evaluation["parts"][0]["bits_per_dim"] for evaluation in evaluations.values()]
    assert first[0] == first[1]
    assert evaluations["fp32"]["bits_per_dim"] == pytest.approx(evaluations["bf16"]["bits_per_dim"], abs=0.02)


def test_a_buffer_has_half_the_bytes_and_keeps_the_log_likelihood():
    common = ("here", None, 1, (3, 5), (7,), 1, 1, 1.0, torch.device("cpu"), False, Pulse())
    exact, half = Border(*common), Border(*common, torch.bfloat16)
    assert exact.buffer().numel() == 7 * (15 * 4 + 4)
    assert half.buffer().numel() == 7 * (15 * 2 + 4)
    packet = half.packet(half.buffer(), 0)
    assert (packet.z.shape, packet.z.dtype) == ((7, 3, 5), torch.bfloat16)
    assert (packet.logp.shape, packet.logp.dtype) == ((7,), torch.float32)


def test_a_local_link_rounds_the_latent_alone():
    link = LocalLink(torch.bfloat16)
    third = torch.full((2, 3), 1 / 3)
    link.send(Packet(third, third[:, 0]))
    z, logp, label = link.recv()
    assert z.dtype == torch.float32 and torch.equal(z, third.bfloat16().float()) and not torch.equal(z, third)
    assert torch.equal(logp, third[:, 0]) and label is None
