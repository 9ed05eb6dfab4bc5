"""How many images a second do by parts, PyTorch's pipeline engine, DDP and one process train on the same cores?

    python -m benchmarks.speed.throughput [--quick] [--json FILE] [--png FILE]      (9 minutes; an idle machine)

All approaches train the same Glow on the same images with the same Adam, one thread per process, in the same processes
and in turns. The pipelines share one cut, balanced from measured step times. GPipe and 1F1B are tried with 1, 2, 4 and
8 micro-batches (1F1B takes no fewer than it has stages), DDP with two bucket sizes, and the best of each counts. The
medians of a few rounds are shown. *Efficiency* is images/s ÷ what the slowest part alone reaches: a part that finds
every packet ready and hands none on, while the other processes do nothing. "All at once" is the same with all parts at
work; it separates what sharing the machine costs from what the pipeline costs. "× one process" is the speed-up at the
same images per step (strong scaling): a replica under DDP has only its share of them to work on. With more processes
than cores the cores are shared: such rows say nothing about speed on as many devices.
"""

import os
from dataclasses import asdict, replace
from typing import Any

from benchmarks.lib.results import about, axes, keep, make_parser, table
from benchmarks.lib.workload import Workload
from benchmarks.speed.approaches import NAMES
from benchmarks.speed.rounds import compare, tune
from benchmarks.speed.runner import BrokenError, Runner

FULL = Workload(levels=3, steps=8, hidden=128, size=32, batch=24)
QUICK = Workload(levels=2, steps=2, hidden=16, size=16, batch=8)
PIPELINES = ("parts", "1f1b", "gpipe")


def run(workload: Workload, processes: int, seconds: float, rounds: int, quick: bool) -> dict[str, Any]:
    """All approaches in so many processes, and the parts alone."""
    batch, workload = workload.batch, workload.balanced(processes)
    with Runner(workload, processes) as runner:
        names = ["parts", "1f1b", "gpipe", "one", "one_all"] + (["ddp"] if batch % processes == 0 else [])
        tried = {name: tune(runner, name, batch, seconds / 2, quick) for name in names}
        lineup = {name: (name, settings[0]["setting"]) for name, settings in tried.items() if settings}
        alone = {f"part {rank + 1} alone": ("part_alone", {"rank": rank}) for rank in range(processes)}
        everything = {**lineup, **alone, "all at once": ("part_alone", {"rank": None})}
        measured = compare(runner, everything, batch, seconds, rounds)
    limit = min(measured[label]["images_per_s"] for label in alone)
    found = {
        "processes": processes,
        "batch": batch,
        "cut": workload.cut,
        "slowest_part_alone": limit,
        "slowest_part_all_at_once": batch / max(measured["all at once"]["step_s_by_rank"]),
        "approaches": {name: _row(name, measured, limit) for name in lineup},
        "parts_alone": {label: measured[label]["images_per_s"] for label in alone},
        "settings_tried": {name: [_short(one) for one in rows] for name, rows in tried.items() if len(rows) > 1},
    }
    show(found)
    return found


def _row(name: str, measured: dict[str, Any], limit: float) -> dict[str, Any]:
    one = measured[name]
    kept = ("setting", "images_per_s", "images_per_s_rounds", "step_s", "spent", "cpu_s")
    return {
        **{key: one[key] for key in kept},
        "times_parts": one["images_per_s"] / measured["parts"]["images_per_s"],
        "times_one_process": one["images_per_s"] / measured["one"]["images_per_s"],
        "efficiency": one["images_per_s"] / limit if name in PIPELINES else None,
        "share": shares(name, one),
    }


def shares(name: str, one: dict[str, Any]) -> list[dict[str, float | None]]:
    """By rank, the shares of a step that it computes, waits for a packet and hands one on; None if not measured.

    The pipelines wait for both directions at once, which counts as waiting. DDP reduces while it computes.
    """
    if name == "ddp":
        return []
    found: list[dict[str, float | None]] = []
    for spent in one["spent"][:1] if name.startswith("one") else one["spent"]:
        parts = {kind: seconds / one["step_s"] for kind, seconds in spent.items()}
        if name == "parts":
            found.append(dict(parts))
        else:
            found.append({"compute": parts["compute"], "wait": 1 - parts["compute"], "send": None})
    return found


def _short(one: dict[str, Any]) -> dict[str, Any]:
    return {key: one[key] for key in ("setting", "images_per_s")}


def show(found: dict[str, Any]) -> None:
    cores = os.cpu_count() or 1
    shared = f", sharing {cores} cores" if found["processes"] > cores else ""
    print(f"\n{found['processes']} processes{shared}, batch {found['batch']}, cut at {list(found['cut'])}: images/s")
    rows = []
    for name, one in found["approaches"].items():
        kinds = [[share[kind] for share in one["share"]] for kind in ("compute", "wait", "send")]
        split = [" ".join(f"{100 * part:.0f}" for part in kind if part is not None) or "–" for kind in kinds]
        setting = " ".join(f"{key} {value}" for key, value in one["setting"].items())
        low, high = min(one["images_per_s_rounds"]), max(one["images_per_s_rounds"])
        spread = f"{low:.1f}–{high:.1f}"
        ratios = [1 / one["times_parts"], one["times_one_process"], one["efficiency"]]
        rows.append([NAMES[name], setting, one["images_per_s"], spread, *ratios, *split])
    heads = ["best setting", "images/s", "rounds", "parts is × faster", "× one process", "efficiency"]
    print(table(["", *heads, "compute %", "wait %", "send %"], rows))
    print(
        f"the slowest part alone would allow {found['slowest_part_alone']:.1f}, "
        f"all at once without a link {found['slowest_part_all_at_once']:.1f}",
        flush=True,
    )


def zero_bubble(workload: Workload, seconds: float) -> dict[str, Any]:
    """Whether PyTorch's zero-bubble schedule runs here at all, in processes of its own; its error if not."""
    try:
        with Runner(workload.balanced(2), 2) as runner:
            found = runner.measure("zero_bubble", {"micro": 4}, seconds)
            print(f"zero bubble, 4 micro-batches: {found['images_per_s']:.1f} images/s")
            return {"runs": True, **_short(found)}
    except BrokenError as error:
        print(f"zero bubble (ScheduleInterleavedZeroBubble) does not run: {error}")
        return {"runs": False, "error": str(error)}


def draw(found: list[dict[str, Any]], fixed: int) -> Any:
    figure, (left, right) = axes(1, 2, figsize=(10, 4))
    two = [one for one in found if one["processes"] == 2]
    names = [name for name in NAMES if any(name in one["approaches"] for one in found)]
    scaling = [one for one in found if one["batch"] == fixed]
    for axis, rows, key in ((left, two, "batch"), (right, scaling, "processes")):
        for name in names if key == "batch" else [name for name in names if not name.startswith("one")]:
            if not (with_it := [one for one in rows if name in one["approaches"]]):
                continue
            points = [(one[key], one["approaches"][name]["images_per_s"]) for one in with_it]
            if key == "processes":  # with one process everything is one process
                points = [(1, with_it[0]["approaches"]["one"]["images_per_s"]), *points]
            axis.plot(*zip(*points, strict=True), "o-", label=NAMES[name])
    sizes = sorted(one["batch"] for one in two)
    left.set(xscale="log", xlabel="images per step, 2 processes", ylabel="images/s")
    left.set_xticks(sizes, labels=map(str, sizes))
    left.minorticks_off()
    cores = f"processes, {fixed} images per step, on {os.cpu_count()} cores"
    right.set(xlabel=cores, xticks=[1, *(one["processes"] for one in scaling)])
    for axis in (left, right):
        axis.set_ylim(bottom=0)
    left.legend(fontsize=8)
    return figure


def main() -> None:
    args = make_parser(__doc__).parse_args()
    workload, seconds, rounds = (QUICK, 0.2, 1) if args.quick else (FULL, 1.5, 3)
    fixed = workload.batch
    grids = [(2, fixed)] if args.quick else [(2, 4), (2, fixed), (2, 64), (3, fixed), (4, fixed)]
    tried = zero_bubble(workload, seconds)
    found = [run(replace(workload, batch=batch), processes, seconds, rounds, args.quick) for processes, batch in grids]
    config = {"workload": asdict(workload), "seconds": seconds, "rounds": rounds, "threads_per_process": 1}
    result = {**about(config), "runs": found, "zero_bubble": tried}
    keep("throughput", result, args, draw(found, fixed))


if __name__ == "__main__":
    main()
