"""Which launch a process belongs to: what one torchrun, or one process that waits, starts and starts again.

Nothing that torchrun sets tells this: `TORCHELASTIC_RUN_ID` is "none" for all jobs that are given no id, and two jobs,
one after the other, may meet at the same port.
"""

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""The variable in which torchrun counts how often a worker was started again."""


@cache
def launch_name() -> str:
    """The name of what starts this process again where it dies: the same in all its lives, another in other launches.

    That is the parent where it counts restarts, as torchrun does, one on each host. Else it is this process, and its
    children have the name from it if it was asked before it forked them. A process id comes again, but not with the
    same time of start after the same boot.
    """
    pid = os.getppid() if RESTARTS in os.environ else os.getpid()
    facts = [os.environ.get("TORCHELASTIC_RUN_ID", ""), socket.gethostname(), str(pid)]
    with suppress(OSError):  # only Linux has these files
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        facts.append(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    return " ".join(facts).strip()
