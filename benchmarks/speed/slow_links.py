"""What happens to training by parts, to a pipeline and to DDP when the two hosts are joined by a slow line?

    python -m benchmarks.speed.slow_links [--quick] [--json FILE] [--png FILE]         (7 minutes, as root)

Two processes, each in a network namespace of its own, joined by a pair of virtual Ethernet devices that `tc tbf` slows
down, the same in both directions: the processes, their connections and their compiled kernels stay, and only the line
changes between two measurements. All train the same Glow with the same cut and the same images per step; 1F1B, GPipe
and DDP with the best of their settings at each speed down to 10 Mb/s. *Waiting* is the share of a step in which
the second process waits for its packet; where the first is held back by a full link, it *sends*. `tbf` limits the rate
and queues, it adds no delay of its own. Without root, `ip` and `tc` nothing is measured, and the script says so.
"""

import os
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.lib.namespaces import two_hosts, why_not
from benchmarks.lib.results import about, axes, keep, make_parser, table
from benchmarks.lib.workload import Workload
from benchmarks.speed.approaches import NAMES
from benchmarks.speed.rounds import Lineup, compare, tune
from benchmarks.speed.runner import Runner

FULL = Workload(levels=2, steps=8, hidden=256, size=32, batch=16)
QUICK = Workload(levels=2, steps=2, hidden=16, size=16, batch=8)
SPEEDS: list[float | None] = [None, 1e9, 1e8, 1e7, 1e6]
QUICK_SPEEDS: list[float | None] = [None, 1e7]
SWEPT = 1e7  # on slower lines the settings of this one are kept: trying them all would take minutes per step
WIRES = {"parts": "fp32", "parts_bf16": "bf16"}
LABELS = {**NAMES, "parts_bf16": "by parts, bf16 on the wire"}


def speed(bits_per_s: float | None) -> str:
    if bits_per_s is None:
        return "unhindered"
    return f"{bits_per_s / 1e9:g} Gb/s" if bits_per_s >= 1e9 else f"{bits_per_s / 1e6:g} Mb/s"


def measure(workload: Workload, speeds: list[float | None], seconds: float, rounds: int, quick: bool) -> list[Any]:
    """For each speed of the line, what each approach reaches on it, and what it sends over it per step."""
    found = []
    batch = workload.batch
    with two_hosts() as hosts, Runner(workload, 2, hosts) as runner:
        lineup: Lineup = {}
        for bits_per_s in speeds:
            slow = (bits_per_s or 1e9) < 1e8
            hosts.throttle(bits_per_s)
            if not lineup or (bits_per_s or 1e9) >= SWEPT:
                tried = {name: tune(runner, name, batch, seconds / 2, quick) for name in ("1f1b", "gpipe", "ddp")}
                best = {name: (name, rows[0]["setting"]) for name, rows in tried.items()}
                lineup = {**{label: ("parts", {"wire": wire}) for label, wire in WIRES.items()}, **best}
            if not found:
                compare(runner, lineup, batch, 0.1, 1)  # all have trained before the line becomes slow
            measured = compare(runner, lineup, batch, seconds, 1 if slow else rounds)
            found.append({"bits_per_s": bits_per_s, "approaches": {name: _row(one) for name, one in measured.items()}})
            show(found)
    return found


def _row(one: dict[str, Any]) -> dict[str, Any]:
    waits, sends = one["spent"][-1]["wait"] / one["step_s"], one["spent"][0]["send"] / one["step_s"]
    kept = ("setting", "images_per_s", "images_per_s_rounds", "step_s", "steps", "spent")
    return {**{key: one[key] for key in kept}, "bytes_per_step": one["all"], "waits": waits, "sends": sends}


def show(found: list[dict[str, Any]]) -> None:
    """Prints what was measured last, beside the first speed."""
    now, before = found[-1], found[0]
    print(f"\n{speed(now['bits_per_s'])}")
    rows = []
    for name, one in now["approaches"].items():
        by_parts = name in WIRES
        kept = one["images_per_s"] / before["approaches"][name]["images_per_s"]
        waits = [f"{100 * one[kind]:.0f} %" if by_parts else "–" for kind in ("waits", "sends")]
        ahead = now["approaches"]["parts"]["images_per_s"] / one["images_per_s"]
        rate = needs(one) / 1e6
        rows.append([LABELS[name], one["images_per_s"], f"{100 * kept:.0f} %", ahead, rate, *waits, one["steps"]])
    heads = ["images/s", "of its unhindered speed", "parts is × faster", "Mb/s on the line"]
    print(table(["", *heads, "part 2 waits", "part 1 sends", "steps"], rows), flush=True)


def needs(one: dict[str, Any]) -> float:
    """Bits per second that an approach sends at its speed; by parts waits on a line slower than that."""
    return float(8 * one["bytes_per_step"] / one["step_s"])


def draw(found: list[dict[str, Any]], title: str) -> Any:
    figure, axis = axes(figsize=(7, 4.5))
    slow = [one for one in found if one["bits_per_s"]]
    fastest = 10 * max((one["bits_per_s"] for one in slow), default=1e9)
    for name in found[0]["approaches"]:
        points = [(one["bits_per_s"] or fastest, one["approaches"][name]["images_per_s"]) for one in found]
        (line,) = axis.plot(*zip(*sorted(points), strict=True), "o-", label=LABELS[name])
        if name in WIRES:
            axis.axvline(needs(found[0]["approaches"][name]), ls=":", color=line.get_color())
    axis.set(xscale="log", yscale="log", xlabel="line between two hosts (dotted: all that by parts needs)")
    axis.set(ylabel="images/s")
    axis.set_title(title, fontsize=8)
    axis.set_xticks([one["bits_per_s"] or fastest for one in found], [speed(one["bits_per_s"]) for one in found])
    axis.legend(fontsize=8)
    return figure


def main() -> None:
    args = make_parser(__doc__).parse_args()
    if why := why_not():
        sentence = f"pipeflow: slow_links is skipped: {why}. It needs Linux, root, and ip and tc of iproute2."
        print(sentence, file=sys.stderr)
        return
    workload, speeds, seconds, rounds = (QUICK, QUICK_SPEEDS, 0.2, 1) if args.quick else (FULL, SPEEDS, 3.0, 2)
    workload = workload.balanced(2)
    parameters = workload.parameters()
    title = f"{workload}: {parameters / 1e6:.2f} million parameters, cut at {list(workload.cut)}"
    print(title)
    found = measure(workload, speeds, seconds, rounds, args.quick)
    config = {"workload": asdict(workload), "parameters": parameters, "processes": 2, "threads_per_process": 1}
    config |= {"seconds": seconds, "rounds": rounds, "cores": os.cpu_count()}
    needed = {name: needs(found[0]["approaches"][name]) for name in WIRES}
    for name, rate in needed.items():
        print(f"{LABELS[name]} sends {rate / 1e6:.2f} Mb/s over an unhindered line, and waits on one slower than that")
    result = {**about(config), "lines": found, "needs_bits_per_s": needed}
    keep("slow_links", result, args, draw(found, title))


if __name__ == "__main__":
    main()
