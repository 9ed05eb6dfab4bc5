"""How much memory does a process need at most, by parts and by what people would use instead?

    python -m benchmarks.speed.memory [--quick] [--json FILE] [--png FILE]      (22 minutes)
    python -m benchmarks.speed.memory --vary processes                          (14 minutes)

Every figure comes from fresh processes that train with one approach for a few seconds: the largest resident size that
Linux saw during these batches, without what the process held before there was a model (interpreter, libraries, open
connections). Weights, gradients, Adam's moments, activations and buffers of messages are in it; building the model and
ActNorm's start are not. What varies is the number of processes (= parts), with each `--activations` of a run (what is
kept for the backward pass; for every approach), the batch, and the depth of the flow. By parts and 1F1B are measured
with several numbers of micro-batches, and images per second beside them: a batch in more packets needs less memory and
more time. Then come the tables in Markdown; by parts beside 1F1B, each with the micro-batches that need least; and,
computed from shapes as `parallel.micro_batches: auto` does, the largest batch and image that fit into a given memory
with one packet per batch and with packets of one image. A process may keep a few MiB that its allocator did not hand
back: ignore small differences.
"""

from dataclasses import asdict, replace
from typing import Any, get_args

from benchmarks.lib.results import about, axes, keep, make_parser, table
from benchmarks.lib.workload import Workload
from benchmarks.speed.approaches import NAMES
from benchmarks.speed.runner import Runner
from pipeflow.config import Config
from pipeflow.model import Activations
from pipeflow.planning.micro_batches import USABLE, need

FULL = Workload(levels=3, steps=4, hidden=128, size=32, batch=48)
QUICK = Workload(levels=2, steps=2, hidden=32, size=16, batch=8)
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *(("parts", {"micro": micro}) for micro in (1, 2, 4, 8, 16)),
    *(("1f1b", {"micro": micro}) for micro in (4, 8, 16)),
    ("gpipe", {"micro": 8}),
    ("ddp", {"bucket_mb": 25}),
    ("one", {"threads": 1}),
]
QUICK_SETTINGS = [SETTINGS[0], ("parts", {"micro": 4}), ("1f1b", {"micro": 4}), *SETTINGS[-2:]]
MIB = 2**20
VARIED = ["processes", "batch", "steps"]
NO_SLOWER = 0.95
"""Of the images/s by parts without micro-batches: what a number of micro-batches may cost."""


def label(approach: dict[str, Any]) -> str:
    micro = approach["setting"].get("micro", 1)
    return NAMES[approach["name"]] + (f", {micro} micro-batches" if micro > 1 else "")


def plan(quick: bool, vary: list[str]) -> list[tuple[str, int, Workload]]:
    """(what varies, processes, workload); the point where the lines meet is in each of them."""
    if quick:
        return [("processes", 2, QUICK)]
    points = [
        *(
            ("processes", processes, replace(FULL, activations=kept))
            for kept in get_args(Activations)
            for processes in (2, 3, 4)
        ),
        *(("batch", 2, replace(FULL, batch=batch)) for batch in (24, 48, 96)),
        *(("steps", 2, replace(FULL, steps=steps)) for steps in (2, 4, 8)),
    ]
    return [point for point in points if point[0] in vary]


def measure(workload: Workload, processes: int, seconds: float, settings: list[Any]) -> dict[str, Any]:
    """Each approach in fresh processes: bytes by rank, and images per second."""
    workload = workload.balanced(processes)
    found: dict[str, Any] = {"processes": processes, "workload": asdict(workload), "approaches": []}
    for name, setting in settings:
        if name == "1f1b" and setting["micro"] < processes:
            continue
        alone = name == "one"
        with Runner(replace(workload, cut=()) if alone else workload, 1 if alone else processes) as runner:
            one = runner.measure(name, setting, seconds=seconds, least=4)
        kept = {kind: one[kind] for kind in ("training_bytes", "peak_bytes", "images_per_s")}
        worst = max(one["training_bytes"])
        found["approaches"].append({"name": name, "setting": setting, **kept, "worst_bytes": worst})
    return found


def show(found: dict[str, Any]) -> None:
    workload = Workload(**found["workload"])
    parts = f"{found['processes']} processes, cut at {list(workload.cut)}, activations: {workload.activations}"
    print(f"\n{workload}, {parts}: MiB for training, by process")
    first = found["approaches"][0]
    rows = [
        [
            label(one),
            " ".join(f"{size / MIB:.0f}" for size in one["training_bytes"]),
            f"{one['worst_bytes'] / MIB:.0f}",
            f"{one['worst_bytes'] / first['worst_bytes']:.2f} ×",
            " ".join(f"{size / MIB:.0f}" for size in one["peak_bytes"]),
            f"{one['images_per_s']:.1f}",
        ]
        for one in found["approaches"]
    ]
    print(table(["", "by process", "worst", "times parts", "resident in all", "images/s"], rows), flush=True)


def lines(points: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(what varies, what the activations are, the points) of each table and panel."""
    kinds = dict.fromkeys((point["varied"], point["workload"]["activations"]) for point in points)
    return [
        (key, kept, [one for one in points if (one["varied"], one["workload"]["activations"]) == (key, kept)])
        for key, kept in kinds
    ]


def least(point: dict[str, Any], name: str, images_per_s: float = 0.0) -> dict[str, Any]:
    """The measurement of an approach that needs least memory, of those that are fast enough."""
    found = [one for one in point["approaches"] if one["name"] == name and one["images_per_s"] >= images_per_s]
    return dict(min(found, key=lambda one: one["worst_bytes"]))


def against_1f1b(points: list[dict[str, Any]]) -> str:
    """By parts and 1F1B, each with the micro-batches that need least memory; by parts also the least that is fast."""
    rows = []
    for point in points:
        if point["varied"] == "processes":
            whole = point["approaches"][0]["images_per_s"]
            found = [least(point, "parts"), least(point, "parts", NO_SLOWER * whole), least(point, "1f1b")]
            cells = [f"{one['worst_bytes'] / MIB:.0f} MiB, {one['images_per_s']:.1f}/s, {label(one)}" for one in found]
            rows.append([point["workload"]["activations"], str(point["processes"]), f"{whole:.1f}/s", *cells])
    fast = f"by parts, least of at least {NO_SLOWER} of that speed"
    heads = ["activations", "processes", "by parts, one packet", "by parts, least", fast, "1F1B, least"]
    return table(heads, rows)


def markdown(points: list[dict[str, Any]]) -> str:
    """MiB for training in the worst process, and images/s, of each approach: a table for each thing that varies."""
    tables = []
    for key, kept, line in lines(points):
        heads = [str(point["processes"] if key == "processes" else point["workload"][key]) for point in line]
        cells = [
            {label(one): f"{one['worst_bytes'] / MIB:.0f}; {one['images_per_s']:.0f}" for one in point["approaches"]}
            for point in line
        ]
        rows = [[f"MiB; images/s, by {key} ({kept})", *heads], ["---"] * (len(heads) + 1)]
        names = dict.fromkeys(name for column in cells for name in column)
        rows += [[name, *(column.get(name, "–") for column in cells)] for name in names]
        tables.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(tables)


def largest(workload: Workload, memory: int) -> dict[str, Any]:
    """The largest batch, and the largest side of a batch's images, that fit into so many bytes per process."""
    config = Config(activations=workload.activations)
    needs = [need(truncated, config) for truncated in workload.build()[0]]

    def images(scale: float = 1.0) -> int:
        return int(min((USABLE * memory - one.fixed) / (scale * one.per_image) for one in needs))

    def side(per_packet: int) -> int:
        sides = range(8, 4097, 8)  # what a step keeps grows with the pixels
        return max((one for one in sides if images((one / workload.size) ** 2) >= per_packet), default=0)

    return {
        "memory_bytes": memory,
        "activations": workload.activations,
        "batch_in_one_packet": max(0, images()),
        "side_in_one_packet": side(workload.batch),
        "side_with_an_image_per_packet": side(1),
    }


def draw(points: list[dict[str, Any]]) -> Any:
    several = lines(points)
    figure, panels = axes(1, len(several), figsize=(4 * len(several), 3.8), sharey=True, squeeze=False)
    labels = {"processes": "processes (parts)", "batch": "images per step", "steps": "flow steps per level"}
    for axis, (key, kept, line) in zip(panels[0], several, strict=True):
        ticks = [point["processes"] if key == "processes" else point["workload"][key] for point in line]
        for name in dict.fromkeys(label(one) for point in line for one in point["approaches"]):
            found = [{label(one): one["worst_bytes"] / MIB for one in point["approaches"]} for point in line]
            axis.plot([sizes.get(name) for sizes in found], "o-", label=name)
        axis.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        axis.set_xlabel(f"{labels[key]}, activations: {kept}")
    panels[0][0].set_ylim(bottom=0)
    panels[0][0].set_ylabel("MiB for training, worst process")
    panels[0][0].legend(fontsize=8)
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--vary", nargs="+", choices=VARIED, default=VARIED, help="what is varied")
    args = parser.parse_args()
    seconds, settings = (0.0, QUICK_SETTINGS) if args.quick else (3.0, SETTINGS)
    known: dict[tuple[int, Workload], dict[str, Any]] = {}
    points = []
    for varied, processes, workload in plan(args.quick, args.vary):
        if (processes, workload) not in known:
            known[processes, workload] = measure(workload, processes, seconds, settings)
            show(known[processes, workload])
        points.append({"varied": varied, **known[processes, workload]})
    print(f"\n{markdown(points)}\n\nThe worst process, at the best number of micro-batches:")
    print(against_1f1b(points), "\n")
    if args.quick:
        fitting = [largest(replace(QUICK, cut=(2,)), 64 * MIB)]
    else:
        kinds = [replace(FULL, activations=kept).balanced(2) for kept in get_args(Activations)]
        fitting = [largest(kind, memory * MIB) for kind in kinds for memory in (64, 256, 1024)]
    print("Largest batch and side of its images, 2 processes, computed; in packets of one image any batch fits:")
    print(table(list(fitting[0]), [list(one.values()) for one in fitting]))
    config = {"settings": settings, "seconds": seconds, "threads_per_process": 1}
    keep("memory", {**about(config), "points": points, "largest": fitting}, args, draw(points))


if __name__ == "__main__":
    main()
