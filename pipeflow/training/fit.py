"""One run, from settings to `result.json`: what `python -m pipeflow.train` calls, and a notebook can."""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..config import Config, Resume, phase_steps
from ..data import Splits
from ..distributed import World, deterministic_kernels, intra_op_threads, open_world, say
from ..errors import StopRequested
from ..model import Maker, set_tensor_cores
from ..storage import Saver, read_plain, release
from .pauses import Pauses
from .phase import Phase
from .prepare import come_back, prepare
from .recorder import Record
from .snapshot import remove_snapshots
from .state import State


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
            uint8 (N, H, W, C); with `data.labels` also a pair of their labels, (N,). Every process must have the same.

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
        with intra_op_threads(config.parallel.threads), deterministic_kernels(config.deterministic):
            return _train(world, config, resume, flow, data)
    finally:
        release(Path(config.run_dir))


def _train(world: World, config: Config, resume: Resume, flow: Maker | None, data: Splits | None) -> dict[str, Any]:
    """The story of a run."""
    set_tensor_cores(config.precision, config.flow)
    returned = world.resume_point is not None  # to processes that have lost this one and wait for it
    state = come_back(world, config, flow, data) if returned else prepare(world, config, resume, flow, data)
    run, progress = state.run, state.progress
    if (result := _result_of_finished(state)) is not None:
        say(world, f"{run.directory.path} is complete, nothing is left to do: result.json is there.")
        return result
    borders = _phase_borders(state)
    record = Record(state, borders[-1])
    saver = Saver(world, run.directory.path, run.config.checkpoint, progress.step)
    if not returned:
        remove_snapshots(state)
    pauses = Pauses(state, record, saver)
    if not returned and progress.step and not world.on_rank_0(run.directory.saved_steps):
        pauses.save()  # a branch: --resume auto must find what it began from, however early it dies
        saver.settle()
    ready = False
    for number in range(len(progress.ended) + 1, len(borders)):
        begin, end = borders[number - 1 : number + 1]
        record.phase_begins(number, end - begin, progress.step - begin)
        try:
            ready = Phase(state, number, begin).run(pauses, ready)
        except StopRequested:
            saver.settle()
            raise
    last, test = pauses.ledger(), pauses.test()
    remove_snapshots(state)
    return record.ends(last, test)


def _phase_borders(state: State) -> list[int]:
    """The steps of the run at which phases begin or end, in order; a ValueError where the one in progress is over."""
    images, config, progress = len(state.run.images.train), state.run.config, state.progress
    lengths = (phase_steps(phase, images, config.data.batch) for phase in config.phases)
    borders = list(accumulate(lengths, initial=progress.begun))
    number = len(progress.ended) + 1
    if number < len(borders) and progress.step >= borders[number]:
        raise ValueError(
            f"Phase {number} would end at step {borders[number]}, but the checkpoint is of step {progress.step}: there "
            "are fewer training images than before."
        )
    return borders


def _result_of_finished(state: State) -> dict[str, Any] | None:
    """The result of a run that has nothing left to do; None if there is something."""
    file = state.run.directory.result
    if len(state.progress.ended) < len(state.run.config.phases) or not file.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(read_plain(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged: it is no JSON; remove it, and the run's end is carried out again."
        ) from error
    return result
