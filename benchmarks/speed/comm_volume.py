"""How many bytes cross between processes, by parts and by what people would use instead?

    python benchmarks/comm_volume.py [--quick] [--json FILE] [--png FILE] [--dtype-on-wire bf16]      (2 minutes)

Trains with each approach in 3 real processes and reads from the kernel what every connection between two of them has
carried (TCP's own counters, which include what the transport adds), beside what follows from the shapes: by parts a
border carries each latent and its log-likelihood once; a pipeline of stages the same forward and their gradients
backward; DDP every gradient of the model 2 (N − 1) times in all. Bytes depend neither on the images nor on speed. For
the model of the paper, Glow 3 × 32 × 512, the bytes are computed only. With `--dtype-on-wire bf16` by parts rounds
latents on the wire, and what that does to test bits/dim is measured as well, on the digits, over seeds.
"""

import json
import math
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.lib.results import about, axes, keep, make_parser, table
from benchmarks.lib.torchrun import run
from benchmarks.lib.workload import Workload
from benchmarks.speed.approaches import NAMES
from benchmarks.speed.runner import Runner

PROCESSES = 3  # 1F1B needs as many micro-batches; GPipe sends least with one
PAPER = Workload(levels=3, steps=32, hidden=512, size=32, cut=(16, 48), batch=63)
MODELS = [
    Workload(levels=3, steps=4, hidden=64, size=32, cut=(2, 6), batch=24),
    Workload(levels=3, steps=8, hidden=128, size=32, cut=(4, 12), batch=24),
]
QUICK = [Workload(levels=2, steps=4, hidden=48, size=32, cut=(2, 6), batch=12)]
SETTINGS: dict[str, dict[str, Any]] = {
    "parts": {},
    "1f1b": {"micro": 4},
    "gpipe": {"micro": 1},
    "ddp": {"bucket_mb": 25},
}
IMAGES, BY_PARTS, END_TO_END = 50_000, 60, 30  # CIFAR-10, and the epochs of the paper's run
WIDTH = {"fp32": 4, "bf16": 2}


def computed(name: str, workload: Workload, wire: str) -> dict[str, Any]:
    """Bytes per optimizer step, from shapes alone; "borders" are those from each process to the next."""
    if name == "ddp":
        moved = 2 * (PROCESSES - 1) * 4 * workload.parameters()
        return {"forward": 0, "backward": 0, "allreduce": moved, "total": moved, "borders": []}
    width = WIDTH[wire] if name == "parts" else 4
    forward = [workload.batch * (width * math.prod(shape) + 4) for shape in workload.shapes()[:-1]]
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
    """Messages per optimizer step over all borders; None for DDP, which reduces buckets."""
    if name == "ddp":
        return None
    tensors = 1 if name == "parts" else 2 * 2 * SETTINGS[name]["micro"]  # z and logp, there and back
    return (PROCESSES - 1) * tensors


def as_measured(name: str, found: dict[str, Any]) -> dict[str, Any]:
    if name == "ddp":
        return {"forward": 0, "backward": 0, "allreduce": found["all"], "total": found["all"], "borders": []}
    sums = {way: sum(border[way] for border in found["borders"]) for way in ("forward", "backward")}
    return {**sums, "allreduce": 0, "total": found["all"], "borders": found["borders"]}


def measure(workload: Workload, batches: list[int], wire: str, steps: int) -> list[dict[str, Any]]:
    """For each batch, every approach: computed and measured bytes per optimizer step and per epoch, and messages."""
    found = []
    with Runner(workload, PROCESSES) as runner:
        for batch in batches:
            approaches: dict[str, Any] = {}
            for name in SETTINGS:
                setting = {"wire": wire} if name == "parts" else SETTINGS[name]
                moved = as_measured(name, runner.measure(name, setting, seconds=0, batch=batch, least=steps))
                approaches[name] = {
                    "setting": setting,
                    "computed": computed(name, replace(workload, batch=batch), wire),
                    "measured": moved,
                    "messages": messages(name),
                    "bytes_per_epoch": moved["total"] * IMAGES / batch,
                }
            show(replace(workload, batch=batch), approaches)
            found.append(approaches)
    return found


def show(workload: Workload, approaches: dict[str, Any]) -> None:
    print(f"{workload}, cut at {list(workload.cut)}: bytes per optimizer step in {PROCESSES} processes")
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
        print(f"  {NAMES[name]}: with that, {left:+.0f} of {expected:.0f} bytes per step are not explained")
    reduced = approaches["ddp"]
    more = reduced["measured"]["total"] - reduced["computed"]["total"]
    print(f"  {NAMES['ddp']}: {more:.0f} bytes per step beside the gradients are the framing of its all-reduce")
    for name in ("parts", "1f1b"):
        borders = approaches[name]["measured"]["borders"]
        shown = [
            f"{number}: {one['forward']:.0f} → and {one['backward']:.0f} ←" for number, one in enumerate(borders, 1)
        ]
        print(f"  {NAMES[name]}, by border: {', '.join(shown)}")
    print(
        f"by parts, {approaches['parts']['measured']['backward']:.0f} bytes per step go backward: these answers alone"
    )


def run_totals(workload: Workload, wire: str) -> dict[str, float]:
    """Bytes of the paper's 90 epochs, computed: 60 by parts and 30 under DDP, or all of them one way."""
    steps = IMAGES / workload.batch
    total = {name: computed(name, workload, wire)["total"] * steps for name in SETTINGS}
    rest = {name: (BY_PARTS + END_TO_END) * total[name] for name in SETTINGS}
    return {"parts, then end to end": BY_PARTS * total["parts"] + END_TO_END * total["ddp"], **rest}


def train(wire: str, seed: int, quick: bool) -> float:
    """Test bits/dim of the quickstart's flow on the digits, trained by parts alone, in one process."""
    with tempfile.TemporaryDirectory() as directory:
        phase = {"schedule": "simultaneous", "lr": 2e-3, "warmup_steps": 50, "optimizer": "adamw", "weight_decay": 2.0}
        phase |= {"steps": 20} if quick else {"epochs": 12}
        words = ["--run_dir", f"{directory}/run", "--seed", str(seed), "--eval_every", "1e9", "--device", "cpu"]
        words += ["--phases", json.dumps([phase]), "--parallel.wire", wire]
        run("pipeflow.train", [*words, *(["--glow.hidden", "8", "--glow.steps", "2"] if quick else [])])
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


def draw(workload: Workload, approaches: dict[str, Any], paper: dict[str, Any]) -> Any:
    figure, (left, right) = axes(1, 2, figsize=(10, 4), sharey=True)
    for axis, group, kind, model in ((left, approaches, "measured", workload), (right, paper, "computed", PAPER)):
        for number, way in enumerate(("forward", "backward", "allreduce")):
            sizes = [one[kind][way] / 2**20 for one in group.values()]
            positions = [name + (number - 1) * 0.25 for name in range(len(group))]
            axis.bar(positions, sizes, 0.25, label=way.replace("allreduce", "all-reduce"))
        axis.set_xticks(range(len(group)), [NAMES[name] for name in group])
        axis.set_title(f"{model}, {kind}", fontsize=8)
    left.set(yscale="log", ylabel="MiB per optimizer step")
    left.legend()
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--dtype-on-wire", choices=WIDTH, default="fp32", help="of latents, by parts")
    args = parser.parse_args()
    wire, steps = args.dtype_on_wire, 2 if args.quick else 10
    found = []
    for workload in QUICK if args.quick else MODELS:
        found.append((workload, *measure(workload, [workload.batch, 4 * workload.batch], wire, steps)))
    workload, approaches, larger = found[-1]
    explain(approaches)
    large = replace(workload, batch=4 * workload.batch)
    paper = {name: {"computed": computed(name, PAPER, wire), "messages": messages(name)} for name in SETTINGS}
    show(PAPER, paper)
    totals = run_totals(PAPER, wire)
    print(f"the paper's {BY_PARTS} + {END_TO_END} epochs of {IMAGES} images, computed, GB:")
    print(table([*totals], [[f"{size / 1e9:.1f}" for size in totals.values()]]))
    result = {
        **about({"workload": asdict(workload), "processes": PROCESSES, "steps": steps, "settings": SETTINGS}),
        "wire": wire,
        "approaches": approaches,
        "framing_bytes": framing(approaches),
        "larger_batch": {"workload": asdict(large), "approaches": larger},
        "other_models": [{"workload": asdict(one), "approaches": rows} for one, rows, _ in found[:-1]],
        "paper": {"workload": asdict(PAPER), "approaches": paper, "whole_run_bytes": totals},
    }
    if wire == "bf16":
        result["rounding"] = rounding(args.quick)
    keep("comm_volume" if wire == "fp32" else f"comm_volume_{wire}", result, args, draw(workload, approaches, paper))


if __name__ == "__main__":
    main()
