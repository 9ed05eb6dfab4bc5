"""python -m pipeflow.train: the command; everything it does is `pipeflow.fit`.

A script with a flow of its own is the same command: it calls `main` with its settings, its flow and its data.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial

from .cli import leave_the_word_to_rank_0, tell
from .config import Config, settle
from .data import Splits
from .distributed import Watch, open_world, prepare_process
from .errors import LostError
from .model import Maker
from .storage import claim, release
from .training import fit


def main(
    arguments: Sequence[str] | None = None,
    base: Config | None = None,
    flow: Maker | None = None,
    data: Splits | None = None,
) -> int:
    """Trains; returns the exit code that `fault.tell` lists.

    Args:
        arguments: of the command line; the process's own by default.
        base: the settings that they override; the quickstart by default.
        flow, data: of a script's own, as for `pipeflow.fit`.
    """
    try:
        words = sys.argv[1:] if arguments is None else arguments
        config, resume = settle(words, base, partial(claim, rank=int(os.environ.get("RANK", "0"))))
        world = open_world(config.parallel, config.cut.parts, config.device)
        prepare_process(config.parallel.threads, world.device)
    except LostError as error:
        release()
        print(f"pipeflow: {error}", file=sys.stderr, flush=True)
        return 1
    except ValueError as error:
        release()
        leave_the_word_to_rank_0()
        print(f"pipeflow: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    with Watch(world) as watch:
        try:
            fit(config, world, resume, flow, data)
        except (Exception, KeyboardInterrupt) as error:
            return tell(world, watch, error)
    world.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
