"""What is measured: sizes, memory against autograd itself, every step and prior of a flow, nothing changed by it."""

import time

import pytest
import torch

from pipeflow.config import Config
from pipeflow.data import DataConfig, Pixels
from pipeflow.flow import Split, Squeeze
from pipeflow.model import CutConfig, GlowConfig, build, cut_steps, glow_steps
from pipeflow.planning import measure, measure_steps, measured_profile
from pipeflow.planning.measure import StepOptions, medians, now, saved_bytes
from pipeflow.planning.run_profile import batch_sizes
from pipeflow.stage import CudaRecorder
from tests.support.command_line import parse
from tests.support.tape import TapeRecorder

GLOW = GlowConfig(levels=2, steps=2, hidden=8, top_prior="learned")


@pytest.mark.parametrize(
    ("batch", "found"),
    [(64, (2, 4, 8, 16, 32, 64)), (48, (2, 3, 6, 12, 24, 48)), (5, (2, 3, 5)), (1, (1,)), (2, (1, 2))],
)
def test_the_batch_and_its_shares_are_measured(batch, found):
    assert batch_sizes(batch) == found


def test_medians_of_runs_in_turns_without_the_first():
    seen = []

    def run(name, values=(100.0, 3.0, 1.0, 2.0)):
        seen.append(name)
        return values[min(seen.count(name) - 1, 3)], 0.5

    found = medians([lambda: run("a"), lambda: run("b")])
    assert seen[:4] == ["a", "b", "a", "b"]
    assert len(found) == 2 and all(first < 100 and second == 0.5 for first, second in found)


def test_the_clock_of_one_thread_counts_its_own_work_only(device):
    if device.type != "cpu":
        pytest.skip("the clock of a GPU is that on the wall")
    began, start = now(device), time.perf_counter()
    time.sleep(0.2)
    assert now(device) - began < (time.perf_counter() - start) / 2


def test_every_step_is_measured_at_every_size_and_left_as_it_was(device, perturb):
    steps = glow_steps(GLOW, (1, 8, 8))
    model = perturb(torch.nn.ModuleList(steps))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    costs = measure_steps(steps, (1, 8, 8), (2, 4), device, StepOptions(optimizer="adamw", ema=0.9))
    assert [cost.parameters for cost in costs] == [sum(p.numel() for p in step.parameters()) for step in steps]
    for step, cost in zip(steps, costs, strict=True):
        assert cost.batches == (2, 4) and min(*cost.forward_s, *cost.backward_s) > 0
        assert (cost.update_s > 0) == bool(cost.parameters), type(step)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_kept_is_what_autograd_keeps():
    """The sum over the steps is what one forward pass of the whole flow saves, storages counted once."""
    steps = glow_steps(GLOW, (1, 8, 8))
    costs = measure_steps(steps, (1, 8, 8), (2,), torch.device("cpu"))
    owned = {p.untyped_storage().data_ptr() for step in steps for p in [*step.parameters(), *step.buffers()]}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    for images in (2, 7):
        storages.clear()
        z = torch.zeros(images, 1, 8, 8)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            for step in steps:
                z, _ = step(z)
        saved = sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in owned)
        assert sum(cost.fixed_bytes + images * cost.saved_bytes for cost in costs) == saved


def test_steps_that_keep_nothing_and_learn_nothing():
    steps = glow_steps(GlowConfig(levels=2, steps=1, hidden=8, split_prior="standard"), (1, 8, 8))
    costs = measure_steps(steps, (1, 8, 8), (2,), torch.device("cpu"))
    for step, cost in zip(steps, costs, strict=True):
        if isinstance(step, Squeeze | Split):
            assert (cost.parameters, cost.update_s) == (0, 0)


@pytest.fixture(scope="module")
def config():
    cut = CutConfig("explicit", 3, [1, 3], provisional_prior="learned")
    return Config(glow=GLOW, data=DataConfig(batch=8), cut=cut, device="cpu")


def test_a_profile_counts_what_the_parts_of_a_run_count(config):
    pixels = Pixels((1, 8, 8), 17)
    steps = glow_steps(config.glow, pixels.shape, config.seed)
    profile = measured_profile(config, pixels, steps, torch.device("cpu"), batch_sizes(8))
    slices, whole = build(config.model, pixels)
    parts = profile.parts((1, 3))
    assert [cost.parameters for cost in parts] == [sum(p.numel() for p in slices[i].parameters()) for i in range(3)]
    assert profile.parts(())[0].parameters == sum(p.numel() for p in whole.parameters())
    assert profile.border_bytes((1, 3)) == [4 * (torch.Size(slices[i].part.event_out).numel() + 1) for i in range(2)]
    assert profile.state_bytes == 16 and parts[0].batches == (1, 2, 4, 8)
    assert all(cost.forward(8) > 0 and cost.backward(8) > 0 and cost.update_s > 0 for cost in parts)


def test_an_average_is_kept_in_memory_too():
    averaged = parse(["--ema", "0.9", "--glow.levels", "1", "--cut.parts", "2", "--glow.hidden", "8"])
    steps = glow_steps(averaged.glow, (1, 8, 8))
    assert measured_profile(averaged, Pixels((1, 8, 8), 17), steps, torch.device("cpu"), (2,)).state_bytes == 20


def test_packets_have_the_shapes_that_parts_hand_on(config):
    steps = glow_steps(GLOW, (1, 8, 8))
    profile = measured_profile(config, Pixels((1, 8, 8), 17), steps, torch.device("cpu"), (2,))
    for border, event in enumerate(profile.packet_shapes[:-1], 1):
        assert cut_steps(steps, [border], (1, 8, 8))[0].event_out == event


def test_activations_that_are_not_kept_take_less_memory():
    """By checkpoint what enters each step is kept; inverted, what leaves the flow within it."""
    steps = glow_steps(GLOW, (1, 8, 8))
    kept = {name: saved_bytes(steps, (1, 8, 8), name) for name in ("keep", "checkpoint", "invert")}
    entering = [64, 64, 64, 64, 32, 32, 32]
    assert kept["checkpoint"] == [(0, 4 * numbers) for numbers in entering]
    leaving = [0, 0, 0, 32, 0, 0, 0]
    assert kept["invert"] == [(0, 4 * numbers) for numbers in leaving]
    assert sum(image for _, image in kept["keep"]) > sum(image for _, image in kept["checkpoint"])


def test_activations_are_counted_in_the_precision_of_the_networks(device):
    steps = glow_steps(GLOW, (1, 8, 8))
    kept = {
        precision: sum(cost.saved_bytes for cost in measure_steps(steps, (1, 8, 8), (2,), device, options))
        for precision in ("fp32", "bf16")
        if (options := StepOptions(precision))
    }
    assert kept["bf16"] < 0.8 * kept["fp32"]
    assert not any(getattr(module, "autocast", None) for step in steps for module in step.modules()), "steps as before"


@pytest.mark.parametrize("activations", ["checkpoint", "invert"])
def test_steps_are_measured_as_their_activations_are_kept(activations, device):
    steps = glow_steps(GLOW, (1, 8, 8))
    costs = measure_steps(steps, (1, 8, 8), (2, 4), device, StepOptions(activations=activations))
    assert all(min(*cost.forward_s, *cost.backward_s) > 0 for cost in costs)


@pytest.mark.parametrize("activations", ["keep", "invert"])
def test_with_cuda_graphs_replays_are_measured(monkeypatch, device, activations):
    """On the CPU a tape takes their place; what is replayed is the forward and the backward pass of each size."""
    recorders = []

    def recorder(options, device):
        assert options.cuda_graphs
        recorders.append(CudaRecorder(device) if device.type == "cuda" else TapeRecorder())
        return recorders[-1]

    monkeypatch.setattr(measure, "_recorder", recorder)
    monkeypatch.setattr(measure, "_MOST", 3)
    options = StepOptions(activations=activations, cuda_graphs=True)
    costs = measure_steps(glow_steps(GLOW, (1, 8, 8)), (1, 8, 8), (2, 4), device, options)
    assert all(min(*cost.forward_s, *cost.backward_s) > 0 for cost in costs)
    if device.type == "cpu":
        assert {(made.recorded, made.replays) for made in recorders} == {(2, 6)}


def test_the_profile_of_a_run_with_cuda_graphs_measures_them(monkeypatch):
    seen = []
    monkeypatch.setattr(measure, "_recorder", lambda options, device: seen.append(options.cuda_graphs))
    monkeypatch.setattr(measure, "_MOST", 1)
    for cuda_graphs in (True, False):
        seen.clear()
        config = Config(glow=GLOW, data=DataConfig(batch=2), cut=CutConfig("balanced", 2), cuda_graphs=cuda_graphs)
        measured_profile(config, Pixels((1, 8, 8), 17), glow_steps(GLOW, (1, 8, 8)), torch.device("cpu"), (2,))
        assert set(seen) == {cuda_graphs}
