"""Two hosts on one: they reach each other and nothing else, and are gone afterwards."""

import subprocess
import sys

import pytest

from benchmarks.lib.namespaces import two_hosts, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"two hosts: {why_not()}")
SAYS = """
import socket
server = socket.create_server(('{0}', 5000))
print('ready', flush=True)
server.accept()[0].sendall(b'hello')
"""
HEARS = "import socket; print(socket.create_connection(('{0}', 5000)).recv(9).decode())"


def namespaces() -> set[str]:
    return {line.split()[0] for line in subprocess.check_output(["ip", "netns"], text=True).splitlines() if line}


@pytest.mark.parametrize("bits_per_s", [None, 1e6])
def test_they_reach_each_other_over_the_line(bits_per_s):
    with two_hosts() as hosts:
        hosts.throttle(bits_per_s)
        before = hosts[0].sent()
        there = hosts[0].popen([sys.executable, "-c", SAYS.format(hosts[0].address)], stdout=subprocess.PIPE, text=True)
        assert there.stdout.readline() == "ready\n"
        here = subprocess.run(
            [*hosts[1].prefix, sys.executable, "-c", HEARS.format(hosts[0].address)], capture_output=True, text=True
        )
        there.communicate()
        assert here.stdout == "hello\n"
        assert hosts[0].sent() - before >= len("hello")


def test_the_line_can_change_its_speed_and_lose_its_limit():
    with two_hosts() as hosts:
        for bits_per_s, expected in ((1e6, "rate 1Mbit"), (1e8, "rate 100Mbit"), (None, "noqueue")):
            hosts.throttle(bits_per_s)
            for host in hosts:
                shown = subprocess.check_output([*host.prefix, "tc", "qdisc", "show", "dev", host.device], text=True)
                assert expected in shown


def test_they_are_gone_with_what_ran_in_them_even_after_an_error():
    with pytest.raises(ZeroDivisionError), two_hosts() as hosts:
        names = {host.namespace for host in hosts}
        assert names <= namespaces()
        process = hosts[1].popen(["sleep", "600"])
        raise ZeroDivisionError
    assert not names & namespaces()
    assert process.wait(10) == -9


def test_two_pairs_at_once_have_names_of_their_own():
    with two_hosts() as one, two_hosts() as other:
        assert len({host.namespace for host in (*one, *other)}) == 4
