"""Glow, Jet and TarFlow in two processes: how many images a second, and how many bytes, does each way to train take?

    python -m benchmarks.speed.flows [--quick] [--json FILE]      (5 minutes; an idle machine)

By parts, behind a standard normal and behind heads, beside 1F1B, DDP and FSDP of PyTorch: the same flow, images, Adam,
one thread per process, in the same processes and in turns. 1F1B and DDP are tried with several settings, and the best
of each counts; by parts and 1F1B share one cut, balanced from measured times. Bytes are those that all processes
receive in a step, read from their sockets.
"""

from dataclasses import asdict
from typing import Any

from benchmarks.lib.results import about, keep, make_parser, table
from benchmarks.lib.workload import Workload
from benchmarks.speed.approaches import NAMES
from benchmarks.speed.rounds import Lineup, compare, tune
from benchmarks.speed.runner import Runner

FULL = [
    Workload(levels=3, steps=8, hidden=64, size=32, batch=24),
    Workload(levels=0, steps=12, hidden=64, size=32, batch=24, flow="jet"),
    Workload(levels=0, steps=6, hidden=96, size=32, batch=24, flow="tarflow"),
]
QUICK = [
    Workload(levels=2, steps=2, hidden=8, size=16, batch=8),
    Workload(levels=0, steps=4, hidden=8, size=16, batch=8, flow="jet"),
    Workload(levels=0, steps=4, hidden=8, size=16, batch=8, flow="tarflow"),
]
PROCESSES = 2
TITLES = NAMES | {"heads": "by parts behind heads"}


def run(workload: Workload, seconds: float, rounds: int, quick: bool) -> dict[str, Any]:
    """All approaches on one flow: the best setting of each, images/s, and bytes per step."""
    workload = workload.balanced(PROCESSES)
    with Runner(workload, PROCESSES) as runner:
        lineup: Lineup = {"parts": ("parts", {}), "heads": ("parts", {"prior": "flow"}), "fsdp": ("fsdp", {})}
        for name in ("1f1b", "ddp"):
            lineup[name] = (name, tune(runner, name, workload.batch, seconds / 2, quick)[0]["setting"])
        measured = compare(runner, lineup, workload.batch, seconds, rounds)
    kept = ("setting", "images_per_s", "images_per_s_rounds", "all")
    return {
        "workload": asdict(workload),
        "parameters": workload.parameters(),
        "approaches": {name: {key: one[key] for key in kept} for name, one in measured.items()},
    }


def show(found: dict[str, Any]) -> None:
    workload = Workload(**{**found["workload"], "cut": tuple(found["workload"]["cut"])})
    print(f"\n{workload}, {found['parameters']:,} parameters, {PROCESSES} processes, cut at {list(workload.cut)}")
    parts = found["approaches"]["parts"]
    rows = [
        [
            TITLES[name],
            one["images_per_s"],
            f"{min(one['images_per_s_rounds']):.1f}–{max(one['images_per_s_rounds']):.1f}",
            parts["images_per_s"] / one["images_per_s"],
            f"{one['all'] / 1e6:.3f}",
            f"{one['all'] / parts['all']:.0f}",
        ]
        for name, one in found["approaches"].items()
    ]
    print(table(["", "images/s", "rounds", "parts is × faster", "MB/step", "× the bytes of parts"], rows), flush=True)


def main() -> None:
    args = make_parser(__doc__).parse_args()
    workloads, seconds, rounds = (QUICK, 0.2, 1) if args.quick else (FULL, 3.0, 3)
    found = []
    for workload in workloads:
        found.append(run(workload, seconds, rounds, args.quick))
        show(found[-1])
    keep("flows", {**about({"seconds": seconds, "rounds": rounds, "threads_per_process": 1}), "runs": found}, args)


if __name__ == "__main__":
    main()
