"""Steps that are recorded and replayed: the same training, with clipping, warm-up, skips, averages and turns.

Without a GPU a tape takes the place of CUDA graphs (tape.py), and the bits must be the same; with --device cuda they
are CUDA graphs.
"""

import gc
import json
import math
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from pipeflow.config import Config, EndToEndConfig, PhaseConfig
from pipeflow.distributed import ParallelConfig
from pipeflow.flow import Packet
from pipeflow.model import Drift, GlowConfig, glow_steps, make_passage
from pipeflow.model.truncated import truncate
from pipeflow.stage import AdaptiveClip, Average, CudaRecorder, RecordedStep, Stage, Update, make_optimizer
from pipeflow.stage.cuda_graphs import WARM_UP
from pipeflow.storage.checkpoint import load
from pipeflow.stream import Discard
from pipeflow.training import stages
from pipeflow.training.messages import phase_opening
from pipeflow.training.stages import StageBuilder
from tests.support.small_runs import FLOWS, fit_in, small_config
from tests.support.tape import TapeRecorder

IMAGE = (1, 8, 8)
BAD = (2, 7, 8, 12)
TICKS = 14


class Images:
    """Packets by number; those in BAD hold a NaN."""

    def __init__(self, device, packets=1):
        self.count, self.device, self.packets = 0, device, packets
        self.waiting = []

    def recv(self):
        if not self.waiting:
            batch, size = self.batch(), 6 // self.packets
            self.waiting = [batch.take(range(first, first + size)) for first in range(0, 6, size)]
        return self.waiting.pop(0)

    def batch(self):
        self.count += 1
        generator = torch.Generator().manual_seed(self.count)
        z = torch.rand(6, *IMAGE, generator=generator) - 0.5
        z[0, 0, 0, 0] = math.nan if self.count in BAD else z[0, 0, 0, 0]
        z, label = z.to(self.device), torch.randint(0, 9, (6,), generator=generator).to(self.device)
        return Packet(z, torch.arange(6.0, device=self.device), label)


class Kept(Discard):
    """What was sent, as it was then."""

    def __init__(self):
        self.packets = []

    def send(self, packet):
        self.packets.append(packet.each(torch.Tensor.clone))


def make_stage(device, activations="keep", name="adam", fused=True, adaptive=False, packets=1):
    """A Glow, clipped, averaged, with a learning rate that rises to 2⁻⁷ in steps that float32 holds."""
    torch.manual_seed(1)
    _, whole = truncate(glow_steps(GlowConfig(2, 2, 8), IMAGE), (), IMAGE, "learned", "standard")
    for parameter in whole.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    whole.to(device)
    drift = Drift() if activations == "invert" else None
    whole.part.passage = make_passage(activations, drift=drift)
    named = whole.named_global_parameters()
    optimizer = make_optimizer(name, named, 2.0**-7, weight_decay=0.1, fused=fused)
    clip = AdaptiveClip(named, {}) if adaptive else 0.5
    update = Update(named, optimizer, 2.0**-7, 8, clip, Average(named, 0.75, {}))
    stage = Stage(whole, update, 64, drift, (6 // packets,) * packets)
    stage.connect(Images(device, packets), Kept())
    return stage


def recorder_of(device):
    return CudaRecorder(device) if device.type == "cuda" else TapeRecorder()


def held(stage):
    """Weights, moments and averages, as they are now.

    Detached: a clone with a graph would keep the parameters' nodes alive on the default stream, and a capture fails
    that meets such a node.
    """
    found = dict(stage.update.named) | stage.update.moments() | stage.update.average.values
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("activations", "name", "packets"),
    [
        ("keep", "adam", 1),
        ("invert", "adamw", 1),
        ("checkpoint", "adam", 1),
        ("keep", "adam", 3),
        ("invert", "adam", 2),
    ],
)
def test_replayed_steps_are_steps(device, activations, name, packets, adaptive):
    """Bad batches before and after the recording, and batches that the part only hands on, in between."""
    plain, replayed = (make_stage(device, activations, name, adaptive=adaptive, packets=packets) for _ in range(2))
    replayed.step = RecordedStep(replayed.step, replayed.update.optimizer, recorder_of(device), packets)
    same = torch.equal if device.type == "cpu" else partial(torch.allclose, rtol=1e-4, atol=1e-5, equal_nan=True)
    for number in range(1, TICKS + 1):
        learn = number not in (4, 10)
        before = held(replayed)
        expected, found = plain.tick(learn), replayed.tick(learn)
        assert found.bad == expected.bad == (number in BAD)
        assert found.updated == expected.updated == (learn and number not in BAD)
        assert found.bits_per_dim == pytest.approx(expected.bits_per_dim, rel=1e-5, nan_ok=True)
        assert found.drift.keys() == expected.drift.keys() and bool(found.drift) is (learn and activations == "invert")
        after, reference = held(replayed), held(plain)
        assert after.keys() == reference.keys()
        assert all(same(after[key], reference[key]) for key in after), number
        if not found.updated and before.keys() == after.keys():
            assert all(torch.equal(after[key], before[key]) for key in after), "what is skipped leaves no trace"
        sent = zip(plain.outbox.packets[-1], replayed.outbox.packets[-1], strict=True)
        assert number in BAD or all(same(*pair) for pair in sent)
    if device.type == "cpu":
        # Learned from before the recording: WARM_UP batches, and one that was only handed on.
        recorder = replayed.step._recorder
        assert recorder.recorded == 1 + 2 * min(packets, 2)
        assert recorder.replays == (2 * packets + 1) * (TICKS - WARM_UP - 1) - packets - 1


def test_a_host_that_looks_cannot_be_recorded():
    """The tape sees it: the check that the tests above rest on."""
    stage = make_stage(torch.device("cpu"), fused=False)
    with pytest.raises(AssertionError, match="the host would have to look"):
        RecordedStep(stage.step, stage.update.optimizer, TapeRecorder())
    _, nll = stage.step.forward(stage.inbox.recv())
    with pytest.raises(AssertionError, match="the host reads what the device computes"):
        stage.step.backward(nll)
        TapeRecorder().record(stage.step.update)


RATE = 2.0**-9
TURNS = [
    PhaseConfig("alternate", steps=24, turn_steps=5, lr=RATE, warmup_steps=4, clip=0.5),
    PhaseConfig("simultaneous", steps=8, lr=RATE),
    PhaseConfig("end_to_end", steps=8, lr=RATE),
]


@pytest.mark.parametrize(
    ("activations", "flow", "packets"),
    [("keep", "glow", 1), ("invert", "glow", 1), ("keep", "glow", 3), ("keep", "jet with labels", 2)],
)
def test_a_run_that_is_replayed_is_the_run(tmp_path, monkeypatch, activations, flow, packets):
    """Every schedule: turns, packets between parts of one process, averages, checkpoints and evaluations."""
    monkeypatch.setattr(stages, "make_optimizer", partial(make_optimizer, fused=True))
    settings = {**FLOWS[flow], "activations": activations, "parallel": ParallelConfig(micro_batches=packets)}
    configs = [small_config(tmp_path / kind, TURNS, ema=0.9, **settings) for kind in ("plain", "replayed")]
    fit_in("", configs[0])
    recorders, stages_made, alive = [], [], []
    collects = gc.isenabled()
    gc.disable()  # the memory of a phase's graphs must not wait for the collector

    def replayed(self, stage, sharers):
        recorders.append(TapeRecorder())
        alive.append(sum(made() is not None for made in stages_made))
        stages_made.append(weakref.ref(stage))
        stage.step = RecordedStep(stage.step, stage.update.optimizer, recorders[-1], packets)
        return stage

    monkeypatch.setattr(StageBuilder, "replayed", replayed)
    try:
        fit_in("", configs[1])
    finally:
        gc.enable() if collects else None
    assert alive == [0, 1, 2, 0, 1, 2, 0]
    assert [recorder.recorded for recorder in recorders] == [1 + 2 * min(packets, 2)] * 7
    expected, found = (load(Path(config.run_dir) / "checkpoints" / "step-40")[0] for config in configs)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in ("part-1", "part-2", "part-3", "end_to_end"):
        streams = [Path(config.run_dir) / "metrics" / f"{name}.jsonl" for config in configs]
        lines = [stream.read_text().splitlines() for stream in streams]
        one, other = ([json.loads(line)["bits_per_dim"] for line in of] for of in lines)
        assert one == other and len(one) > 0


def test_what_cannot_be_recorded_names_the_setting(monkeypatch):
    """And the collector, which must not destroy another graph meanwhile, goes on afterwards."""
    for name in ("Stream", "graph_pool_handle", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    collecting = []

    def work():
        collecting.append(gc.isenabled())
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    torch.cuda.graph.return_value.__exit__.return_value = False
    with pytest.raises(ValueError, match=r"cuda_graphs is on, .* leave it off .*permitted when stream is capturing"):
        CudaRecorder(torch.device("cuda", 1)).record(work)
    assert collecting == [False] and gc.isenabled()


@pytest.mark.parametrize(
    ("schedule", "engine", "size", "replicas", "ignored"),
    [
        ("simultaneous", "ddp", 3, 1, False),
        ("simultaneous", "ddp", 2, 2, True),
        ("end_to_end", "ddp", 1, 1, False),
        ("end_to_end", "ddp", 2, 1, True),
        ("end_to_end", "fsdp", 1, 1, True),
    ],
)
def test_a_phase_that_ignores_them_says_so(schedule, engine, size, replicas, ignored):
    phases = [PhaseConfig(schedule, steps=2)]
    config = Config(cuda_graphs=True, phases=phases, end_to_end=EndToEndConfig(engine))
    world = SimpleNamespace(size=size, grid=SimpleNamespace(replicas=replicas, stages=size // replicas, sharers=()))
    said = phase_opening(SimpleNamespace(config=config, world=world, parameters=10), 1, 2, 0)
    assert ("cuda_graphs does nothing in this phase" in said) is ignored


def test_adamax_is_refused():
    with pytest.raises(ValueError, match="cuda_graphs is on, but the optimizer of phase 2 is adamax"):
        Config(
            cuda_graphs=True,
            phases=[PhaseConfig("simultaneous", steps=1), PhaseConfig("end_to_end", steps=1, optimizer="adamax")],
        )


def test_they_are_refused_where_there_is_no_gpu(tmp_path):
    with pytest.raises(ValueError, match="cuda_graphs is on, but the run is on cpu"):
        fit_in("", small_config(tmp_path / "run", [PhaseConfig("end_to_end", steps=1)], cuda_graphs=True))
    assert not (tmp_path / "run").exists()
