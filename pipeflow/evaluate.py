"""python -m pipeflow.evaluate: bits/dim of a trained run on held-out images, and how sure each figure is.

Under torchrun, any number of processes share the images.
"""

import sys
from collections.abc import Callable, Sequence

from .cli import Options, run_in_world, words
from .data import Splits
from .distributed import World
from .inference import open_scoring_world, report_scores, scoring_options
from .model import Maker


def main(
    arguments: Sequence[str] | None = None,
    init_method: str = "env://",
    flow: Maker | None = None,
    data: Splits | None = None,
) -> int:
    """Evaluates; returns the exit code, as `run_in_world` does.

    `init_method` says where processes meet; `flow` and `data` are a script's own, as for `pipeflow.train.main`.
    """

    def prepare() -> tuple[World, Callable[[], None]]:
        parser = Options("pipeflow.evaluate", "Test bits/dim of a run's model and truncations.")
        options = scoring_options(parser, words(arguments))
        world = open_scoring_world(options, init_method)
        return world, lambda: report_scores(options, world, flow, data)

    return run_in_world(prepare, "--batch")


if __name__ == "__main__":
    sys.exit(main())
