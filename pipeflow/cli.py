"""What ended a run → one line, said by one process, and an exit code.

N processes notice the end of a run in N ways: one raises, its neighbours lose a connection, the others wait. The first
to claim the report prints what happened, where and why; the rest end silently.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch

from .distributed import Watch, World, blame, last_sign
from .errors import JoinError, LostError, SaveError, StopRequested

STOPPED = 75
"""Exit code of a run that was asked to stop and saved itself (EX_TEMPFAIL of sysexits.h: try again)."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
FINAL = (0, 2, STOPPED, INTERRUPTED)
"""Exit codes after which the same command is not tried again."""


def report_end(world: World, error: BaseException) -> int:
    """Prints what ended a run, if no other process has done so; returns the exit code.

    0 is a finished run, 2 what the user can put right, 75 a run that was asked to stop and saved itself, 130 Ctrl-C, 1
    everything else.
    """
    line, code = _line(world, error)
    if world.store.claim(line):
        if not isinstance(error, _EXPECTED) and not _out_of_memory(error):
            traceback.print_exception(error)
        print_error(line)
    return code


_LONGEST = 900  # characters of a sentence: what a file says is part of it
_EXPECTED = (ValueError, FloatingPointError, JoinError, OSError, StopRequested, KeyboardInterrupt)


def _out_of_memory(error: BaseException) -> bool:
    """Whether this process or its device has no memory left; on the CPU, PyTorch has no exception of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _line(world: World, error: BaseException) -> tuple[str, int]:
    here = f"{world.describe()}, step {world.pulse.step}"
    match error:
        case StopRequested():
            return f"{error}; --resume auto goes on from its checkpoint", STOPPED
        case KeyboardInterrupt():
            return f"{here}: interrupted; --resume auto goes on from the newest checkpoint", INTERRUPTED
        case ValueError():
            return str(error), 2
        case LostError():
            return _lost(world, here, error), 1
        case FloatingPointError() | JoinError() | SaveError():
            return str(error), 1
        case OSError(filename=str(file), strerror=str(why)):
            return f"{here}: {file}: {why}", 1
        case OSError():
            return f"{here}: {error}", 1
        case _ if _out_of_memory(error):
            less = "a smaller data.batch or more parallel.micro_batches need less"
            return f"{here}: there is not enough memory; {less}", 1
        case _:
            return f"{here}: {type(error).__name__}: {error}".removesuffix(": "), 1


def _lost(world: World, here: str, error: LostError) -> str:
    """Names the process that is to blame, not the one that noticed."""
    try:
        # A process that closed a connection is gone itself: one that ends for want of another has reported that before.
        # Its last sign of life may be of a moment when it waited.
        rank = blame(world, error.rank) if error.timed_out or error.rank is None else error.rank
        sign = None if rank is None else last_sign(world.store, rank)
    except LostError:  # not even the store answers
        rank = sign = None
    if rank is None:
        return f"{here}: {error}"
    if error.timed_out:
        what = f"hangs, nothing came for {world.config.timeout_s:g} s (parallel.timeout_s)"
        step: int | str = sign.step if sign else "?"
    else:
        what, step = "its process is gone", world.pulse.step
    return f"{world.describe(rank)}, step {step}: {what}; noticed by {here}: {error}"


def print_error(error: BaseException | str) -> None:
    """Prints a command's one line about what is wrong."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    print(f"pipeflow: {text}", file=sys.stderr, flush=True)


def run_training(prepare: Callable[[], tuple[World, Callable[[], object]]], on_refusal: Callable[[], None]) -> int:
    """Runs a command that trains, in as many processes as there are; returns 0 or a code of `report_end`.

    `prepare` opens the world, and returns it and the work that all its processes do; `on_refusal` is called where it
    fails.
    """
    try:
        world, work = prepare()
    except (ValueError, OSError) as error:
        on_refusal()
        return _refuse(error)
    code = 0
    with Watch(world):
        try:
            work()
        except (Exception, KeyboardInterrupt) as error:
            code = report_end(world, error)
    if code:
        return _leave(world, code)
    world.close()
    return 0


def _leave(world: World, code: int) -> int:
    """Ends this process at once if it is one of several on GPUs; else returns its exit code.

    A kernel of NCCL that waits for a process that is lost runs for ever, and would hold the interpreter's own exit.
    """
    if world.device.type == "cuda" and world.size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run_in_world(prepare: Callable[[], tuple[World, Callable[[], None]]], option_for_less: str) -> int:
    """Runs a command that scores or draws, in as many processes as there are.

    `prepare` is as for `run_training`; `option_for_less` makes the work need less memory, such as "--batch".

    Returns:
        0, 1 if a process is gone, 2 for what the user can put right, 130 for Ctrl-C.
    """
    try:
        world, work = prepare()
    except (ValueError, OSError) as error:
        return _refuse(error)
    try:
        work()
    except (ValueError, OSError, MemoryError, RuntimeError, KeyboardInterrupt) as error:
        if isinstance(error, RuntimeError) and not _out_of_memory(error):
            raise
        line, code = str(error), 1 if isinstance(error, LostError) else 2
        if isinstance(error, KeyboardInterrupt):
            line, code = "interrupted", INTERRUPTED
        if _out_of_memory(error):
            line = f"The device has no memory for so many images at a time; give a smaller {option_for_less}."
        if world.store.claim(line):
            print_error(line)
        return code
    world.close()
    return 0


def _refuse(error: ValueError | OSError) -> int:
    """Prints what is wrong before there is a world; returns the exit code."""
    if not isinstance(error, LostError):
        wait_so_only_rank_0_prints()
    print_error(error)
    return 1 if isinstance(error, LostError) else 2


class Options(argparse.ArgumentParser):
    """A parser of `python -m <prog>`; what is wrong is a ValueError."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ").replace("unrecognized arguments:", "there is no option")
        raise ValueError(f"{text}; `python -m {self.prog} --help` lists the options.")


def words(arguments: Sequence[str] | None) -> list[str]:
    """A command line, this process's own by default, without the "--" that torchrun leaves in it."""
    return [word for word in (sys.argv[1:] if arguments is None else arguments) if word != "--"]


def wait_so_only_rank_0_prints() -> None:
    """Called by a process that found what all processes find: the others wait for as long as rank 0 needs to print it.

    torchrun kills all processes of a host as soon as one of them has failed; so another host prints it once as well.
    """
    time.sleep(sum(5 for name in ("RANK", "LOCAL_RANK") if int(os.environ.get(name, "0"))))
