"""What a run tells people on standard output: texts only, made from its state."""

from ..config import micro_batches
from ..data import Pixels
from ..units import rate
from .evaluation import Ledger
from .state import State


def opening(state: State) -> str:
    """Data, model, and over how many processes it is spread."""
    config, glow, pixels, grid = state.config, state.config.glow, state.pixels, state.world.grid
    processes = f"{grid.size} processes" if grid.size > 1 else "1 process"
    if grid.replicas > 1:
        processes = f"{grid.replicas} replicas of {grid.stages} each, {processes}"
    what = "images" if isinstance(pixels, Pixels) else "points"
    name = config.flow if state.flow else f"Glow {glow.levels} × {glow.steps} × {glow.hidden}"
    lines = [
        f"{config.data.name}: {len(state.images.train)} training and {len(state.images.test)} test {what} of "
        f"{pixels.shape}",
        f"{name}, {state.parameters:,} parameters, {config.cut.parts} parts of {' + '.join(map(str, state.sizes))} "
        f"flow steps on {processes} ({state.world.device.type})",
    ]
    if what == "points":
        lines.append(f"bits/dim are those of a density: −log p / ({pixels.dims} ln 2), which may be negative")
    return "\n".join(lines)


def phase_opening(state: State, number: int, schedule: str, steps: int, done: int) -> str:
    """What a phase does, and where the model is where several processes train it end to end."""
    already = f", {done} of them done" if done else ""
    line = f"phase {number} of {len(state.config.phases)}: {schedule}, {steps} steps{already}"
    return f"{line}\n{_end_to_end(state)}" if schedule == "end_to_end" and state.world.size > 1 else line


def _end_to_end(state: State) -> str:
    config, grid = state.config, state.world.grid
    if config.pipelined(grid.stages):
        images = config.data.batch // grid.replicas
        pieces = micro_batches(config.end_to_end.micro_batches, images, grid.stages)
        micros = f"{pieces} micro-batches of {images // pieces}"
        return f"every process keeps its own parts; a chain takes its share of a batch as {micros}"
    held = 4 * 4 * state.parameters / 2**20  # weights, gradients, two moments; 4 bytes each
    what = "the whole model"
    if config.end_to_end.engine == "fsdp":
        held, what = held / state.world.size, f"a share of the model, 1/{state.world.size}"
    return f"every process now holds {what}: {held:.1f} MiB of weights, gradients and moments, besides activations"


def time_left(seconds: float) -> str:
    """ ", about 2 h 5 min left"."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f", about {f'{hours} h ' if hours else ''}{minutes} min left"


def headline(ledger: Ledger) -> str:
    """Test bits/dim of the model and of the flows truncated before it."""
    truncated = [f"behind part {number} {part['bits_per_dim']:.4f}" for number, part in enumerate(ledger.parts, 1)]
    if ledger.complete:
        truncated.pop()
    model = "not yet" if ledger.bits_per_dim is None else f"{ledger.bits_per_dim:.4f}"
    return f"test bits/dim of the model {model}" + (f" (truncated {', '.join(truncated)})" if truncated else "")


def phase_ending(state: State, ledger: Ledger) -> str:
    """Where the bits of the model go, and how far inverted activations lay from what entered."""
    drifts = state.ended[-1].get("drift", {}).items()
    return "\n".join(
        [ledger.table()]
        + [
            f"  {name.replace('_', ' ').replace('-', ' ')}: inverted inputs lay at most {drift['drift']:.1e} from what "
            f"entered, {drift['relative_drift']:.1e} of its largest number"
            for name, drift in drifts
        ]
    )


def speeds(state: State) -> str:
    """Images per second of each phase."""
    reached = [f"phase {number} {rate(phase['images_per_s'])}" for number, phase in enumerate(state.ended, 1)]
    return f"images/s: {', '.join(reached)}"
