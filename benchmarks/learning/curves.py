"""The result of a run: its curve of test bits/dim against images, seconds and bytes, read from its metrics."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeflow.model import family_steps
from pipeflow.reporting import RunHistory, read_run

Result = dict[str, Any]
SETTLED = 100  # updates of a part, after which its worst loss is looked for


def read_result(run: Path, processes: int) -> Result:
    """Reads a run that is finished or has diverged (then the file "diverged" in it says how).

    Args:
        run: its directory.
        processes: between which its bytes are computed: those that it was spread over, or one per part.

    Returns:
        Either "failed", a sentence, or
        "final": bits/dim of the model on the test split, at the end;
        "validation": the same on the training images that were held out, None where none were;
        "best": the lowest of the curve;
        "curve": a dict per evaluation, on what was held out or else on the test split: "images" drawn so far,
            "seconds" of training without evaluations (meaningless if other runs shared the cores), "bytes" that
            processes have sent to each other (computed; None where `_bytes` does not know them), "bits_per_dim" of the
            model, or None before its last part has started,
            "truncated" after each part;
        "measured_bytes": what the sockets of all processes have sent, evaluations and control traffic included;
        "worst": highest finite training bits/dim of each part after its first updates;
        "skipped": batches whose loss or gradient was not finite.
    """
    if (run / "diverged").exists():
        return {"failed": (run / "diverged").read_text()}
    history = read_run(run)
    result = json.loads((run / "result.json").read_text())
    steps = [line["step"] for line in history.evaluations]
    seconds, sent = history.at(history.seconds, steps).tolist(), _bytes(history, processes, steps)
    curve = [
        {
            "images": line["step"] * history.config.data.batch,
            "seconds": seconds[number],
            "bytes": sent[number],
            "bits_per_dim": _finite(line["bits_per_dim"]),
            "truncated": [_finite(part["bits_per_dim"]) for part in line["parts"]],
        }
        for number, line in enumerate(history.evaluations)
    ]
    return {
        "final": result["test_bits_per_dim"],
        "validation": result.get("validation_bits_per_dim"),
        "best": min(point["bits_per_dim"] for point in curve if point["bits_per_dim"] is not None),
        "curve": curve,
        "measured_bytes": sum(result["bytes_sent"]),
        "images_per_s": result["images_per_s"],
        "worst": {stream.name: _worst(stream.bits[stream.learn][SETTLED:].tolist()) for stream in history.streams},
        "skipped": sum(stream.read_text().count('"bad": true') for stream in (run / "metrics").glob("*[0-9d].jsonl")),
    }


def summary(result: Result) -> dict[str, Any]:
    """A result in one line of a file: bits/dim, and seconds and bytes until the end."""
    if "failed" in result:
        return result
    last = result["curve"][-1]
    found = {"test": result["final"], **{name: result[name] for name in ("validation", "best", "skipped")}}
    curve = [[point["images"], point["bits_per_dim"]] for point in result["curve"]]
    return {**found, "seconds": round(last["seconds"], 2), "bytes": last["bytes"], "curve": curve}


def columns(result: Result, *keys: str) -> list[list[float]]:
    """Columns of a result's curve, from the first evaluation at which the model has bits/dim."""
    return [[point[key] for point in result["curve"] if point["bits_per_dim"] is not None] for key in keys]


def _bytes(history: RunHistory, processes: int, steps: list[int]) -> Sequence[float | None]:
    """Bytes that cross between processes until each step, computed: latents by parts, gradients end to end (DDP).

    A border within a process costs nothing. By parts, grids other than a chain with a process per part are not
    computed. An all-reduce of n bytes over N processes sends 2(N − 1)n bytes in all (ring; Patarasuk and Yuan,
    "Bandwidth optimal all-reduce algorithms", 2009). Left out is what is exchanged once, at the switch to end to end.
    """
    if processes == 1:
        return [0.0] * len(steps)
    config = history.config
    by_parts = any(phase.config.schedule != "end_to_end" for phase in history.phases)
    unlike = by_parts and (processes != config.cut.parts or config.parallel.replicas not in (None, 1))
    if unlike or config.end_to_end.engine != "ddp":
        return [None] * len(steps)
    assert history.sent is not None and history.newest is not None
    channels, height, width = history.newest.image
    flow = family_steps(history.config.family, (channels, height, width))
    weights = sum(parameter.numel() for step in flow for parameter in step.parameters())
    joined = [(phase.first, phase.last) for phase in history.phases if phase.config.schedule == "end_to_end"]
    shared = [sum(max(0, min(step, last) - first + 1) for first, last in joined) for step in steps]
    reduced = 2 * (processes - 1) * 4 * weights
    forward = history.at(history.sent, steps).tolist()
    return [ahead + reduced * count for ahead, count in zip(forward, shared, strict=True)]


def _finite(value: float | None) -> float | None:
    """For JSON, which has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _worst(losses: Iterable[float]) -> float | None:
    return max((loss for loss in losses if math.isfinite(loss)), default=None)
