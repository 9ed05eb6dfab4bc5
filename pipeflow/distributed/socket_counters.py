"""What this process's TCP sockets have carried, as the kernel counts it.

A link can only count what it was asked to send; claims about communication are made with what was really on the wire,
acknowledgements of the transport included. Linux only: elsewhere the list is empty.
"""

import os
import socket
import struct
from typing import NamedTuple

# Offsets in Linux's struct tcp_info (include/uapi/linux/tcp.h): tcpi_bytes_acked, tcpi_bytes_received.
_BYTES_ACKED, _BYTES_RECEIVED, _SIZE = 120, 128, 192


class SocketTraffic(NamedTuple):
    """One connected TCP socket: payload bytes since it opened, and the (address, port) of its two ends."""

    fd: int
    sent: int
    received: int
    own: tuple[str, int]
    peer: tuple[str, int]


def sockets() -> list[SocketTraffic]:
    """The connected TCP sockets of this process, whatever library opened them."""
    if not os.path.isdir("/proc/self/fd"):
        return []
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                own, peer = sock.getsockname()[:2], sock.getpeername()[:2]
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
        except OSError:  # closed meanwhile, or listening
            continue
        (sent,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
        (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
        found.append(SocketTraffic(int(name), sent, received, own, peer))
    return found


def totals() -> tuple[int, int]:
    """(bytes sent, bytes received) over all sockets that are open now."""
    counted = sockets()
    return sum(s.sent for s in counted), sum(s.received for s in counted)
