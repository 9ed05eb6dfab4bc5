"""python -m pipeflow.train: trains a run, as `pipeflow.fit` does; a script with its own flow or data calls `main`."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from .cli import FINAL, run_training
from .config import Config, settle, settled_restarts
from .data import Splits
from .distributed import World, open_world, prepare_process, run_in_child
from .model import Maker
from .storage import claim, release
from .training import fit


def main(
    arguments: Sequence[str] | None = None,
    base: Config | None = None,
    flow: Maker | None = None,
    data: Splits | None = None,
) -> int:
    """Trains; returns the exit code, as `run_training` does.

    Args:
        arguments: of the command line; the process's own by default.
        base: the settings that they override; the quickstart by default.
        flow, data: of a script's own, as for `pipeflow.fit`.
    """

    def prepare() -> tuple[World, Callable[[], Any]]:
        config, resume = settle(arguments, base, claim)
        world = open_world(config.parallel, config.cut.parts, config.device)
        prepare_process(config.parallel.threads, world.device)
        return world, lambda: fit(config, world, resume, flow, data)

    return run_in_child(lambda: run_training(prepare, release), settled_restarts(arguments, base), FINAL)


if __name__ == "__main__":
    sys.exit(main())
