"""A baseline of the reference table and the same model by parts, on one GPU in one process: bits/dim and seconds.

    python -m benchmarks.gpu.reference_run --pair across2 --root DIR --out DIR [--runs DIR] [--minutes 9]
    python -m benchmarks.gpu.reference_run --pair across2 --quick --out DIR       (small, on the digits; 1 minute)

Glow 3 × 32 × 512, 90 epochs: the baseline end to end; by parts 60 in turns of one part and an epoch, then 30 end to
end; and 90 by parts with heads, every part on every batch. All at the learning rate of their rows, 1e-4 (across2) or
1e-5 (across3). --root is where CIFAR-10 is; a folder with train/ and test/ of images is taken as CIFAR-10 (JPEG), whose
bits/dim are no CIFAR-10 bits/dim, and is called so.
The reference does not state its batch; --batch is recorded.

After --minutes the run in progress is asked to stop and saves itself; the same command goes on from there, until all
are complete; the directory --runs has to be kept in between. DIR/reference_<pair>.json is written after every call,
with the records of the runs so far.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.results import about, table, write_json
from benchmarks.lib.torchrun import ROOT, command, start
from pipeflow.cli import STOPPED

PAIRS = {
    "across2": {"baseline": "cifar10_end_to_end_1e-4", "by_parts": "cifar10_across2", "heads": "cifar10_heads2"},
    "across3": {"baseline": "cifar10_end_to_end_1e-5", "by_parts": "cifar10_across3", "heads": "cifar10_heads3"},
}
HEADS = {
    pair: [{"schedule": "simultaneous", "epochs": 90, "lr": lr}] for pair, lr in (("across2", 1e-4), ("across3", 1e-5))
}
QUICK = {
    "baseline": [{"schedule": "end_to_end", "steps": 12, "lr": 1e-3}],
    "by_parts": [
        {"schedule": "alternate", "steps": 8, "turn_steps": 2, "lr": 1e-3},
        {"schedule": "end_to_end", "steps": 4, "lr": 1e-3},
    ],
    "heads": [{"schedule": "simultaneous", "steps": 12, "lr": 1e-3}],
}


def data_set(root: Path) -> tuple[list[str], str]:
    """Settings of the images in a directory, and their name."""
    if (root / "cifar-10-batches-py").is_dir():
        return ["--data.name", "cifar10", "--data.root", str(root)], "CIFAR-10"
    if (root / "train").is_dir() and (root / "test").is_dir():
        return ["--data.name", "folder", "--data.root", str(root)], "CIFAR-10 (JPEG)"
    sys.exit(f"{root} holds neither cifar-10-batches-py/ nor train/ and test/.")


def settings(args: argparse.Namespace, name: str, run: Path, data: list[str]) -> list[str]:
    """The options of one run."""
    words = ["--config", str(ROOT / "configs" / f"{PAIRS[args.pair][name]}.yaml")]
    words += ["--run_dir", str(run), *data, "--data.batch", str(args.batch), "--seed", str(args.seed)]
    words += ["--precision", args.precision, "--compile", args.compile, "--cuda_graphs", str(args.cuda_graphs).lower()]
    words += ["--layout", args.layout, "--checkpoint.keep", "1", "--resume", "auto"]
    phases = QUICK[name] if args.quick else {"heads": HEADS[args.pair]}.get(name)
    words += ["--phases", json.dumps(phases)] if phases else []
    if args.quick:
        words += ["--data.init_batch", "64", "--eval_every", "0.02", "--cut.head.hidden", "4"]
        words += ["--glow.levels", "2", "--glow.steps", "3", "--glow.hidden", "8"]
        words += ["--cut.scheme", "across_blocks", "--device", "cpu"]
    return words


def train(words: list[str], until: float) -> int:
    """Trains until the run is complete or the time is up; returns the exit code."""
    process = start(command("pipeflow.train", words), cwd=ROOT)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.5)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return process.wait()


def record(run: Path) -> dict[str, Any]:
    """What a run has recorded of itself so far."""
    if (run / "result.json").exists():
        result = json.loads((run / "result.json").read_text())
        found = {name: result[name] for name in ("test_bits_per_dim", "phases", "device", "peak_gpu_memory_bytes")}
        found |= {"complete": True, "seconds": sum(result["seconds"])}
    else:
        manifests = sorted((run / "checkpoints").glob("step-*/manifest.json"), key=lambda path: path.stat().st_mtime)
        found = {"complete": False}
        if manifests:
            manifest = json.loads(manifests[-1].read_text())
            ended = sum(phase["seconds"] for phase in manifest["phases"])
            found |= {"step": manifest["step"], "seconds": ended + manifest["elapsed"]["seconds"]}
    lines = run / "metrics" / "evaluation.jsonl"
    points = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return found | {"curve": [(point["epoch"], point["bits_per_dim"]) for point in points]}


def write(args: argparse.Namespace, runs: dict[str, Path], images: str) -> dict[str, Any]:
    chosen = {
        name: str(getattr(args, name))
        for name in ("pair", "batch", "seed", "precision", "layout", "compile", "cuda_graphs")
    }
    result = {
        **about(chosen),
        "images": images,
        "quick": args.quick,
        "runs": {name: record(r) for name, r in runs.items()},
    }
    write_json(args.out / f"reference_{args.pair}.json", result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, required=True)
    parser.add_argument("--arms", nargs="+", choices=list(QUICK), default=list(QUICK), help="which runs")
    parser.add_argument("--root", type=Path, help="where the images are")
    parser.add_argument("--out", type=Path, required=True, help="directory of the JSON")
    parser.add_argument("--runs", type=Path, default=Path("runs/reference"), help="directory of the runs")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which the run in progress is stopped")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="bf16")
    parser.add_argument("--layout", choices=["contiguous", "channels_last"], default="channels_last")
    parser.add_argument("--compile", choices=["none", "steps"], default="none")
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a small model on the digits, a few steps")
    args = parser.parse_args()
    if not args.quick and args.root is None:
        parser.error("--root is needed: where CIFAR-10 or the folder of images is")
    data, images = (["--data.name", "digits"], "digits") if args.quick else data_set(args.root.resolve())
    parent = args.runs.resolve()
    runs = {
        name: parent / f"{args.pair}-{name}-{args.batch}-{args.precision}" for name in args.arms or PAIRS[args.pair]
    }
    until = time.monotonic() + 60 * args.minutes
    for name, run in runs.items():
        if (run / "result.json").exists():
            continue
        code = train(settings(args, name, run, data), until)
        write(args, runs, images)
        if code not in (0, STOPPED, -signal.SIGTERM):  # the last one: before it had begun
            sys.exit(f"{name} ended with exit code {code}")
        if time.monotonic() >= until:
            break
    result = write(args, runs, images)
    rows = [
        [name, found.get("test_bits_per_dim"), found.get("seconds"), found["complete"]]
        for name, found in result["runs"].items()
    ]
    print(f"\n{images}, batch {args.batch}, {args.precision}")
    print(table(["", "test bits/dim", "seconds", "complete"], rows))


if __name__ == "__main__":
    main()
