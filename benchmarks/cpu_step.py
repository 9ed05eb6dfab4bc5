"""A training step on the CPU against the matrix products in it: what is left to gain, and which settings gain it.

    python benchmarks/cpu_step.py [--quick] [--json FILE] [--threads 2] [--clock wall|cpu]

Glow 3 × 4 × 512 on 3×32×32, batches of 16, end to end: receiving, forward, backward, Adam. Beside it the float32
matrix products of the same sizes as its convolutions (three for each: forward, and two gradients), by `torch.mm`, in
turns with the settings, so that whatever else the machine does meets all alike; medians. On a machine that is not
quiet, `--threads 1 --clock cpu` counts the seconds that this process itself computed. `torch.mm` is a yardstick and no
bound: convolution kernels beat it at some of these sizes, and bf16 ones with units for it beat it by far.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from results_file import about, axes, keep, make_parser, table

from pipeflow.data import Batches, Pixels
from pipeflow.distributed import keep_memory
from pipeflow.flow import Step
from pipeflow.model import GlowConfig, glow_steps, make_passage, set_precision
from pipeflow.model.truncated import truncate
from pipeflow.stage import Stage, Update, make_optimizer
from pipeflow.stream import Discard

SETTINGS: dict[str, dict[str, str]] = {
    "fp32": {},
    "fp32, channels last": {"layout": "channels_last"},
    "fp32, fused Adam": {"fused": "yes"},
    "fp32, channels last, compiled steps": {"layout": "channels_last", "compile": "steps"},
    "bf16": {"precision": "bf16"},
    "bf16, channels last": {"precision": "bf16", "layout": "channels_last"},
    "bf16, channels last, compiled steps": {"precision": "bf16", "layout": "channels_last", "compile": "steps"},
    "bf16, channels last, checkpoint": {"precision": "bf16", "layout": "channels_last", "activations": "checkpoint"},
    "bf16, channels last, invert": {"precision": "bf16", "layout": "channels_last", "activations": "invert"},
}


def training_step(
    glow: GlowConfig,
    pixels: Pixels,
    batch: int,
    precision: str = "fp32",
    layout: str = "contiguous",
    compile: str = "none",
    activations: str = "keep",
    fused: str = "",
) -> Callable[[], Any]:
    _, whole = truncate(glow_steps(glow, pixels.shape), (), pixels.shape, glow.top_prior, "standard")
    set_precision(whole, precision, layout)  # type: ignore[arg-type]
    images = torch.randint(0, 256, (4 * batch, *pixels.shape[1:], 3), dtype=torch.uint8).numpy()
    head = Batches(images, pixels, 0, batch, False, torch.device("cpu"))
    whole.part.initialise(head.recv())
    whole.part.passage = make_passage(activations, compile)  # type: ignore[arg-type]
    named = whole.named_global_parameters()
    stage = Stage(whole, Update(named, make_optimizer("adam", named, 1e-4, fused=bool(fused)), 1e-4), pixels.dims)
    stage.connect(head, Discard())
    return stage.tick


def matrix_products(glow: GlowConfig, pixels: Pixels, batch: int) -> Callable[[], None]:
    """The products of every convolution of a step, with its patches laid out beforehand."""
    sizes: list[tuple[int, int, int]] = []

    def note(module: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        sizes.append((out[:, 0].numel(), weight[0].numel(), len(weight)))

    event: tuple[int, ...] = pixels.shape
    step: Step
    for step in glow_steps(glow, pixels.shape):
        for module in step.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(note)
        if step.place == "step":
            sizes.append((batch * event[1] * event[2], event[0], event[0]))
        step(torch.zeros(batch, *event))
        event = step.out_shape(event)
    operands = {size: _operands(*size) for size in set(sizes)}

    def work() -> None:
        for size in sizes:
            patches, weight, gradient = operands[size]
            torch.mm(patches, weight)
            torch.mm(gradient, weight.t())
            torch.mm(patches.t(), gradient)

    return work


def _operands(rows: int, inner: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(rows, inner), torch.randn(inner, columns), torch.randn(rows, columns)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    glow, pixels, batch = GlowConfig(3, 4, 512), Pixels((3, 32, 32)), 16
    if args.quick:
        glow, pixels, batch, args.repeats = GlowConfig(2, 1, 16), Pixels((3, 8, 8)), 4, 2
    work: dict[str, Callable[[], Any]] = {"matrix products": matrix_products(glow, pixels, batch)}
    work |= {name: training_step(glow, pixels, batch, **SETTINGS[name]) for name in args.only}
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(args.repeats + 2):
        for name, once in work.items():
            began = clock()
            once()
            if repeat >= 2:
                seconds[name].append(clock() - began)
    floor = statistics.median(seconds["matrix products"])
    rows = [
        {"setting": name, "step_s": (step := statistics.median(times)), "over_matrix_products": step / floor}
        for name, times in seconds.items()
    ]
    chosen = {"glow": str(glow), "batch": batch, "threads": args.threads, "clock": args.clock, "repeats": args.repeats}
    print(table(["", "seconds a step", "× matrix products"], [list(row.values()) for row in rows]))
    figure = None
    if importlib.util.find_spec("matplotlib"):
        figure, panel = axes(figsize=(7, 3))
        panel.barh([row["setting"] for row in rows[::-1]], [row["over_matrix_products"] for row in rows[::-1]])
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set(xlabel=f"{args.clock} seconds of a step, over those of its matrix products in float32")
    keep("cpu_step", {**about(chosen), "rows": rows}, args, figure)


if __name__ == "__main__":
    main()
