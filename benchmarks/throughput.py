"""How many images a second do by parts, PyTorch's pipeline engine, DDP and one process train on the same cores?

    python benchmarks/throughput.py [--quick] [--json FILE] [--png FILE]

Everyone trains the same Glow on the same images with the same Adam, one thread a process, in the same processes and in
turns. The pipelines share one cut, balanced from measured step times. GPipe and 1F1B are tried with 1, 2, 4 and 8
micro-batches (1F1B takes no fewer than it has stages), DDP with two bucket sizes, and the best of each counts. The
medians of a few rounds are shown. *Efficiency* is images/s ÷ what the slowest part alone reaches: a part that finds
every packet ready and hands none on, while the other processes do nothing; "all at once" is the same with all parts at
work, and tells what sharing the machine costs from what the pipeline costs. "× one process" is the speed-up at the same
images a step (strong scaling): a replica under DDP has only its share of them to work on. With more processes than
cores the cores are shared: such rows say nothing about speed on as many devices.
"""

import os
from dataclasses import asdict, replace
from typing import Any

from course import Course, balanced
from heats import finals, heat
from race import BrokenError, Race
from results_file import about, axes, keep, make_parser, table
from rivals import NAMES

COURSE = Course(levels=3, steps=8, hidden=128, size=32, at=(), batch=32)
QUICK = Course(levels=2, steps=2, hidden=16, size=16, at=(), batch=8)
PIPELINES = ("parts", "1f1b", "gpipe")


def run(course: Course, processes: int, batches: list[int], seconds: float, rounds: int, quick: bool) -> list[Any]:
    """For each batch size, the contestants in so many processes, and the parts alone."""
    found = []
    for batch in batches:
        course = replace(course, batch=batch)
        course = replace(course, at=balanced(course, processes))
        with Race(course, processes) as race:
            names = ["parts", "1f1b", "gpipe", "one", "one_all"] + (["ddp"] if batch % processes == 0 else [])
            heats = {name: heat(race, name, batch, seconds / 2, quick) for name in names}
            lineup = {name: (name, tried[0]["setting"]) for name, tried in heats.items() if tried}
            alone = {f"part {rank + 1} alone": ("part_alone", {"rank": rank}) for rank in range(processes)}
            everyone = {**lineup, **alone, "all at once": ("part_alone", {"rank": None})}
            ended = finals(race, everyone, batch, seconds, rounds)
            limit = min(ended[label]["images_per_s"] for label in alone)
            together = batch / max(ended["all at once"]["step_s_by_rank"])
            found.append(
                {
                    "processes": processes,
                    "batch": batch,
                    "at": course.at,
                    "slowest_part_alone": limit,
                    "slowest_part_all_at_once": together,
                    "approaches": {name: _row(name, ended, limit) for name in lineup},
                    "parts_alone": {label: ended[label]["images_per_s"] for label in alone},
                    "heats": {name: [_short(one) for one in tried] for name, tried in heats.items() if len(tried) > 1},
                }
            )
            show(found[-1])
    return found


def _row(name: str, ended: dict[str, Any], limit: float) -> dict[str, Any]:
    one = ended[name]
    measured = ("setting", "images_per_s", "images_per_s_rounds", "step_s", "spent", "cpu_s")
    return {
        **{key: one[key] for key in measured},
        "times_parts": one["images_per_s"] / ended["parts"]["images_per_s"],
        "times_one_process": one["images_per_s"] / ended["one"]["images_per_s"],
        "efficiency": one["images_per_s"] / limit if name in PIPELINES else None,
        "share": shares(name, one),
    }


def shares(name: str, one: dict[str, Any]) -> list[dict[str, float | None]]:
    """By rank, the shares of a step that it computes, waits for a packet and hands one on; None where nobody looked.

    The engine waits for both directions at once, which counts as waiting. DDP reduces while it computes.
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
    print(f"\n{found['processes']} processes{shared}, batch {found['batch']}, cut at {list(found['at'])}: images/s")
    rows = []
    for name, one in found["approaches"].items():
        ways = [[share[kind] for share in one["share"]] for kind in ("compute", "wait", "send")]
        split = [" ".join(f"{100 * part:.0f}" for part in way if part is not None) or "–" for way in ways]
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


def zero_bubble(course: Course, seconds: float) -> dict[str, Any]:
    """Whether the engine's zero-bubble schedule runs here at all, in processes of its own; its error if not."""
    try:
        with Race(replace(course, at=balanced(course, 2)), 2) as race:
            found = race.measure("zero_bubble", {"micro": 4}, seconds)
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
    left.set(xscale="log", xlabel="images a step, 2 processes", ylabel="images/s")
    left.set_xticks(sizes, labels=map(str, sizes))
    left.minorticks_off()
    cores = f"processes, {fixed} images a step, on {os.cpu_count()} cores"
    right.set(xlabel=cores, xticks=[1, *(one["processes"] for one in scaling)])
    for axis in (left, right):
        axis.set_ylim(bottom=0)
    left.legend(fontsize=8)
    return figure


def main() -> None:
    args = make_parser(__doc__).parse_args()
    course, sizes, seconds, rounds = (QUICK, [8], 0.2, 1) if args.quick else (COURSE, [4, 24, 64], 1.5, 3)
    fixed = sizes[len(sizes) // 2]
    tried = zero_bubble(replace(course, batch=fixed), seconds)
    found = run(replace(course, batch=fixed), 2, sizes, seconds, rounds, args.quick)
    for processes in [] if args.quick else [3, 4]:
        found += run(replace(course, batch=fixed), processes, [fixed], seconds, rounds, args.quick)
    config = {"course": asdict(course), "seconds": seconds, "rounds": rounds, "threads_a_process": 1}
    result = {**about(config), "runs": found, "zero_bubble": tried}
    keep("throughput", result, args, draw(found, fixed))


if __name__ == "__main__":
    main()
