"""How fast, on one GPU: every setting against the card's own ceilings, in one command of at most ten minutes.

    python3 benchmarks/gpu_suite.py --out DIR                    (from a bare checkout; needs PyTorch and numpy alone)
    python3 benchmarks/gpu_suite.py --out DIR --quick --device cpu    (small and short: to see that it works)

1. The ceilings: bytes a second of a copy on the device, multiply-adds a second of one large matrix product.
2. Training steps of a Glow 3 × 32 × 512 on 32×32 pixels, end to end, batches of 64 and 512: fp32, tf32, bf16,
   channels last, flow steps compiled, CUDA graphs, both; images a second, and the share of the matrix ceiling of the
   same precision.
   normflows' Glow of the same levels, steps and width beside it where it is there (fp32; no learned split prior).
3. One process end to end, against 2 and 3 parts in one process and in as many processes on the same device.
4. Memory with activations kept, checkpointed and inverted: bytes at the peak, how far an inverted input drifts, and the
   largest batch and image that fit.

The pixels are random: the work does not depend on them. What there was no time for is said. DIR/gpu_suite.json and .txt
are written after every row, the pictures at the end.
"""

import argparse
import gc
import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import numpy as np
import torch
import torch.multiprocessing as mp
from results_file import about, axes, table
from torch.utils.flop_counter import FlopCounterMode

from pipeflow.data import Batches, Pixels, resident
from pipeflow.distributed import ParallelConfig, open_world, prepare_process
from pipeflow.model import GlowConfig, Truncated, glow_steps, make_passage, set_precision, set_tensor_cores
from pipeflow.model.truncated import truncate
from pipeflow.planning import balanced_cut, flow_step_costs, measure_steps
from pipeflow.stage import CudaRecorder, RecordedStep, Stage, Update, make_optimizer
from pipeflow.stage.cuda_graphs import WARM_UP
from pipeflow.stream import Chain, Discard, close

LADDER: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "bf16, channels last": {"precision": "bf16", "layout": "channels_last"},
    "… and compiled steps": {"precision": "bf16", "layout": "channels_last", "compile": "steps"},
    "… and CUDA graphs": {"precision": "bf16", "layout": "channels_last", "cuda_graphs": True},
    "… and both": {"precision": "bf16", "layout": "channels_last", "compile": "steps", "cuda_graphs": True},
}


@dataclass(frozen=True)
class Size:
    """How much is done."""

    glow: GlowConfig
    side: int
    batches: tuple[int, ...]
    seconds: float
    matrix: int
    copy_bytes: int
    limit: int

    @property
    def pixels(self) -> Pixels:
        return Pixels((3, self.side, self.side))


FULL = Size(GlowConfig(3, 32, 512), 32, (64, 512), 3.0, 8192, 2**30, 2**15)
QUICK = Size(GlowConfig(2, 2, 16), 8, (4,), 0.02, 128, 2**18, 2**4)


# --- one arm


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_images(pixels: Pixels, count: int) -> np.ndarray:
    channels, height, width = pixels.shape
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def build(
    glow: GlowConfig,
    pixels: Pixels,
    device: torch.device,
    at: tuple[int, ...] = (),
    precision: str = "fp32",
    layout: str = "contiguous",
) -> tuple[list[Truncated], Truncated]:
    """A Glow whose ActNorms have started, cut and whole."""
    set_tensor_cores(precision)
    slices, whole = truncate(glow_steps(glow, pixels.shape), at, pixels.shape, glow.top_prior, "standard")
    for piece in (*slices, whole):
        piece.to(device)
    set_precision(whole, precision, layout)
    whole.part.initialise(Batches(random_images(pixels, 64), pixels, 0, 64, False, device).recv())
    return slices, whole


def make_stage(truncated: Truncated, pixels: Pixels, activations: str = "keep", compile: str = "none") -> Stage:
    truncated.part.passage = make_passage(activations, compile)
    named = truncated.named_global_parameters()
    return Stage(truncated, Update(named, make_optimizer("adam", named, 1e-5), 1e-5), pixels.dims)


def a_step(
    size: Size,
    batch: int,
    device: torch.device,
    cuda_graphs: bool = False,
    precision: str = "fp32",
    layout: str = "contiguous",
    **options: str,
) -> Stage:
    """A stage that trains end to end, images on the device."""
    _, whole = build(size.glow, size.pixels, device, (), precision, layout)
    stage = make_stage(whole, size.pixels, **options)
    if cuda_graphs:
        stage.step = RecordedStep(stage.step, stage.update.optimizer, CudaRecorder(device))
    images = resident(random_images(size.pixels, 2 * batch), device)
    stage.connect(Batches(images, size.pixels, 0, batch, True, device), Discard())
    for _ in range(WARM_UP + 1 if cuda_graphs else 0):
        stage.tick()
    return stage


def time_of(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Seconds of one call: the median of stretches between two looks at the device."""
    for _ in range(2):
        work()
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    repeats = max(1, math.ceil(seconds / 5 / (time.perf_counter() - began)))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronise(device)
        times.append((time.perf_counter() - began) / repeats)
    return statistics.median(times)


# --- the sections; each yields (row, what is known of it)


def ceilings(size: Size, device: torch.device) -> Iterator[dict[str, Any]]:
    source = torch.zeros(size.copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = time_of(lambda: target.copy_(source), device, size.seconds / 3)
    yield {"row": "copy", "bytes_per_s": 2 * 4 * source.numel() / seconds}
    for precision in ("fp32", "tf32", "bf16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        a, b = (torch.randn(size.matrix, size.matrix, device=device, dtype=dtype) for _ in range(2))
        seconds = time_of(lambda a=a, b=b: torch.mm(a, b), device, size.seconds / 3)  # type: ignore[misc]
        torch.backends.cuda.matmul.allow_tf32 = False
        yield {"row": f"matrix product, {precision}", "precision": precision, "flops": 2 * size.matrix**3 / seconds}


def ladder(size: Size, device: torch.device, flops: dict[str, float]) -> Iterator[dict[str, Any]]:
    for batch in size.batches:
        for name, options in LADDER.items():
            row: dict[str, Any] = {"row": f"{name}, batch {batch}", "setting": name, "batch": batch}
            if options.get("cuda_graphs") and device.type != "cuda":
                yield row | {"not_measured": "there is no GPU here"}
                continue
            began = time.perf_counter()
            with attempt(row):
                stage = a_step(size, batch, device, **options)
                stage.tick().figures.read()
                row["to_first_step_s"] = time.perf_counter() - began
                seconds = time_of(stage.tick, device, size.seconds)
                work = flops_of_a_step(size) * batch
                ceiling = flops[options.get("precision", "fp32")]
                row |= {"step_s": seconds, "images_per_s": batch / seconds, "share": work / seconds / ceiling}
                row["bits_per_dim"] = stage.tick().bits_per_dim
            yield row
        row = {"row": f"normflows, batch {batch}", "setting": "normflows, fp32", "batch": batch}
        if importlib.util.find_spec("normflows") is None:
            yield row | {"not_measured": "normflows is not installed here"}
            continue
        with attempt(row):
            seconds = time_of(normflows_step(size, batch, device), device, size.seconds)
            row |= {"step_s": seconds, "images_per_s": batch / seconds}
        yield row


def flops_of_a_step(size: Size) -> float:
    """Of matrix products and convolutions, forward and backward, an image: counted, on no device."""
    with torch.device("meta"):
        steps = glow_steps(GlowConfig(size.glow.levels, 1, size.glow.hidden, conv1x1="plain"), size.pixels.shape)
    total = 0.0
    event: tuple[int, ...] = size.pixels.shape
    for step in steps:
        z = torch.zeros(1, *event, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            out, dlogp = step.to_empty(device="cpu")(z)
            (out.sum() + dlogp.sum()).backward()
        total += counter.get_total_flops() * (size.glow.steps if step.place == "step" else 1)
        event = step.out_shape(event)
    return total


def normflows_step(size: Size, batch: int, device: torch.device) -> Callable[[], None]:
    """One training step of normflows' Glow, as its own example builds it, in fp32, on the same images."""
    import normflows as nf

    set_tensor_cores("fp32")
    levels, side = size.glow.levels, size.side
    bases, merges, flows = [], [], []
    for level in range(levels):
        channels = 3 * 2 ** (levels + 1 - level)
        blocks = [
            nf.flows.GlowBlock(channels, size.glow.hidden, split_mode="channel", scale=True)
            for _ in range(size.glow.steps)
        ]
        flows.append([*blocks, nf.flows.Squeeze()])
        if level > 0:
            merges.append(nf.flows.Merge())
            shape = (3 * 2 ** (levels - level), side // 2 ** (levels - level), side // 2 ** (levels - level))
        else:
            shape = (3 * 2 ** (levels + 1), side // 2**levels, side // 2**levels)
        bases.append(nf.distributions.DiagGaussian(shape))
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=False).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-5, fused=device.type == "cuda")
    images = resident(random_images(size.pixels, 2 * batch), device)
    source = Batches(images, size.pixels, 0, batch, True, device)

    def step() -> None:
        optimizer.zero_grad()
        model.forward_kld(source.recv().z).backward()
        optimizer.step()

    return step


def parts(size: Size, device: torch.device) -> Iterator[dict[str, Any]]:
    """Simultaneous training: every part learns from every batch; the cut is balanced by measured step times."""
    batch = size.batches[0]
    steps = glow_steps(size.glow, size.pixels.shape)
    costs = flow_step_costs(steps, measure_steps(steps, size.pixels.shape, batch, device))
    for count, processes in ((1, 1), (2, 1), (2, 2), (3, 1), (3, 3)):
        at = balanced_cut(costs, count)
        name = f"{count} parts in {processes} process{'es' if processes > 1 else ''}" if count > 1 else "end to end"
        row: dict[str, Any] = {"row": name, "parts": count, "processes": processes, "at": list(at), "batch": batch}
        with attempt(row):
            seconds = in_processes(processes, size, at, batch, device.type)
            row |= {"step_s": seconds, "images_per_s": batch / seconds}
        yield row


def in_processes(processes: int, size: Size, at: tuple[int, ...], batch: int, device: str) -> float:
    """Seconds of a step of a chain of parts in so many processes that share the device."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        results: Any = context.Queue()
        workers = [
            context.Process(target=hold_parts, args=(rank, processes, size, at, batch, device, directory, results))
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        try:
            answers = [results.get(timeout=180) for _ in workers]
        finally:
            for worker in workers:
                worker.join(5)
                worker.kill()
    if errors := [answer for answer in answers if isinstance(answer, str)]:
        raise RuntimeError(errors[0])
    return max(answers)


def hold_parts(
    rank: int, processes: int, size: Size, at: tuple[int, ...], batch: int, device: str, directory: str, results: Any
) -> None:
    try:
        if processes > 1:
            names = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
            os.environ |= {name: str(value) for name, value in names.items()} | {"GLOO_SOCKET_IFNAME": "lo"}
        world = open_world(ParallelConfig(), len(at) + 1, device, f"file://{directory}/meet")
        prepare_process(1, world.device)
        slices, _ = build(size.glow, size.pixels, world.device, at, "bf16", "channels_last")
        chain = Chain(world, [p.part.event_out for p in slices], "suite")
        stages = {part: make_stage(slices[part], size.pixels) for part in world.mine}
        images = resident(random_images(size.pixels, 2 * batch), world.device)

        def train(count: int) -> float:
            head = Batches(images, size.pixels, 0, batch, True, world.device)
            ends = chain.lay(head, batch, count, len(at))
            for part, inbox, outbox in ends:
                stages[part].connect(inbox, outbox)
            synchronise(world.device)
            world.exchange(b"")
            began = time.perf_counter()
            for _ in range(count):
                for part, _, _ in ends:
                    stages[part].tick()
            close(ends)
            synchronise(world.device)
            world.exchange(b"")
            return (time.perf_counter() - began) / count

        warm = max(train(3) and train(3), 1e-4)
        seconds = json.loads(world.exchange(json.dumps(warm).encode())[0])
        results.put(train(max(3, math.ceil(size.seconds / seconds))))
        world.exchange(b"")
    except BaseException:
        results.put(traceback.format_exc(limit=-2))


def memory(size: Size, device: torch.device) -> Iterator[dict[str, Any]]:
    for activations in ("keep", "checkpoint", "invert"):
        batch = size.batches[0]
        row: dict[str, Any] = {"row": activations, "activations": activations, "batch": batch}
        with attempt(row):
            stage = a_step(size, batch, device, precision="bf16", layout="channels_last", activations=activations)
            given = stage.inbox.recv()
            row["kept_bytes"] = kept_bytes(stage.truncated, given)
            row["drift"] = stage.truncated.part.drift(given)
            row["step_s"] = time_of(stage.tick, device, size.seconds / 2)
            if device.type == "cuda":
                row["resident_bytes"] = torch.cuda.memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
                stage.tick().figures.read()
                row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
            del stage, given
        yield row
        for kind, sizes in (("batch", doubled(size.batches[-1], size.limit)), ("side", doubled(size.side, 1024))):
            row = {"row": f"{activations}, largest {kind}", "activations": activations}
            if device.type != "cuda":
                yield row | {"not_measured": "there is no GPU here"}
                continue
            with attempt(row):
                row[f"largest_{kind}"] = largest(size, kind, sizes, activations, device)
            yield row


def doubled(start: int, end: int) -> list[int]:
    return [start * 2**power for power in range(20) if start * 2**power <= end]


def largest(size: Size, kind: str, sizes: list[int], activations: str, device: torch.device) -> dict[str, Any]:
    """The largest size of which a step fits into the device's memory; one that takes over 20 s ends the search."""
    fits, why = None, "the largest that was tried"
    for value in sizes:
        tried, batch = (size, value) if kind == "batch" else (replace(size, side=value), 8)
        began = time.perf_counter()
        try:
            options = {"precision": "bf16", "layout": "channels_last", "activations": activations}
            stage = a_step(tried, batch, device, **options)
            stage.tick().figures.read()
            synchronise(device)
        except torch.OutOfMemoryError:
            why = "twice as much runs out of memory"
            break
        finally:
            stage = None  # type: ignore[assignment]
            free(device)
        fits = value
        if time.perf_counter() - began > 20:
            why = "a step of twice as much was not waited for"
            break
    return {"fits": fits, "why_not_more": why} | ({"at_batch": 8} if kind == "side" else {})


def kept_bytes(truncated: Truncated, given: Any) -> int:
    """What a forward pass keeps for the backward pass, besides parameters and the packet."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*truncated.parameters(), *truncated.buffers(), *given]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = truncated(given)
    del result
    return sum(kept.values())


# --- carrying it out


@contextmanager
def attempt(row: dict[str, Any]) -> Iterator[None]:
    """What goes wrong with one row is written into it, and the next one is tried."""
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
            panel.set(title=f"batch {batch}", xlabel="images a second")
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
    parser.add_argument("--quick", action="store_true", help="small and short: to see that it works")
    parser.add_argument("--minutes", type=float, default=9.0, help="no row is begun later than this")
    args = parser.parse_args()
    if args.quick:
        torch.set_num_threads(1)
    size, device = QUICK if args.quick else FULL, torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    settings = {name: str(value) for name, value in vars(size).items()}
    results: dict[str, Any] = {**about(settings), "device": name, "quick": args.quick, "sections": {}}
    began = time.monotonic()
    flops: dict[str, float] = {}
    sections: dict[str, Iterator[dict[str, Any]]] = {
        "ceilings": ceilings(size, device),
        "training steps": ladder(size, device, flops),
        "parts on one device": parts(size, device),
        "memory": memory(size, device),
    }
    for section, rows in sections.items():
        results["sections"][section] = done = []
        while True:
            if (minutes := (time.monotonic() - began) / 60) > args.minutes:
                done.append({"row": "what follows", "not_measured": f"no time: {minutes:.1f} minutes had passed"})
                break
            if (row := next(rows, None)) is None:
                break
            free(device)
            if "flops" in row:
                flops[row["precision"]] = row["flops"]
            done.append(row)
            results["minutes"] = (time.monotonic() - began) / 60
            (args.out / "gpu_suite.json").write_text(json.dumps(results, indent=1) + "\n")
            (args.out / "gpu_suite.txt").write_text(text_of(results))
            print(json.dumps({"section": section, **row}), flush=True)
    (args.out / "gpu_suite.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.out)
    print("\n" + text_of(results))


if __name__ == "__main__":
    main()
