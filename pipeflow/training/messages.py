"""What a run tells people on standard output: texts only, made from its state."""

from ..config import micro_batches
from ..data import Pixels, Split
from ..model import family_caution
from ..units import rate
from .evaluation import Ledger
from .progress import Progress
from .run import Run


def opening(run: Run) -> str:
    """Data, model, and over how many processes it is spread."""
    config, space, grid = run.config, run.space, run.world.grid
    processes = f"{grid.size} processes" if grid.size > 1 else "1 process"
    if grid.replicas > 1:
        processes = f"{grid.replicas} replicas of {grid.stages} each, {processes}"
    elif grid.sharers:
        processes += f", {' + '.join(map(str, grid.sharers))} of each part"
    what = "images" if isinstance(space, Pixels) else "points"
    held_out = "" if run.images.validation is None else f", {len(run.images.validation)} validation"
    name = config.flow if run.flow else str(config.family)
    lines = [
        f"{config.data.name}: {len(run.images.train)} training{held_out} and {len(run.images.test)} test {what} of "
        f"{space.shape}{f', {space.classes} classes' * (space.classes > 0)}",
        f"{name}, {run.parameters:,} parameters, {config.cut.parts} parts of {' + '.join(map(str, run.sizes))} "
        f"flow steps on {processes} ({run.world.device.type})",
    ]
    lines += family_caution(config.family, run.borders) if run.flow is None else []
    if not space.nats:
        lines.append(f"bits/dim are those of a density: −log p / ({space.dims} ln 2), which may be negative")
    return "\n".join(lines)


def phase_opening(run: Run, number: int, steps: int, done: int) -> str:
    """What a phase does, and where the model is where several processes train it end to end."""
    schedule = run.config.phases[number - 1].schedule
    already = f", {done} of them done" if done else ""
    lines = [f"phase {number} of {len(run.config.phases)}: {schedule}, {steps} steps{already}"]
    end_to_end, config = schedule == "end_to_end", run.config
    if end_to_end and run.world.size > 1:
        lines.append(_end_to_end(run))
    sharers = run.world.size if end_to_end else min(run.world.grid.sharers or [run.world.grid.replicas])
    if config.cuda_graphs and (sharers > 1 or (end_to_end and config.end_to_end.engine == "fsdp")):
        lines.append("cuda_graphs does nothing in this phase: its processes wait for each other in every update")
    return "\n".join(lines)


def _end_to_end(run: Run) -> str:
    config, grid = run.config, run.world.grid
    if config.pipelined(grid.stages):
        images = config.data.batch // grid.replicas
        pieces = micro_batches(config.end_to_end.micro_batches, images, grid.stages)
        micros = f"{pieces} micro-batches of {images // pieces}"
        return f"every process keeps its own parts; a chain takes its share of a batch as {micros}"
    held = 4 * 4 * run.parameters / 2**20  # weights, gradients, two moments; 4 bytes each
    what = "the whole model"
    if config.end_to_end.engine == "fsdp":
        held, what = held / run.world.size, f"a share of the model, 1/{run.world.size}"
    return f"every process now holds {what}: {held:.1f} MiB of weights, gradients and moments, besides activations"


def time_left(seconds: float) -> str:
    """ ", about 2 h 5 min left"."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f", about {f'{hours} h ' if hours else ''}{minutes} min left"


def headline(ledger: Ledger, split: Split = "test") -> str:
    """Bits/dim of the model and of the flows truncated before it, on a split."""
    truncated = [f"after part {number} {part['bits_per_dim']:.4f}" for number, part in enumerate(ledger.parts, 1)]
    if ledger.complete:
        truncated.pop()
    model = "not yet" if ledger.bits_per_dim is None else f"{ledger.bits_per_dim:.4f}"
    return f"{split} bits/dim of the model {model}" + (f" (truncated {', '.join(truncated)})" if truncated else "")


def speeds(progress: Progress) -> str:
    """Images per second of each phase."""
    reached = [f"phase {number} {rate(phase['images_per_s'])}" for number, phase in enumerate(progress.ended, 1)]
    return f"images/s: {', '.join(reached)}"
