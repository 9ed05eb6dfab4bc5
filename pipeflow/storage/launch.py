"""Which launch has begun or resumed a run: only processes that it starts again go on with the run by themselves.

A worker that is started again has the command line of its first life, which does not say that there is a run by now.
That there is one does not tell, either: it may be an older one, which the first life has refused to write over.
"""

import json
import os
from pathlib import Path

from ..distributed import RESTARTS, launch_name
from .files import read_plain, write_whole
from .run_directory import RunDirectory


def note_launch(directory: Path, names: list[str]) -> None:
    """Writes that a launch begins or resumes the run in a directory: the `launch_name` of each of its processes."""
    write_whole(RunDirectory(directory).launch, json.dumps(sorted(set(names))) + "\n")


def is_later_life(directory: Path) -> bool:
    """Whether this process was started again by the launch that has begun or resumed the run in a directory last."""
    if not int(os.environ.get(RESTARTS, "0")):
        return False
    try:
        names = json.loads(read_plain(RunDirectory(directory).launch))
    except (OSError, ValueError, RecursionError):  # a run of an earlier version has no such file
        return False
    return isinstance(names, list) and launch_name() in names
