"""Does an end-to-end tail after training by parts beat end-to-end training alone, on the same number of images?

    python benchmarks/tail.py fashion_mnist --root DIR
    python benchmarks/tail.py cifar10_jpeg --root DIR      (the unpacked CIFAR-10 (JPEG) folder, not CIFAR-10)

Two arms, each in 3 processes: `parts` learns simultaneously from two thirds of the images and end to end from the last
third, `end_to_end` learns end to end from all of them. First each arm is swept on short runs at a constant learning
rate, with and without clipping, and its setting with the best test bits/dim is taken (the same split chooses and
scores, for both arms alike). Then both run at full length, the last third of both at a quarter of the learning rate.
A third arm, `parts_one_third`, goes end to end after a third of the images; it runs only where --arms names it.
Prints a table, writes JSON; the runs stay in --runs, and one that is there already is not run again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DATA: dict[str, dict[str, Any]] = {
    "fashion_mnist": {
        "settings": ["--data.name", "fashion_mnist", "--glow.levels", "2", "--glow.steps", "8", "--glow.hidden", "64"],
        "train": 60_000,
        "lrs": (5e-4, 1e-3, 2e-3),
        "sweep_images": 28_800,
        "images": 528_000,
    },
    "cifar10_jpeg": {
        "settings": ["--data.name", "folder", "--glow.levels", "3", "--glow.steps", "4", "--glow.hidden", "64"],
        "train": 50_000,
        "lrs": (1e-3, 2e-3, 4e-3),
        "sweep_images": 14_400,
        "images": 240_000,
    },
}
ARMS = ("end_to_end", "parts", "parts_one_third")
BATCH = 48
DECAY = 0.25


def phases(arm: str, setting: dict[str, Any], images: int, decay: float) -> list[dict[str, Any]]:
    """Two thirds of the images at the full learning rate, the last third end to end at `decay` times it."""
    steps = images // BATCH
    tail = steps // 3
    by_parts = {"end_to_end": 0, "parts": steps - tail, "parts_one_third": steps // 3}[arm]
    body = [("simultaneous", by_parts), ("end_to_end", steps - tail - by_parts)]
    plan = [{"schedule": schedule, "steps": count, **setting} for schedule, count in body if count]
    plan[0]["warmup_steps"] = 50
    return [*plan, {"schedule": "end_to_end", "steps": tail, **setting, "lr": setting["lr"] * decay}]


def train(name: str, arm: str, setting: dict[str, Any], images: int, decay: float, args: argparse.Namespace) -> Any:
    eval_every = images / DATA[name]["train"] / (6 if decay < 1 else 1)
    run = args.runs / f"{name}-{arm}-{images}-{'-'.join(str(value) for value in setting.values())}-{args.seed}"
    if not (run / "result.json").exists():
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"),
            *("-m", "pipeflow.train", "--", "--run", str(run), *DATA[name]["settings"], "--data.root", args.root),
            *("--data.batch", str(BATCH), "--data.init_batch", "256", "--seed", str(args.seed)),
            *("--phases", json.dumps(phases(arm, setting, images, decay)), "--eval_every", str(eval_every)),
        ]
        print(" ".join(command), flush=True)
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        if done.returncode:
            return {"arm": arm, "setting": setting, "images": images, "test_bits_per_dim": None}
    result = json.loads((run / "result.json").read_text())
    curve = [json.loads(line) for line in (run / "metrics" / "evaluation.jsonl").read_text().splitlines()]
    return {
        "arm": arm,
        "setting": setting,
        "images": images,
        "test_bits_per_dim": result["test_bits_per_dim"],
        "seconds": result["seconds"],
        "curve": [(point["step"] * BATCH, point["bits_per_dim"]) for point in curve],
        "spikes": {stream.stem: spikes(stream) for stream in sorted((run / "metrics").glob("part-*.jsonl"))},
        "truncated": [part["bits_per_dim"] for part in result["ledger"]["parts"]],
        "peak_memory_bytes": result["peak_memory_bytes"],
        "torch": result["torch"],
        "config": (run / "config.yaml").read_text().replace(args.root, "DIR").replace(str(args.runs), "runs/tail"),
    }


def spikes(stream: Path) -> dict[str, Any]:
    """Behind a part's first 500 batches: its worst training loss, and how many exceeded 8 bits/dim, a uniform guess."""
    bits = [json.loads(line)["bits_per_dim"] for line in stream.read_text().splitlines()][500:]
    return {"worst": max(bits, default=None), "above_8": sum(value > 8 for value in bits)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--root", required=True, help="where the images are")
    parser.add_argument("--runs", type=Path, default=Path("runs/tail"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--note", default="", help="what else a reader of the JSON should know")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS[:2], help="which arms to run")
    parser.add_argument("--lr", type=float, help="take this learning rate, without a sweep")
    parser.add_argument("--clip", type=float, help="with --lr: clip the norm of the gradient (a part's, by parts)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the images: to see that it works")
    args = parser.parse_args()
    scale = 100 if args.quick else 1
    sweep_images, images = (DATA[args.data][key] // scale for key in ("sweep_images", "images"))
    sweeps, finals = [], []
    for arm in args.arms:
        setting = {"lr": args.lr, "clip": args.clip}
        if args.lr is None:
            lrs = DATA[args.data]["lrs"]
            grid = [{"lr": lr, "clip": clip} for lr, clip in [*((lr, None) for lr in lrs), (lrs[1], 1.0)]]
            tried = [train(args.data, arm, setting, sweep_images, 1.0, args) for setting in grid]
            sweeps += tried
            finite = [row for row in tried if row["test_bits_per_dim"] is not None]
            setting = min(finite, key=lambda row: row["test_bits_per_dim"])["setting"]
        finals.append(train(args.data, arm, setting, images, DECAY, args))
    rows = [*sweeps, *finals]
    print(f"\n{args.data}: test bits/dim (lower is better)")
    for row in rows:
        print(f"  {row['arm']:<11} {row['images']:>7} images  {row['setting']!s:<58} {row['test_bits_per_dim']}")
    for row in finals:
        for stream, found in (row.get("spikes") or {}).items():
            print(f"  {row['arm']}, {stream}: {found['above_8']} batches above 8 bits/dim, worst {found['worst']}")
    for row in finals[1:]:
        gap = row["test_bits_per_dim"] - finals[0]["test_bits_per_dim"]
        print(f"{row['arm']} is {abs(gap):.4f} bits/dim {'worse' if gap > 0 else 'better'} than {finals[0]['arm']}")
    if args.json:
        chosen = ["--seed", str(args.seed), "--arms", *args.arms, *(["--lr", str(args.lr)] if args.lr else [])]
        chosen += ["--clip", str(args.clip)] if args.clip else []
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": f"python benchmarks/tail.py {args.data} --root DIR {' '.join(chosen)}",
            "note": args.note,
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {cpu_name()}",
            "python": platform.python_version(),
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**about, "sweeps": sweeps, "final": finals}, indent=1) + "\n")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
