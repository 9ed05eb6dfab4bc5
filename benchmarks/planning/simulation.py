"""How true is the simulation behind `plan --devices`? Images/s simulated and measured, side by side, on this machine.

    python -m benchmarks.planning.simulation [--quick] [--json FILE]       (7 minutes; an idle machine, lines need root)

* 1 to 4 processes by parts, as 1F1B and as DDP, the same Glow and cut. Flow steps are measured as `plan` measures them,
  in as many processes at once, since they share caches; where there are fewer cores the simulation shares them out.
* Two processes in two network namespaces, over lines of 100 and 10 Mb/s (benchmarks.lib.namespaces). Of a frame of
  1,514 bytes 1,448 are data, so that the simulated line is so much slower.
* A run in 3 processes of which two are killed, one after another, and come back: all restart, or that one alone. What a
  failure costs comes from a run in which one is killed, between other checkpoints.

What DDP adds to a processor's work per byte is measured with a model that computes next to nothing. No figure is fitted
to what it is compared with.
"""

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.lib.namespaces import two_hosts, why_not
from benchmarks.lib.results import about, keep, make_parser, table
from benchmarks.lib.torchrun import free_port
from benchmarks.lib.workload import Workload
from benchmarks.robustness.faults import Kill, seconds_per_step, train
from benchmarks.speed.rounds import Lineup, compare
from benchmarks.speed.runner import Runner
from pipeflow.distributed.malloc import keep_memory
from pipeflow.planning import Cluster, Link, Profile, Simulation, balanced_cut, elapsed, measured_profile
from pipeflow.planning.profile import ring_bytes

FULL = Workload(levels=3, steps=8, hidden=128, size=32, batch=24)
QUICK = Workload(levels=2, steps=2, hidden=16, size=16, batch=12)
MICRO = 4
LINEUP: Lineup = {"by parts": ("parts", {}), "1F1B": ("1f1b", {"micro": MICRO}), "DDP": ("ddp", {"bucket_mb": 1})}
ONE: Lineup = {"one process": ("one", {"threads": 1})}
FRAMES = 1448 / 1514
LOOPBACK = Link(1e10, 1e-4)


@cache
def measured_in(processes: int, workload: Workload) -> Profile:
    """The flow's steps, measured in so many processes at once, as the first of them finds them."""
    return at_once(measure_profile, [(workload,)] * processes)


def measure_profile(workload: Workload) -> Profile:
    """The flow's steps, measured in this process."""
    torch.set_num_threads(1)
    keep_memory()
    batches = sorted({workload.batch // share for share in (1, 2, 3, 4)} | {workload.batch // MICRO})
    steps = workload.flow_steps()
    return measured_profile(workload.config(1), workload.pixels, steps, workload.torch_device, batches)


def at_once(work: Any, arguments: list[tuple[Any, ...]]) -> Any:
    """What the first of some processes returns that work at the same time."""
    with ProcessPoolExecutor(len(arguments), get_context("spawn")) as pool:
        first, *_ = [done.result() for done in [pool.submit(work, *one) for one in arguments]]
        return first


class Scaled(nn.Module):
    """256 parameters of 8,192 numbers each, and next to nothing to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors = nn.ParameterList(torch.zeros(8192) for _ in range(256))

    def forward(self, factor: Tensor) -> Tensor:
        return torch.stack([tensor.sum() for tensor in self.tensors]).sum() * factor


def handling(rank: int, processes: int, port: int) -> float:
    """Seconds of the processor per byte that this process sends, with DDP more than without."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.TCPStore("127.0.0.1", port, processes, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    plain, spent, times = Scaled(), [], 30
    for model in (plain, nn.parallel.DistributedDataParallel(Scaled(), bucket_cap_mb=1, gradient_as_bucket_view=True)):
        for step in range(times + 2):
            if step == 2:
                began = time.process_time()
            model(torch.ones(())).backward()
        spent.append((time.process_time() - began) / times)
    dist.barrier()
    dist.destroy_process_group()
    return (spent[1] - spent[0]) / ring_bytes(sum(tensor.numel() for tensor in plain.parameters()), processes)


def compared(
    profile: Profile, workload: Workload, runner: Runner, lineup: Lineup, cluster: Cluster, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """What each approach of the lineup does in the runner's processes, and what the simulation says."""
    measured, found = compare(runner, lineup, workload.batch, seconds, rounds), []
    simulation = Simulation(profile, cluster, workload.batch)
    for way, one in measured.items():
        stages, replicas = (1, runner.processes) if way in ("DDP", "one process") else (runner.processes, 1)
        played = simulation.play(
            "DDP" if way == "one process" else way,  # type: ignore[arg-type]
            1 if way == "one process" else stages,
            1 if way == "one process" else replicas,
            MICRO if way == "1F1B" else 1,
            at=workload.cut if stages > 1 else None,
        )
        found.append({
            "way": way,
            "processes": runner.processes,
            "simulated": played.images_per_s,
            "measured": one["images_per_s"],
            "measured_rounds": one["images_per_s_rounds"],
            "simulated_bytes": played.line_bytes,
            "measured_bytes": one["all"],
        })  # fmt: skip
    return found


def on_processes(
    workload: Workload, handling_s: float, seconds: float, rounds: int, counts: tuple[int, ...]
) -> list[dict[str, Any]]:
    """So many processes of this machine."""
    found, cores = [], os.cpu_count() or 1
    for processes in counts:
        profile = measured_in(processes, workload)
        cut = balanced_cut(profile, processes, workload.batch)
        crowded = cores if processes > cores else None
        cluster = Cluster(processes, LOOPBACK, handling_s=handling_s, at_once=crowded)
        with Runner(replace(workload, cut=cut), processes) as runner:
            lineup = LINEUP if processes > 1 else ONE
            found += compared(profile, replace(workload, cut=cut), runner, lineup, cluster, seconds, rounds)
        show(found[-len(lineup) :], f"{processes} processes on {cores} cores")
    return found


def over_lines(workload: Workload, handling_s: float, seconds: float, speeds: list[float]) -> list[dict[str, Any]]:
    """Two processes in two network namespaces."""
    profile, found = measured_in(2, workload), []
    workload = replace(workload, cut=balanced_cut(profile, 2, workload.batch))
    with two_hosts() as hosts, Runner(workload, 2, hosts) as runner:
        compare(runner, LINEUP, workload.batch, 0.1, 1)  # all have trained before the line becomes slow
        for bits_per_s in speeds:
            hosts.throttle(bits_per_s)
            line = Link(bits_per_s * FRAMES, LOOPBACK.latency_s)
            rows = compared(profile, workload, runner, LINEUP, Cluster(2, line, handling_s=handling_s), seconds, 1)
            found += [{**row, "bits_per_s": bits_per_s} for row in rows]
            show(rows, f"2 processes, a line of {bits_per_s / 1e6:g} Mb/s")
    return found


def with_kills(quick: bool) -> list[dict[str, Any]]:
    """Three processes by parts, two of them killed, half-way between two checkpoints; images/s of whole runs."""
    steps, every, hidden = (600, 200, 8) if quick else (300, 75, 128)
    one, two = [(1, 2)], [(2, 1), (0, 2 if quick else 3)]  # rank, and the number of the last checkpoint before
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for mode in ("one",) if quick else ("all", "one"):
            runs = [Path(directory) / f"{mode}-{number}" for number in range(3)]
            none_s, one_s, two_s = (
                train(mode, run, steps, every, hidden, [Kill(rank, signal.SIGKILL, at * every) for rank, at in kills])[
                    "seconds"
                ]
                for run, kills in zip(runs, ([], one, two), strict=True)
            )
            step_s = seconds_per_step(runs[0])
            again = 1.0 if mode == "all" else busy(runs[0]) / step_s
            behind_s = again * step_s * every / 2
            cost_s = one_s - none_s - behind_s
            apart = two[1][1] - two[0][1]
            intervals = [step_s * every * (two[0][1] + 0.5), cost_s + behind_s + step_s * every * apart]
            longer_s = elapsed(steps * step_s, intervals, cost_s, again, step_s * every)[0] - steps * step_s
            images = 48 * steps
            found.append({
                "way": "all restart" if mode == "all" else "one comes back",
                "processes": 3,
                "simulated": images / (none_s + longer_s),
                "measured": images / two_s,
                "undisturbed": images / none_s,
                "failure_s": cost_s,
            })  # fmt: skip
    show(found, "3 processes, two kills, images/s from start to end")
    return found


def busy(run: Path) -> float:
    """Seconds per batch that a process would compute if it had a core, mean over the parts of a run."""
    streams = sorted((run / "metrics").glob("part-*.jsonl"))
    lines = [[json.loads(line)["compute_s"] for line in stream.read_text().splitlines()] for stream in streams]
    crowded = max(1.0, len(streams) / (os.cpu_count() or 1))
    return statistics.mean(map(statistics.median, lines)) / crowded


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Prints simulated beside measured images/s."""
    cells = [[row["way"], row["simulated"], row["measured"], row["simulated"] / row["measured"]] for row in rows]
    print(f"\n{title}\n{table(['', 'simulated', 'measured', 'simulated / measured'], cells)}", flush=True)


def main() -> None:
    args = make_parser(__doc__).parse_args()
    workload, seconds, rounds = (QUICK, 0.2, 1) if args.quick else (FULL, 2.0, 2)
    counts, port = (2,) if args.quick else (1, 2, 3, 4), free_port()
    handling_s = at_once(handling, [(rank, 2, port) for rank in range(2)])
    print(f"Averaging gradients costs the processor {1e9 * handling_s:.2f} ns per byte sent.", flush=True)
    result: dict[str, Any] = {"processes": on_processes(workload, handling_s, seconds, rounds, counts)}
    if why := why_not():
        print(f"pipeflow: lines are skipped: {why}. They need Linux, root, and ip and tc of iproute2.", file=sys.stderr)
    result["lines"] = [] if why else over_lines(workload, handling_s, seconds, [1e7] if args.quick else [1e8, 1e7])
    result["kills"] = with_kills(args.quick)
    ratios = [row["simulated"] / row["measured"] for rows in result.values() for row in rows]
    within = sum(abs(ratio - 1) <= 0.1 for ratio in ratios)
    print(f"\n{within} of {len(ratios)} within 10 %; from {min(ratios):.3f} to {max(ratios):.3f} times the measured.")
    config = {"workload": asdict(workload), "seconds": seconds, "rounds": rounds, "micro_batches": MICRO}
    keep("simulation", {**about(config), "handling_s_per_byte": handling_s, **result}, args)


if __name__ == "__main__":
    main()
