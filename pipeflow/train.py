"""python -m pipeflow.train: the command; everything it does is `pipeflow.fit`."""

import sys
from collections.abc import Sequence

from .config import parse
from .fit import fit
from .join import JoinError
from .world import leave_the_word_to_rank_0


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains; returns the exit code: 0, 2 for what the user can put right, 1 for a run that broke, 130 for Ctrl-C."""
    try:
        fit(parse(arguments))
    except ValueError as error:
        leave_the_word_to_rank_0()
        print(f"pipeflow: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    except (FloatingPointError, ConnectionError, JoinError) as error:
        print(f"pipeflow: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("pipeflow: interrupted; the checkpoints of the phases that ended are whole.", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
