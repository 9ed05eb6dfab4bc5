"""A plan for people: its tables for the terminal, and plan.json and plan.png, which only another plan may replace."""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..planning import Placement, Plan, Profile, Simulation, limit, make_plan
from ..storage import RunDirectory, write_whole
from ..units import amount, duration, rate, speed
from .drawing import PLAN_MAKER, is_made_by
from .plan_chart import chart
from .run_files import read_metrics


def report_plan(config: Config, out: str | None = None, jitter_from: str | None = None, **options: Any) -> str:
    """Makes a plan, writes plan.json and plan.png into `out`, the run directory by default; returns the plan as tables.

    A plan that is there is made anew; `jitter_from` is a run directory, the other options are those of `make_plan`. A
    ValueError says what `train` would refuse, or which file cannot be written.
    """
    directory = Path(out or config.run_dir)
    if directory.exists() and not directory.is_dir():
        option = "--out" if out else "--run_dir"
        raise ValueError(f"{option} {directory} is a file; it must be a directory, or not exist yet.")
    for file in (directory / "plan.json", directory / "plan.png"):
        if file.exists() and not is_made_by(PLAN_MAKER, file):
            raise ValueError(f"{file} is no plan, and is not written over; give another --out.")
    if jitter_from:
        options["jitter"] = jitter(Path(jitter_from))
    plan = make_plan(config, **options)
    text, picture = json.dumps({"made_by": PLAN_MAKER, **plan.as_dict()}, indent=1), chart(plan)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / "plan.png", picture)
        write_whole(directory / "plan.json", text + "\n")
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be written ({error.strerror}); give another --out.") from error
    return f"{tables(plan)}\n\n{directory}: plan.json and plan.png are there."


def tables(plan: Plan) -> str:
    """All figures of a plan, some 40 lines of at most 120 letters."""
    blocks = [_heading(plan), _parts(plan), _memory(plan), _ways(plan), _best(plan), _phases(plan)]
    if plan.simulation:
        blocks.append(_scaling(plan.simulation))
    if plan.placement:
        blocks.append(_placement(plan.placement))
    blocks += [f"Note: {caution}" for caution in plan.cautions]
    return "\n\n".join(blocks)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines; the first column is set to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            word.ljust(width) if column == 0 else word.rjust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _heading(plan: Plan) -> str:
    config, parameters = plan.config, sum(row.parameters for row in plan.parts)
    threads = "" if plan.cuda else f", {config.parallel.threads} thread{'s' * (config.parallel.threads != 1)}"
    packets = f" in {config.parallel.packets} micro-batches" if config.parallel.packets > 1 else ""
    return (
        f"{config.family} on {config.data.name} {plan.image}, "
        f"{parameters:,} parameters, batches of {config.data.batch}{packets}.\n"
        f"Measured step by step on {plan.device}{threads}; everything else is computed."
    )


def _parts(plan: Plan) -> str:
    rows = [["part", "flow steps", "parameters", "forward", "backward", "update", "share", "memory", "sends per batch"]]
    for row in plan.parts:
        steps = f"{row.flow_steps[0]} … {row.flow_steps[1]}"
        times = [duration(seconds) for seconds in (row.forward_s, row.backward_s, row.update_s)]
        memory = amount(row.memory_bytes) + _too_much(row.fits)
        packet = f"{'×'.join(map(str, row.sent_shape))}  {amount(row.sent_bytes)}" if row.sent_shape else "–"
        share = f"{100 * row.share:.0f} %"
        rows.append([str(row.part), steps, f"{row.parameters:,}", *times, share, memory, packet])
    working = " and working memory." if plan.cuda else ";\nnot counted: working memory, of which the CPU says nothing."
    return (
        f"{columns(rows)}\nA device has {amount(plan.memory_bytes)}. Counted: weights, gradients, moments, what is "
        f"kept for the backward pass, packets{working}"
    )


def _memory(plan: Plan) -> str:
    """What each part's memory consists of; a parameter has 4 bytes in each of its places."""
    rows = [["part", "weights", "gradients", "moments", "averages", "activations and packets"]]
    for row in plan.parts:
        slot = 4 * row.parameters
        state = plan.profile.state_bytes * row.parameters
        shares = [slot, slot, 2 * slot, state - 4 * slot, row.memory_bytes - state]
        cells = [f"{amount(size)}  {100 * size / row.memory_bytes:3.0f} %" if size else "–" for size in shares]
        rows.append([str(row.part), *cells])
    return f"Of each part's memory:\n{columns(rows)}"


def _ways(plan: Plan) -> str:
    alone = plan.ways[0].images_per_s
    rows = [
        ["", "devices", "images/s", "× one device", "idle", "memory", "sends per batch", "cut, flow steps per part"]
    ]
    for way in plan.ways:
        micro_batches = f", {count} micro-batch{'es' * (count != 1)}" if (count := way.micro_batches) else ""
        speeds = [rate(way.images_per_s), f"{way.images_per_s / alone:.2f}", f"{100 * way.idle:.0f} %"]
        memory = amount(way.memory_bytes) + _too_much(plan.fits(way))
        cut = "–" if way.at is None else _sizes(plan.profile, way.at)
        traffic = amount(way.sent_bytes) if way.sent_bytes else "–"
        rows.append([way.way + micro_batches, str(way.devices), *speeds, memory, traffic, cut])
    links = speed(plan.link.bits_per_s)
    text = f"Expected with links of {links}, memory and bytes of the device with most:\n{columns(rows)}"
    for way in plan.ways:
        if way.way == "by parts":
            least = speed(plan.least_link)
            text += f"\nBy parts, {way.bound} sets the pace; with links of {least} or more no border does."
    return text


def _best(plan: Plan) -> str:
    """For every number of devices: the best cut, and what the other ways do."""
    others = ("DDP", "1F1B")
    replicas = ("this cut's replicas", "images/s")
    rows = [["devices", "best cut, flow steps per part", "by parts", *others, "memory by parts", *replicas]]
    for devices, ways in enumerate(plan.best, 1):
        by_name = {way.way: way for way in ways}
        parts = by_name.get("by parts", by_name["one device"])
        speeds = [rate(by_name[way].images_per_s) if way in by_name else "–" for way in others]
        memory = amount(parts.memory_bytes) + _too_much(plan.fits(parts))
        cut = _sizes(plan.profile, parts.at or ())
        ours = by_name.get("replicas")
        shared = [_sum(ours.replicas or ()), rate(ours.images_per_s)] if ours else ["–", "–"]
        rows.append([str(devices), cut, rate(parts.images_per_s), *speeds, memory, *shared])
    return (
        "The best cut for every number of devices, in images/s; and this cut with several devices for its slowest parts"
        f"\n(parallel.replicas):\n{columns(rows)}"
    )


def _phases(plan: Plan) -> str:
    rows = [["phase", "schedule", "steps", *plan.processes]]
    for row in plan.phases:
        cells = [f"{duration(row.seconds[name])}, {rate(row.images_per_s[name])} images/s" for name in plan.processes]
        rows.append([str(row.number), row.schedule, f"{row.steps:,}", *cells])
    return f"The phases, without evaluations and checkpoints:\n{columns(rows)}"


def jitter(run: Path) -> list[float]:
    """Seconds that parts of a run computed for a batch that they learned from, divided by each part's median.

    The first tenth is left out, in which kernels are still loaded. A ValueError where there are no such metrics.
    """
    found: list[float] = []
    for part in read_metrics(RunDirectory(run)):
        seconds = part.compute[part.learn][part.learn.sum() // 10 :]
        found += list(seconds / np.median(seconds)) if len(seconds) else []
    if not found:
        raise ValueError(f"--jitter-from {run} holds no metrics of training; give the directory of a run.")
    return found


def _scaling(simulation: Simulation) -> str:
    """The last row of each way, and where it stops scaling."""
    heads = ["", "devices", "grid", "images/s", "× one", "goodput", "slowest line"]
    rows, cluster = [[*heads, "stops at", "because of"]], simulation.cluster
    alone = simulation.rows["DDP"][0].images_per_s
    for way, found in simulation.rows.items():
        last, stop = found[-1], limit(found, cluster.devices)
        speeds = [rate(last.images_per_s), f"{last.images_per_s / alone:.2f}", rate(last.goodput)]
        there = next(row for row in found if row.devices == (stop or [last.devices])[0])
        stops = [f"{stop[0]:,} ({rate(there.images_per_s)})", stop[1]] if stop else ["–", "–"]
        grid = f"{last.stages} × {last.replicas}"
        rows.append([way, f"{last.devices:,}", grid, *speeds, amount(last.line_bytes), *stops])
    links = f"links of {speed(cluster.link.bits_per_s)}"
    if cluster.hosts > 1:
        links += f", {cluster.hosts} hosts joined by {speed(cluster.line.bits_per_s)}"
    failures = f"a device fails every {cluster.mtbf_s / 3600:,.4g} h" if cluster.mtbf_s else "no failures"
    return (
        f"Simulated: {cluster.devices:,} devices, {links}; {failures}.\nBytes are per batch and direction; a grid is "
        f"stages × replicas.\nA way stops scaling where twice the devices are not 1.2 times as fast.\n{columns(rows)}"
    )


def _placement(placement: Placement) -> str:
    parts = [
        f"part {held[0] + 1}" if len(held) == 1 else f"parts {held[0] + 1}–{held[-1] + 1}"
        for held in (process.parts for process in placement.chain(0))
    ]
    rows, within = [["replica", *parts]], 0
    for replica in range(placement.replicas):
        crossings = placement.crossings(replica)
        within += not crossings
        cells = ["–"] * placement.stages
        for process in placement.chain(replica):
            arrow = " →" if process.stage in crossings else ""
            cells[process.stage] = f"{process.host}:{process.gpu} rank {process.rank}{arrow}"
        rows.append([str(replica + 1), *cells])
    grid = f"{placement.stages} stages × {placement.replicas} replicas"
    chains = f"{within} of {placement.replicas} chain{'s' * (placement.replicas != 1)} within a host"
    if placement.sharers:
        grid, chains = f"{_sum(placement.sharers)} replicas of each part", "a row per replica"
    arrows = "; → goes to another host" if within < placement.replicas else ""
    return (
        f"{placement.hosts} hosts × {placement.gpus_per_host} GPUs = {grid} (host:GPU, from 0; {chains}{arrows}):\n"
        f"{columns(rows)}"
    )


def _sizes(profile: Profile, at: Sequence[int]) -> str:
    return _sum(end - start for start, end in pairwise([0, *at, len(profile.steps)]))


def _sum(numbers: Iterable[int]) -> str:
    return " + ".join(map(str, numbers))


def _too_much(fits: bool) -> str:
    return "" if fits else " too much"
