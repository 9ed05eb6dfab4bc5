"""TensorBoard events of one part, beside its JSONL stream, for people who have a browser open anyway.

`SummaryWriter` writes from a thread of its own, which prints a traceback when the run directory is gone or the disk is
full. These files are written by the loop, which says in one sentence what went wrong.
"""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import image, scalar

from ..stage import Report

_EVERY = 10


class Board:
    """Writes TensorBoard events; made for each part, for "end_to_end" and, by the first process, for "model".

    Args:
        folder: of the events.
        step: at which the run begins or goes on; what was written after it is hidden.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((folder / name).open("xb"))
        self._write(step + 1, file_version="brain.Event:2")
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def tick(self, step: int, report: Report) -> None:
        """Every tenth batch: bits/dim, and the seconds that waiting, computing and sending took."""
        if step % _EVERY == 0:
            self.figures(
                step,
                {
                    "train/bits_per_dim": report.bits_per_dim,
                    "seconds/wait": report.wait_s,
                    "seconds/compute": report.compute_s,
                    "seconds/send": report.send_s,
                },
            )

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Name → value, at a step."""
        for name, value in figures.items():
            self._write(step, summary=scalar(name, value))  # type: ignore[no-untyped-call]

    def sheet(self, step: int, images: Tensor, levels: int) -> None:
        """Images (B, C, H, W) uint8 with `levels` values of a pixel."""
        shown = images.float().div(levels - 1).clamp(0, 1)
        self._write(step, summary=image("samples", shown.numpy()))  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Makes what was written visible to readers."""
        self._writer.flush()

    def close(self) -> None:
        """Ends the events."""
        self._writer.close()

    def _write(self, step: int, **content: object) -> None:
        self._writer.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
