"""TensorBoard events of one part, beside its JSONL stream, for people who have a browser open anyway."""

from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ..stage import Report

_EVERY = 10


class Board:
    """Writes `tensorboard/<name>/` of a run; made for "part-<k>", "end_to_end" and, by the first process, "model".

    Args:
        directory: of the run.
        name: of the part, or of what else is shown.
        step: at which the run begins or goes on; what was written behind it is hidden.
    """

    def __init__(self, directory: Path, name: str, step: int) -> None:
        self._writer = SummaryWriter(str(directory / "tensorboard" / name), purge_step=step + 1)

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
            self._writer.add_scalar(name, value, step)

    def sheet(self, step: int, images: Tensor, levels: int) -> None:
        """Images (B, C, H, W) uint8 with `levels` values of a pixel."""
        self._writer.add_images("samples", images.float().div(levels - 1).clamp(0, 1), step)

    def flush(self) -> None:
        """Makes what was written visible to readers."""
        self._writer.flush()

    def close(self) -> None:
        """Ends the events."""
        self._writer.close()
