"""Under torchrun: workers that come back go on by themselves, and a request to stop reaches them all."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeflow.storage import checkpoint
from tests.support.fault_injection import state_of

pytestmark = pytest.mark.slow

PHASES = '[{"schedule": "simultaneous", "steps": 1500}, {"schedule": "end_to_end", "steps": 300}]'
WORDS = [
    *("--device", "cpu", "--glow.levels", "2", "--glow.steps", "3", "--glow.hidden", "8", "--data.batch", "12"),
    *("--phases", PHASES, "--checkpoint.every", "200", "--checkpoint.keep", "100", "--eval_every", "1000"),
    *("--parallel.heartbeat_s", "1"),
]


def start(run, *options, words=()):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, "-m", "pipeflow.train", "--run_dir", str(run), *WORDS, *words], stdout=pipe, stderr=pipe, text=True
    )


def until_saved(run, process, step):
    deadline = time.monotonic() + 120
    while not checkpoint.steps_saved(run) or checkpoint.steps_saved(run)[-1] < step:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def worker(run, rank):
    """Process id of a rank, by its command line and environment; with parallel.restarts the last of two such."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            variables = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words and f"RANK={rank}".encode() in variables:
            found.append(int(directory.name))
    assert found, f"there is no rank {rank}"
    return max(found)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = tmp_path_factory.mktemp("restart") / "run"
    process = start(run)
    process.communicate(timeout=300)
    assert process.returncode == 0
    return run


def assert_same_bits(run, other):
    tensors, others = (
        checkpoint.load(run / "checkpoints/step-1800")[0],
        checkpoint.load(other / "checkpoints/step-1800")[0],
    )
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    lines = [(path / "metrics/part-2.jsonl").read_text().splitlines() for path in (run, other)]
    figures = [[(line["step"], line["bits_per_dim"]) for line in map(json.loads, text)] for text in lines]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--max-restarts=3"], []), ([], ["--parallel.restarts", "3"])],
    ids=["by torchrun", "by a process that waits"],
)
def test_killed_workers_come_back_and_go_on(options, words, undisturbed, tmp_path):
    run = tmp_path / "run"
    process = start(run, *options, words=words)
    for rank, step in [(1, 400), (2, 800), (0, 1200)]:  # rank 0 holds the lock of the run directory
        until_saved(run, process, step)
        os.kill(worker(run, rank), signal.SIGKILL)
        time.sleep(2)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    said = re.findall(r"^goes on from .*step-\d+$", out, re.MULTILINE)
    lines = [line for line in errors.splitlines() if line.startswith("pipeflow: ")]
    assert len(said) == len(lines) == 3, (out, lines)
    assert "part 2 (rank 1)" in lines[0] and "part 3 (rank 2)" in lines[1] and "part 1 (rank 0)" in lines[2], lines
    assert_same_bits(run, undisturbed)


@pytest.mark.parametrize("words", [[], ["--parallel.restarts", "3"]])
def test_workers_that_come_back_leave_an_older_run_alone(words, undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "checkpoints/step-1800")
    (run / "result.json").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    process = start(run, "--max-restarts=1", words=words)
    out, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "goes on from" not in out, out
    lines = [line for line in errors.splitlines() if line.startswith("pipeflow: ")]
    assert len(lines) == 2 and all("already holds a run" in line for line in lines), lines
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_request_to_stop_saves_the_run(undisturbed, tmp_path):
    run = tmp_path / "run"
    process = start(run)
    until_saved(run, process, 400)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 20
    (line,) = [line for line in errors.splitlines() if line.startswith("pipeflow: ")]
    step = int(re.match(r"pipeflow: stopped at step (\d+) by SIGTERM; --resume auto goes on", line)[1])
    assert checkpoint.steps_saved(run)[-1] == step
    process = start(run, "--max-restarts=0")
    process.communicate(timeout=60)
    assert process.returncode != 0, "without --resume a run is never written over"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    subprocess.run([*command, "-m", "pipeflow.train", "--run_dir", run, "--resume", "auto"], check=True, timeout=300)
    assert_same_bits(run, undisturbed)


def test_a_worker_that_was_stopped_ends_the_run(tmp_path):
    run = tmp_path / "run"
    process = start(run)
    until_saved(run, process, 200)
    os.kill(worker(run, 1), signal.SIGSTOP)
    _, errors = process.communicate(timeout=90)  # torchrun gives it 30 s to end by itself
    assert process.returncode != 0
    (line,) = [line for line in errors.splitlines() if line.startswith("pipeflow: ")]
    assert re.search(r"part 2 \(rank 1\), last heard of at step \d+: no sign of life", line), line


@pytest.mark.parametrize(
    ("number", "says", "words"),
    [
        (signal.SIGKILL, "the store where the processes meet is gone", []),
        (signal.SIGKILL, "the store where the processes meet is gone", ["--parallel.restarts", "3"]),
        (signal.SIGSTOP, "the store where the processes meet has not answered for", []),
        (signal.SIGINT, "interrupted; --resume auto goes on", []),
    ],
)
def test_what_becomes_of_workers_whose_torchrun_is_lost(number, says, words, undisturbed, tmp_path):
    run = tmp_path / "run"
    process = start(run, words=words)
    until_saved(run, process, 200)
    workers = [worker(run, rank) for rank in range(3)]
    process.send_signal(number)
    deadline = time.monotonic() + 60
    while not all(state_of(pid) in ("", "Z") for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    _, errors = process.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if line.startswith("pipeflow: ")]
    assert lines and any(says in line for line in lines), lines
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    subprocess.run([*command, "-m", "pipeflow.train", "--run_dir", run, "--resume", "auto"], check=True, timeout=300)
    assert_same_bits(run, undisturbed)
