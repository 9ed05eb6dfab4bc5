"""Two hosts on one machine: network namespaces joined by a pair of virtual Ethernet devices whose speed can be set.

What a slow network does to a run has to be measured on a slow network. Each namespace has its own interfaces, so
processes in different ones reach each other through the pair alone, and `tc tbf` makes it as slow as a real line, in
both directions. Needs root, `ip` and `tc` (iproute2).

    with two_hosts() as hosts:
        first = hosts[0].popen(["python", …])          # or subprocess.run([*hosts[0].prefix, "python", …])
        hosts.throttle(10e6)                           # bits per second; None for no limit
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class Host(NamedTuple):
    """One of the two hosts.

    Attributes:
        namespace: its name, as `ip netns` knows it.
        device: its network interface, the same name on both; what GLOO_SOCKET_IFNAME is set to.
        address: of the interface; MASTER_ADDR if the processes meet on this host.
    """

    namespace: str
    device: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """The beginning of a command that is to run there."""
        return ["ip", "netns", "exec", self.namespace]

    def popen(self, command: Sequence[str], env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
        """Starts a command there, with the interface in its environment; `options` are those of `Popen`."""
        env = {**(os.environ if env is None else env), "GLOO_SOCKET_IFNAME": self.device}
        return subprocess.Popen([*self.prefix, *command], env=env, **options)

    def sent(self) -> int:
        """Bytes that have left the interface, headers of all layers included."""
        file = f"/sys/class/net/{self.device}/statistics/tx_bytes"
        return int(_run(*self.prefix, "cat", file).stdout)


class Hosts(tuple[Host, Host]):
    """Both hosts, and the line between them."""

    def throttle(self, bits_per_s: float | None) -> None:
        """Sets the speed of the line, each way; processes and connections stay."""
        for host in self:
            queueing = ["tc", "-n", host.namespace, "qdisc"]
            if bits_per_s is None:
                _run(*queueing, "del", "dev", host.device, "root", check=False)
                continue
            # A bucket of 10 ms, and never less than a few frames; a queue of 100 ms after it.
            burst, queue = max(16_000, int(bits_per_s / 8 * 0.01)), max(64_000, int(bits_per_s / 8 * 0.1))
            rate = [f"{int(bits_per_s)}bit", "burst", str(burst), "limit", str(queue)]
            _run(*queueing, "replace", "dev", host.device, "root", "tbf", "rate", *rate)


def why_not() -> str:
    """Why there can be no namespaces here; empty if there can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"{tool} (iproute2) is not installed"
    name = f"pf-try-{os.getpid()}"
    tried = _run("ip", "netns", "add", name, check=False)
    _run("ip", "netns", "del", name, check=False)
    return "" if tried.returncode == 0 else f"no network namespaces ({tried.stderr.strip()})"


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two namespaces with unused names; afterwards both are removed, with the processes in them, whatever happened."""
    # An unused name, from a directory that stays for as long as it is used.
    with tempfile.TemporaryDirectory(prefix="pf-") as directory:
        stem = Path(directory).name
        hosts = Hosts(Host(f"{stem}-{side}", "link0", f"10.99.0.{side}") for side in (1, 2))
        try:
            for host in hosts:
                _run("ip", "netns", "add", host.namespace)
                _run("ip", "-n", host.namespace, "link", "set", "lo", "up")
            left, right = hosts
            _run(
                *("ip", "-n", left.namespace, "link", "add", left.device, "type", "veth"),
                *("peer", "name", right.device, "netns", right.namespace),
            )
            for host in hosts:
                _run("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.device)
                _run("ip", "-n", host.namespace, "link", "set", host.device, "up")
            yield hosts
        finally:
            for host in hosts:
                for process in _run("ip", "netns", "pids", host.namespace, check=False).stdout.split():
                    _run("kill", "-9", process, check=False)
                _run("ip", "netns", "del", host.namespace, check=False)


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done
