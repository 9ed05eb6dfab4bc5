"""One run, from settings to `result.json`: what `python -m pipeflow.train` calls, and a notebook can."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

from . import checkpoint
from .balance import balanced_cut, flow_step_costs, measure_steps
from .config import Config
from .data import check_enough
from .glow import glow_steps
from .ledger import Ledger, evaluate
from .part import CutConfig
from .phase import Phase
from .pixels import Pixels
from .record import Record, refuse_old_run
from .schedule import phase_steps, turns
from .sources import ImageSet, load
from .state import State, fresh
from .world import World, open_world


def fit(config: Config, init_method: str = "env://") -> dict[str, Any]:
    """Trains, evaluates and saves, in as many processes as the environment describes.

    Args:
        config: the settings; all processes must have the same.
        init_method: where processes meet, if there are several.

    Returns:
        What `result.json` in the run directory says.

    Raises:
        ValueError: settings, data, processes or a run directory that do not fit; nothing was written then.
        FloatingPointError: a part's loss stayed non-finite, or a phase ended with a model that has none.
        ConnectionError: a packet did not come in time, or its sender is gone.
    """
    world = open_world(config.parallel, config.cut.parts, config.device, init_method)
    state = _prepare(world, config)
    record = Record(state)
    scores: list[Ledger] = []

    def score() -> None:
        scores.append(_score(state))
        record.evaluated(scores[-1])

    for number, settings in enumerate(state.config.phases, 1):
        start = time.perf_counter()
        steps = phase_steps(settings, len(state.images.train), state.config.data.batch)
        record.phase_begins(number, settings.schedule, steps)
        phase = Phase(state, settings, number, record.directory)
        phase.run(score)
        _check_finite(scores[-1], number, state)
        saved = checkpoint.save(
            world,
            record.directory,
            state.step,
            {part: state.part_state(part) for part in world.mine},
            {"config": state.config.as_dict(), "phase": number, "optimizer": state.moments_of},
        )
        record.phase_ends(
            scores[-1],
            saved,
            schedule=settings.schedule,
            steps=steps,
            seconds=time.perf_counter() - start,
            train_seconds=phase.train_seconds,
            images_per_s=steps * state.config.data.batch / phase.train_seconds,
        )
    result = record.ends(scores[-1])
    world.close()
    return result


def _prepare(world: World, config: Config) -> State:
    """Everything that can be refused is refused here, before anything is written."""
    config.check_world(world.size)
    world.agree("the settings", f"hash {config.digest()}")
    world.first(lambda: refuse_old_run(Path(config.run)))
    images = world.first(lambda: _load(config))
    pixels = _pixels(config, images)
    return fresh(world, _measured(world, config, pixels), images, pixels)


def _load(config: Config) -> ImageSet:
    """The images, checked against every setting that concerns them."""
    data = config.data
    images = load(data.name, data.root, data.image_size, data.on_corrupt)
    check_enough(data, len(images.train))
    glow_steps(dataclasses.replace(config.glow, steps=1, hidden=1), _pixels(config, images).shape)
    for phase in config.phases:
        turns(phase, config.cut.parts, len(images.train), data.batch)
    return images


def _pixels(config: Config, images: ImageSet) -> Pixels:
    height, width, channels = images.train.shape[1:]
    return Pixels((channels, height, width), images.levels, config.data.bits)


def _measured(world: World, config: Config, pixels: Pixels) -> Config:
    """The settings with a balanced cut made explicit: measured once, by rank 0."""
    if config.cut.scheme != "balanced":
        return config
    at: tuple[int, ...] = ()
    if world.rank == 0:
        steps = glow_steps(config.glow, pixels.shape, config.seed)
        seconds = measure_steps(steps, pixels.shape, config.data.batch, world.device)
        at = balanced_cut(flow_step_costs(steps, seconds), config.cut.parts)
    at = tuple(json.loads(world.exchange(json.dumps(at).encode())[0]))
    cut = CutConfig("explicit", config.cut.parts, list(at), config.cut.provisional_prior)
    return dataclasses.replace(config, cut=cut)


def _score(state: State) -> Ledger:
    """On the test split: the model, or as many parts of it as have started to learn."""
    config = state.config
    return evaluate(state.chain, state.images.test, state.pixels, config.seed, config.data.batch, max(state.learned))


def _check_finite(ledger: Ledger, number: int, state: State) -> None:
    if not all(math.isfinite(part["bits_per_dim"]) for part in ledger.parts):
        raise FloatingPointError(
            f"Phase {number} ({state.config.phases[number - 1].schedule}) ends at step {state.step} with a model whose "
            "test bits/dim is not finite; nothing of it was saved. Try a lower lr, a warm-up or clipping."
        )
