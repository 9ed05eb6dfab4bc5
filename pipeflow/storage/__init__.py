"""What a run leaves on disk, and how it is read back."""

from .async_saver import Saver
from .checkpoint import CheckpointConfig, Manifest, run_of
from .jsonl import Stream, largest, rewind
from .run_lock import claim, release
from .verify import check_own, check_tensors, is_provisional, owner_of

__all__ = [
    "CheckpointConfig",
    "Manifest",
    "Saver",
    "Stream",
    "check_own",
    "check_tensors",
    "claim",
    "is_provisional",
    "largest",
    "owner_of",
    "release",
    "rewind",
    "run_of",
]
