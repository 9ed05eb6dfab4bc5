"""`pipeflow.train` that says when: each process appends to stamps-<rank>.jsonl and first-<rank>.f64 in its folder.

    torchrun … -m benchmarks.robustness.stamped_train FOLDER --run_dir DIR …

A line of the first is a life of the process: when it began, when it had imported, met the others, loaded its state and
begun its first batch. The second is an array that outlives every process: when batch n was begun for the first time.
"""

import json
import os
import sys
import time
from pathlib import Path

BEGAN = time.time()


def started() -> float:
    """When this process was started, to 10 ms."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.time() - float(Path("/proc/uptime").read_text().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")


class Stamps:
    """What a process says of its life, in the order in which it comes."""

    def __init__(self, folder: Path, rank: str) -> None:
        self.file, self.rank = folder / f"stamps-{rank}.jsonl", rank

    def say(self, **fields: float) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps({"pid": os.getpid(), **fields}) + "\n")

    def after(self, owner: object, name: str, stamp: str) -> None:
        """Stamps every return of `owner.name`."""
        real = getattr(owner, name)

        def call(*given: object, **more: object) -> object:
            answer = real(*given, **more)
            self.say(**{stamp: time.time()})
            return answer

        setattr(owner, name, call)


def main() -> int:
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    from importlib import import_module

    import numpy as np

    train, fit = import_module("pipeflow.train"), import_module("pipeflow.training.fit")
    stop = import_module("pipeflow.distributed").Stop
    stamps, settle, before = Stamps(folder, rank), train.settle, stop.before
    first = np.memmap(folder / f"first-{rank}.f64", np.float64, "r+")
    stepping: set[int] = set()

    def begins(*given: object) -> object:  # a forked process, too, comes here first
        stamps.say(started=started(), began=max(BEGAN, started()), imported=time.time())
        return settle(*given)

    def batch(self: object, step: int) -> None:
        if not first[step]:
            first[step] = time.time()
        if os.getpid() not in stepping:
            stepping.add(os.getpid())
            stamps.say(stepping=time.time())
        before(self, step)

    train.settle, stop.before = begins, batch
    stamps.after(train, "open_world", "met")
    stamps.after(fit, "prepare", "loaded")
    stamps.after(fit, "come_back", "loaded")
    return int(train.main(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
