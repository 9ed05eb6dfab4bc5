"""One run, from settings to `result.json`: what `python -m pipeflow.train` calls, and a notebook can."""

import dataclasses
import json
import math
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .balance import balanced_cut, flow_step_costs, measure_steps
from .config import Config
from .data import check_enough
from .glow import glow_steps
from .ledger import Ledger, evaluate
from .metrics import Stream, say
from .model import Flow
from .part import CutConfig, flow_step_positions
from .phase import Phase
from .pixels import Pixels
from .schedule import phase_steps, turns
from .sheet import save_sheet
from .sources import ImageSet, load
from .state import State, build, fresh
from .traffic import totals
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
        FloatingPointError: a part's loss stayed non-finite.
        ConnectionError: a packet did not come in time, or its sender is gone.
    """
    world = open_world(config.parallel, config.cut.parts, config.device, init_method)
    result = _fit(world, config)
    world.close()
    return result


def _fit(world: World, config: Config) -> dict[str, Any]:
    _check_settings(world, config)
    directory = Path(config.run)
    world.first(lambda: _refuse_old_run(directory))
    images = world.first(lambda: _load(config))
    height, width, channels = images.train.shape[1:]
    pixels = Pixels((channels, height, width), images.levels, config.data.bits)
    config = _measured(world, config, pixels)
    state = fresh(world, config, images, pixels)
    world.first(lambda: _make(directory))
    if world.rank == 0:
        (directory / "config.yaml").write_text(config.as_yaml())
    say(world, _opening(state))
    evaluations = Stream(directory / "metrics" / "evaluation.jsonl") if world.rank == 0 else None
    phases: list[dict[str, Any]] = []
    ledger: Ledger | None = None

    def evaluate_now() -> None:
        nonlocal ledger
        last = max(state.learned)
        ledger = evaluate(state.chain, images.test, pixels, config.seed, config.data.batch, last)
        epoch = state.step * config.data.batch / len(images.train)
        say(world, f"step {state.step}, epoch {epoch:.1f}: {_headline(ledger)}")
        if evaluations:
            evaluations.write(step=state.step, epoch=epoch, time=time.time(), **_ledger_json(ledger))
            evaluations.flush()

    for number, settings in enumerate(config.phases, 1):
        start = time.perf_counter()
        say(world, f"phase {number} of {len(config.phases)}: {settings.schedule}, "
                   f"{phase_steps(settings, len(images.train), config.data.batch)} steps")  # fmt: skip
        phase = Phase(state, settings, number, directory)
        phase.run(evaluate_now)
        assert ledger is not None
        if not all(math.isfinite(part["bits_per_dim"]) for part in ledger.parts):
            raise FloatingPointError(
                f"Phase {number} ({settings.schedule}) ends at step {state.step} with a model whose test bits/dim is "
                "not finite; nothing of it was saved. Try a lower lr, a warm-up or clipping."
            )
        say(world, ledger.table())
        saved = checkpoint.save(
            world,
            directory,
            state.step,
            {part: state.part_state(part) for part in world.mine},
            {"config": config.as_dict(), "phase": number, "optimizer": state.moments_of},
        )
        if world.rank == 0:
            _draw_sheet(saved, config, pixels, directory / "samples" / f"step-{state.step}.png")
        world.exchange(b"")
        phases.append(
            {
                "schedule": settings.schedule,
                "steps": phase.steps,
                "seconds": time.perf_counter() - start,
                "train_seconds": phase.train_seconds,
                "images_per_s": phase.steps * config.data.batch / phase.train_seconds,
            }
        )
    assert ledger is not None
    result = _result(world, ledger, phases)
    if world.rank == 0:
        (directory / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    say(world, f"{directory}: {_headline(ledger)}; samples, checkpoints and result.json are there.")
    world.exchange(b"")
    return result


def _check_settings(world: World, config: Config) -> None:
    config.check_world(world.size)
    digests = [data.decode() for data in world.exchange(config.digest().encode())]
    if len(set(digests)) > 1:
        odd = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
        raise ValueError(
            f"The processes disagree about the settings: rank 0 has {digests[0]}, rank {odd} has {digests[odd]} "
            "(hashes of all settings). Start every process with the same file and options."
        )


def _refuse_old_run(directory: Path) -> None:
    if (directory / "config.yaml").exists() or (directory / "checkpoints").exists():
        raise ValueError(
            f"{directory} already holds a run, which is never written over. Give the new run another directory with "
            "--run DIR, or rename or remove the old one."
        )
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--run {directory} is a file; it must be a directory, or not exist yet.")


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--run {directory} cannot be made a directory ({error}); give another one.") from error


def _load(config: Config) -> ImageSet:
    data = config.data
    images = load(data.name, data.root, data.image_size, data.on_corrupt)
    check_enough(data, len(images.train))
    height, width, channels = images.train.shape[1:]
    Pixels((channels, height, width), images.levels, data.bits)
    glow_steps(dataclasses.replace(config.glow, steps=1, hidden=1), (channels, height, width))
    for phase in config.phases:
        turns(phase, config.cut.parts, len(images.train), data.batch)
    return images


def _measured(world: World, config: Config, pixels: Pixels) -> Config:
    """The settings with a measured cut made explicit: measured once, by rank 0."""
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


def _opening(state: State) -> str:
    config, world, images = state.config, state.world, state.images
    slices, whole = build(config, state.pixels)
    sizes = [len(flow_step_positions([step for _, step in part.part.chain()])) for part in slices.values()]
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    glow = config.glow
    many = f"{world.size} processes" if world.size > 1 else "1 process"
    return (
        f"{config.data.name}: {len(images.train)} training and {len(images.test)} test images of {state.pixels.shape}\n"
        f"Glow {glow.levels} × {glow.steps} × {glow.hidden}, {parameters:,} parameters, {config.cut.parts} parts of "
        f"{' + '.join(map(str, sizes))} flow steps on {many} ({world.device.type})"
    )


def _headline(ledger: Ledger) -> str:
    truncated = [f"behind part {n} {part['bits_per_dim']:.4f}" for n, part in enumerate(ledger.parts, 1)]
    if ledger.complete:
        truncated.pop()
    model = "not yet" if ledger.bits_per_dim is None else f"{ledger.bits_per_dim:.4f}"
    return f"test bits/dim of the model {model}" + (f" (truncated {', '.join(truncated)})" if truncated else "")


def _ledger_json(ledger: Ledger) -> dict[str, Any]:
    return {"bits_per_dim": ledger.bits_per_dim, **dataclasses.asdict(ledger)}


def _draw_sheet(saved: Path, config: Config, pixels: Pixels, path: Path) -> None:
    """Samples from what was saved, not from what is in memory: this also shows that the checkpoint is whole."""
    tensors, _ = checkpoint.load(saved)
    _, whole = build(config, pixels)
    whole.load_global_state(tensors)
    save_sheet(Flow([whole.part], whole, pixels).sample(64, 0.7), pixels.levels, path)


def _result(world: World, ledger: Ledger, phases: list[dict[str, Any]]) -> dict[str, Any]:
    sent, received = totals()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = torch.cuda.max_memory_allocated(world.device) if world.device.type == "cuda" else 0
    own = {"sent": sent, "received": received, "peak": peak, "gpu": gpu}
    ranks = [json.loads(text) for text in world.exchange(json.dumps(own).encode())]
    return {
        "test_bits_per_dim": ledger.bits_per_dim,
        "ledger": _ledger_json(ledger),
        "seconds": [phase["seconds"] for phase in phases],
        "images_per_s": [phase["images_per_s"] for phase in phases],
        "phases": phases,
        "peak_memory_bytes": [rank["peak"] for rank in ranks],
        "peak_gpu_memory_bytes": [rank["gpu"] for rank in ranks],
        "bytes_sent": [rank["sent"] for rank in ranks],
        "bytes_received": [rank["received"] for rank in ranks],
        "processes": world.size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
