"""A batch that passes as several packets: the same update as one packet makes, and the same bits in any number of
processes."""

import json
from pathlib import Path

import pytest
import torch

from pipeflow.config import Config, PhaseConfig
from pipeflow.data import DataConfig, packet_sizes
from pipeflow.distributed import ParallelConfig
from pipeflow.model import CutConfig, HeadConfig
from pipeflow.storage import CheckpointConfig
from pipeflow.storage.checkpoint import load
from pipeflow.training import fit
from tests.support.processes import in_processes
from tests.support.small_runs import fit_each, small_config

PHASES = [
    PhaseConfig("simultaneous", steps=4, lr=2e-3, clip=0.5),
    PhaseConfig("alternate", steps=4, turn_steps=2, lr=2e-3),
    PhaseConfig("sequential", steps=3, lr=2e-3, optimizer="adamw"),
]
RUNS = {
    "unequal packets, bf16 on the wire": (5, {}),  # 12 images: 3 + 3 + 2 + 2 + 2
    "two images per packet, inverted": (6, {"activations": "invert"}),
    "heads, checkpointed": (
        4,
        {"activations": "checkpoint", "cut": CutConfig("explicit", 3, [1, 4], "flow", HeadConfig(steps=1, hidden=4))},
    ),
}


def config(directory: Path, name: str, size: int, packets: int | None = None, **others) -> Config:
    micro_batches, settings = RUNS[name]
    wire = "bf16" if "bf16" in name else "fp32"
    parallel = ParallelConfig(micro_batches=packets or micro_batches, wire=wire)
    run = directory / f"{name}-{size}-{packets}"
    return small_config(run, **{"phases": PHASES, "parallel": parallel, **settings, **others})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every run in 1, 2 and 3 processes, and with one packet per batch: (name, size, packets) → its directory."""
    directory = tmp_path_factory.mktemp("micro")
    found = {}
    for size in (1, 2, 3):
        keys = [(name, size, packets) for name in RUNS for packets in ((None, 1) if size == 1 else (None,))]
        configs = [config(directory, *key) for key in keys]
        in_processes(size, fit_each, configs, directory=directory / f"meet-{size}")
        found |= {key: Path(each.run_dir) for key, each in zip(keys, configs, strict=True)}
    return found


def last_checkpoint(run: Path) -> dict[str, torch.Tensor]:
    return load(run / "checkpoints" / "step-11")[0]


def losses(run: Path, part: int) -> list[float]:
    lines = (run / "metrics" / f"part-{part}.jsonl").read_text().splitlines()
    return [json.loads(line)["bits_per_dim"] for line in lines]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", RUNS)
def test_the_number_of_processes_changes_no_bit(runs, name, size):
    one, many = runs[name, 1, None], runs[name, size, None]
    expected, found = last_checkpoint(one), last_checkpoint(many)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert all(losses(one, part) == losses(many, part) for part in (1, 2, 3))


@pytest.mark.parametrize("name", RUNS)
def test_packets_change_the_order_of_sums_alone(runs, name):
    """Adam makes differences of any size out of gradients near zero, so the losses are what is compared."""
    whole, cut = runs[name, 1, 1], runs[name, 1, None]
    for part in (1, 2, 3):
        assert losses(cut, part) == pytest.approx(losses(whole, part), abs=2e-3 if "bf16" in name else 2e-4)
    if "unequal" in name:
        assert losses(cut, 1) != losses(whole, 1), "nothing was cut"


def test_sizes_differ_by_at_most_one_image():
    assert packet_sizes(12, 5) == (3, 3, 2, 2, 2)
    assert packet_sizes(12, 1) == (12,)
    assert all(sum(packet_sizes(batch, count)) == batch for batch in range(1, 30) for count in range(1, batch + 1))


def test_replicas_agree_with_one_process(tmp_path):
    """Two chains of one process each, two packets each, against one process with four packets."""
    phases = [PhaseConfig("simultaneous", steps=5, clip=0.5), PhaseConfig("end_to_end", steps=3, clip=0.5)]
    parallel = ParallelConfig(micro_batches=2, replicas=2)
    shared = config(tmp_path, "two images per packet, inverted", 2, phases=phases, parallel=parallel)
    alone = config(tmp_path, "two images per packet, inverted", 1, packets=4, phases=phases)
    in_processes(2, fit_each, [shared], directory=tmp_path / "meet-2")
    in_processes(1, fit_each, [alone], directory=tmp_path / "meet-1")
    expected, found = (load(Path(each.run_dir) / "checkpoints" / "step-8")[0] for each in (alone, shared))
    for key in expected:
        torch.testing.assert_close(
            found[key], expected[key], rtol=1e-3, atol=2e-5, msg=lambda text, key=key: key + text
        )


def test_a_resumed_run_goes_on_with_the_same_bits(tmp_path):
    saves = {"phases": [PhaseConfig("simultaneous", steps=6)], "checkpoint": CheckpointConfig(every=1, keep=100)}
    through = config(tmp_path, "heads, checkpointed", 1, **saves)
    fit(through)
    begun = Path(through.run_dir) / "checkpoints" / "step-2"
    resumed = config(tmp_path / "resumed", "heads, checkpointed", 1, **saves)
    fit(resumed, resume=begun)
    expected, found = (load(Path(each.run_dir) / "checkpoints" / "step-6")[0] for each in (through, resumed))
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)


def test_more_packets_than_images_are_refused(tmp_path):
    settings = small_config(tmp_path, [PhaseConfig("simultaneous", steps=1)], parallel=ParallelConfig(micro_batches=9))
    with pytest.raises(ValueError, match="micro_batches is 9, but 2 replicas that share a batch of 12 images"):
        settings.check_world(2, 2)
    with pytest.raises(ValueError, match="are not equal; choose a divisor"):
        Config(
            data=DataConfig(batch=10),
            parallel=ParallelConfig(micro_batches=4),
            cuda_graphs=True,
            phases=[PhaseConfig("simultaneous", steps=1)],
        )
