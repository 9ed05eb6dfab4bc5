"""What a run leaves on disk, and how it is read back."""

from .async_saver import Saver
from .checkpoint import CheckpointConfig
from .files import Stream, read_plain, rewind, write_whole
from .launch import is_later_life, note_launch
from .manifest import EndedPhase, Manifest, check_own
from .run_directory import CHECKPOINTS, END_TO_END, EVALUATION, MANIFEST, MODEL, RunDirectory, part_stream, run_of
from .run_lock import claim, release
from .verify import check_names, check_values, is_provisional, owner_of
