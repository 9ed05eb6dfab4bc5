"""Weights made for many steps at once, and the fused operations of a flow step, beside what they replace.

With --device cuda the operations are Triton's kernels; on the CPU its interpreter runs them, where it is installed.
"""

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pipeflow.flow import BatchedStep, Step, advance, fused, invert, matrix_network, prepare, prepare_inverse
from pipeflow.flow.coupling import CouplingNetwork
from pipeflow.model import GlowConfig
from pipeflow.model.glow import FlowStep

SIZES = [  # B, C, H, W, kept
    pytest.param((3, 12, 16, 16, 6), id="level 1"),
    pytest.param((2, 24, 8, 8, 12), id="level 2"),
    pytest.param((4, 48, 4, 4, 24), id="level 3"),
    pytest.param((2, 5, 3, 2, 3), id="odd"),
    pytest.param((2, 2, 1, 1, 1), id="one pixel"),
    pytest.param((1, 96, 33, 31, 48), id="several tiles"),
]
NETWORKS = [(torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False)]
networks = pytest.mark.parametrize(("kind", "last"), NETWORKS, ids=["fp32", "bf16 channels last", "bf16"])


def close(found, expected, kind=torch.float32):
    tolerance = 1e-2 if kind == torch.bfloat16 else 2e-5
    torch.testing.assert_close(
        found.double(), expected, rtol=tolerance, atol=tolerance * (1 + expected.abs().max().item())
    )


def tensors_of(size, kind, last, device):
    batch, channels, height, width, kept = size
    layout = torch.channels_last if last else torch.contiguous_format
    moved = channels - kept
    z, grad = torch.randn(2, batch, channels, height, width, device=device).unbind()
    raw = (3 * torch.randn(batch, 2 * moved, height, width, device=device)).to(kind).contiguous(memory_format=layout)
    seen = torch.randn(batch, kept, height, width, device=device).to(kind).contiguous(memory_format=layout)
    gain = (0.3 * torch.randn(1, 2 * moved, device=device)).exp().expand(batch, -1)
    return z, grad, raw, seen, gain, torch.randn(1, device=device).expand(batch), torch.randn(batch, device=device)


@pytest.mark.parametrize("size", SIZES)
@networks
@pytest.mark.parametrize("biased", [True, False])
def test_the_affine_operation_is_the_formula(size, kind, last, biased, device):
    """Values and gradients against autograd of the formula in float64."""
    z, grad, raw, _, gain, log_det, grad_dlogp = tensors_of(size, kind, last, device)
    kept, biases = size[-1], [gain.flip(1)] if biased else []
    given = [z, raw, gain, log_det, *biases]
    leaves = [tensor.double().requires_grad_() for tensor in given]
    shift, x = ((leaves[1] + sum(bias[:, :, None, None] for bias in leaves[4:])) * leaves[2][:, :, None, None]).chunk(
        2, 1
    )
    log_scale = F.logsigmoid(x + 2)
    out = torch.cat([leaves[0][:, :kept], (leaves[0][:, kept:] + shift) * log_scale.exp()], 1)
    dlogp = leaves[3] + log_scale.flatten(1).sum(1)
    expected = torch.autograd.grad([out, dlogp], leaves, [grad.double(), grad_dlogp.double()])
    given = [tensor.requires_grad_() for tensor in given]
    found_out, found_dlogp = fused.affine(*given[:4], kept, *given[4:])
    close(found_out, out)
    close(found_dlogp, dlogp)
    found = torch.autograd.grad([found_out, found_dlogp], given, [grad, grad_dlogp])
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        close(one, other, kind if place == 1 else torch.float32)
    assert found[1].dtype == kind and found[1].stride() == raw.stride()


@pytest.mark.parametrize("size", SIZES)
@networks
def test_mixing_is_an_affine_map_of_the_channels(size, kind, last, device):
    z, grad, _, seen, _, _, _ = tensors_of(size, kind, last, device)
    channels, kept = size[1], size[-1]
    matrix, bias = torch.randn(channels, channels, device=device), torch.randn(channels, device=device)
    leaves = [tensor.double().requires_grad_() for tensor in (z, matrix, bias)]
    out = F.conv2d(leaves[0], leaves[1][:, :, None, None], leaves[2])
    expected = torch.autograd.grad([out, out[:, :kept]], leaves, [grad.double(), seen.double()])
    given = [tensor.requires_grad_() for tensor in (z, matrix, bias)]
    expanded = [one.expand(len(z), *one.shape) if z.is_cuda else one for one in given[1:]]
    found_out, found_seen = fused.mix(given[0], *expanded, kept, kind, "channels_last" if last else "contiguous")
    close(found_out, out)
    close(found_seen, out[:, :kept], kind)
    assert found_seen.dtype == kind and found_seen.is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    found = torch.autograd.grad([found_out, found_seen], given, [grad, seen])
    for one, other in zip(found, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_network_by_products_is_three_convolutions(size, kind, device):
    """Values and gradients against the convolutions in float64.

    Of small whole numbers and of biases between them, so that nothing that is clamped is near 0: in bf16 it could be
    rounded to the other side, and gradients would differ.
    """
    batch, channels, height, width, kept = size
    network = CouplingNetwork(kept, 2 * (channels - kept), 16).to(device, torch.float64)
    with torch.no_grad():
        for parameter, share in zip(network.parameters(), (0.3, 1, 0.1, 1, 0.2, 1, 1), strict=True):
            parameter.copy_(torch.randint_like(parameter, -1, 2) * (torch.rand_like(parameter) < share))
        network[0].bias += 0.5
        network[2].bias += 0.25
    z, grad = (
        torch.randint(-1, 2, (batch, count, height, width), device=device)
        .to(kind)
        .contiguous(memory_format=torch.channels_last)
        for count in (kept, 2 * (channels - kept))
    )
    exact = [tensor.double().requires_grad_() for tensor in (z, *network._tensors()[:-1])]
    out = network(exact[0], (*exact[1:], torch.zeros_like(network._tensors()[-1])))
    expected = torch.autograd.grad(out, exact, grad.double())
    given = [tensor.detach().to(kind).requires_grad_() for tensor in exact]
    (rows,) = matrix_network.rows_of([given[1:]], kind)
    found_out = matrix_network.network(matrix_network.around(given[0]), *rows)
    assert found_out.is_contiguous(memory_format=torch.channels_last) and found_out.dtype == kind
    found = torch.autograd.grad(found_out, given, grad)
    for one, other in zip((found_out, *found), (out, *expected), strict=True):
        assert one.shape == other.shape
        tolerance = 1e-10 if kind == torch.float64 else 1e-2
        assert (one - other).norm() <= tolerance * (other.norm() + 1e-3)


def test_a_step_by_products_is_one_by_convolutions(perturb, monkeypatch, device):
    """Forward, back, and gradients with the branches of a GPU, beside those of a CPU; in bf16, but for rounding."""
    for kind in ("affine", "additive"):
        step = perturb(FlowStep(6, GlowConfig(hidden=16, coupling=kind)).to(device))
        step.coupling.autocast, step.coupling.channels_last = torch.bfloat16, True
        z, found = torch.randn(3, 6, 4, 4, device=device), []
        for gpu in (True, False):
            monkeypatch.setattr(torch.Tensor, "is_cuda", gpu)
            weights = prepare([step], (6, 4, 4), 3)
            assert weights[0] is not None and (weights[0][4].dim() == 2) == gpu
            out, dlogp = advance(step, z, weights[0])
            gradients = torch.autograd.grad(out.square().sum() - dlogp.sum(), list(step.parameters()))
            back = invert(step, out, None, prepare_inverse([step], weights, (6, 4, 4))[0])
            torch.testing.assert_close(back, z, rtol=1e-3, atol=1e-3)
            found.append((out, dlogp, *gradients))
        for one, other in zip(*found, strict=True):
            assert (one - other).norm() <= 0.02 * (other.norm() + 0.1)


BY_PRODUCTS = ("neighbours", "overlapped", "shift_rows", "shift_rows_backward")
OPERATIONS = ("shift", "shift_backward", "affine", "affine_backward", *BY_PRODUCTS)


def arguments_of(name, size, kind, last, device):
    z, grad, raw, seen, gain, log_det, grad_dlogp = tensors_of(size, kind, last, device)
    bias = gain[:, :1].expand(-1, size[1])
    rows = torch.randn(size[0], *size[2:4], matrix_network.columns(size[-1]), device=device).to(kind)
    sign, gain_bias = 1 if last else -1, gain.flip(1) if last else None
    return {
        "neighbours": (seen, sign),
        "overlapped": (rows, sign),
        "shift_rows": (z, bias, size[-1], kind),
        "shift_rows_backward": (grad, rows),
        "shift": (z, bias, size[-1], kind, last),
        "shift_backward": (grad, seen),
        "affine": (z, raw, gain, log_det, size[-1], gain_bias),
        "affine_backward": (grad, grad_dlogp, z, raw, gain, size[-1], gain_bias),
    }[name]


@pytest.mark.parametrize("size", SIZES)
@networks
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_registered_as_it_is(name, size, kind, last, device):
    """What fake tensors say of it is true, so that compilers and graphs can rely on it."""
    arguments = arguments_of(name, size, kind, last, device)
    torch.library.opcheck(getattr(torch.ops.pipeflow, name), arguments, test_utils=("test_schema", "test_faketensor"))


def interpreted() -> None:
    """Every kernel at every size against the reference; run by itself, since Triton reads its environment once."""
    from pipeflow.flow import triton_kernels, triton_neighbours

    for param in SIZES:
        (size,) = param.values
        for kind, last in NETWORKS:
            for name in OPERATIONS:
                given = arguments_of(name, size, kind, last, "cpu")
                products = name in BY_PRODUCTS
                kernels, references = (triton_neighbours, matrix_network) if products else (triton_kernels, fused)
                found, expected = getattr(kernels, name)(*given), getattr(references, f"_{name}")(*given)
                if isinstance(found, torch.Tensor):
                    found, expected = (found,), (expected,)
                for one, other in zip(found, expected, strict=True):
                    if not one.numel():
                        continue
                    assert one.dtype == other.dtype and one.stride() == other.stride(), (name, size)
                    close(one, other.double(), one.dtype)
    print("all agree")


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_kernels_agree_with_their_references_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    code = "from tests.flow.test_fused import interpreted; interpreted()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "all agree\n", done.stderr[-3000:]


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_kernels_compile_for_gpus_that_are_not_there(capability, monkeypatch, tmp_path):
    """To the machine code of an A100 and an H100, with the kinds and constants of a launch, which is left out."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pipeflow.flow import triton_kernels, triton_neighbours

    kinds = {torch.float32: "*fp32", torch.bfloat16: "*bf16", int: "i32"}
    compiled = set()

    def compile_only(kernel, *args, grid, warmup, **keywords):
        options = {name: keywords.pop(name) for name in list(keywords) if name not in kernel.arg_names}
        given = dict(zip(kernel.arg_names, args, strict=False)) | keywords
        constants = {
            name: value for name, value in given.items() if name in keywords or (isinstance(value, int) and value == 1)
        }
        kind = {
            name: kinds[getattr(value, "dtype", type(value))] for name, value in given.items() if name not in constants
        }
        signature = {name: kind.get(name, "constexpr") for name in kernel.arg_names}
        code = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=constants), GPUTarget("cuda", capability, 32), options
        )
        assert len(code.asm["cubin"])
        compiled.add(kernel.fn.__name__)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
    for size, kind, last in (((3, 12, 16, 16, 6), torch.bfloat16, True), ((1, 96, 33, 31, 48), torch.float32, False)):
        for name in OPERATIONS:
            module = triton_neighbours if name in BY_PRODUCTS else triton_kernels
            getattr(module, name)(*arguments_of(name, size, kind, last, "cpu"))
    assert compiled == {f"_{name}_kernel" for name in OPERATIONS}


CONFIGS = {"lu": GlowConfig(hidden=4), "plain": GlowConfig(hidden=4, conv1x1="plain")}


@pytest.mark.parametrize("channels", [4, 5, 12, 16, 24, 48])
@pytest.mark.parametrize("form", CONFIGS)
def test_weights_are_the_same_bits_however_many_are_made_together(channels, form, device, perturb):
    """Law 4 needs it: a step's weights may not depend on what else is in its part. On a GPU in deterministic mode."""
    steps = [perturb(FlowStep(channels, CONFIGS[form]).to(device)) for _ in range(32)]
    event = (channels, 4, 4)

    def made(some):
        weights = prepare(some, event, 3)
        return [(*one, *back) for one, back in zip(weights, prepare_inverse(some, weights, event), strict=True)]

    together = made(steps)
    for n in range(1, 32):
        for first in (0, 32 - n):
            for one, other in zip(made(steps[first : first + n]), together[first : first + n], strict=True):
                assert all(map(torch.equal, one, other)), n


def test_gradients_do_not_depend_on_how_many_are_made_together(device, perturb, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)  # where none are made together
    steps = [perturb(FlowStep(6, CONFIGS["lu"]).to(device)) for _ in range(5)]
    z = torch.randn(4, 6, 4, 4, device=device)

    def gradients(weights):
        out, total = z, 0.0
        for step, one in zip(steps, weights, strict=True):
            out, dlogp = step(out, one)
            total = total + dlogp.sum()
        parameters = [parameter for step in steps for parameter in step.parameters()]
        return torch.autograd.grad(out.square().sum() - total, parameters)

    for one, other in zip(gradients(prepare(steps, (6, 4, 4), 4)), gradients([None] * 5), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class Twice(Step):
    """z' = 2z."""

    def forward(self, z):
        return 2 * z, z.new_full((len(z),), z[0].numel() * math.log(2))

    def inverse(self, z, eps=None):
        return z / 2


@pytest.mark.parametrize("place", ["actnorm", "conv1x1", "coupling"])
def test_a_step_of_ones_own_inside_a_flow_step_is_run(place, perturb):
    step = perturb(FlowStep(4, CONFIGS["lu"]))
    setattr(step, place, Twice())
    z = torch.randn(3, 4, 2, 2)
    expected, total = z, 0
    for inner in (step.actnorm, step.conv1x1, step.coupling):
        expected, dlogp = inner(expected)
        total = total + dlogp
    weights = prepare([step], (4, 2, 2), 3)
    out, dlogp = advance(step, z, weights[0])
    torch.testing.assert_close((out, dlogp), (expected, total))
    torch.testing.assert_close(invert(step, out, None, prepare_inverse([step], weights, (4, 2, 2))[0]), z)


def test_a_flow_step_is_its_three_steps(perturb, device):
    """Folded into one affine map, but for rounding."""
    for config in (*CONFIGS.values(), GlowConfig(hidden=4, coupling="additive")):
        step, z = perturb(FlowStep(6, config).to(device)), torch.randn(3, 6, 4, 4, device=device)
        expected, total = z, 0
        for inner in (step.actnorm, step.conv1x1, step.coupling):
            expected, dlogp = inner(expected)
            total = total + dlogp
        torch.testing.assert_close(step(z), (expected, total), rtol=1e-4, atol=1e-4)


def test_steps_that_derive_from_a_flow_step_make_their_own_weights():
    class Mine(FlowStep):
        pass

    steps: list[Step] = [FlowStep(4, CONFIGS["lu"]), Mine(4, CONFIGS["lu"]), FlowStep(4, CONFIGS["lu"])]
    assert all(isinstance(step, BatchedStep) for step in steps)
    assert [weights is None for weights in prepare(steps, (4, 2, 2), 2)] == [False, True, False]
    z = torch.randn(2, 4, 2, 2)
    assert torch.equal(steps[0](z)[0], steps[0](z, prepare(steps, (4, 2, 2), 2)[0])[0])
