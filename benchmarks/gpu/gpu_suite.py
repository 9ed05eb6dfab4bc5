"""How fast, on one GPU: every setting compared with the card's own ceilings, in one command of at most ten minutes.

    python3 -m benchmarks.gpu.gpu_suite --out DIR                      (after `pip install -e .`)
    python3 -m benchmarks.gpu.gpu_suite --out DIR --quick --device cpu      (small and short, to see that it works)

1. The ceilings: bytes per second of a copy on the device, multiply-adds per second of one large matrix product.
2. Training steps of a Glow 3 × 32 × 512 on 32×32 pixels, end to end, batches of 64 and 512: fp32, tf32, bf16,
   channels last, flow steps compiled, CUDA graphs, both; images per second, and the share of the matrix ceiling of the
   same precision. If it is installed, normflows' Glow of the same size (fp32; no learned split prior).
3. One process end to end, and 2 and 3 parts in one process and in as many processes on the same device.
4. Memory with activations kept, checkpointed and inverted: bytes at the peak, how far an inverted input drifts, and the
   largest batch and image that fit.

The pixels are random: the work does not depend on them. Rows that were not measured say why. DIR/gpu_suite.json and
.txt are written after every row, the pictures at the end.
"""

import argparse
import gc
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.results import about, axes, table, write_json
from benchmarks.lib.timing import seconds_per_call, synchronise
from benchmarks.lib.workload import Workload
from benchmarks.speed.runner import Runner
from benchmarks.step.matrix_products import matrix_products, operations
from benchmarks.step.peer_glows import in_normflows
from pipeflow.flow import Packet
from pipeflow.model import Truncated, set_tensor_cores

BF16: dict[str, Any] = {"precision": "bf16", "layout": "channels_last"}
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "bf16, channels last": BF16,
    "… and compiled steps": {**BF16, "compile": "steps"},
    "… and CUDA graphs": {**BF16, "cuda_graphs": True},
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


FULL = Scale(Workload(levels=3, steps=32, hidden=512, size=32, batch=64, flip=True), (64, 512), 3.0, 8192, 2**30, 2**15)
QUICK = Scale(Workload(levels=2, steps=2, hidden=16, size=8, batch=4, flip=True), (4,), 0.02, 128, 2**18, 2**4)


# --- the sections; each yields a row at a time


def ceilings(scale: Scale, device: torch.device) -> Iterator[dict[str, Any]]:
    source = torch.zeros(scale.copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = seconds_per_call(lambda: target.copy_(source), device, scale.seconds / 3)
    yield {"row": "copy", "bytes_per_s": 2 * 4 * source.numel() / seconds}
    for precision in ("fp32", "tf32", "bf16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        a, b = (torch.randn(scale.matrix, scale.matrix, device=device, dtype=dtype) for _ in range(2))
        seconds = seconds_per_call(lambda a=a, b=b: torch.mm(a, b), device, scale.seconds / 3)  # type: ignore[misc]
        torch.backends.cuda.matmul.allow_tf32 = False
        yield {"row": f"matrix product, {precision}", "precision": precision, "flops": 2 * scale.matrix**3 / seconds}


def training_steps(scale: Scale, device: torch.device, flops: dict[str, float]) -> Iterator[dict[str, Any]]:
    for batch in scale.batches:
        workload = replace(scale.workload, batch=batch)
        for name, options in SETTINGS.items():
            row: dict[str, Any] = {"row": f"{name}, batch {batch}", "setting": name, "batch": batch}
            options = dict(options)
            if (cuda_graphs := options.pop("cuda_graphs", False)) and device.type != "cuda":
                yield row | {"not_measured": "there is no GPU here"}
                continue
            start = time.perf_counter()
            with attempt(row):
                stage = replace(workload, **options).training_stage(cuda_graphs=cuda_graphs)
                stage.tick().figures.read()
                row["to_first_step_s"] = time.perf_counter() - start
                seconds = seconds_per_call(stage.tick, device, scale.seconds)
                ceiling = flops[options.get("precision", "fp32")]
                row |= {"step_s": seconds, "images_per_s": batch / seconds}
                row["share"] = operations(matrix_products(workload)) / seconds / ceiling
                row["bits_per_dim"] = stage.tick().bits_per_dim
            yield row
        row = {"row": f"normflows, batch {batch}", "setting": "normflows, fp32", "batch": batch}
        if importlib.util.find_spec("normflows") is None:
            yield row | {"not_measured": "normflows is not installed here"}
            continue
        with attempt(row):
            seconds = seconds_per_call(normflows_step(workload), device, scale.seconds)
            row |= {"step_s": seconds, "images_per_s": batch / seconds}
        yield row


def normflows_step(workload: Workload) -> Callable[[], None]:
    """One training step of normflows' Glow, as its own example builds it, in fp32, on the same images."""
    set_tensor_cores("fp32")
    flow = in_normflows(workload, use_lu=True).to(workload.torch_device)
    optimizer = torch.optim.Adam(flow.parameters(), workload.lr, fused=workload.torch_device.type == "cuda")
    batches = workload.batches()

    def step() -> None:
        optimizer.zero_grad()
        (-flow(batches.recv().z).mean()).backward()
        optimizer.step()

    return step


def parts(scale: Scale) -> Iterator[dict[str, Any]]:
    """Simultaneous training: every part learns from every batch; the cut is balanced by measured step times."""
    cut: dict[int, Workload] = {}
    for count, processes in ((1, 1), (2, 1), (2, 2), (3, 1), (3, 3)):
        name = f"{count} parts in {processes} process{'es' if processes > 1 else ''}" if count > 1 else "end to end"
        row: dict[str, Any] = {"row": name, "parts": count, "processes": processes, "batch": scale.workload.batch}
        with attempt(row):
            if count not in cut:
                cut[count] = replace(scale.workload.balanced(count), **BF16)
            row["cut"] = list(cut[count].cut)
            with Runner(cut[count], processes, timeout_s=180) as runner:
                found = runner.measure("parts", {}, scale.seconds, least=3)
            row |= {key: found[key] for key in ("step_s", "images_per_s")}
        yield row


def memory(scale: Scale, device: torch.device) -> Iterator[dict[str, Any]]:
    for activations in ("keep", "checkpoint", "invert"):
        workload = replace(scale.workload, activations=activations, **BF16)
        row: dict[str, Any] = {"row": activations, "activations": activations, "batch": workload.batch}
        with attempt(row):
            stage = workload.training_stage()
            packet = stage.inbox.recv()
            row["kept_bytes"] = kept_bytes(stage.truncated, packet)
            row["drift"] = stage.truncated.part.drift(packet)
            row["step_s"] = seconds_per_call(stage.tick, device, scale.seconds / 2)
            if device.type == "cuda":
                row["resident_bytes"] = torch.cuda.memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
                stage.tick().figures.read()
                row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
            del stage, packet
        yield row
        batches = [replace(workload, batch=batch) for batch in doubled(scale.batches[-1], scale.largest_batch)]
        sides = [replace(workload, batch=8, size=side) for side in doubled(workload.size, 1024)]
        for kind, attribute, sizes in (("batch", "batch", batches), ("side", "size", sides)):
            row = {"row": f"{activations}, largest {kind}", "activations": activations}
            if device.type != "cuda":
                yield row | {"not_measured": "there is no GPU here"}
                continue
            with attempt(row):
                fits, why_not_more = largest(sizes, device)
                row[f"largest_{kind}"] = {"fits": fits and getattr(fits, attribute), "why_not_more": why_not_more}
            yield row


def doubled(start: int, end: int) -> list[int]:
    return [start * 2**power for power in range(20) if start * 2**power <= end]


def largest(workloads: list[Workload], device: torch.device) -> tuple[Workload | None, str]:
    """The last workload of which a step fits into the device's memory; one that takes over 20 s ends the search."""
    fits = None
    for workload in workloads:
        start = time.perf_counter()
        try:
            workload.training_stage().tick().figures.read()
            synchronise(device)
        except torch.OutOfMemoryError:
            return fits, "twice as much runs out of memory"
        finally:
            free(device)
        fits = workload
        if time.perf_counter() - start > 20:
            return fits, "a step of twice as much was not waited for"
    return fits, "the largest that was tried"


def kept_bytes(truncated: Truncated, packet: Packet) -> int:
    """Bytes that a forward pass keeps for the backward pass, besides parameters and the packet."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*truncated.parameters(), *truncated.buffers(), *packet]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = truncated(packet)
    del result
    return sum(kept.values())


# --- running them


@contextmanager
def attempt(row: dict[str, Any]) -> Iterator[None]:
    """Writes an error into its row, so that the next row is tried."""
    try:
        yield
    except torch.OutOfMemoryError:
        row["not_measured"] = "out of memory"
    except Exception as error:
        row["not_measured"] = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def text_of(results: dict[str, Any]) -> str:
    columns = ("images_per_s", "share", "step_s", "to_first_step_s", "bytes_per_s", "flops", "kept_bytes", "peak_bytes")
    columns += ("drift", "not_measured")
    blocks = []
    for section, rows in results["sections"].items():
        shown = [name for name in columns if any(name in row for row in rows)]
        shown += [name for name in ("largest_batch", "largest_side") if any(name in row for row in rows)]
        body = [[row["row"], *(_plain(row.get(name)) for name in shown)] for row in rows]
        blocks.append(f"{section}\n{table(['', *shown], body)}")
    return (
        "\n\n".join([f"{results['device']}, torch {results['versions']['torch']}, {results['date']}", *blocks]) + "\n"
    )


def _plain(value: Any) -> Any:
    return f"{value['fits']} ({value['why_not_more']})" if isinstance(value, dict) else value


def draw(results: dict[str, Any], out: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        return
    rows = [row for row in results["sections"].get("training steps", []) if "images_per_s" in row]
    if rows:
        batches = sorted({row["batch"] for row in rows})
        figure, panels = axes(1, len(batches), figsize=(6 * len(batches), 3), squeeze=False)
        for panel, batch in zip(panels[0], batches, strict=True):
            chosen = [row for row in rows if row["batch"] == batch][::-1]
            panel.barh([row["setting"] for row in chosen], [row["images_per_s"] for row in chosen], color="tab:blue")
            panel.set(title=f"batch {batch}", xlabel="images per second")
        figure.savefig(out / "gpu_suite_steps.png", dpi=120)
    rows = [row for row in results["sections"].get("memory", []) if "kept_bytes" in row]
    if rows:
        figure, panel = axes(figsize=(5, 2.5))
        panel.barh([row["activations"] for row in rows[::-1]], [row["kept_bytes"] / 2**20 for row in rows[::-1]])
        panel.set(title=f"kept for the backward pass, batch {rows[0]['batch']}", xlabel="MiB")
        figure.savefig(out / "gpu_suite_memory.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small and short, to see that it works")
    parser.add_argument("--minutes", type=float, default=9.0, help="no row is started later than this")
    args = parser.parse_args()
    if args.quick:
        torch.set_num_threads(1)
    scale, device = QUICK if args.quick else FULL, torch.device(args.device)
    scale = replace(scale, workload=replace(scale.workload, device=args.device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    results: dict[str, Any] = {**about(asdict(scale)), "device": name, "quick": args.quick, "sections": {}}
    start = time.monotonic()
    flops: dict[str, float] = {}
    sections: dict[str, Iterator[dict[str, Any]]] = {
        "ceilings": ceilings(scale, device),
        "training steps": training_steps(scale, device, flops),
        "parts on one device": parts(scale),
        "memory": memory(scale, device),
    }
    for section, rows in sections.items():
        results["sections"][section] = done = []
        while True:
            if (minutes := (time.monotonic() - start) / 60) > args.minutes:
                done.append({"row": "what follows", "not_measured": f"no time: {minutes:.1f} minutes had passed"})
                break
            if (row := next(rows, None)) is None:
                break
            free(device)
            if "flops" in row:
                flops[row["precision"]] = row["flops"]
            done.append(row)
            results["minutes"] = (time.monotonic() - start) / 60
            write_json(args.out / "gpu_suite.json", results)
            (args.out / "gpu_suite.txt").write_text(text_of(results))
            print(json.dumps({"section": section, **row}), flush=True)
    write_json(args.out / "gpu_suite.json", results)
    draw(results, args.out)
    print("\n" + text_of(results))


if __name__ == "__main__":
    main()
