"""A batch that passes as several packets: the same update as one packet makes, and the same bits in any number of
processes."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from pipeflow.config import Config, PhaseConfig, settle
from pipeflow.data import DataConfig, Pixels, packet_sizes
from pipeflow.distributed import ParallelConfig, available_memory, device, grid
from pipeflow.model import CutConfig, GlowConfig, HeadConfig, build
from pipeflow.planning import with_chosen_micro_batches
from pipeflow.planning.micro_batches import USABLE, Need, need
from pipeflow.storage import CheckpointConfig
from pipeflow.storage.checkpoint import load
from pipeflow.training import fit
from pipeflow.units import bytes_of
from tests.support.processes import in_processes
from tests.support.small_runs import fit_each, small_config

SPACE = Pixels((1, 8, 8), 17)
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


def choosing(memory: str, **settings) -> Config:
    parallel = ParallelConfig(micro_batches="auto", memory=memory)
    return small_config(Path("run"), settings.pop("phases", PHASES), parallel=parallel, **settings)


def chosen(config: Config, size: int = 1, memory: float | None = None) -> int:
    memory = memory or bytes_of(config.parallel.memory)
    processes = grid(config.cut.parts, size, config.parallel.replicas)
    return with_chosen_micro_batches(config, SPACE, processes, [memory] * size).parallel.packets


def largest_need(config: Config) -> Need:
    needs = [need(truncated, config) for truncated in build(config.model, SPACE)[0].values()]
    return max(needs, key=lambda one: one.of(12))


@pytest.mark.parametrize("activations", ["keep", "checkpoint", "invert"])
@pytest.mark.parametrize("images, count", [(12, 1), (6, 2), (4, 3), (3, 4), (2, 6), (1, 12)])
def test_auto_takes_the_fewest_packets_that_fit(activations, images, count):
    """A process per part: memory for packets of so many images, and not of one more."""
    config = choosing("1MB", activations=activations)
    least = largest_need(config).of(images) / USABLE
    assert chosen(config, 3, least) == count
    assert chosen(config, 3, least + 1) == count
    if images > 1:
        assert chosen(config, 3, least - 1) > count


def test_auto_counts_every_part_of_a_process_and_the_whole_model_end_to_end():
    config = choosing("1MB")
    enough = largest_need(config).of(12) / USABLE
    assert (chosen(config, 3, enough), chosen(config, 1, enough) > 1) == (1, True)
    # Three processes share the batch of 12, and a wide model is larger than its largest part with the whole batch.
    joined = {"phases": [*PHASES, PhaseConfig("end_to_end", steps=1)], "glow": GlowConfig(levels=2, steps=3, hidden=99)}
    config = choosing("1MB", **joined)
    whole = need(build(config.model, SPACE)[1], config, averaged=True).of(4) / USABLE
    assert (chosen(config, 3, whole), chosen(config, 3, whole - 1)) == (1, 2)


def test_auto_is_refused_where_one_image_per_packet_does_not_fit(tmp_path):
    config = choosing("1MB")
    with pytest.raises(ValueError, match=r"auto, but even with 12 micro-batches part \d \(rank \d\) needs about"):
        chosen(config, 3, largest_need(config).of(1) / USABLE - 1)
    settings = small_config(tmp_path, PHASES, parallel=ParallelConfig(micro_batches="auto", memory="0.001MB"))
    with pytest.raises(ValueError, match=r"activations checkpoint, more parts or processes, .* raise parallel\.memory"):
        fit(settings)
    assert not (tmp_path / "config.yaml").exists()


def test_auto_takes_divisors_where_kernels_are_replayed():
    phases = [PhaseConfig("simultaneous", steps=1)]
    config = choosing("1MB", phases=phases)
    memory = largest_need(config).of(3) / USABLE  # 4 packets of 3
    assert chosen(dataclasses.replace(config, data=DataConfig(batch=13)), 3, memory) == 5
    replayed = dataclasses.replace(config, data=DataConfig(batch=15), cuda_graphs=True)
    assert chosen(replayed, 3, memory) == 5
    replayed = dataclasses.replace(config, data=DataConfig(batch=14), cuda_graphs=True)
    assert chosen(replayed, 3, memory) == 7, "6 and 5 packets of 14 images are not equal"


def test_a_run_with_auto_has_the_bits_of_its_number_and_keeps_it_when_it_resumes(tmp_path):
    """In two processes; memory for packets of 5 images makes 3. With plenty of memory the resumed run keeps them."""
    saves = {"phases": [PhaseConfig("simultaneous", steps=6)], "checkpoint": CheckpointConfig(every=1, keep=100)}
    probe = small_config(tmp_path, **saves)
    slices = [need(truncated, probe) for truncated in build(probe.model, SPACE)[0].values()]
    memory = max(slices[0].of(5) + slices[1].of(5), slices[2].of(5)) / USABLE

    def run(name: str, count: int | str, memory: str | None = None) -> Config:
        parallel = ParallelConfig(micro_batches=count, memory=memory)
        return small_config(tmp_path / name, parallel=parallel, **saves)

    auto, plain = run("auto", "auto", f"{(memory + 1) / 1e6}MB"), run("plain", 3)
    in_processes(2, fit_each, [auto, plain], directory=tmp_path / "meet-1")
    assert yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["parallel"]["micro_batches"] == 3
    resumed = run("resumed", "auto", "10GB")
    in_processes(2, fit_each, [resumed], tmp_path / "auto" / "checkpoints" / "step-2", directory=tmp_path / "meet-2")
    expected, *found = (load(tmp_path / name / "checkpoints" / "step-6")[0] for name in ("plain", "auto", "resumed"))
    for tensors in found:
        assert expected.keys() == tensors.keys() and all(torch.equal(expected[key], tensors[key]) for key in expected)
    again, _ = settle(["--resume", str(tmp_path / "auto"), "--parallel.micro_batches", "auto"])
    assert again.parallel.micro_batches == 3


def test_a_process_may_take_its_share_of_what_is_free(monkeypatch, tmp_path):
    alone = available_memory(torch.device("cpu"))
    assert 0 < alone <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = tmp_path / "limit", tmp_path / "used"
    limit.write_text("1000000\n")
    used.write_text("400000\n")
    monkeypatch.setattr(device, "_CONTROL_GROUPS", ((str(limit), str(used)), ("/no/limit", "/no/use")))
    assert available_memory(torch.device("cpu")) == 600_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert available_memory(torch.device("cpu")) == 200_000
    limit.write_text("max\n")
    assert available_memory(torch.device("cpu")) > 1e6
