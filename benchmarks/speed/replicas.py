"""A longer chain or more replicas of it? Images/s, bits/dim and bytes of every grid of one to four processes.

    python -m benchmarks.speed.replicas [--quick] [--json FILE] [--png FILE]       (11 minutes)

All of them train the same Glow on the same digits in the same batches, which replicas share: two thirds of the images
by parts (simultaneous), the last third end to end, where all processes share the batch. A chain of two stages has two
parts, a part per process; longer chains have four parts, and a row of their own to be compared with, since another cut
is another way to train. Beside the grids, two processes with every engine that there is for the end to end phase.

The grids take turns, seed by seed, so each seed is a round: images/s are medians over rounds, without start and
evaluations. *Apart* is the largest difference, over seeds and over the truncations after every part, from the test
bits/dim of one process: 0 for a chain by parts; for replicas sums are added in another order, which training amplifies.
Bytes are what the sockets of all processes have sent in one run, start and evaluations included; those by parts are of
a run that ends there (`--quick` leaves it out). With more processes than cores the cores are shared: such rows say
nothing about speed on as many devices. The runs stay in --runs: an experiment that was interrupted goes on.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, get_args, get_type_hints

from benchmarks.learning.curves import Result
from benchmarks.learning.recipe import Recipe
from benchmarks.learning.runs import TrainingRun, add_options, runs_directory, train_all
from benchmarks.learning.tasks import digits
from benchmarks.lib.results import about, axes, keep, make_parser, table
from pipeflow.config import EndToEndConfig

ENGINES: tuple[str, ...] = get_args(get_type_hints(EndToEndConfig)["engine"])
RECIPE = Recipe("simultaneous", tail=1 / 3, lr=1.6e-2)
STEPS = 450
KINDS = ("by_parts", "end_to_end")


@dataclass(frozen=True)
class Layout:
    """A grid of processes.

    Attributes:
        parts: that the flow is cut into.
        stages: processes in a chain.
        replicas: chains.
        engine: of the end to end phase.
    """

    parts: int
    stages: int
    replicas: int
    engine: str = ENGINES[0]

    @property
    def processes(self) -> int:
        return self.stages * self.replicas

    @property
    def name(self) -> str:
        """ "2 replicas × 1 stage, ddp"."""
        if self.processes == 1:
            return "1 process"
        chains = f"{self.replicas} replicas" if self.replicas > 1 else "1 chain"
        return f"{chains} × {self.stages} stage{'s' * (self.stages > 1)}, {self.engine}"

    @property
    def options(self) -> tuple[str, ...]:
        return ("--parallel.replicas", str(self.replicas), "--end_to_end.engine", self.engine)


def layouts(most: int) -> list[Layout]:
    """What is compared, up to `most` processes; the first of each cut is one process."""
    grids = [Layout(2, stages, n // stages) for n in range(1, most + 1) for stages in (2, 1) if n % stages == 0]
    engines = [Layout(2, 2, 1, engine) for engine in ENGINES[1:]]
    long = [Layout(4, stages, 1) for stages in (1, *range(3, most + 1))] if most > 2 else []
    return [*grids, *engines, *long]


def training_run(layout: Layout, seed: int, quick: bool) -> TrainingRun:
    """A run of a layout."""
    task, _ = digits(layout.parts, quick)
    task = replace(task, words=(*task.words, *layout.options), steps=task.steps if quick else STEPS, points=1)
    return replace(task.run(RECIPE, seed, layout.processes), name=layout.name)


def by_parts_only(layout: Layout, seed: int, quick: bool) -> TrainingRun:
    """The same run without the end to end phase, for which the engine makes no difference."""
    run = training_run(replace(layout, engine=ENGINES[0]), seed, quick)
    return replace(run, phases=run.phases[:1])


def compare(most: int, seeds: Sequence[int], quick: bool, directory: Path) -> list[dict[str, Any]]:
    """Trains in all layouts; returns a row per layout."""
    lineup = layouts(most)
    runs = [training_run(layout, seed, quick) for seed in seeds for layout in lineup]
    halves = [] if quick else [by_parts_only(layout, seeds[0], quick) for layout in lineup]
    results = train_all([*runs, *halves], directory)
    for result in results:
        if "failed" in result:
            raise SystemExit(f"{result['name']}: {result['failed']}")
    switch = runs[0].phases[0]["steps"] * digits(2, quick)[0].batch
    rows: list[dict[str, Any]] = []
    for number, layout in enumerate(lineup):
        of_layout = results[number : len(runs) : len(lineup)]
        sent = of_layout[0]["measured_bytes"]
        half = results[len(runs) + number]["measured_bytes"] if halves else None
        reached = [bits(result, switch) for result in of_layout]
        first = next((row for row in rows if row["parts"] == layout.parts), None)
        rows.append(
            {
                **{key: getattr(layout, key) for key in ("name", "parts", "stages", "replicas", "engine", "processes")},
                "images_per_s": {kind: [one["images_per_s"][at] for one in of_layout] for at, kind in enumerate(KINDS)},
                "bits_per_dim": {kind: [one[kind] for one in reached] for kind in KINDS},
                "bytes_sent": {"all": sent, "by_parts": half, "end_to_end": None if half is None else sent - half},
            }
        )
        rows[-1] |= {kind: against(rows[-1], first or rows[-1], kind) for kind in KINDS}
    return rows


def bits(result: Result, switch: int) -> dict[str, list[float]]:
    """Test bits/dim after every part, the model last, at the end of both phases."""
    curve = {point["images"]: point["truncated"] for point in result["curve"]}
    return {"by_parts": curve[switch], "end_to_end": curve[max(curve)]}


def against(row: dict[str, Any], first: dict[str, Any], kind: str) -> dict[str, float]:
    """A row compared with one process of the same cut: how many times as fast, and how far apart at most."""
    seeds = zip(row["bits_per_dim"][kind], first["bits_per_dim"][kind], strict=True)
    apart = max(abs(one - other) for mine, theirs in seeds for one, other in zip(mine, theirs, strict=True))
    times = median(row["images_per_s"][kind]) / median(first["images_per_s"][kind])
    return {"times_one_process": times, "apart": apart}


def show(rows: list[dict[str, Any]], cores: int) -> str:
    """The rows as tables, one per cut."""
    blocks = []
    for parts in sorted({row["parts"] for row in rows}):
        cells = []
        for row in (row for row in rows if row["parts"] == parts):
            shared = f" on {cores} core{'s' * (cores > 1)}" if row["processes"] > cores else ""
            cells.append([row["name"], f"{row['processes']}{shared}"])
            for kind in KINDS:
                rates = row["images_per_s"][kind]
                cells[-1] += [f"{median(rates):.0f}", f"{min(rates):.0f}–{max(rates):.0f}"]
                sent = row["bytes_sent"][kind]
                cells[-1] += [f"{row[kind]['times_one_process']:.2f}", None if sent is None else f"{sent / 2**20:.2f}"]
                model = [seed[-1] for seed in row["bits_per_dim"][kind]]
                spread = f"{stdev(model):.4f}" if len(model) > 1 else None
                cells[-1] += [f"{mean(model):.4f}", spread, f"{row[kind]['apart']:.1e}"]
        heads = ["images/s", "rounds", "×", "MiB", "bits/dim", "sd", "apart"]
        blocks.append(table([f"{parts} parts", "processes", *heads, "end to end", *heads[1:]], cells))
    return "\n\n".join(blocks)


def draw(rows: list[dict[str, Any]], cores: int) -> Any:
    """Images/s and bytes, by parts and end to end."""
    figure, (speed, sent) = axes(1, 2, figsize=(12, 0.8 + 0.45 * len(rows)), sharey=True)
    labels = [f"{row['parts']} parts: {row['name']}{' *' * (row['processes'] > cores)}" for row in rows]
    for shift, kind in ((-0.2, KINDS[0]), (0.2, KINDS[1])):
        positions = [number + shift for number in range(len(rows))]
        label = kind.replace("_", " ")
        speed.barh(positions, [median(row["images_per_s"][kind]) for row in rows], 0.38, label=label)
        for position, row in zip(positions, rows, strict=True):
            speed.plot(row["images_per_s"][kind], [position] * len(row["images_per_s"][kind]), "k.", markersize=3)
        sent.barh(positions, [(row["bytes_sent"][kind] or 0) / 2**20 for row in rows], 0.38, label=label)
    speed.set_yticks(range(len(rows)), labels, fontsize=8)
    speed.invert_yaxis()
    speed.set(xlabel=f"images/s (* shares {cores} cores)")
    sent.set(xlabel="MiB sent by all processes in a run", xscale="symlog")
    speed.legend(fontsize=8)
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="and rounds")
    add_options(parser)
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    most, seeds = (2, range(1)) if args.quick else (4, range(args.seeds))
    rows = compare(most, seeds, args.quick, runs_directory(args))
    print(f"by parts, then end to end; {cores} cores; seeds, a round each: {len(seeds)}\n{show(rows, cores)}")
    for kind in KINDS:
        worst = max(rows, key=lambda row: row[kind]["apart"])
        print(f"furthest from one process {kind.replace('_', ' ')}: {worst[kind]['apart']:.1e} ({worst['name']})")
    example = training_run(Layout(2, 1, 1), 0, args.quick)
    settings = {"words": " ".join(example.words), "phases": example.phases, "seeds": len(seeds), "cores": cores}
    keep("replicas", {**about(settings), "rows": rows}, args, draw(rows, cores))


if __name__ == "__main__":
    main()
