"""Errors of the transport → `LostError`, once, where they arise.

gloo, NCCL and the store report a lost peer as a RuntimeError with C++ source lines and advice in it. Nobody above this
module reads such text: a `LostError` says in fields which process did not answer, and whether it was out of time.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ..errors import LostError
from .heartbeat import EVERYONE, Pulse


def lost_error(
    sentence: str, error: Exception, rank: int | None = None, kind: type[LostError] = LostError
) -> LostError:
    """The error of a transport as a LostError.

    Args:
        sentence: what was not done for want of the other process.
        error: its words are kept, its source lines and advice are not.
        rank: of the other process, where it is known.
        kind: LostError or a kind of it.

    Raises:
        torch.AcceleratorError, torch.OutOfMemoryError: the error itself, where it is this process's own device. Both
            are RuntimeErrors as the transports' are, and an asynchronous one surfaces in whatever comes next.
    """
    if isinstance(error, torch.AcceleratorError | torch.OutOfMemoryError):
        raise error
    words = re.sub(r"\[[^\]]*\.cc:\d+\]\s*|\. This is typically.*", "", " ".join(str(error).split()))
    timed_out = bool(re.search("timed out|timeout", words, re.IGNORECASE))
    return kind(f"{sentence}: {words}" if words else sentence, rank, timed_out)


@contextmanager
def others_answer(pulse: Pulse, sentence: str, rank: int = EVERYONE) -> Iterator[None]:
    """While the block runs, this process waits for others, one or all; computations may be part of the block.

    Raises:
        LostError: in place of an error of the transport. All other errors pass unchanged.
    """
    try:
        with pulse.waiting(rank):
            yield
    except RuntimeError as error:
        # A DistError is raised by NCCL's older backend, a plain RuntimeError ("NCCL Async Error: …") by the newer one.
        if isinstance(error, dist.DistError) or re.search("gloo/|nccl|NCCL", str(error)):
            raise lost_error(sentence, error, None if rank == EVERYONE else rank) from error
        raise
