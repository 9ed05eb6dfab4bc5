"""A run in a few words: what it is, how far it is, what its phases and its cut are, which part takes longest."""

from datetime import UTC, datetime
from itertools import pairwise

from ..config import Config, PhaseConfig
from ..model import FAMILIES, family_cut
from .run_history import RunHistory


def lead(history: RunHistory) -> str:
    """What the run is, in a sentence."""
    config, result = history.config, history.result or {}
    size = result.get("processes")
    processes = f", in {size} process{'es' * (size != 1)}" if size else ""
    device = result.get("device") or (f"device {config.device}" if config.device != "auto" else None)
    text = f"{config.data.name}: {config.family if config.flow in FAMILIES else config.flow} in "
    text += f"{config.cut.parts} part{'s' * (config.cut.parts != 1)} ({cut_in_words(config)}){processes}"
    text += f" on {device}" if device else ""
    text += "; bits/dim are those of a density, not of discrete images" if config.noise else ""
    cut = cut_in_words(config)
    earlier = [(step, cut_in_words(before)) for step, before in history.earlier_configs]
    anew = [f"cut anew at step {step} (before: {before})" for step, before in earlier if before != cut]
    return "; ".join([text, *anew]) + "."


def unfinished(history: RunHistory) -> str:
    """How far a run is that is not finished; empty for one that is."""
    if history.result:
        return ""
    line, reached = history.last_evaluation, int(history.steps[-1])
    scored = f"evaluated at step {line['step']}, epoch {line['epoch']:.1f}" if line else "not evaluated yet"
    if line and not line["complete"]:
        scored = f"not evaluated yet: until step {line['step']} its last part had not begun to learn"
    planned = f" of {history.planned_steps}" if history.planned_steps else ""
    seen = datetime.fromtimestamp(max(float(stream.time[-1]) for stream in history.streams), UTC)
    return (
        f"Not finished: {scored}. The metrics reach step {reached}{planned} ({seen:%Y-%m-%d %H:%M} UTC); the run goes "
        "on, or was interrupted."
    )


def slowest_parts(history: RunHistory) -> list[str]:
    """Which part computes longest in each phase by parts, a sentence each."""
    sentences = []
    for phase in history.phases:
        streams = [stream.in_phase(phase.number) for stream in history.streams if stream.part is not None]
        streams = [stream for stream in streams if len(stream.step)]
        seconds = [float(stream.compute.sum()) for stream in streams]
        if len(streams) > 1 and max(seconds) > 0:
            slowest = max(range(len(streams)), key=seconds.__getitem__)
            each = 1e3 * seconds[slowest] / len(streams[slowest].step)
            sentences.append(
                f"Phase {phase.number}, {phase.name}: {streams[slowest].name} computes longest, {each:.3g} ms a step "
                f"and {100 * seconds[slowest] / sum(seconds):.0f} % of what all parts compute."
            )
    return sentences


def phase_in_words(phase: PhaseConfig) -> str:
    """Such as "6 steps alternate in turns of 2 steps"."""
    words = f"{_length(phase.steps, phase.epochs)} {phase.schedule.replace('_', ' ')}"
    if phase.schedule == "alternate":
        words += f" in turns of {_length(phase.turn_steps, phase.turn_epochs or 1.0)}"
    return words


def _length(steps: int | None, epochs: float | None) -> str:
    number, unit = (steps, "step") if steps else (epochs, "epoch")
    return f"{number:g} {unit}{'s' * (number != 1)}"


def cut_in_words(config: Config) -> str:
    """Flow steps of each part, such as "1 + 3 + 2", as far as the settings say."""
    if config.flow not in FAMILIES:
        return f"borders at {', '.join(map(str, config.cut.at))}" if config.cut.at else config.cut.scheme
    borders = [0, *family_cut(config.cut, config.family), max(config.family.levels, 1) * config.family.steps]
    return " + ".join(str(after - before) for before, after in pairwise(borders))
