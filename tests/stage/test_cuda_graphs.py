"""Steps that are recorded and replayed: the same training, with clipping, warm-up, skips, averages and turns.

Without a GPU a tape takes the place of CUDA graphs (tape.py), and the bits must be the same; with --device cuda they
are CUDA graphs.
"""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeflow.config import Config, PhaseConfig
from pipeflow.flow import Packet
from pipeflow.model import Drift, GlowConfig, glow_steps, make_passage
from pipeflow.model.truncated import truncate
from pipeflow.stage import AdaptiveClip, Average, CudaRecorder, EagerStep, RecordedStep, Stage, Update, make_optimizer
from pipeflow.stage.cuda_graphs import WARM_UP
from pipeflow.storage.checkpoint import load
from pipeflow.stream import Discard
from pipeflow.training import stages
from pipeflow.training.stages import StageBuilder
from tests.support.small_runs import fit_in, small_config
from tests.support.tape import HOST_READS, TapeRecorder, tensors

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
            z, logp = self.batch()
            self.waiting = [Packet(*pair) for pair in zip(z.chunk(self.packets), logp.chunk(self.packets), strict=True)]
        return self.waiting.pop(0)

    def batch(self):
        self.count += 1
        generator = torch.Generator().manual_seed(self.count)
        z = torch.rand(6, *IMAGE, generator=generator) - 0.5
        z[0, 0, 0, 0] = math.nan if self.count in BAD else z[0, 0, 0, 0]
        return Packet(z.to(self.device), torch.arange(6.0, device=self.device))


class Kept(Discard):
    """What was sent, as it was then."""

    def __init__(self):
        self.packets = []

    def send(self, packet):
        self.packets.append(Packet(packet.z.clone(), packet.logp.clone()))


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


class OnDevice(TorchDispatchMode):
    """Fails where an operation reads a tensor of the host, or the host one of the device."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in HOST_READS, func
        assert all(tensor.device.type == "meta" for tensor in tensors((args, kwargs))), func
        self.seen += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("activations", ["keep", "checkpoint", "invert"])
@pytest.mark.parametrize("variant", [{}, {"coupling": "additive", "conv1x1": "plain", "split_prior": "standard"}])
def test_nothing_that_learning_needs_is_on_the_host(activations, variant):
    """Asked on a device whose tensors have no numbers; it has no fused optimizer, and PyTorch's is not in question."""
    _, whole = truncate(glow_steps(GlowConfig(2, 2, 8, **variant), IMAGE), (), IMAGE, "learned", "standard")
    whole.to("meta")
    whole.part.passage = make_passage(activations, drift=Drift() if activations == "invert" else None)
    named = whole.named_global_parameters()
    optimizer = make_optimizer("adam", named, 1e-3, fused=True)
    optimizer.step = lambda: None
    step = EagerStep(whole, Update(named, optimizer, 1e-3, 0, 1.0, average := Average(named, 0.9, {})), 64)
    average.update()
    given = Packet(torch.zeros(6, *IMAGE, device="meta"), torch.zeros(6, device="meta"))
    with OnDevice() as asked:
        _, nll = step.forward(given)
        loss, finite = step.backward(nll), step.update()
    assert loss.device.type == finite.device.type == "meta" and asked.seen > 100


RATE = 2.0**-9
TURNS = [
    PhaseConfig("alternate", steps=24, turn_steps=5, lr=RATE, warmup_steps=4, clip=0.5),
    PhaseConfig("simultaneous", steps=8, lr=RATE),
    PhaseConfig("end_to_end", steps=8, lr=RATE),
]


@pytest.mark.parametrize("activations", ["keep", "invert"])
def test_a_run_that_is_replayed_is_the_run(tmp_path, monkeypatch, activations):
    """Every schedule: turns, packets between parts of one process, averages, checkpoints and evaluations."""
    monkeypatch.setattr(stages, "make_optimizer", partial(make_optimizer, fused=True))
    configs = [small_config(tmp_path / kind, TURNS, activations=activations, ema=0.9) for kind in ("plain", "replayed")]
    fit_in("", configs[0])
    recorders = []

    def replayed(self, stage, sharers):
        recorders.append(TapeRecorder())
        stage.step = RecordedStep(stage.step, stage.update.optimizer, recorders[-1])
        return stage

    monkeypatch.setattr(StageBuilder, "replayed", replayed)
    fit_in("", configs[1])
    assert [recorder.recorded for recorder in recorders] == [3] * 7
    expected, found = (load(Path(config.run_dir) / "checkpoints" / "step-40")[0] for config in configs)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in ("part-1", "part-2", "part-3", "end_to_end"):
        streams = [Path(config.run_dir) / "metrics" / f"{name}.jsonl" for config in configs]
        lines = [stream.read_text().splitlines() for stream in streams]
        one, other = ([json.loads(line)["bits_per_dim"] for line in of] for of in lines)
        assert one == other and len(one) > 0


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
