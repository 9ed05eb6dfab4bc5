"""python -m pipeflow.sample: one picture of what a flow draws, or of what it makes of test images.

Under torchrun, as many processes as the flow has parts, or fewer, load their own parts alone.
"""

import sys
from collections.abc import Callable, Sequence

from .cli import Options, run_in_world, words
from .data import Splits
from .distributed import World
from .inference import open_sampling_world, sampling_options, write_sheet
from .model import Maker


def main(
    arguments: Sequence[str] | None = None,
    init_method: str = "env://",
    flow: Maker | None = None,
    data: Splits | None = None,
) -> int:
    """Draws; returns the exit code, as `run_in_world` does.

    `init_method` says where processes meet; `flow` and `data` are a script's own, as for `pipeflow.train.main`.
    """

    def prepare() -> tuple[World, Callable[[], None]]:
        parser = Options("pipeflow.sample", "A picture of what a trained flow draws.")
        options = sampling_options(parser, words(arguments))
        world = open_sampling_world(options, init_method)
        return world, lambda: write_sheet(options, world, flow, data)

    return run_in_world(prepare, "--images")


if __name__ == "__main__":
    sys.exit(main())
