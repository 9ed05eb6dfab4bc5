"""The first hour on a GPU: is it right, how fast is it, how much memory does it take? One command, safe to interrupt.

    python3 -m benchmarks.gpu.gpu_suite --out DIR [--minutes 9] [--sections pytest,parts,ladder]
    python3 -m benchmarks.gpu.gpu_suite --out DIR --quick --device cpu      (small and short, to see that it works)
    python3 -m benchmarks.gpu.gpu_suite --out DIR --package OLD --label before --sections ladder     (another checkout)

Sections, in this order:

* pytest: every file of tests that compute on a device, with `--device cuda`.
* parts: small runs, of one process and of 3 on one GPU, over gloo and over NCCL (NCCL_MULTI_RANK_GPU_ENABLE=1, both of
  PyTorch's NCCL backends where there are two), every engine, CUDA graphs, each against the run of one process.
* faults: the same with the second process killed or stopped: how the others end, and what they say.
* ceilings: bytes per second of a copy, operations per second of a matrix product.
* ladder: training steps of a Glow 3 × 32 × 512 on 32×32 pixels, end to end, batch 64 and then 512: fp32, tf32, bf16,
  channels last, CUDA graphs, compiled flow steps, both; normflows if it is installed.
* split: 1, 2 and 3 parts in one process, and in as many processes on the same GPU.
* memory: activations kept, checkpointed and inverted: bytes, drift, largest batch and image that fit.

Each row has a process of its own (rows.py), so that a broken one spoils no other. DIR/gpu_suite.json and .txt are
written after every row, with the card and the versions; rows that are in the file already are not measured again, so
the same command goes on where it was interrupted, or where --minutes were over. The pixels are random: the work does
not depend on them. Rows that were not measured say why.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lib.results import about, axes, table, write_json
from benchmarks.lib.torchrun import ROOT
from benchmarks.lib.workload import Workload

ROWS = Path(__file__).with_name("rows.py")
BF16: dict[str, Any] = {"precision": "bf16", "layout": "channels_last"}
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "bf16, channels last": BF16,
    "… and CUDA graphs": {**BF16, "cuda_graphs": True},
    "… and compiled steps": {**BF16, "compile": "steps"},
    "… and both": {**BF16, "compile": "steps", "cuda_graphs": True},
}


@dataclass(frozen=True)
class Scale:
    """How much is measured: the model, its batches, seconds per row, sizes of the ceilings, largest batch tried."""

    workload: Workload
    batches: tuple[int, ...]
    seconds: float
    matrix: int
    copy_bytes: int
    largest_batch: int


FULL = Scale(Workload(levels=3, steps=32, hidden=512, size=32, batch=64, flip=True), (64, 512), 3.0, 8192, 2**30, 2**13)
QUICK = Scale(Workload(levels=2, steps=2, hidden=16, size=8, batch=4, flip=True), (4,), 0.02, 128, 2**18, 2**4)


@dataclass(frozen=True)
class Row:
    """A row to be measured.

    Attributes:
        name: within its section.
        kind: the function of rows.py.
        given: its arguments.
        limit_s: seconds after which the row is given up.
        variables: of its environment.
    """

    name: str
    kind: str
    given: dict[str, Any]
    limit_s: float = 90.0
    variables: dict[str, str] = field(default_factory=dict)


# --- the sections


def pytest_rows(scale: Scale) -> Iterator[Row]:
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        if re.search(r"^def .*\bdevice\b.*\):$", file.read_text(), re.MULTILINE):
            name = file.relative_to(ROOT).as_posix()
            yield Row(name, "pytest", {"device": scale.workload.device, "file": name}, 240)


ENGINES = {"ddp": [], "fsdp": ["--end_to_end.engine", "fsdp"], "1F1B": ["--end_to_end.engine", "pipeline"]}


def transports(device: str) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """(name, settings, environment) of every transport between processes that share a GPU."""
    yield "gloo", ["--parallel.backend", "gloo"], {}
    if device != "cpu":
        shared = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_SOCKET_IFNAME": "lo"}
        for number in ("0", "1"):
            name = f"NCCL, TORCH_DIST_USE_NCCL2={number}"
            yield name, ["--parallel.backend", "nccl"], {**shared, "TORCH_DIST_USE_NCCL2": number}


def parts_rows(scale: Scale, runs: str) -> Iterator[Row]:
    device = scale.workload.device
    given: dict[str, Any] = {"device": device, "runs": runs}
    yield Row("one process", "train", {**given, "processes": 1, "words": [], "name": "one"})
    given["reference"] = "one"
    graphs = ["--cuda_graphs", "true"]
    if device != "cpu":
        yield Row("one process, again", "train", {**given, "processes": 1, "words": [], "name": "again"})
        variants = {"CUDA graphs": graphs, "compiled steps": ["--compile", "steps"]}
        variants |= {"both": [*graphs, "--compile", "steps"], "invert": ["--activations", "invert"]}
        variants |= {"invert, both": [*graphs, "--compile", "steps", "--activations", "invert"]}
        for name, words in variants.items():
            yield Row(f"one process, {name}", "train", {**given, "processes": 1, "words": words, "name": name})
    for transport, words, variables in transports(device):
        for engine, choice in ENGINES.items():
            if transport == "gloo" and engine == "1F1B" and device != "cpu":
                continue  # is refused: latents would have to be staged
            options = {"processes": 3, "words": [*words, *choice], "name": f"{transport} {engine}"}
            yield Row(f"3 processes, {transport}, {engine}", "train", {**given, **options}, 120, variables)
        if device != "cpu":
            options = {"processes": 3, "words": [*words, *graphs], "name": f"{transport} graphs"}
            yield Row(f"3 processes, {transport}, CUDA graphs", "train", {**given, **options}, 120, variables)


def fault_rows(scale: Scale, runs: str) -> Iterator[Row]:
    for transport, words, variables in transports(scale.workload.device):
        for number in ("SIGKILL", "SIGSTOP"):
            name = f"{transport}, {number}"
            given = {"device": scale.workload.device, "processes": 3, "words": words, "runs": runs, "name": name}
            yield Row(name, "fault", {**given, "number": number}, 130, variables)


def ceiling_rows(scale: Scale) -> Iterator[Row]:
    sizes = {"matrix": scale.matrix, "copy_bytes": scale.copy_bytes}
    yield Row("ceilings", "ceiling", {"workload": asdict(scale.workload), "seconds": scale.seconds, **sizes})


def ladder_rows(scale: Scale) -> Iterator[Row]:
    for batch in scale.batches:
        workload = replace(scale.workload, batch=batch)
        for name, options in SETTINGS.items():
            options = dict(options)
            given = {"cuda_graphs": options.pop("cuda_graphs", False), "seconds": scale.seconds}
            given["workload"] = asdict(replace(workload, **options))
            yield Row(f"batch {batch}, {name}", "ladder", given, 150 if "compile" in options else 75)
        given = {"workload": asdict(workload), "seconds": scale.seconds}
        yield Row(f"batch {batch}, normflows, fp32", "normflows", given)


def split_rows(scale: Scale) -> Iterator[Row]:
    for parts, processes in ((1, 1), (2, 1), (2, 2), (3, 1), (3, 3)):
        name = f"{parts} parts in {processes} process{'es' if processes > 1 else ''}" if parts > 1 else "end to end"
        given = {"workload": asdict(replace(scale.workload, **BF16)), "seconds": scale.seconds}
        yield Row(name, "split", {**given, "parts": parts, "processes": processes}, 120)


def memory_rows(scale: Scale) -> Iterator[Row]:
    for activations in ("keep", "checkpoint", "invert"):
        workload = replace(scale.workload, activations=activations, **BF16)
        yield Row(activations, "memory", {"workload": asdict(workload), "seconds": scale.seconds / 2})
    for activations in ("keep", "checkpoint", "invert"):
        workload = replace(scale.workload, activations=activations, **BF16)
        batches = [replace(workload, batch=batch) for batch in doubled(scale.batches[-1], scale.largest_batch)]
        sides = [replace(workload, batch=8, size=side) for side in doubled(workload.size, 512)]
        for attribute, sizes in (("batch", batches), ("size", sides)):
            given = {"workloads": [asdict(each) for each in sizes], "attribute": attribute}
            yield Row(f"{activations}, largest {attribute}", "largest", given, 75)


def doubled(start: int, end: int) -> list[int]:
    return [start * 2**power for power in range(20) if start * 2**power <= end]


# --- running them


class Suite:
    """Rows, measured one after another and kept in a file.

    Args:
        out: directory of the results.
        package: the checkout that is measured.
        label: of its rows.
        until: time of the monotonic clock at which the last row must have ended.
        results: the beginning of a new file.
    """

    def __init__(self, out: Path, package: Path, label: str, until: float, results: dict[str, Any]) -> None:
        self.file, self.package, self.label, self.until = out / "gpu_suite.json", package, label, until
        self.results = results
        if self.file.exists():
            self.results = json.loads(self.file.read_text())
        self.done: list[dict[str, Any]] = self.results.setdefault("rows", [])
        self._lock = threading.Lock()

    def known(self, section: str, row: Row) -> bool:
        """Whether the file has the row already."""
        key = (self.label, section, row.name)
        return any(key == (done["label"], done["section"], done["row"]) for done in self.done)

    def forget_failures(self) -> None:
        """Rows that were not measured, or whose tests failed, are tried again."""
        failures = ("not_measured", "failed", "errors")
        self.done[:] = [row for row in self.done if not any(row.get(failure) for failure in failures)]

    def measure(self, section: str, row: Row) -> bool:
        """Measures a row that the file does not have, and writes it; False if the time is over."""
        if self.known(section, row):
            return True
        left = self.until - time.monotonic() - 3
        if left < 5:
            return False
        start = time.monotonic()
        found = self.figures(row, min(row.limit_s, left))
        if found is None:
            if left <= row.limit_s:
                return False  # not the row's fault: it may be tried again
            found = {"not_measured": f"it took longer than {row.limit_s:.0f} s"}
        took = {"took_s": round(time.monotonic() - start, 1)}
        with self._lock:
            self.done.append({"label": self.label, "section": section, "row": row.name, **took, **found})
            self.write()
            print(json.dumps(self.done[-1]), flush=True)
        return True

    def figures(self, row: Row, limit_s: float) -> dict[str, Any] | None:
        """What a process of its own says of the row; None if it was not done in time."""
        path = [str(self.package), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **row.variables}
        command = [sys.executable, str(ROWS), row.kind, json.dumps(row.given)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        child = subprocess.Popen(command, env=environment, cwd=self.package, start_new_session=True, **pipes)
        try:
            out, errors = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # and all that it has started
            child.communicate()
            return None
        try:
            figures: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            return {"not_measured": f"exit code {child.returncode}: {errors.strip()[-3000:]}"}
        return figures

    def write(self) -> None:
        """The file and its table, as far as they are."""
        write_json(self.file, self.results)
        self.file.with_suffix(".txt").write_text(text_of(self.results))


def text_of(results: dict[str, Any]) -> str:
    """All rows as tables, a section each."""
    columns = ("passed", "failed", "errors", "skipped", "images_per_s", "step_s", "host_s", "kernels")
    columns += ("busy_while_profiled", "operations_per_s", "to_first_step_s", "peak_bytes", "kept_bytes", "drift")
    columns += (
        "test_bits_per_dim",
        "losses",
        "equal_losses",
        "largest_difference",
        "test_difference",
        "seconds_to_end",
        "fits",
    )
    columns += ("bytes_per_s", "flops_fp32", "flops_tf32", "flops_bf16", "took_s")
    blocks = [json.dumps(results["hardware_of_rows"])]
    for section in dict.fromkeys(row["section"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["section"] == section]
        shown = [name for name in columns if any(name in row for row in rows)]
        several = len({row["label"] for row in results["rows"]}) > 1
        names = [f"{row['label']}: {row['row']}" if several else row["row"] for row in rows]
        body = [[name, *(row.get(column) for column in shown)] for name, row in zip(names, rows, strict=True)]
        blocks.append(f"{section}\n{table(['', *shown], body)}")
        for name, row in zip(names, rows, strict=True):
            said = [*row.get("said", []), *row.get("sentences", []), row.get("not_measured"), row.get("why_not_more")]
            blocks += [f"{name}: {text}" for text in said if text]
    return "\n\n".join(blocks) + "\n"


def draw(results: dict[str, Any], out: Path) -> None:
    """Bars of the ladder, where matplotlib is there."""
    rows = [row for row in results["rows"] if row["section"] == "ladder" and "images_per_s" in row]
    if not rows or importlib.util.find_spec("matplotlib") is None:
        return
    figure, panel = axes(figsize=(7, 0.3 * len(rows) + 1))
    names = [f"{row['label']}: {row['row']}" for row in rows[::-1]]
    panel.barh(names, [row["images_per_s"] for row in rows[::-1]], color="tab:blue")
    panel.set(xlabel="images per second")
    figure.savefig(out / "gpu_suite.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--sections", help="those to measure, with commas between; all of them by default")
    parser.add_argument("--rows", help="of these sections, only rows whose name holds this text")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--quick", action="store_true", help="small and short, to see that it works")
    parser.add_argument("--minutes", type=float, default=9.0, help="everything ends before so many")
    parser.add_argument("--package", type=Path, default=ROOT, help="another checkout of pipeflow, to measure that one")
    parser.add_argument("--label", help="name of the checkout in the rows; that of its directory by default")
    parser.add_argument("--retry", action="store_true", help="try rows again that were not measured or have failed")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    scale = QUICK if args.quick else FULL
    scale = replace(scale, workload=replace(scale.workload, device=args.device))
    with tempfile.TemporaryDirectory() as runs:
        sections: dict[str, tuple[Iterator[Row], int]] = {  # rows, and how many of them at a time
            "pytest": (pytest_rows(scale), 1 if args.quick else 4),
            "parts": (parts_rows(scale, runs), 1),
            "faults": (fault_rows(scale, runs), 1),
            "ceilings": (ceiling_rows(scale), 1),
            "ladder": (ladder_rows(scale), 1),
            "split": (split_rows(scale), 1),
            "memory": (memory_rows(scale), 1),
        }
        wanted = args.sections.split(",") if args.sections else list(sections)
        if unknown := set(wanted) - set(sections):
            parser.error(f"--sections {', '.join(sorted(unknown))}: they are {', '.join(sections)}")
        package = args.package.resolve()
        results = {**about(asdict(scale)), "quick": args.quick}
        suite = Suite(args.out, package, args.label or package.name, until, results)
        found = suite.figures(Row("hardware", "hardware", {"device": args.device}), 60) or {}
        if "torch" not in found:
            sys.exit(f"{args.device} cannot be used: {found.get('not_measured', 'it did not answer for a minute')}")
        if suite.results.setdefault("hardware_of_rows", found) != found:
            sys.exit(f"{suite.file} holds rows of other hardware or versions; take another --out.")
        if args.retry:
            suite.forget_failures()
        for section in [name for name in sections if name in wanted]:
            rows, at_a_time = sections[section]
            chosen = [row for row in rows if not args.rows or args.rows in row.name]
            with ThreadPoolExecutor(at_a_time) as pool:
                in_time = all(list(pool.map(partial(suite.measure, section), chosen)))
            if not in_time:
                print(f"{args.minutes} minutes are over; the same command goes on from here", flush=True)
                break
    suite.write()
    draw(suite.results, args.out)
    print("\n" + text_of(suite.results))


if __name__ == "__main__":
    main()
