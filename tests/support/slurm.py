"""A Slurm of one's own on one machine: a controller and two nodes, so that a batch file can be run for real.

Both nodes are this machine, under the two names that it has; what they may do to each other is Slurm's. Needs root and
the daemons (Debian: slurm-wlm, munge).
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=30 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


def why_not() -> str:
    """Why there can be no Slurm here; empty if there can."""
    if os.geteuid():
        return "Slurm's daemons need root"
    for tool in ("munged", "slurmctld", "slurmd", "sbatch"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian: slurm-wlm and munge)"
    name = socket.gethostname().split(".")[0]
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return f"this machine's name, {name}, has no address"
    return "this machine is called localhost" if name == "localhost" else ""


@contextmanager
def cluster(base: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find the cluster; it is gone afterwards.

    Args:
        base: an empty directory that root alone can write to, with a short name: it holds a socket.
    """
    host = socket.gethostname().split(".")[0]
    for name in ("munge", "state", "spool"):
        (base / name).mkdir(mode=0o755)
    key = base / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    port, first, second = _free_ports(3)
    conf = base / "slurm.conf"
    conf.write_text(_SETTINGS.format(host=host, base=base, port=port, first=first, second=second))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    munge = {name: f"{base}/munge/{name}" for name in ("socket", "pid-file", "log-file", "seed-file")}
    options = [f"--{name}={file}" for name, file in munge.items()]
    try:
        subprocess.run(["munged", "--force", f"--key-file={key}", *options], check=True, capture_output=True)
        subprocess.run(["slurmctld", "-f", str(conf)], check=True, capture_output=True)
        for node in (host, "localhost"):
            subprocess.run(["slurmd", "-f", str(conf), "-N", node], check=True, capture_output=True)
        deadline = time.monotonic() + 60
        while _idle(environment) < 2:
            assert time.monotonic() < deadline, (base / "slurmctld.log").read_text()
            time.sleep(0.5)
        yield environment
    finally:
        subprocess.run(["scancel", "--signal=KILL", "--user=root"], env=environment, capture_output=True, check=False)
        deadline = time.monotonic() + 30
        while _idle(environment) < 2 and time.monotonic() < deadline:  # without a controller, steps would go on
            time.sleep(0.5)
        pids = [*base.glob("slurmd-*.pid"), base / "slurmctld.pid", base / "munge" / "pid-file"]
        for number in [int(file.read_text()) for file in pids if file.exists()]:
            subprocess.run(["kill", str(number)], check=False)
            deadline = time.monotonic() + 20
            while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
                time.sleep(0.1)  # it still writes into its directory


def _idle(environment: dict[str, str]) -> int:
    said = subprocess.run(
        ["sinfo", "-hN", "-p", "low", "-t", "idle"], env=environment, capture_output=True, text=True, check=False
    )
    return len(said.stdout.splitlines())


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
