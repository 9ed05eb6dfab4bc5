"""A process that has imported everything and waits beside the one that trains, to start it again where it dies.

Most of what a fault costs is the start of Python and the import of PyTorch. The process that waits has both behind it,
has computed nothing and runs no threads, so a fork of it goes to work at once, on memory that the two share.
"""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import torch

from .launch import RESTARTS, launch_name

_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1)


def run_in_child(work: Callable[[], int], restarts: int, final: tuple[int, ...]) -> int:
    """Does the work in a forked process, and again in another one after a fault.

    SIGTERM and SIGUSR1 go on to the child, which is not started again after one, nor where the process is gone that has
    started this one: torchrun, and with it the store. The child gets SIGKILL if this process ends.

    Args:
        work: returns an exit code.
        restarts: how often it is started again at most; with 0 the work is done here.
        final: exit codes after which it is not started again.

    Returns:
        The exit code of the last child; 128 + n where signal n ended it.
    """
    if not restarts:
        return work()
    launch_name()  # asked here, since a child would name itself
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # PyTorch imports its compiler when an optimizer is made
    child, asked, before, starter = 0, False, int(os.environ.get(RESTARTS, "0")), os.getppid()
    code = -signal.SIGTERM  # of a child that was never begun

    def forward(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if child:
            with suppress(ProcessLookupError):
                os.kill(child, number)

    handlers = {number: signal.signal(number, forward) for number in _FORWARDED}
    handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    try:
        for restart in range(restarts + 1):
            parent = os.getpid()
            _flush()
            signal.pthread_sigmask(signal.SIG_BLOCK, handlers)  # until it is known which process this is
            if asked:  # since the last look at it
                signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
                break
            child = os.fork()
            if not child:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
                os.environ[RESTARTS] = str(before + restart)
                _live(work, parent)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            child = 0
            if code in final or asked or os.getppid() != starter:
                break
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _live(work: Callable[[], int], parent: int) -> NoReturn:
    """The child's life, which ends here: nothing of the caller's goes on in it."""
    code = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            _flush()
        finally:
            os._exit(code)


def _flush() -> None:
    """Writes out what has been printed, as far as there is anybody to read it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
