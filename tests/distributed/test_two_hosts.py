"""Two hosts, really: an agent of torchrun in each of two network namespaces, and what becomes of a run between them.

Needs root and iproute2; elsewhere it is skipped, and says so.
"""

import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks.lib.namespaces import two_hosts, why_not
from pipeflow.storage import checkpoint
from tests.support.command_line import parse
from tests.support.small_runs import fit_in
from tests.training.test_faults import SLACK_S

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=f"two hosts: {why_not()}")]
HEARTBEAT_S, TIMEOUT_S = 0.5, 6.0
PHASES = [{"schedule": "simultaneous", "steps": 300}, {"schedule": "end_to_end", "steps": 20}]
WORDS = [
    *("--device", "cpu", "--glow.levels", "2", "--glow.steps", "3", "--glow.hidden", "8", "--data.batch", "12"),
    *("--phases", json.dumps(PHASES), "--checkpoint.every", "20", "--checkpoint.keep", "100", "--eval_every", "1000"),
    *("--parallel.heartbeat_s", str(HEARTBEAT_S), "--parallel.timeout_s", str(TIMEOUT_S)),
]
CHAIN, REPLICAS = ["--parallel.replicas", "1"], ["--parallel.replicas", "2"]


class Run:
    """`torchrun … -m pipeflow.train` on both hosts, one process each; what they say goes to files."""

    def __init__(self, hosts, directory, name, *words):
        self.hosts, self.run = hosts, directory / "run"
        self.files = [directory / f"{name}-{number}" for number in (1, 2)]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
        meeting = ["--rdzv_backend=c10d", f"--rdzv_endpoint={hosts[0].address}:29400", f"--rdzv_id={name}"]
        train = ["-m", "pipeflow.train", "--run_dir", str(self.run), *WORDS, *words]
        self.agents = []
        for number, (host, file) in enumerate(zip(hosts, self.files, strict=True)):
            where = [f"--rdzv_conf=is_host={int(number == 0)}", f"--local-addr={host.address}"]
            with file.open("w") as output:
                self.agents.append(
                    host.popen([*torchrun, *meeting, *where, *train], stdout=output, stderr=subprocess.STDOUT)
                )

    def said(self, number):
        return self.files[number].read_text()

    def line(self, number):
        return "\n".join(line for line in self.said(number).splitlines() if line.startswith("pipeflow: "))

    def until(self, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, [self.said(0), self.said(1)]
            time.sleep(0.02)

    def until_saved(self, step):
        self.until(lambda: step in checkpoint.steps_saved(self.run))

    def workers(self, number):
        """Process ids on a host, but for its agent."""
        found = subprocess.check_output(["ip", "netns", "pids", self.hosts[number].namespace], text=True).split()
        return [int(each) for each in found if int(each) != self.agents[number].pid]

    def completes(self):
        for agent in self.agents:
            agent.wait(timeout=180)
        assert [agent.returncode for agent in self.agents] == [0, 0], [self.said(0), self.said(1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run in one process."""
    directory = tmp_path_factory.mktemp("one")
    fit_in("", parse(["--run_dir", str(directory / "run"), *WORDS]))
    return directory / "run"


@pytest.fixture
def hosts():
    with two_hosts() as found:
        yield found


def figure(run):
    return json.loads((run / "result.json").read_text())["test_bits_per_dim"]


def test_a_slow_cable_changes_no_bit_of_a_chain(one, hosts, tmp_path):
    hosts.throttle(4e6)
    before = hosts[0].sent()
    slow = Run(hosts, tmp_path, "slow", *CHAIN)
    slow.completes()
    for name in ("step-20", "step-300"):
        expected, found = (checkpoint.load(run / "checkpoints" / name)[0] for run in (one, slow.run))
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert figure(slow.run) == pytest.approx(figure(one), abs=1e-3)
    assert hosts[0].sent() - before > 300 * 12 * 4, "latents have gone over the cable"


def test_a_host_that_is_killed_is_named_and_two_replicas_go_on(one, hosts, tmp_path):
    first = Run(hosts, tmp_path, "first", *CHAIN)
    first.until_saved(20)
    subprocess.run(["kill", "-9", str(first.agents[1].pid), *map(str, first.workers(1))], check=True)
    first.agents[0].wait(timeout=SLACK_S + 20)  # torchrun gives its workers time to end
    assert first.agents[0].returncode == 1
    assert "pipeflow: part 3 (rank 1), step " in first.line(0) and ": its process is gone; noticed by" in first.line(0)
    second = Run(hosts, tmp_path, "second", *REPLICAS, "--resume", "auto")
    second.completes()
    assert "goes on from" in second.said(0) and "2 replicas of 1 each" in second.said(0)
    assert figure(second.run) == pytest.approx(figure(one), abs=5e-3)


def test_without_the_host_of_the_store_the_other_ends_and_says_so(one, hosts, tmp_path):
    first = Run(hosts, tmp_path, "first", *CHAIN)
    first.until_saved(20)
    subprocess.run(["kill", "-9", str(first.agents[0].pid), *map(str, first.workers(0))], check=True)
    first.until(lambda: not first.workers(1), seconds=60)
    assert first.line(1).startswith("pipeflow: part 3 (rank 1), step ") and "\n" not in first.line(1), first.said(1)
    first.agents[1].kill()
    first.agents[1].wait()
    second = Run(hosts, tmp_path, "second", *CHAIN, "--resume", "auto")
    second.completes()
    assert figure(second.run) == pytest.approx(figure(one), abs=1e-3)


def test_a_flapping_cable_changes_no_bit_of_a_chain(one, hosts, tmp_path):
    flapping = Run(hosts, tmp_path, "flapping", *CHAIN, "--parallel.heartbeat_s", "1.5")
    for step in (20, 40, 60):
        flapping.until_saved(step)
        for state in ("down", "up"):  # TCP tries again after 0.2, 0.6, 1.4 s
            subprocess.run(["ip", "-n", hosts[1].namespace, "link", "set", hosts[1].device, state], check=True)
            time.sleep(1)
    flapping.completes()
    for name in ("step-20", "step-300"):
        expected, found = (checkpoint.load(run / "checkpoints" / name)[0] for run in (one, flapping.run))
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_a_cable_that_is_cut_is_noticed_at_both_ends_and_one_chain_goes_on(one, hosts, tmp_path):
    first = Run(hosts, tmp_path, "first", *REPLICAS)
    first.until_saved(20)
    link = ["ip", "-n", hosts[1].namespace, "link", "set", hosts[1].device]
    subprocess.run([*link, "down"], check=True)
    began = time.monotonic()
    first.until(lambda: first.line(0) and first.line(1), seconds=TIMEOUT_S + 4 * HEARTBEAT_S + SLACK_S)
    first.until(lambda: not first.workers(0) and not first.workers(1), seconds=SLACK_S)
    assert time.monotonic() - began < TIMEOUT_S + 4 * HEARTBEAT_S + 2 * SLACK_S
    assert "parts 1 to 3 of replica 2 (rank 1), last heard of at step" in first.line(0)
    assert "parts 1 to 3 of replica 2 (rank 1), step " in first.line(1) and "this host is cut off" in first.line(1)
    for agent in first.agents:  # torchrun's agent looks for the other one for minutes
        agent.kill()
        agent.wait()
    subprocess.run([*link, "up"], check=True)
    second = Run(hosts, tmp_path, "second", *CHAIN, "--resume", "auto")
    second.completes()
    assert "goes on from" in second.said(0)
    assert figure(second.run) == pytest.approx(figure(one), abs=5e-3)
