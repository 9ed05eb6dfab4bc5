"""End to end, a model that is spread over the processes is the model of one process, and resumes like it."""

import dataclasses
import gc
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeflow.config import Config, EndToEndConfig, PhaseConfig
from pipeflow.distributed import ParallelConfig, open_world
from pipeflow.model.part import Part
from pipeflow.stage import PipelineStage
from pipeflow.storage.checkpoint import load
from pipeflow.training import fit
from pipeflow.training.phase import Phase
from tests.support.processes import in_processes
from tests.support.small_runs import FLOWS, fit_each_from, fit_in, small_config

PHASES = [
    PhaseConfig("simultaneous", steps=3, lr=2e-3),
    PhaseConfig("end_to_end", steps=6, lr=2e-3, clip=0.5, warmup_steps=2),
    PhaseConfig("end_to_end", steps=2, lr=1e-3),
    PhaseConfig("simultaneous", steps=2),
]
PIPELINE = EndToEndConfig("pipeline")
ENGINES = ("ddp", "fsdp", "pipeline")
STEPS = (3, 6, 9, 11, 13)


def config_of(run: Path, engine: EndToEndConfig, **others) -> Config:
    config = small_config(run, PHASES, ema=0.9, eval_every=4 / 125, end_to_end=engine, **others)
    return dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, every=3, keep=9))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def one(directory):
    """One process, under DDP: what all others are compared with."""
    fit_in("", config_of(directory / "one", EndToEndConfig()))
    return directory / "one"


@pytest.fixture(scope="module")
def fsdp(directory):
    """One process, two, two resumed at step 6, and two replicas."""
    names = ("alone", "two", "replicas", "resumed")
    alone, two, replicas, resumed = (config_of(directory / "fsdp" / name, EndToEndConfig("fsdp")) for name in names)
    replicas = dataclasses.replace(replicas, parallel=ParallelConfig(replicas=2))
    source = directory / "fsdp" / "two" / "checkpoints" / "step-6"
    fit_in("", alone)
    given = [(two, None), (replicas, None), (resumed, source)]
    in_processes(2, fit_each_from, given, directory=directory / "meet-fsdp")
    return directory / "fsdp"


@pytest.fixture(scope="module")
def pipeline(directory, one):
    """One process and two; two resumed at step 6, once where one process under DDP was; one that goes on under DDP."""
    run = directory / "pipeline"
    source = run / "two" / "checkpoints" / "step-6"
    four = EndToEndConfig("pipeline", micro_batches=4)
    given = [
        (config_of(run / "two", PIPELINE), None),
        (config_of(run / "resumed", PIPELINE), source),
        (config_of(run / "from one", four, activations="invert"), one / "checkpoints" / "step-6"),
        (config_of(run / "into ddp", EndToEndConfig()), source),
    ]
    in_processes(2, fit_each_from, given, directory=directory / "meet-pipeline")
    fit_each_from("", [(config_of(run / "alone", PIPELINE), None), (config_of(run / "into one", PIPELINE), source)])
    return run


@pytest.fixture(scope="module", params=[flow for flow in FLOWS if flow != "glow"])
def flow(request, directory):
    """A flow of another family in one process, and in two under every engine."""
    run, settings = directory / request.param, FLOWS[request.param]
    fit_in("", config_of(run / "one", EndToEndConfig(), **settings))
    given = [(config_of(run / engine, EndToEndConfig(engine), **settings), None) for engine in ENGINES]
    in_processes(2, fit_each_from, given, directory=run / "meet")
    return run


def tensors(run: Path, step: int):
    return load(run / "checkpoints" / f"step-{step}")[0]


def result(run: Path):
    return json.loads((run / "result.json").read_text())


def figures(run: Path):
    return [json.loads(line) for line in (run / "metrics" / "end_to_end.jsonl").read_text().splitlines()]


def assert_close(expected: Path, found: Path, steps: tuple[int, ...]) -> None:
    """Weights, moments and averages at these steps, and the bits/dim at the end.

    Adam makes a step of up to a learning rate of a gradient that is all rounding, so a number in a hundred may differ
    by half of that.
    """
    for step in steps:
        there, here = tensors(expected, step), tensors(found, step)
        assert there.keys() == here.keys()
        for key in there:
            value = there[key].double()
            distance = (here[key].double() - value).abs()
            apart = distance > 5e-5 + 1e-3 * value.abs()
            assert apart.float().mean() <= 0.01 and distance.max() <= 1e-3, key
    assert result(found)["test_bits_per_dim"] == pytest.approx(result(expected)["test_bits_per_dim"], abs=1e-4)


def assert_same_bits(expected: Path, found: Path, steps: tuple[int, ...]) -> None:
    for step in steps:
        there, here = tensors(expected, step), tensors(found, step)
        assert there.keys() == here.keys()
        assert [key for key in there if not torch.equal(there[key], here[key])] == []


@pytest.mark.parametrize("name", ["alone", "two", "replicas"])
def test_fsdp_trains_the_model_of_one_process(one, fsdp, name):
    assert_close(one, fsdp / name, STEPS)


def test_fsdp_resumed_is_the_same_to_the_bit(fsdp):
    assert_same_bits(fsdp / "two", fsdp / "resumed", STEPS[2:])


def test_a_pipeline_trains_the_model_of_one_process(one, pipeline):
    assert_close(one, pipeline / "two", STEPS)
    losses = [[line["bits_per_dim"] for line in figures(run)] for run in (one, pipeline / "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_pipeline_of_one_process_is_the_whole_model(one, pipeline):
    assert_same_bits(one, pipeline / "alone", STEPS)


def test_a_pipeline_resumed_is_the_same_to_the_bit(pipeline):
    assert_same_bits(pipeline / "two", pipeline / "resumed", STEPS[2:])
    losses = [[line["bits_per_dim"] for line in figures(pipeline / run)] for run in ("two", "resumed")]
    assert losses[0][3:] == losses[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_family_under_every_engine(flow, engine):
    assert_close(flow / "one", flow / engine, STEPS)


@pytest.mark.parametrize("name", ["from one", "into ddp", "into one"])
def test_a_run_goes_on_under_another_engine_and_in_other_processes(one, pipeline, name):
    assert_close(one, pipeline / name, STEPS[2:])


def test_what_a_pipeline_sends_both_ways_is_counted(pipeline):
    """Behind the first process of two lie latents of 4×4×4 (a split has halved them), and logp."""
    batch, steps = 12, 8
    least = 4 * batch * (2 * 4 * 4 + 1) * steps
    assert all(count > least for count in result(pipeline / "two")["bytes_sent"])


def test_a_pipeline_in_three_processes(one, directory):
    run = directory / "three"
    source = run / "three" / "checkpoints" / "step-6"
    given = [
        (config_of(run / "three", PIPELINE, activations="checkpoint"), None),
        (config_of(run / "resumed", PIPELINE, activations="checkpoint"), source),
    ]
    in_processes(3, fit_each_from, given, directory=directory / "meet-three")
    assert_close(one, run / "three", STEPS)
    assert_same_bits(run / "three", run / "resumed", STEPS[2:])


@pytest.mark.slow
def test_replicas_of_a_pipeline(one, directory):
    run = directory / "replicas"
    source = run / "four" / "checkpoints" / "step-6"
    two = ParallelConfig(replicas=2)
    given = [
        (config_of(run / "four", PIPELINE, parallel=two), None),
        (config_of(run / "resumed", PIPELINE, parallel=two), source),
    ]
    in_processes(4, fit_each_from, given, directory=directory / "meet-replicas")
    assert_close(one, run / "four", STEPS)
    assert_same_bits(run / "four", run / "resumed", STEPS[2:])


def spoiled(init_method: str, config: Config) -> None:
    """At step 5 the first process's gradient is not a number, at step 7 the last one's loss; all else is sound."""
    world = open_world(config.parallel, config.cut.parts, config.device, init_method)
    forward = Part.forward

    def spoil(self, given):
        packet = forward(self, given)
        if packet.z.requires_grad and (world.rank, world.pulse.step) == (0, 5):
            packet.z.register_hook(lambda gradient: gradient * torch.nan)
        if packet.z.requires_grad and (world.rank, world.pulse.step) == (1, 7):
            packet = packet._replace(logp=packet.logp * torch.nan)
        return packet

    Part.forward = spoil
    fit(config, world)
    world.close()


def test_all_processes_skip_an_update_that_is_bad_in_one(tmp_path):
    config = small_config(tmp_path / "run", [PhaseConfig("end_to_end", steps=8)], end_to_end=PIPELINE, ema=0.9)
    config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, every=1, keep=9))
    in_processes(2, spoiled, config, directory=tmp_path / "meet")
    assert [line["step"] for line in figures(tmp_path / "run") if line["bad"]] == [5, 7]
    assert [line["step"] for line in figures(tmp_path / "run") if not line["updated"]] == [5, 7]
    for step in range(2, 9):
        before, after = (tensors(tmp_path / "run", at) for at in (step - 1, step))
        assert all(torch.equal(before[key], after[key]) for key in before) is (step in (5, 7))
        assert all(tensor.isfinite().all() for tensor in after.values() if tensor.is_floating_point())


def held(init_method: str, config: Config, resume: Path | None) -> tuple[int, int, set[str], set[str]]:
    """How many parameters live in this process while it trains, at most; how many the model has; whose moments."""
    most, known = [0], []
    tick, begin = PipelineStage.tick, Phase.run

    def counted(self, learn=True):
        report = tick(self, learn)
        gc.collect()
        alive = {id(o): o.numel() for o in gc.get_objects() if type(o) is nn.Parameter}
        most[0] = max(most[0], sum(alive.values()))
        return report

    def begun(self, *given):
        state = self.state
        own = {name for truncated in state.weights.slices.values() for name in truncated.global_state()}
        known[:] = [state.run.parameters, {key.split("/", 1)[1] for key in state.weights.moments}, own]
        return begin(self, *given)

    PipelineStage.tick, Phase.run = counted, begun
    fit_in(init_method, config, resume)
    return most[0], *known


def test_no_process_of_a_pipeline_holds_the_whole_model(pipeline, tmp_path):
    """Counted in a run that goes on from a checkpoint, which has everyone's weights and moments."""
    config = dataclasses.replace(config_of(tmp_path / "run", PIPELINE), phases=PHASES[:3])
    source = pipeline / "two" / "checkpoints" / "step-6"
    found = in_processes(2, held, config, source, directory=tmp_path / "meet")
    whole = found[0][1]
    assert all(0 < alive < 0.9 * whole for alive, *_ in found), found
    assert sum(alive for alive, *_ in found) < 1.05 * whole  # provisional priors come on top
    for _, _, moments, own in found:
        assert moments and moments <= own
