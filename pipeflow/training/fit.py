"""One run, from settings to `result.json`: what `python -m pipeflow.train` calls, and a notebook can."""

import dataclasses
import json
import math
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..config import Config, Resume, phase_steps, turns
from ..data import DataConfig, ImageSet, Pixels, Points, Space, Splits, check_enough, images_of
from ..distributed import Stop, World, everywhere, intra_op_threads, on_rank_0, open_world, say
from ..errors import StopRequested
from ..model import CutConfig, Maker, check_flow, check_name, glow_steps, set_tensor_cores, steps_of
from ..planning import balanced_cut, flow_step_costs, measure_steps, read_plan
from ..storage import Saver, claim, release, run_of
from .evaluation import Ledger, evaluate
from .phase import Phase
from .recorder import Record, refuse_old_run
from .recovery import forget, recall
from .restore import find, restore
from .state import State, fresh


def fit(
    config: Config,
    world: World | None = None,
    resume: Resume = None,
    flow: Maker | None = None,
    data: Splits | None = None,
) -> dict[str, Any]:
    """Trains, evaluates and saves, in as many processes as the environment describes.

    It computes with `parallel.threads` threads, and gives the caller's number back at its end.

    Args:
        config: the settings; all processes must have the same.
        world: the processes; by default those that the environment describes.
        resume: a checkpoint to go on from, or "auto" for the newest whole one of the run directory, if there is any.
        flow: makes the steps of a flow of your own, for settings that give it a name (`flow`); the weights that it
            draws from torch's generator depend on the seed. Every process must make the same.
        data: training and test data of your own, for settings with data.name "own": float (N, *event), or images as
            uint8 (N, H, W, C). Every process must have the same.

    Returns:
        What `result.json` in the run directory says.

    Raises:
        ValueError: settings, data, processes, a checkpoint or a run directory that do not fit; nothing was written.
        FloatingPointError: a part's loss stayed non-finite, or a phase ended with a model that has none.
        LostError: a packet did not come in time, or its sender is gone.
        SaveError: a checkpoint could not be written.
        StopRequested: the run was asked to stop, and has been saved.
    """
    world = world or open_world(config.parallel, config.cut.parts, config.device)
    try:
        with intra_op_threads(config.parallel.threads):
            return _run(world, config, resume, flow, data)
    finally:
        release(Path(config.run_dir))


def _run(world: World, config: Config, resume: Resume, flow: Maker | None, data: Splits | None) -> dict[str, Any]:
    set_tensor_cores(config.precision)
    state = _come_back(world, config, flow, data) if world.standing else _prepare(world, config, resume, flow, data)
    config, run = state.config, Path(state.config.run_dir)
    if (result := _finished(state)) is not None:
        say(world, f"{run} is complete, nothing is left to do: result.json is there.")
        return result
    images, batch = len(state.images.train), config.data.batch
    begins = list(accumulate((phase_steps(phase, images, batch) for phase in config.phases), initial=state.begun))
    record = Record(state, begins[-1])
    saver = Saver(world, run, config.checkpoint, state.step)
    if not world.standing:
        forget(state)
    planned = read_plan(run, config, state.pixels.shape, world.device)
    if planned.said:
        say(world, planned.said)
    scores: dict[int, Ledger] = {}

    def score() -> None:
        scores[state.step] = _score(state)
        record.evaluated(scores[state.step])

    def save(elapsed: dict[str, float]) -> None:
        parts = {part: state.part_state(part) for part in world.mine if world.replica == 0}  # replicas are equal
        bits = scores[state.step].bits_per_dim if state.step in scores else None
        saver.save(parts, state.manifest(elapsed, bits))
        if world.config.rejoin_s:
            saver.settle()  # whoever is lost behind this point must not owe its share of a checkpoint

    for number, settings in list(enumerate(config.phases, 1))[len(state.ended) :]:
        begin, steps = begins[number - 1], begins[number] - begins[number - 1]
        record.phase_begins(number, settings.schedule, steps, state.step - begin)
        phase = Phase(state, settings, number, begin, run)
        try:
            phase.run(score, save, saver.check)
        except StopRequested:
            saver.settle()
            raise
        _check_finite(scores[state.step], number, state)
        took = phase.elapsed()
        ended: dict[str, Any] = {
            "schedule": settings.schedule,
            "steps": steps,
            **took,
            "images_per_s": steps * batch / took["train_seconds"],
            "predicted_images_per_s": planned.images_per_s(config, settings, images, world),
        }
        if drift := phase.drift():
            ended["drift"] = drift
        state.ended = [*state.ended, ended]
        state.elapsed = dict.fromkeys(took, 0.0)
        save(state.elapsed)
        saver.settle()
        record.phase_ends(scores[state.step])
        cause = world.exchange(Stop(world).cause().encode())[0].decode()
        if cause and number < len(config.phases):
            raise StopRequested(state.step, cause)
    if state.step not in scores:
        score()
    forget(state)
    return record.ends(scores[state.step])


def _prepare(world: World, config: Config, resume: Resume, flow: Maker | None, data: Splits | None) -> State:
    """Everything that can be refused is refused here, before anything is written."""
    config.check_world(world.size, world.grid.replicas)
    if config.cuda_graphs and world.device.type != "cuda":
        raise ValueError(f"cuda_graphs is on, but the run is on {world.device.type} (device); leave it off there.")
    if world.staged and config.pipelined(world.grid.stages) and any(p.schedule == "end_to_end" for p in config.phases):
        raise ValueError(
            "end_to_end.engine is pipeline, but without a GPU for every process its latents cannot travel (NCCL); use "
            "engine ddp or fsdp there, or device cpu."
        )
    world.agree("the settings", f"hash {config.digest()}")
    run = Path(config.run_dir)

    def begins() -> tuple[str | None, list[str]]:
        claim(run)
        source, said = find(config, resume)
        if resume is None or (source and run_of(source) != run.resolve()):
            refuse_old_run(run)
        return (str(source) if source else None), said

    found, said = on_rank_0(world, begins)
    images, pixels, own = world.first(lambda: _load(config, flow, data))
    world.agree("what the script hands over", f"hashes {own}")
    state = fresh(world, _measured(world, config, pixels, flow), images, pixels, flow, own)
    if found:
        said += everywhere(world, lambda: restore(state, Path(found)))
    for sentence in said:
        say(world, sentence)
    return state


def _come_back(world: World, config: Config, flow: Maker | None, data: Splits | None) -> State:
    """The run as this process left it when it was lost; the others wait for it."""
    images, pixels, own = _load(config, flow, data)
    state = fresh(world, config, images, pixels, flow, own)
    recall(state)
    print(f"{world.place()} is back: goes on from step {state.step}", flush=True)
    return state


def _finished(state: State) -> dict[str, Any] | None:
    """The result of a run that has nothing left to do."""
    file = Path(state.config.run_dir) / "result.json"
    if len(state.ended) < len(state.config.phases) or not file.is_file():
        return None
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def _load(config: Config, flow: Maker | None, data: Splits | None) -> tuple[ImageSet, Space, dict[str, str]]:
    """The data, what they look like, and hashes of what is handed over; checked against all that concerns them."""
    check_name(config.flow, flow)
    images, own = images_of(config.data, data)
    check_enough(config.data, len(images.train))
    pixels = _pixels(config.data, images)
    if flow is not None:
        own["flow"] = check_flow(flow, config.flow, pixels.shape)
    elif config.flow == "glow":
        glow_steps(dataclasses.replace(config.glow, steps=1, hidden=1), pixels.shape)
    for phase in config.phases:
        turns(phase, config.cut.parts, len(images.train), config.data.batch)
    return images, pixels, own


def _pixels(config: DataConfig, images: ImageSet) -> Space:
    if images.levels:
        height, width, channels = images.train.shape[1:]
        return Pixels((channels, height, width), images.levels, config.bits)
    if config.flip or config.bits != 8:
        raise ValueError("data.flip and data.bits are for images, but the data are points; leave them out.")
    return Points(images.train.shape[1:])


def _measured(world: World, config: Config, pixels: Space, flow: Maker | None) -> Config:
    """The settings with a balanced cut made explicit: measured once, by rank 0."""
    if config.cut.scheme != "balanced":
        return config
    at: tuple[int, ...] = ()
    if world.rank == 0:
        steps = steps_of(config.model, pixels, flow)
        seconds = measure_steps(steps, pixels.shape, config.data.batch, world.device)
        at = balanced_cut(flow_step_costs(steps, seconds), config.cut.parts)
    at = tuple(json.loads(world.exchange(json.dumps(at).encode())[0]))
    cut = CutConfig("explicit", config.cut.parts, list(at), config.cut.provisional_prior)
    return dataclasses.replace(config, cut=cut)


def _score(state: State) -> Ledger:
    """On the test split: the model, or as many parts of it as have started to learn."""
    config = state.config
    return evaluate(
        state.chain, state.slices, state.images.test, state.pixels, config.seed, config.data.batch, max(state.learned)
    )


def _check_finite(ledger: Ledger, number: int, state: State) -> None:
    if not all(math.isfinite(part["bits_per_dim"]) for part in ledger.parts):
        raise FloatingPointError(
            f"Phase {number} ({state.config.phases[number - 1].schedule}) ends at step {state.step} with a model whose "
            "test bits/dim is not finite; nothing of it was saved. Try a lower lr, a warm-up or clipping."
        )
