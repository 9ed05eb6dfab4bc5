"""Precision: bits/dim of the same weights agree, latents stay float32 and invertible, law 4 holds in bfloat16 too."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeflow.config import PhaseConfig
from pipeflow.data import DataConfig
from pipeflow.data.datasets import load as load_images
from pipeflow.flow import AffineCoupling, Packet
from pipeflow.flow.conv1x1 import by_matmul
from pipeflow.inference import read, score
from pipeflow.model import GlowConfig, glow_steps, set_precision, set_tensor_cores
from pipeflow.model.truncated import truncate
from pipeflow.storage.checkpoint import load
from tests.support.processes import in_processes
from tests.support.small_runs import fit_in, small_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose coupling networks have learned something: 64 wide, three epochs of digits."""
    run = tmp_path_factory.mktemp("precision") / "run"
    phases = [PhaseConfig("end_to_end", epochs=3.0, lr=2e-3, warmup_steps=20)]
    glow = GlowConfig(levels=2, steps=4, hidden=64)
    fit_in("", small_config(run, phases, glow=glow, data=DataConfig(batch=50, init_batch=256)))
    return read(run)


def bits(trained, precision, layout="contiguous"):
    images = load_images("digits", None, None, "stop")
    set_precision(trained.model, precision, layout)
    return [row.bits_per_dim for row in score(trained, images.test, batch=99).rows]


def test_bits_per_dim_of_the_same_weights_agree(trained):
    exact, rough = bits(trained, "fp32"), bits(trained, "bf16")
    assert exact[-1].mean() < 4.0, "a flow that has learned nothing has nothing to round"
    for one, other in zip(exact, rough, strict=True):
        assert abs(one.mean() - other.mean()) < 0.005
        assert (one != other).any(), "bf16 computes something else"
    assert all((one == other).all() for one, other in zip(exact, bits(trained, "fp32"), strict=True))
    assert all((one == other).all() for one, other in zip(exact, bits(trained, "tf32"), strict=True)), "on the CPU"


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-3)])
def test_how_activations_lie_changes_the_last_bits_alone(trained, precision, tolerance):
    one, other = bits(trained, precision), bits(trained, precision, "channels_last")
    for expected, found in zip(one, other, strict=True):
        assert abs(expected.mean() - found.mean()) < tolerance


class Convolutions(TorchDispatchMode):
    """Keeps what enters each convolution: its input and its weight."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.tensors += args[:2]
        return func(*args, **(kwargs or {}))


def test_networks_compute_channels_last_between_latents_that_do_not(perturb):
    coupling = perturb(AffineCoupling(6, 32))
    z = torch.randn(4, 6, 8, 8)
    expected = coupling(z)[0]
    set_precision(coupling, "fp32", "channels_last")
    with Convolutions() as seen:
        out, _ = coupling(z)
    assert len(seen.tensors) == 6 and out.is_contiguous()
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen.tensors)
    torch.testing.assert_close(out, expected)


def test_only_the_networks_are_rounded(perturb):
    """Everything that is inverted or counted stays float32, and the step inverts as exactly as in float32."""
    coupling = perturb(AffineCoupling(6, 32))
    z = torch.randn(4, 6, 8, 8)
    exact = coupling(z)
    set_precision(coupling, "bf16")
    with Convolutions() as seen:
        out, dlogp = coupling(z)
    assert [tensor.dtype for tensor in seen.tensors] == [torch.bfloat16] * 6
    assert (out.dtype, dlogp.dtype) == (torch.float32, torch.float32)
    assert not torch.equal(out, exact[0]) and not torch.equal(dlogp, exact[1])
    assert {parameter.dtype for parameter in coupling.parameters()} == {torch.float32}
    torch.testing.assert_close(coupling.inverse(out), z, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_float32_but_for_rounding(perturb):
    def gradient(precision):
        _, whole = truncate(glow_steps(GlowConfig(2, 2, 16), (1, 8, 8)), (), (1, 8, 8), "learned", "standard")
        torch.manual_seed(1)
        perturb(whole)
        set_precision(whole, precision)
        z = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(2)) - 0.5
        whole(Packet(z, torch.zeros(8)))[1].mean().backward()
        return {name: parameter.grad for name, parameter in whole.named_parameters()}

    exact, rough = gradient("fp32"), gradient("bf16")
    for name in exact:
        assert rough[name].dtype == torch.float32
        assert (exact[name] - rough[name]).norm() < 0.05 * exact[name].norm() + 1e-3, name


@pytest.mark.parametrize("size", [3])
def test_by_parts_the_bits_do_not_depend_on_the_processes(tmp_path, size):
    phases = [PhaseConfig("simultaneous", steps=6, lr=[2e-3, 1e-3, 3e-3], warmup_steps=3, clip=0.5)]
    one = small_config(tmp_path / "one", phases, precision="bf16", layout="channels_last")
    many = dataclasses.replace(one, run_dir=str(tmp_path / "many"))
    in_processes(1, fit_in, one, directory=tmp_path / "meet-1")
    in_processes(size, fit_in, many, directory=tmp_path / f"meet-{size}")
    expected, found = (load(Path(config.run_dir) / "checkpoints" / "step-6")[0] for config in (one, many))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_matrix_product_mixes_channels_as_a_convolution_does(dtype):
    weight, z = torch.randn(5, 5, dtype=dtype), torch.randn(3, 5, 2, 4, dtype=dtype)
    expected = torch.nn.functional.conv2d(z, weight[:, :, None, None])
    torch.testing.assert_close(by_matmul(weight, z), expected)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_gpu_may_use_tf32_for_convolutions_if_told_so(precision):
    before = torch.backends.cudnn.allow_tf32
    try:
        set_tensor_cores(precision)
        assert torch.backends.cudnn.allow_tf32 is (precision == "tf32")
        assert torch.backends.cuda.matmul.allow_tf32 is False
    finally:
        torch.backends.cudnn.allow_tf32 = before
