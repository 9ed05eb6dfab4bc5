"""What is measured: sizes, memory against autograd itself, every step and prior of a flow, nothing changed by it."""

import time

import pytest
import torch

from pipeflow.config import Config
from pipeflow.config.parser import parse
from pipeflow.data import DataConfig, Pixels
from pipeflow.flow import Split, Squeeze
from pipeflow.model import CutConfig, GlowConfig, build, cut_steps, glow_steps
from pipeflow.planning import events_behind, survey
from pipeflow.planning.measure import measure, medians, now, sizes

GLOW = GlowConfig(levels=2, steps=2, hidden=8, top_prior="learned")


@pytest.mark.parametrize(
    ("batch", "found"),
    [(64, (2, 4, 8, 16, 32, 64)), (48, (2, 3, 6, 12, 24, 48)), (5, (2, 3, 5)), (1, (1,)), (2, (1, 2))],
)
def test_the_batch_and_its_shares_are_measured(batch, found):
    assert sizes(batch) == found


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
    costs = measure(steps, (1, 8, 8), (2, 4), device, "adamw", ema=0.9)
    assert [cost.parameters for cost in costs] == [sum(p.numel() for p in step.parameters()) for step in steps]
    for step, cost in zip(steps, costs, strict=True):
        assert cost.batches == (2, 4) and min(*cost.forward_s, *cost.backward_s) > 0
        assert (cost.update_s > 0) == bool(cost.parameters), type(step)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_kept_is_what_autograd_keeps():
    """The sum over the steps is what one forward pass of the whole flow saves, storages counted once."""
    steps = glow_steps(GLOW, (1, 8, 8))
    costs = measure(steps, (1, 8, 8), (2,), torch.device("cpu"))
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
    costs = measure(steps, (1, 8, 8), (2,), torch.device("cpu"))
    for step, cost in zip(steps, costs, strict=True):
        if isinstance(step, Squeeze | Split):
            assert (cost.parameters, cost.update_s) == (0, 0)


@pytest.fixture(scope="module")
def config():
    cut = CutConfig("explicit", 3, [1, 3], provisional_prior="learned")
    return Config(glow=GLOW, data=DataConfig(batch=8), cut=cut, device="cpu")


def test_a_profile_counts_what_the_parts_of_a_run_count(config):
    pixels = Pixels((1, 8, 8), 17)
    profile = survey(config, pixels, torch.device("cpu"))
    slices, whole = build(config.model, pixels)
    parts = profile.parts((1, 3))
    assert [cost.parameters for cost in parts] == [sum(p.numel() for p in slices[i].parameters()) for i in range(3)]
    assert profile.parts(())[0].parameters == sum(p.numel() for p in whole.parameters())
    assert profile.sent((1, 3)) == [4 * (torch.Size(slices[i].part.event_out).numel() + 1) for i in range(2)]
    assert profile.state_bytes == 16 and parts[0].batches == (1, 2, 4, 8)
    assert all(cost.forward(8) > 0 and cost.backward(8) > 0 and cost.update_s > 0 for cost in parts)


def test_an_average_is_kept_in_memory_too():
    averaged = parse(["--ema", "0.9", "--glow.levels", "1", "--cut.parts", "2", "--glow.hidden", "8"])
    assert survey(averaged, Pixels((1, 8, 8), 17), torch.device("cpu")).state_bytes == 20


def test_borders_behind_flow_steps_have_the_shapes_that_parts_hand_on(config):
    steps = glow_steps(GLOW, (1, 8, 8))
    for border, event in enumerate(events_behind(config, (1, 8, 8))[:-1], 1):
        assert cut_steps(steps, [border], (1, 8, 8))[0].event_out == event
