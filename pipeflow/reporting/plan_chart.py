"""A plan as one picture: what each part costs, and images/s against the number of devices and the links' speed."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..planning import Link, Plan, compare
from ..units import speed
from .drawing import GREY, MODEL, PALETTE, PLAN_MAKER, new_figure

_LOOKS: dict[str, dict[str, Any]] = {
    "one device": {"color": GREY, "linestyle": ":", "linewidth": 1.2},
    "by parts": {"color": MODEL, "linewidth": 2.4, "marker": "o", "markersize": 4},
    "replicas": {"color": MODEL, "linestyle": ":", "marker": "D", "markersize": 3},
    "DDP": {"color": PALETTE[0], "marker": "s", "markersize": 4},
    "1F1B": {"color": PALETTE[2], "linestyle": "--", "marker": "v", "markersize": 4},
}


def chart(plan: Plan) -> bytes:
    """The picture, as a PNG."""
    with new_figure(3.9, width=11.0, maker=PLAN_MAKER) as (figure, png):
        parts, devices, links = figure.subplots(1, 3, width_ratios=(1.0, 1.2, 1.2))
        _parts(parts, plan)
        _devices(devices, plan)
        _links(links, plan)
        config = plan.config
        figure.suptitle(
            f"{config.data.name}, {config.family}, batches of "
            f"{config.data.batch}; steps measured on {plan.device}, the rest computed",
            fontsize=10.5,
        )
        return png()


def _parts(axes: Axes, plan: Plan) -> None:
    """A bar per part: forward, backward, update, and beside it the time that its link is busy."""
    rows = plan.parts
    longest = max(row.forward_s + row.backward_s + row.update_s for row in rows)
    unit, many = ("s", 1.0) if longest >= 1 else ("ms", 1e3)
    position, below = np.arange(len(rows)), np.zeros(len(rows))
    shades = ("#56B4E9", "#0072B2", "#BBBBBB")
    for name, shade in zip(("forward", "backward", "update"), shades, strict=True):
        height = many * np.array([getattr(row, f"{name}_s") for row in rows])
        axes.bar(position - 0.1, height, 0.5, bottom=below, color=shade, label=name)
        below = below + height
    carrying = many * np.array([plan.link.seconds(row.sent_bytes) for row in rows])
    axes.bar(position + 0.28, carrying, 0.2, color="#CC79A7", label="link to the next part")
    axes.set_xticks(position, [f"{row.part}" for row in rows])
    axes.set(xlabel="part", ylabel=f"{unit} per batch", title="What a part does with a batch")
    axes.set_ylim(0, 1.35 * max([*below, *carrying]))
    axes.legend(fontsize=8, ncols=2, loc="upper center")
    axes.grid(False, axis="x")


def _devices(axes: Axes, plan: Plan) -> None:
    """Images per second against devices, each way with its best cut."""
    alone = plan.best[0][0].images_per_s
    for way in ("by parts", "replicas", "DDP", "1F1B"):
        points = [(each.devices, each.images_per_s) for ways in plan.best for each in ways if each.way == way]
        if points:
            axes.plot(*zip((1, alone), *points, strict=True), label=way, **_LOOKS[way])
    many = np.arange(1, len(plan.best) + 1)
    axes.plot(many, alone * many, color=GREY, linestyle=":", linewidth=1.2, label="one device, times devices")
    axes.set_xticks(many)
    axes.set(xlabel="devices", ylabel="images/s", title=f"Best cuts, links of {speed(plan.link.bits_per_s)}")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def _links(axes: Axes, plan: Plan) -> None:
    """Images per second against the links' speed, with this cut by parts and the pipeline's best."""
    speeds = [float(value) for value in np.logspace(6, 12, 37)]
    rates: dict[str, list[float]] = {}
    for link in map(Link, speeds):
        for forecast in compare(plan.profile, plan.borders, plan.config.data.batch, link, plan.replicas):
            rates.setdefault(forecast.way, []).append(forecast.images_per_s)
    for way, of_way in rates.items():
        axes.plot(speeds, of_way, label=way, **{**_LOOKS[way], "marker": ""})
    axes.axvline(plan.link.bits_per_s, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks([1e6, 1e8, 1e10, 1e12], ["1 Mb/s", "100 Mb/s", "10 Gb/s", "1 Tb/s"])
    devices = plan.ways[-1].devices
    axes.set(xlabel="speed of a link, one way", title=f"This cut, {devices} device{'s' * (devices != 1)}")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
