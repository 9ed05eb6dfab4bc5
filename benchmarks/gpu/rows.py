"""One row of the GPU suite, in a process of its own: `python rows.py KIND '{"option": …}'` prints its figures as JSON.

It is started by its path, with the checkout to be measured on PYTHONPATH, so that the same rows can be taken of an
older pipeflow: `benchmarks.lib`, `benchmarks.speed` and `pipeflow` are those of that checkout.
"""

import gc
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.timing import now, seconds_per_call, synchronise
from benchmarks.lib.workload import Workload

Row = dict[str, Any]
ROOT = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])  # the checkout that is measured


class NotMeasured(Exception):
    """A row that cannot be measured here; says why."""


# --- what is measured; each function returns the figures of a row


def hardware(device: str) -> Row:
    """The card, and the versions of what computes on it."""
    found: Row = {"device": device, "torch": torch.__version__, "python": sys.version.split()[0]}
    if torch.device(device).type == "cuda":
        card = torch.cuda.get_device_properties(torch.device(device))
        found |= {"device": card.name, "memory_bytes": card.total_memory, "multiprocessors": card.multi_processor_count}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["gpus"] = torch.cuda.device_count()
    return found


def pytest(device: str, file: str) -> Row:
    """The tests of one file that compute on a device."""
    command = [sys.executable, "-m", "pytest", file, "--device", device, "-q", "-rfEs", "--durations=0", "--tb=short"]
    command += ["-p", "no:cacheprovider", "-o", "addopts=", "-m", "not slow"]  # in one process, since there is one GPU
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (\w+)", lines[-1] if lines else "")}
    row = {kind: counts.get(kind, 0) for kind in ("passed", "failed", "errors", "skipped")}
    row["errors"] += counts.get("error", 0)
    row["said"] = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    if done.returncode not in (0, 5):  # 5: the file has no test for this device
        row["output"] = (done.stdout + done.stderr)[-6000:]
    return row


def ceiling(workload: Workload, seconds: float, matrix: int, copy_bytes: int) -> Row:
    """Bytes per second of a copy on the device; operations per second of one large matrix product, by precision."""
    device = workload.torch_device
    source = torch.zeros(copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    row: Row = {"bytes_per_s": 2 * copy_bytes / seconds_per_call(lambda: target.copy_(source), device, seconds / 4)}
    for precision in ("fp32", "tf32", "bf16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        a, b = (torch.randn(matrix, matrix, device=device, dtype=dtype) for _ in range(2))
        row[f"flops_{precision}"] = 2 * matrix**3 / seconds_per_call(lambda a=a, b=b: a @ b, device, seconds / 4)  # type: ignore[misc]
    return row


def ladder(workload: Workload, seconds: float, cuda_graphs: bool = False) -> Row:
    """Training steps of the whole flow, end to end, in one process: speed, memory, and what the device is given."""
    device = workload.torch_device
    if cuda_graphs and device.type != "cuda":
        raise NotMeasured("there is no GPU here")
    start = time.perf_counter()
    stage = workload.training_stage(cuda_graphs=cuda_graphs)
    stage.tick().figures.read()
    row: Row = {"to_first_step_s": time.perf_counter() - start}
    step_s = seconds_per_call(stage.tick, device, seconds)
    row |= {"step_s": step_s, "images_per_s": workload.batch / step_s, **_operations(workload, step_s)}
    start, ticks = now(device), 3
    for _ in range(ticks):
        stage.tick()
    row["host_s"] = (time.perf_counter() - start) / ticks
    row |= _peak(device, stage.tick) | kernels(device, stage.tick)
    row["bits_per_dim"] = stage.tick().bits_per_dim
    return row


def _operations(workload: Workload, step_s: float) -> Row:
    from benchmarks.step.matrix_products import matrix_products, operations

    return {"operations_per_s": operations(matrix_products(workload)) / step_s}


def _peak(device: torch.device, work: Callable[[], Any]) -> Row:
    if device.type != "cuda":
        return {}
    torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronise(device)
    return {
        "resident_bytes": torch.cuda.memory_allocated(device),
        "peak_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.memory_reserved(device),
    }


def kernels(device: torch.device, work: Callable[[], Any], steps: int = 2) -> Row:
    """Kernels and copies per step, the share of the time in which the device is busy, and the kernels that take most.

    On the CPU the operations of PyTorch stand in for kernels.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        start = now(device)
        for _ in range(steps):
            work()
        seconds = now(device) - start
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    count: Counter[str] = Counter()
    microseconds: Counter[str] = Counter()
    for event in profiler.events() or []:
        if event.device_type == wanted:
            count[event.name] += 1
            microseconds[event.name] += event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
    most = [
        {"name": name[:90], "count": count[name] / steps, "ms": microseconds[name] / steps / 1e3}
        for name, _ in microseconds.most_common(12)
    ]
    busy = sum(microseconds.values()) / 1e6 / seconds
    return {"kernels": sum(count.values()) / steps, "busy_while_profiled": busy, "most": most}


def split(workload: Workload, seconds: float, parts: int, processes: int) -> Row:
    """Simultaneous training: every part learns from every batch; the cut is balanced by measured step times."""
    from dataclasses import replace

    from benchmarks.speed.runner import Runner

    cut = workload.balanced(parts)
    cut = replace(cut, device=workload.device)
    with Runner(cut, processes, timeout_s=120) as runner:
        found = runner.measure("parts", {}, seconds, least=3)
    return {"cut": list(cut.cut), "step_s": found["step_s"], "images_per_s": found["images_per_s"]}


def memory(workload: Workload, seconds: float) -> Row:
    """What a way to keep activations costs: bytes and time, and how far an inverted input drifts."""
    device, stage = workload.torch_device, workload.training_stage()
    packet = stage.inbox.recv()
    row: Row = {"kept_bytes": kept_bytes(stage.truncated, packet), "drift": stage.truncated.part.drift(packet)}
    del packet
    row["step_s"] = seconds_per_call(stage.tick, device, seconds)
    return row | _peak(device, stage.tick)


def kept_bytes(module: torch.nn.Module, packet: Any) -> int:
    """Bytes that a forward pass keeps for the backward pass, besides parameters and the packet."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers(), *packet[:2]]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = module(packet)
    del result
    return sum(kept.values())


def largest(workloads: list[Workload], attribute: str) -> Row:
    """The last workload of which a step fits into the device's memory; one that takes over 20 s ends the search."""
    device, fits = workloads[0].torch_device, None
    if device.type != "cuda":
        raise NotMeasured("there is no GPU here")
    for workload in workloads:
        start = time.perf_counter()
        try:
            workload.training_stage().tick().figures.read()
            synchronise(device)
        except torch.OutOfMemoryError:
            return {"fits": fits, "why_not_more": "the next runs out of memory"}
        gc.collect()
        torch.cuda.empty_cache()
        fits = getattr(workload, attribute)
        if time.perf_counter() - start > 20:
            return {"fits": fits, "why_not_more": "a step of the next was not waited for"}
    return {"fits": fits, "why_not_more": "the largest that was tried"}


def normflows(workload: Workload, seconds: float) -> Row:
    """Steps of normflows' Glow, as its own example builds it, in fp32, on the same images; no learned split prior."""
    if importlib.util.find_spec("normflows") is None:
        raise NotMeasured("normflows is not installed here")
    from benchmarks.step.peer_glows import in_normflows

    torch.backends.cudnn.allow_tf32 = False
    device = workload.torch_device
    flow = in_normflows(workload, use_lu=True).to(device)
    optimizer = torch.optim.Adam(flow.parameters(), workload.lr, fused=device.type == "cuda")
    batches = workload.batches()

    def step() -> None:
        optimizer.zero_grad()
        (-flow(batches.recv().z).mean()).backward()
        optimizer.step()

    seconds = seconds_per_call(step, device, seconds)
    return {"step_s": seconds, "images_per_s": workload.batch / seconds}


# --- small runs of `pipeflow.train`, of which all processes take the same GPU

PHASES = [
    {"schedule": "simultaneous", "steps": 24, "lr": 1e-3, "warmup_steps": 4, "clip": 10.0},
    {"schedule": "end_to_end", "steps": 8, "lr": 1e-3},
]


def train(device: str, processes: int, words: list[str], runs: str, name: str, reference: str | None = None) -> Row:
    """A run on the digits, and how far its losses by parts and its test bits/dim are from those of another run.

    Args:
        device: cuda or cpu.
        processes: how many; without torchrun.
        words: settings, besides those that all runs share.
        runs: the directory of the runs.
        name: of this run's directory.
        reference: name of the run of one process that it is compared with, which is made if it is not there.
    """
    directory = Path(runs) / name
    start = time.perf_counter()
    said = _wait(_start(device, processes, [*words, "--run_dir", str(directory)]), 100)
    result = json.loads((directory / "result.json").read_text())
    row = {"seconds": time.perf_counter() - start, "test_bits_per_dim": result["test_bits_per_dim"]}
    if (at := said[0].find("cuda_graphs")) >= 0:
        row["said"] = said[0][max(0, at - 100) : at + 300]
    if reference:
        if not (Path(runs) / reference / "result.json").is_file():
            train(device, 1, [], runs, reference)
        there_result = json.loads((Path(runs) / reference / "result.json").read_text())
        row["test_difference"] = result["test_bits_per_dim"] - there_result["test_bits_per_dim"]
        here, there = _losses(directory), _losses(Path(runs) / reference)
        shared = here.keys() & there.keys()
        row["losses"] = len(shared)
        row["equal_losses"] = sum(here[key] == there[key] for key in shared)
        row["largest_difference"] = max((abs(here[key] - there[key]) for key in shared), default=None)
    return row


def fault(device: str, processes: int, words: list[str], runs: str, name: str, number: str) -> Row:
    """A run of which the second process is killed or stopped: how the others end, after how long, and what they say."""
    directory = Path(runs) / name
    phases = json.dumps([{"schedule": "simultaneous", "steps": 1_000_000, "lr": 1e-5}])
    words = [*words, "--phases", phases, "--run_dir", str(directory), "--max_bad_steps", "1000000"]
    started = _start(device, processes, [*words, "--parallel.timeout_s", "8", "--parallel.heartbeat_s", "1"])
    stream, until = directory / "metrics" / "part-1.jsonl", time.monotonic() + 60
    while not (stream.is_file() and stream.stat().st_size > 2000) and started[0].poll() is None:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    started[1].send_signal(getattr(signal, number))
    begin = time.perf_counter()
    others = [process for process in started if process is not started[1]]
    for process in others:
        try:
            process.wait(max(1.0, 60 - (time.perf_counter() - begin)))
        except subprocess.TimeoutExpired:
            break
    row: Row = {"seconds_to_end": time.perf_counter() - begin, "codes": [process.poll() for process in others]}
    for process in started:
        process.kill()
    texts = [process.communicate()[1] for process in others]
    row["sentences"] = [line for text in texts for line in text.splitlines() if line.startswith("pipeflow: ")]
    if not row["sentences"]:
        row["output"] = texts[0][-2000:]
    return row


def _start(device: str, processes: int, words: list[str]) -> list[subprocess.Popen[str]]:
    from benchmarks.lib.torchrun import free_port

    common = ["--device", device, "--glow.levels", "2", "--glow.steps", "3", "--glow.hidden", "16"]
    common += ["--glow.top_prior", "learned", "--cut.scheme", "explicit", "--cut.parts", "3", "--cut.at", "[1,4]"]
    common += ["--data.batch", "12", "--data.init_batch", "48", "--eval_every", "1e9"]
    common += ["--phases", json.dumps(PHASES), *_deterministic()]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    variables["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # all share it
    started = []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        given = {**os.environ, **variables, **{key: str(value) for key, value in ranks.items()}}
        given["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, "-m", "pipeflow.train", *common, *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=given, cwd=ROOT, **pipes))
    return started


def _deterministic() -> list[str]:
    from pipeflow.config import Config

    return ["--deterministic", "true"] if "deterministic" in Config.__dataclass_fields__ else []


def _wait(started: list[subprocess.Popen[str]], seconds: float) -> list[str]:
    """What the processes printed; a RuntimeError with the last lines of the first that failed, or hung."""
    until, texts, causes = time.monotonic() + seconds, [], []
    for rank, process in enumerate(started):
        try:
            out, errors = process.communicate(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
            errors += f"\nstill running after {seconds:.0f} s"
        texts.append(out)
        if process.returncode:
            causes.append(f"rank {rank}, exit code {process.returncode}: {errors.strip()[-1500:]}")
    if causes:
        raise RuntimeError(" | ".join(causes))
    return texts


def _losses(run: Path) -> dict[tuple[str, int], float]:
    """(part, step) → loss while it trains by parts; end to end a process writes the loss of its share of a batch."""
    files = (run / "metrics").glob("part-*.jsonl")
    lines = ((file.stem, json.loads(line)) for file in files for line in file.read_text().splitlines())
    return {(name, line["step"]): line["bits_per_dim"] for name, line in lines}


# ---


def _workload(given: dict[str, Any]) -> Workload:
    return Workload(**{**given, "cut": tuple(given.get("cut", ()))})


def _arguments(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if name == "workload":
            yield name, _workload(value)
        elif name == "workloads":
            yield name, [_workload(each) for each in value]
        else:
            yield name, value


KINDS: dict[str, Callable[..., Row]] = {
    function.__name__: function
    for function in (hardware, pytest, ceiling, ladder, split, memory, largest, normflows, train, fault)
}


def main() -> None:
    kind, given = KINDS[sys.argv[1]], json.loads(sys.argv[2])
    if given.pop("one_thread", False):
        torch.set_num_threads(1)
    try:
        row = kind(**dict(_arguments(given)))
    except NotMeasured as reason:
        row = {"not_measured": str(reason)}
    except torch.OutOfMemoryError:
        row = {"not_measured": "out of memory"}
    except Exception as error:
        row = {"not_measured": f"{type(error).__name__}: {' '.join(str(error).split())[-3000:]}"}
    print("\n" + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
