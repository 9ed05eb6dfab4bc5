"""A training step on the CPU compared with the matrix products in it: what is left to gain, and which settings gain it.

    python -m benchmarks.step.cpu_step [--quick] [--json FILE] [--threads 2] [--clock wall|cpu]      (2 minutes)

Glow 3 × 4 × 512 on 3×32×32, batches of 16, end to end: receiving, forward, backward, Adam. In turns with the settings,
so that whatever else the machine does meets all alike, the float32 matrix products of the same sizes as its
convolutions (three for each: forward, and two gradients) are timed by `torch.mm`; medians. On a machine that is not
quiet, `--threads 1 --clock cpu` counts the seconds that this process itself computed. `torch.mm` is no lower bound:
convolution kernels beat it at some of these sizes, and bf16 ones with units for it beat it by far.
"""

import importlib.util
import statistics
import time
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.lib.results import about, axes, keep, make_parser, table
from benchmarks.lib.workload import Workload
from benchmarks.step.matrix_products import matrix_products, products_time
from pipeflow.distributed import keep_memory

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32, channels last": {"layout": "channels_last"},
    "fp32, fused Adam": {},
    "fp32, channels last, compiled steps": {"layout": "channels_last", "compile": "steps"},
    "bf16": {"precision": "bf16"},
    "bf16, channels last": {"precision": "bf16", "layout": "channels_last"},
    "bf16, channels last, compiled steps": {"precision": "bf16", "layout": "channels_last", "compile": "steps"},
    "bf16, channels last, checkpoint": {"precision": "bf16", "layout": "channels_last", "activations": "checkpoint"},
    "bf16, channels last, invert": {"precision": "bf16", "layout": "channels_last", "activations": "invert"},
}
FUSED = ("fp32, fused Adam",)
WARM_UP = 2  # rounds that are not counted


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    workload = Workload(levels=3, steps=4, hidden=512, size=32, batch=16, lr=1e-4)
    if args.quick:
        workload, args.repeats = Workload(levels=2, steps=1, hidden=16, size=8, batch=4, lr=1e-4), 2
    stages = {name: replace(workload, **SETTINGS[name]).training_stage(fused=name in FUSED) for name in args.only}
    products = matrix_products(workload)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in ("matrix products", *stages)}
    for _ in range(args.repeats + WARM_UP):
        seconds["matrix products"].append(products_time(products, workload.torch_device, clock))
        for name, stage in stages.items():
            start = clock()
            stage.tick()
            seconds[name].append(clock() - start)
    medians = {name: statistics.median(times[WARM_UP:]) for name, times in seconds.items()}
    floor = medians["matrix products"]
    rows = [
        {"setting": name, "step_s": step_s, "over_matrix_products": step_s / floor} for name, step_s in medians.items()
    ]
    chosen = {"workload": asdict(workload), "threads": args.threads, "clock": args.clock, "repeats": args.repeats}
    print(table(["", "seconds per step", "× matrix products"], [list(row.values()) for row in rows]))
    figure = None
    if importlib.util.find_spec("matplotlib"):
        figure, panel = axes(figsize=(7, 3))
        panel.barh([row["setting"] for row in rows[::-1]], [row["over_matrix_products"] for row in rows[::-1]])
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set(xlabel=f"{args.clock} seconds of a step, over those of its matrix products in float32")
    keep("cpu_step", {**about(chosen), "rows": rows}, args, figure)


if __name__ == "__main__":
    main()
