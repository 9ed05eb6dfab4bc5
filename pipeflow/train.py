"""python -m pipeflow.train: the command; everything it does is `pipeflow.fit`."""

import sys
from collections.abc import Sequence

from .fault import tell
from .resume import settle
from .trainer import fit
from .watch import Watch
from .world import LostError, leave_the_word_to_rank_0, open_world


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains; returns the exit code that `fault.tell` lists."""
    try:
        config, resume = settle(sys.argv[1:] if arguments is None else arguments)
        world = open_world(config.parallel, config.cut.parts, config.device)
    except LostError as error:
        print(f"pipeflow: {error}", file=sys.stderr, flush=True)
        return 1
    except ValueError as error:
        leave_the_word_to_rank_0()
        print(f"pipeflow: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    with Watch(world) as watch:
        try:
            fit(config, world, resume)
        except (Exception, KeyboardInterrupt) as error:
            return tell(world, watch, error)
    world.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
