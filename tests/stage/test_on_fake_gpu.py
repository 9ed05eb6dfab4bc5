"""What a GPU is given, on a machine without one: everything stays on its device, and the host reads nothing.

The device is cuda:1, the fused optimizers and the branches for a GPU are taken; kernels, streams and numbers are not
there (fake_cuda.py).
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from pipeflow.data import Batches, Pixels
from pipeflow.data import batches as batches_module
from pipeflow.flow import Packet
from pipeflow.model import Drift, Flow, GlowConfig, glow_steps, make_passage, set_precision
from pipeflow.model.truncated import truncate
from pipeflow.stage import AdaptiveClip, Average, EagerStep, RecordedStep, Update, cuda_graphs, make_optimizer
from tests.support.fake_cuda import DEVICE, fake_cuda, move
from tests.support.tape import tensors

IMAGE = (1, 8, 8)
VARIANTS = [{}, {"coupling": "additive", "conv1x1": "plain", "split_prior": "standard"}]


class Recordable(TorchDispatchMode):
    """Fails where an operation takes a tensor of the host, or is one that no CUDA graph can hold."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert torch.Tag.cudagraph_unsafe not in func.tags, func
        assert all(tensor.device == DEVICE for tensor in tensors((args, kwargs))), func
        self.seen += 1
        return func(*args, **(kwargs or {}))


class Recorder:
    """Notes whether what it is given could be recorded."""

    def __init__(self):
        self.seen = []

    def aside(self, work):
        return work()

    def record(self, work):
        with Recordable() as recordable:
            result = work()
        self.seen.append(recordable.seen)
        return lambda: None, result


def whole_glow(**variant):
    _, whole = truncate(glow_steps(GlowConfig(2, 1, 8, **variant), IMAGE), (), IMAGE, "learned", "standard")
    return move(whole)


def packet():
    return Packet(torch.zeros(6, *IMAGE, device=DEVICE), torch.zeros(6, device=DEVICE))


def step_of(whole, name="adam", clip=1.0):
    """A training step with everything that a run can have, and its optimizer."""
    named = whole.named_global_parameters()
    optimizer = make_optimizer(name, named, 1e-3, weight_decay=0.1)
    clip = AdaptiveClip(named, {}) if clip == "adaptive" else clip
    return EagerStep(whole, Update(named, optimizer, 1e-3, 4, clip, Average(named, 0.9, {})), 64), optimizer


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("activations", ["keep", "checkpoint", "invert"])
def test_a_step_can_be_recorded(monkeypatch, activations, bf16):
    if activations == "checkpoint" and torch.__version__ < "2.14":
        pytest.skip("this version of PyTorch aborts where a checkpoint meets a tensor of a device that is not there")
    monkeypatch.setattr(cuda_graphs, "WARM_UP", 1)
    with fake_cuda():
        whole = whole_glow(**VARIANTS[bf16])
        if bf16:
            set_precision(whole, "bf16", "channels_last")
        whole.part.passage = make_passage(activations, drift=Drift() if activations == "invert" else None)
        eager, optimizer = step_of(whole, "adamw" if bf16 else "adam", "adaptive" if bf16 else 1.0)
        step = RecordedStep(eager, optimizer, recorder := Recorder())
        for _ in range(2):
            sent, nll = step.forward(packet())
            loss = step.backward(nll)
            finite = step.update()
        assert len(recorder.seen) == 3 and min(recorder.seen) > 5
        assert {tensor.device for tensor in (sent.z, sent.logp, loss, finite)} == {DEVICE}
        for name, parameter in whole.named_parameters():
            assert parameter.grad is not None and parameter.grad.device == DEVICE, name


def test_adamax_makes_the_host_read():
    with fake_cuda():
        step, _ = step_of(whole_glow(), "adamax")
        step.backward(step.forward(packet())[1])
        with pytest.raises(DataDependentOutputException):
            step.update()


@pytest.mark.parametrize("levels", [256, 17])
@pytest.mark.parametrize("resident", [False, True])
def test_a_batch_is_made_on_the_device(monkeypatch, levels, resident):
    images = np.zeros((20, 8, 8, 1), dtype=np.uint8)
    monkeypatch.setattr(
        batches_module, "to_device", lambda tensor, device: torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    )
    index = SimpleNamespace(numpy=lambda: np.arange(6), shape=(6,), dtype=torch.int64)  # what a host computes is real
    with fake_cuda():
        given = torch.empty(20, 8, 8, 1, dtype=torch.uint8, device=DEVICE) if resident else images
        made = Batches(given, Pixels(IMAGE, levels), 0, 6, True, DEVICE)
        monkeypatch.setattr(made, "_pieces", lambda first, end: [(0, index)])
        found = made.recv()
    assert found.z.shape == (6, *IMAGE) and found.z.device == found.logp.device == DEVICE


@pytest.mark.parametrize("variant", VARIANTS, ids=["default", "plain"])
def test_images_are_drawn_on_the_device(variant):
    with fake_cuda():
        whole = whole_glow(**variant)
        drawn = Flow([whole.part], whole.prior, Pixels(IMAGE)).sample(3)
        assert drawn.shape == (3, *IMAGE) and drawn.device == DEVICE


def test_the_checks_see_what_they_are_for():
    with fake_cuda():
        with pytest.raises(Exception, match=r"two (different )?devices"):
            torch.zeros(2, device=DEVICE) + torch.zeros(2)
        with pytest.raises(DataDependentOutputException):
            torch.zeros((), device=DEVICE).item()
        with pytest.raises(AssertionError), Recordable():
            torch.zeros(2).to(DEVICE)
