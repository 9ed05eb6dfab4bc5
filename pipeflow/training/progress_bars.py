"""One line per part on the terminal of the first process, while a run works.

Every process leaves a note of the latest figures of its parts now and then, and the first process draws them: control
traffic of a hundred bytes, never on a data link.
"""

import sys
import time

from tqdm import tqdm

from ..distributed import World
from ..stage import Report

_EVERY_S = 0.5


class ProgressBars:
    """One line per part on the first process; silent where standard error is no terminal.

    Args:
        world: the processes.
        names: of the lines, and of the notes that feed them: "part-1", … or "end_to_end".
        total: batches in the phase.
        batch: images per batch.
    """

    def __init__(self, world: World, names: list[str], total: int, batch: int) -> None:
        self._world, self._names, self._batch = world, names, batch
        self._last_note: dict[str, tuple[float, int]] = {}
        self._drawn = time.perf_counter()
        shown = world.rank == 0 and sys.stderr.isatty()
        self._bars = [
            tqdm(total=total, desc=name, position=row, unit="batch", disable=not shown, mininterval=_EVERY_S)
            for row, name in enumerate(names)
        ]

    def report(self, name: str, done: int, report: Report) -> None:
        """Takes in a tick of one of this process's parts: `done` batches of the phase are done."""
        now = time.perf_counter()
        then, before = self._last_note.setdefault(name, (now, done))
        if now - then >= _EVERY_S:
            rate = (done - before) * self._batch / (now - then)
            self._last_note[name] = (now, done)
            waits = report.wait_s / max(1e-9, report.wait_s + report.send_s + report.compute_s)
            text = f"{report.bits_per_dim:.4f} bits/dim, {rate:.0f} images/s, waits {100 * waits:.0f} %, "
            self._world.store.set(name, [done, f"{text}{report.in_flight} in flight"])
        if self._world.rank == 0 and now - self._drawn >= _EVERY_S:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.perf_counter()
        if self._bars[0].disable:
            return
        for bar, name in zip(self._bars, self._names, strict=True):
            if note := self._world.store.get(name):
                done, text = note
                bar.set_postfix_str(text, refresh=False)
                bar.update(done - bar.n)

    def close(self) -> None:
        """Removes the lines."""
        for bar in self._bars:
            bar.close()
