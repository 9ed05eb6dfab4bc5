"""How much memory does a process need at most, by parts and by what people would use instead?

    python benchmarks/memory.py [--quick] [--json FILE] [--png FILE]

Every figure comes from processes of their own that train one contestant for a few batches: the largest resident size
that Linux saw during these batches, less what the process held before there was a model (interpreter, libraries, open
connections). Weights, gradients, Adam's moments, activations and buffers of messages are in it; building the model and
ActNorm's start are not. What varies is the number of processes (= parts), the batch, the depth of the flow, and what
stays for the backward pass (`--activations` of a run, for every contestant). GPipe and 1F1B have 8 micro-batches, since
that is what they need least with. A process may keep a few MiB that its allocator did not hand back; small differences
mean nothing.
"""

from dataclasses import asdict, replace
from typing import Any, get_args

from course import Course, balanced
from race import Race
from results_file import about, axes, keep, make_parser, table
from rivals import NAMES

from pipeflow.model import Activations

COURSE = Course(levels=3, steps=4, hidden=128, size=32, at=(), batch=48)
QUICK = Course(levels=2, steps=2, hidden=32, size=16, at=(), batch=8)
SETTINGS: dict[str, dict[str, Any]] = {
    "parts": {},
    "1f1b": {"micro": 8},
    "gpipe": {"micro": 8},
    "ddp": {"bucket_mb": 25},
    "one": {"threads": 1},
}
MIB = 2**20


def plan(quick: bool) -> list[tuple[str, int, Course]]:
    """(what varies, processes, course); the point where the lines meet is in each of them."""
    if quick:
        return [("processes", 2, QUICK)]
    return [
        *(("processes", processes, COURSE) for processes in (2, 3, 4)),
        *(("batch", 2, replace(COURSE, batch=batch)) for batch in (24, 48, 96)),
        *(("steps", 2, replace(COURSE, steps=steps)) for steps in (2, 4, 8)),
        *(("activations", 2, replace(COURSE, activations=kept)) for kept in get_args(Activations)),
    ]


def measure(course: Course, processes: int, batches: int) -> dict[str, Any]:
    """Each approach in fresh processes: bytes by rank."""
    course = replace(course, at=balanced(course, processes))
    found: dict[str, Any] = {"processes": processes, "course": asdict(course), "approaches": {}}
    for name, setting in SETTINGS.items():
        alone = name == "one"
        with Race(replace(course, at=()) if alone else course, 1 if alone else processes) as race:
            one = race.measure(name, setting, seconds=0, least=batches)
        kept = {kind: one[kind] for kind in ("training_bytes", "peak_bytes")}
        found["approaches"][name] = {"setting": setting, **kept, "worst_bytes": max(one["training_bytes"])}
    return found


def show(found: dict[str, Any]) -> None:
    course = found["course"]
    model = f"Glow {course['levels']} × {course['steps']} × {course['hidden']}, batch {course['batch']}"
    where = f"{found['processes']} processes, cut at {list(course['at'])}, activations: {course['activations']}"
    print(f"\n{model}, {where}: MiB for training, by process")
    least = found["approaches"]["parts"]["worst_bytes"]
    rows = [
        [
            NAMES[name],
            " ".join(f"{size / MIB:.0f}" for size in one["training_bytes"]),
            f"{one['worst_bytes'] / MIB:.0f}",
            f"{one['worst_bytes'] / least:.2f} ×",
            " ".join(f"{size / MIB:.0f}" for size in one["peak_bytes"]),
        ]
        for name, one in found["approaches"].items()
    ]
    print(table(["", "by process", "worst", "times parts", "resident in all"], rows), flush=True)


def draw(points: list[dict[str, Any]]) -> Any:
    varied = list(dict.fromkeys(point["varied"] for point in points))
    figure, panels = axes(1, len(varied), figsize=(4 * len(varied), 3.8), sharey=True, squeeze=False)
    labels = {"processes": "processes (parts)", "batch": "images a step", "steps": "flow steps a level"}
    for axis, key in zip(panels[0], varied, strict=True):
        line = [point for point in points if point["varied"] == key]
        ticks = [point["processes"] if key == "processes" else point["course"][key] for point in line]
        for name in SETTINGS:
            sizes = [point["approaches"][name]["worst_bytes"] / MIB for point in line]
            axis.plot(sizes, "o-", label=NAMES[name])
        axis.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        axis.set_xlabel(labels.get(key, key))
    panels[0][0].set_ylim(bottom=0)
    panels[0][0].set_ylabel("MiB for training, worst process")
    panels[0][0].legend(fontsize=8)
    return figure


def main() -> None:
    args = make_parser(__doc__).parse_args()
    batches = 2 if args.quick else 4
    known: dict[tuple[int, Course], dict[str, Any]] = {}
    points = []
    for varied, processes, course in plan(args.quick):
        if (processes, course) not in known:
            known[processes, course] = measure(course, processes, batches)
            show(known[processes, course])
        points.append({"varied": varied, **known[processes, course]})
    config = {"settings": SETTINGS, "batches": batches, "threads_a_process": 1}
    keep("memory", {**about(config), "points": points}, args, draw(points))


if __name__ == "__main__":
    main()
