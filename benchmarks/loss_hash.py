"""Proof that a refactor keeps every bit: hashes of the losses of small runs, to be compared before and after it.

Code that is only moved or renamed must compute what it computed before, to the last bit. This script trains small Glows
on the digits by the public commands, reads the losses that each run leaves under metrics/, and prints a hash of them
for every run and one over everything. It imports nothing of pipeflow, so that the same file runs on both sides:

    python benchmarks/loss_hash.py --out before.json        (on the old code)
    python benchmarks/loss_hash.py --against before.json    (on the new code; exits 1 and names the runs that differ)

The runs take each schedule on one and on three processes, each engine of end to end on one and on two, two replicas,
and what changes the arithmetic: activations, precision, priors, average of the weights, optimizer, coupling. A row has
the hash of all losses (`repr` of each `bits_per_dim`, part by part and then end to end, by step), the final test
bits/dim, and a hash of all tensors in the last checkpoint, which also sees what no loss sees: the last update, the
optimizer's moments and the average of the weights.

Bits depend on the processor, whose kernels add in an order of their own, and on the version of torch. So results are
compared on one machine only, and the file in benchmarks/results/ says where it was made; elsewhere, make one of the old
code first. Each process has one thread, so that the number of cores does not matter.

The package that is trained is the one on PYTHONPATH, else the one beside this script; the script prints which it is.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BY_PARTS, END_TO_END = 15, 6  # steps
FIELDS = ("name", "processes", "losses", "hash", "tensors", "test_bits_per_dim")
SIMULTANEOUS = {"schedule": "simultaneous", "steps": BY_PARTS, "lr": 0.002}
SCHEDULES: dict[str, dict[str, Any]] = {
    "simultaneous": SIMULTANEOUS,
    "alternate": {**SIMULTANEOUS, "schedule": "alternate", "turn_steps": 3},
    "sequential": {**SIMULTANEOUS, "schedule": "sequential"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "invert": {"activations": "invert"},
    "checkpoint": {"activations": "checkpoint"},
    "bf16": {"precision": "bf16"},
    "learned prior": {"cut": {"scheme": "across_blocks", "parts": 3, "provisional_prior": "learned"}},
    "ema": {"ema": 0.99},
    "adamw": {"phases": [{**SIMULTANEOUS, "optimizer": "adamw", "weight_decay": 2.0, "clip": 1.0}]},
    "additive": {"glow": {"levels": 2, "steps": 3, "hidden": 16, "coupling": "additive"}},
}


class FailedError(Exception):
    """A run that did not end well; says what it printed last."""


def settings(phases: list[dict[str, Any]], parts: int = 3, **more: Any) -> dict[str, Any]:
    """Settings of a small run; `more` replaces whole sections."""
    return {
        "run": "run",
        "device": "cpu",
        "glow": {"levels": 2, "steps": 3, "hidden": 16},
        "data": {"name": "digits", "batch": 12, "init_batch": 48},
        "cut": {"scheme": "across_blocks", "parts": parts, "provisional_prior": "standard"},
        "phases": phases,
        "checkpoint": {"every": None},
        "eval_every": 1000,
        **more,
    }


def runs() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(name, processes, settings) of every run."""
    for processes in (1, 3):
        for name, phase in SCHEDULES.items():
            yield name, processes, settings([phase])
    both = [SIMULTANEOUS, {"schedule": "end_to_end", "steps": END_TO_END, "lr": 0.001}]
    for processes in (1, 2):
        for engine in ("ddp", "fsdp", "pipeline"):
            yield engine, processes, settings(both, parts=2, end_to_end={"engine": engine})
    for name, change in VARIANTS.items():
        yield name, 1, settings(**{"phases": [SIMULTANEOUS], **change})
    yield "two replicas", 2, settings([SIMULTANEOUS], parts=2, parallel={"replicas": 2})


def environment() -> dict[str, str]:
    """One thread a process; the package on PYTHONPATH, else the one beside this script."""
    path = [*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)]
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(path)}


def hash_of(lines: list[str]) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def tensors_hash(checkpoints: Path) -> str:
    """A hash of every tensor in the newest checkpoint, by name, whichever file it lies in.

    A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: name → dtype, shape,
    offsets) and the numbers.
    """
    newest = max(checkpoints.glob("step-*"), key=lambda step: int(step.name.removeprefix("step-")))
    lines = []
    for file in newest.glob("*.safetensors"):
        content = file.read_bytes()
        begin = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:begin]).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                digest = hashlib.sha256(content[begin + first : begin + last]).hexdigest()
                lines.append(f"{name} {entry['dtype']} {entry['shape']} {digest}")
    if not lines:
        raise FailedError("the run has left no tensors.")
    return hash_of(sorted(lines))


def train(directory: Path, processes: int, config: dict[str, Any]) -> dict[str, Any]:
    """Trains; returns what the run's row says of its results."""
    directory.mkdir()
    (directory / "config.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "pipeflow.train", "--config", "config.yaml"]
    done = subprocess.run(command, cwd=directory, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedError(f"exit code {done.returncode}:\n{done.stderr[-3000:]}")
    metrics = directory / config["run"] / "metrics"
    streams = sorted(metrics.glob("part-*.jsonl"), key=lambda file: int(re.findall(r"\d+", file.stem)[-1]))
    losses = []
    for file in [*streams, *metrics.glob("end_to_end.jsonl")]:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        losses += [repr(line["bits_per_dim"]) for line in sorted(lines, key=lambda line: line["step"])]
    if not losses:
        raise FailedError("the run has left no losses.")
    return {
        "losses": len(losses),
        "hash": hash_of(losses),
        "tensors": tensors_hash(directory / config["run"] / "checkpoints"),
        "test_bits_per_dim": json.loads((directory / config["run"] / "result.json").read_text())["test_bits_per_dim"],
    }


def row_of(directory: Path, name: str, processes: int, config: dict[str, Any]) -> dict[str, Any]:
    """Trains, and puts a run's row together."""
    try:
        return {"name": name, "processes": processes, **train(directory, processes, config)}
    except FailedError as error:
        raise FailedError(f"{name} on {processes} process{'es' * (processes > 1)}: {error}") from error


def measure() -> list[dict[str, Any]]:
    """A row for every run; those of one process go two at a time where there are two cores."""
    everything = list(runs())
    with tempfile.TemporaryDirectory() as place:
        jobs = [(Path(place) / str(number), *run) for number, run in enumerate(everything)]
        alone = [job for job in jobs if job[2] == 1]
        with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            futures = [(job[0], pool.submit(row_of, *job)) for job in alone]
            rows = {directory: future.result() for directory, future in futures}
        rows |= {job[0]: row_of(*job) for job in jobs if job[2] > 1}
        return [rows[job[0]] for job in jobs]


def overall(rows: list[dict[str, Any]]) -> str:
    """One hash over all rows."""
    return hash_of([" ".join(repr(row[field]) for field in FIELDS) for row in rows])


def table(rows: list[dict[str, Any]]) -> str:
    """The rows, to be read."""
    lines = [f"{'run':14}  processes  losses  {'hash of the losses':18}  {'of the tensors':16}  test bits/dim"]
    for row in rows:
        test = "–" if row["test_bits_per_dim"] is None else repr(row["test_bits_per_dim"])
        numbers = f"{row['processes']:9}  {row['losses']:6}"
        lines.append(f"{row['name']:14}  {numbers}  {row['hash']:18}  {row['tensors']:16}  {test}")
    return "\n".join(lines)


def hardware() -> str:
    """ "x86_64, 2 cores, <name of the processor>"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return ", ".join([platform.machine(), f"{os.cpu_count()} cores", *names[:1]])


def differences(rows: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> list[str]:
    """A sentence for each row that is not what it was."""
    new, old = ({(row["name"], row["processes"]): row for row in some} for some in (rows, earlier))
    found = []
    for name, processes in {**old, **new}:
        key = (name, processes)
        what = f"{name} on {processes} process{'es' * (processes > 1)}"
        if key not in new or key not in old:
            found.append(f"{what}: only in the {'earlier' if key in old else 'new'} result.")
            continue
        fields = [field for field in FIELDS if new[key][field] != old[key][field]]
        if fields:
            changes = ", ".join(f"{field} {old[key][field]} → {new[key][field]}" for field in fields)
            found.append(f"{what}: {changes}.")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="a JSON file to write the rows to")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier --out; exits 1 where a row differs")
    args = parser.parse_args()
    earlier = json.loads(args.against.read_text()) if args.against else None
    where = [sys.executable, "-c", "import pipeflow; print(pipeflow.__file__)"]
    with tempfile.TemporaryDirectory() as elsewhere:  # "-c" would look for the package here first
        print(subprocess.check_output(where, cwd=elsewhere, env=environment(), text=True).strip(), flush=True)
    begin = time.perf_counter()
    try:
        rows = measure()
    except FailedError as error:
        print(error, file=sys.stderr)
        return 2
    seconds = round(time.perf_counter() - begin)
    print(table(rows))
    print(f"all: {overall(rows)} ({seconds} s)")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "seconds": seconds,
        "hash": overall(rows),
        "rows": rows,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {args.out}")
    if earlier is None:
        return 0
    for field in ("hardware", "versions"):
        if earlier[field] != result[field]:
            print(f"Not the same {field}, so bits may differ for that: {earlier[field]} then, {result[field]} now.")
    found = differences(rows, earlier["rows"])
    print("\n".join(found) or f"Every bit is as it was ({args.against}).")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
