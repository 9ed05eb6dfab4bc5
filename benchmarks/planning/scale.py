"""What is training by parts good for on 8, 64 and 1,024 H100s, in a rack, and with 10 Gb/s or 100 Mb/s between hosts?

    python -m benchmarks.planning.scale [--quick] [--json FILE] [--png FILE]       (4 minutes; nothing is measured)

The reference Glow (3 × 32 × 512, 32×32 pixels) on clusters that `plan --devices` simulates. One H100 has been measured,
end to end, with 64 and with 512 images (gpu_h100.json). The line through both is a batch's seconds: what it costs at no
image is spread evenly over the flow steps, which launch equally many kernels; the rest by multiply-adds, parameters ×
pixels. A third of it is forward. So all of this is a simulation, on figures of one device.
"""

import json
from dataclasses import asdict
from math import prod
from typing import Any

from benchmarks.lib.results import RESULTS, about, axes, keep, make_parser, table
from pipeflow.distributed import ParallelConfig
from pipeflow.flow import Step
from pipeflow.model import GlowConfig, glow_steps
from pipeflow.planning import Cluster, Link, Profile, Simulation, flow_step_groups, limit
from pipeflow.planning.profile import Cost

REFERENCE, QUICK = GlowConfig(levels=3, steps=32, hidden=512), GlowConfig(levels=2, steps=4, hidden=8)
MEASURED = {64: "batch 64, … and both", 512: "batch 512, … and both"}
FAILURES = {"mtbf_s": 50_000 * 3600.0, "restart_s": 60.0, "rejoin_s": 60.0}
"""A device fails every 50,000 h: 419 interruptions in 54 days on 16,384 H100s (Llama team, "The Llama 3 Herd of
Models", 2024). Coming back takes a minute, half of it for compiling; over NCCL it is always all of them."""
INSIDE, NEAR, FAR = Link(4e11, 5e-6), Link(1e10, 1e-4), Link(1e8, 1e-2)
SHOWN = (8, 64, 1024)


def h100_seconds() -> dict[int, float]:
    """Images → seconds of a step on one H100, as measured."""
    rows = json.loads((RESULTS / "gpu_h100.json").read_text())["rows"]
    label = "matrix products"
    return {
        batch: next(row["step_s"] for row in rows if (row["label"], row["row"]) == (label, name))
        for batch, name in MEASURED.items()
    }


def derived_profile(glow: GlowConfig) -> Profile:
    """The flow on a device of the measured speed."""
    steps, event, groups, shapes = glow_steps(glow, (3, 32, 32)), (3, 32, 32), [], []
    for group in flow_step_groups(steps):
        inside = event
        for step in steps[group]:
            event = tuple(step.out_shape(event))
            inside = event if step.place == "opens" else inside
        groups.append((sum(map(parameters, steps[group])), prod(inside[1:])))
        shapes.append(event)
    (few, few_s), (many, many_s) = h100_seconds().items()
    image_s = (many_s - few_s) / (many - few)
    fixed_s, work = few_s - few * image_s, sum(number * pixels for number, pixels in groups)
    costs = []
    for number, pixels in groups:
        times = [fixed_s / len(groups) + images * image_s * number * pixels / work for images in (1, few, many)]
        forward, backward = (tuple(share * time for time in times) for share in (1 / 3, 2 / 3))
        costs.append(Cost((1, few, many), forward, backward, parameters=number))
    nothing = Cost((1, few, many), (0.0,) * 3, (0.0,) * 3)
    packets = tuple(map(ParallelConfig().bytes_per_image, shapes))
    return Profile(tuple(costs), (nothing,) * len(costs), tuple(shapes), packets, 20)


def parameters(step: Step) -> int:
    """How many numbers a step learns."""
    return sum(parameter.numel() for parameter in step.parameters())


def draw(found: dict[str, Any], batch: int) -> Any:
    figure, panels = axes(1, 3, figsize=(12, 4), sharey=True)
    for axis, (place, ways) in zip(panels, found.items(), strict=True):
        for way, rows in ways.items():
            axis.plot([row["devices"] for row in rows], [row["goodput"] for row in rows], "o-", ms=4, label=way)
        alone = ways["DDP"][0]["images_per_s"]
        most = max(row["devices"] for rows in ways.values() for row in rows)
        axis.plot([1, most], [alone, alone * most], ":", color="grey", label="one H100 × devices")
        axis.set(xscale="log", yscale="log", xlabel="H100s", title=place)
        ticks = [count for count in (1, 8, 64, 1024) if count <= most]
        axis.set_xticks(ticks, labels=[f"{count:,}" for count in ticks])
        axis.minorticks_off()
    panels[0].set_ylabel(f"images/s that count, batches of {batch:,}")
    panels[0].legend(fontsize=8)
    return figure


def main() -> None:
    args = make_parser(__doc__).parse_args()
    glow, batch, most = (QUICK, 64, 16) if args.quick else (REFERENCE, 1024, 1024)
    profile, found = derived_profile(glow), {}
    places = {
        "in a rack, 400 Gb/s for each device": Cluster(most, INSIDE, **FAILURES),
        "hosts of 8, joined by 10 Gb/s": Cluster(most, INSIDE, most // 8, NEAR, **FAILURES),
        "hosts of 8, joined by 100 Mb/s": Cluster(most, INSIDE, most // 8, FAR, **FAILURES),
    }
    for place, cluster in places.items():
        rows, shown = Simulation(profile, cluster, batch).rows, []
        for way, of in rows.items():
            stop = limit(of, most)
            for row in of:
                if row.devices in SHOWN:
                    grid = f"{row.stages} × {row.replicas}"
                    figures = [row.images_per_s, row.goodput, row.line_bytes / 1e6]
                    shown.append([way, row.devices, grid, *figures, row.bound, stop[0] if stop else None])
        heads = ["", "devices", "grid", "images/s", "goodput", "MB over a line", "bound by", "stops at"]
        print(f"\n{place}\n{table(heads, shown)}", flush=True)
        found[place] = {way: list(map(asdict, of)) for way, of in rows.items()}
    config = {"glow": asdict(glow), "batch": batch, "clusters": {place: asdict(one) for place, one in places.items()}}
    result = {**about(config), "measured_step_s": h100_seconds(), "places": found}
    keep("scale", result, args, draw(found, batch))


if __name__ == "__main__":
    main()
