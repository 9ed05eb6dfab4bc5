"""How many bytes cross between processes, by parts and by what people would use instead?

    python benchmarks/comm_volume.py [--quick] [--json FILE] [--png FILE] [--dtype-on-wire bf16]

Trains with each approach in 3 real processes and reads from the kernel what every connection between two of them has
carried (TCP's own counters, so what the transport adds is in it), beside what the shapes say: by parts a border carries
each latent and its log-likelihood once; a pipeline of stages the same forward and their gradients backward; DDP every
gradient of the model 2 (N − 1) times in all. Which images or speeds does not matter for bytes. For the model of the
paper, Glow 3 × 32 × 512, the bytes are computed only. With `--dtype-on-wire bf16` by parts rounds latents on the wire,
and what that does to test bits/dim is measured as well, on the digits, over seeds.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from course import Course
from race import Race
from results_file import about, axes, keep, make_parser, table
from rivals import NAMES

PROCESSES = 3  # 1F1B needs as many micro-batches; GPipe sends least with one
PAPER = Course(levels=3, steps=32, hidden=512, size=32, at=(16, 48), batch=63)
MODELS = [
    Course(levels=3, steps=4, hidden=64, size=32, at=(2, 6), batch=24),
    Course(levels=3, steps=8, hidden=128, size=32, at=(4, 12), batch=24),
]
QUICK = [Course(levels=2, steps=4, hidden=48, size=32, at=(2, 6), batch=12)]
SETTINGS: dict[str, dict[str, Any]] = {
    "parts": {},
    "1f1b": {"micro": 4},
    "gpipe": {"micro": 1},
    "ddp": {"bucket_mb": 25},
}
IMAGES, BY_PARTS, END_TO_END = 50_000, 60, 30  # CIFAR-10, and the epochs of the paper's run
WIDTH = {"fp32": 4, "bf16": 2}


def computed(name: str, course: Course, wire: str) -> dict[str, Any]:
    """Bytes an optimizer step, from shapes alone; "borders" are those from each process to the next."""
    if name == "ddp":
        moved = 2 * (PROCESSES - 1) * 4 * course.parameters()
        return {"forward": 0, "backward": 0, "allreduce": moved, "total": moved, "borders": []}
    width = WIDTH[wire] if name == "parts" else 4
    forward = [course.batch * (width * math.prod(event) + 4) for event in course.events()[:-1]]
    backward = [0 if name == "parts" else size for size in forward]
    both = zip(forward, backward, strict=True)
    return {
        "forward": sum(forward),
        "backward": sum(backward),
        "allreduce": 0,
        "total": sum(forward) + sum(backward),
        "borders": [{"forward": there, "backward": back} for there, back in both],
    }


def messages(name: str) -> int | None:
    """Messages an optimizer step over all borders; DDP reduces buckets, which are no messages between two."""
    if name == "ddp":
        return None
    tensors = 1 if name == "parts" else 2 * 2 * SETTINGS[name]["micro"]  # z and logp, there and back
    return (PROCESSES - 1) * tensors


def as_measured(name: str, found: dict[str, Any]) -> dict[str, Any]:
    if name == "ddp":
        return {"forward": 0, "backward": 0, "allreduce": found["all"], "total": found["all"], "borders": []}
    ways = {way: sum(border[way] for border in found["borders"]) for way in ("forward", "backward")}
    return {**ways, "allreduce": 0, "total": found["all"], "borders": found["borders"]}


def measure(course: Course, batches: list[int], wire: str, steps: int) -> list[dict[str, Any]]:
    """For each batch, every approach: computed and measured bytes an optimizer step and an epoch, and messages."""
    found = []
    with Race(course, PROCESSES) as race:
        for batch in batches:
            approaches: dict[str, Any] = {}
            for name in SETTINGS:
                setting = {"wire": wire} if name == "parts" else SETTINGS[name]
                moved = as_measured(name, race.measure(name, setting, seconds=0, batch=batch, least=steps))
                approaches[name] = {
                    "setting": setting,
                    "computed": computed(name, replace(course, batch=batch), wire),
                    "measured": moved,
                    "messages": messages(name),
                    "bytes_per_epoch": moved["total"] * IMAGES / batch,
                }
            show(replace(course, batch=batch), approaches)
            found.append(approaches)
    return found


def title(course: Course) -> str:
    return f"Glow {course.levels} × {course.steps} × {course.hidden}, cut at {list(course.at)}, batch {course.batch}"


def show(course: Course, approaches: dict[str, Any]) -> None:
    print(f"{title(course)}: bytes an optimizer step in {PROCESSES} processes")
    rows = []
    least = approaches["parts"]
    for name, one in approaches.items():
        found, expected = one.get("measured"), one["computed"]
        shown = found or expected
        beside = [f"{100 * (found['total'] / expected['total'] - 1):+.2f} %"] if found else ["–"]
        times = shown["total"] / (least.get("measured") or least["computed"])["total"]
        ways = [round(shown[way]) for way in ("forward", "backward", "allreduce", "total")]
        rows.append([NAMES[name], *ways, expected["total"], *beside, f"{times:.1f} ×", one["messages"]])
    kind = "measured" if "measured" in least else "computed"
    heads = ["forward", "backward", "all-reduce", f"total ({kind})", "by the shapes", "difference"]
    print(table(["", *heads, "times parts", "messages"], rows))


def framing(approaches: dict[str, Any]) -> dict[str, float]:
    """What the transport adds to a message by parts, and what it sends back for one: bytes."""
    one = approaches["parts"]
    extra = one["measured"]["forward"] - one["computed"]["forward"]
    return {"before": extra / one["messages"], "back": one["measured"]["backward"] / one["messages"]}


def explain(approaches: dict[str, Any]) -> None:
    frame = framing(approaches)
    print(f"the transport puts {frame['before']:.0f} bytes before a message and answers it with {frame['back']:.0f}:")
    for name in ("1f1b", "gpipe"):
        one = approaches[name]
        expected = one["computed"]["total"] + one["messages"] * sum(frame.values())
        left = one["measured"]["total"] - expected
        print(f"  {NAMES[name]}: with that, {left:+.0f} of {expected:.0f} bytes a step are not explained")
    reduced = approaches["ddp"]
    more = reduced["measured"]["total"] - reduced["computed"]["total"]
    print(f"  {NAMES['ddp']}: {more:.0f} bytes a step beside the gradients are the framing of its all-reduce")
    for name in ("parts", "1f1b"):
        borders = approaches[name]["measured"]["borders"]
        shown = [
            f"{number}: {one['forward']:.0f} → and {one['backward']:.0f} ←" for number, one in enumerate(borders, 1)
        ]
        print(f"  {NAMES[name]}, by border: {', '.join(shown)}")
    print(f"by parts, {approaches['parts']['measured']['backward']:.0f} bytes a step go backward: these answers alone")


def whole_run(course: Course, wire: str) -> dict[str, float]:
    """Bytes of the paper's 90 epochs, computed: 60 by parts and 30 under DDP, or all of them one way."""
    steps = IMAGES / course.batch
    total = {name: computed(name, course, wire)["total"] * steps for name in SETTINGS}
    rest = {name: (BY_PARTS + END_TO_END) * total[name] for name in SETTINGS}
    return {"parts, then end to end": BY_PARTS * total["parts"] + END_TO_END * total["ddp"], **rest}


def train(wire: str, seed: int, quick: bool) -> float:
    """Test bits/dim of the quickstart's flow on the digits, trained by parts alone, in one process."""
    with tempfile.TemporaryDirectory() as directory:
        phase = {"schedule": "simultaneous", "lr": 2e-3, "warmup_steps": 50, "optimizer": "adamw", "weight_decay": 2.0}
        phase |= {"steps": 20} if quick else {"epochs": 12}
        command = [
            *(sys.executable, "-m", "pipeflow.train", "--run_dir", f"{directory}/run", "--seed", str(seed)),
            *("--phases", json.dumps([phase]), "--parallel.wire", wire, "--eval_every", "1e9", "--device", "cpu"),
            *(["--glow.hidden", "8", "--glow.steps", "2"] if quick else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode:
            sys.exit(done.stderr)
        result = json.loads((Path(directory) / "run" / "result.json").read_text())
        return float(result["test_bits_per_dim"])


def rounding(quick: bool) -> dict[str, Any]:
    """Test bits/dim with exact and with rounded latents, by seed."""
    found: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for seed in range(1 if quick else 3):
        for wire, values in found.items():
            values.append(train(wire, seed, quick))
        print(f"digits, seed {seed}: test bits/dim {found['fp32'][-1]:.4f} in fp32, {found['bf16'][-1]:.4f} in bf16")
    differences = [half - exact for exact, half in zip(*found.values(), strict=True)]
    print(
        f"bf16 on the wire costs {statistics.mean(differences):+.4f} bits/dim on average over {len(differences)} seeds"
    )
    return {"test_bits_per_dim": found, "mean_difference": statistics.mean(differences)}


def draw(course: Course, approaches: dict[str, Any], paper: dict[str, Any]) -> Any:
    figure, (left, right) = axes(1, 2, figsize=(10, 4), sharey=True)
    for axis, group, kind, at in ((left, approaches, "measured", course), (right, paper, "computed", PAPER)):
        for place, way in enumerate(("forward", "backward", "allreduce")):
            sizes = [one[kind][way] / 2**20 for one in group.values()]
            where = [name + (place - 1) * 0.25 for name in range(len(group))]
            axis.bar(where, sizes, 0.25, label=way.replace("allreduce", "all-reduce"))
        axis.set_xticks(range(len(group)), [NAMES[name] for name in group])
        axis.set_title(f"{title(at)}, {kind}", fontsize=8)
    left.set(yscale="log", ylabel="MiB an optimizer step")
    left.legend()
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--dtype-on-wire", choices=WIDTH, default="fp32", help="of latents, by parts")
    args: argparse.Namespace = parser.parse_args()
    wire, steps = args.dtype_on_wire, 2 if args.quick else 10
    found = []
    for course in QUICK if args.quick else MODELS:
        batches = [course.batch, 4 * course.batch]
        found.append((course, *measure(course, batches, wire, steps)))
    course, approaches, larger = found[-1]
    explain(approaches)
    large = replace(course, batch=4 * course.batch)
    paper = {name: {"computed": computed(name, PAPER, wire), "messages": messages(name)} for name in SETTINGS}
    show(PAPER, paper)
    run = whole_run(PAPER, wire)
    print(f"the paper's {BY_PARTS} + {END_TO_END} epochs of {IMAGES} images, computed, GB:")
    print(table([*run], [[f"{size / 1e9:.1f}" for size in run.values()]]))
    result = {
        **about({"course": asdict(course), "processes": PROCESSES, "steps": steps, "settings": SETTINGS}),
        "wire": wire,
        "approaches": approaches,
        "framing_bytes": framing(approaches),
        "larger_batch": {"course": asdict(large), "approaches": larger},
        "other_models": [{"course": asdict(one), "approaches": rows} for one, rows, _ in found[:-1]],
        "paper": {"course": asdict(PAPER), "approaches": paper, "whole_run_bytes": run},
    }
    if wire == "bf16":
        result["rounding"] = rounding(args.quick)
    keep("comm_volume" if wire == "fp32" else f"comm_volume_{wire}", result, args, draw(course, approaches, paper))


if __name__ == "__main__":
    main()
