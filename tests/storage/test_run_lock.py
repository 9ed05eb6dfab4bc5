"""A run directory belongs to one run at a time, whichever way its processes end."""

import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from pipeflow.storage import claim, release, run_lock
from tests.support.processes import CONTEXT


@contextmanager
def held(directory, **environment):
    """Another process holds the lock until it is killed, at the end of the context at the latest."""
    here, there = CONTEXT.Pipe()
    other = CONTEXT.Process(target=_hold, args=(directory, environment, there))
    other.start()
    try:
        assert here.poll(60) and here.recv() == "held"
        yield other
    finally:
        other.kill()
        other.join()


def _hold(directory, environment, pipe):
    os.environ |= environment
    claim(directory)
    pipe.send("held")
    time.sleep(120)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(run_lock, "_PATIENCE_S", 0.3)
    yield
    release()


def test_the_sentence_says_who_holds_it(tmp_path):
    with held(tmp_path) as other, pytest.raises(ValueError) as refused:
        claim(tmp_path)
    assert f"being trained in by process {other.pid} on {socket.gethostname()}; wait for it" in str(refused.value)


def test_a_process_that_is_killed_gives_it_up(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_PATIENCE_S", 5.0)
    with held(tmp_path) as other:
        threading.Timer(0.5, os.kill, [other.pid, signal.SIGKILL]).start()
        began = time.monotonic()
        assert claim(tmp_path), "there is patience for a process that is just dying"
        assert time.monotonic() - began < 4
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_it_is_claimed_once_and_leaves_nothing_behind(tmp_path):
    assert claim(tmp_path) and not claim(tmp_path), "to claim it again changes nothing"
    release(tmp_path)
    release(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path), pytest.raises(ValueError):
        claim(tmp_path)


def test_a_directory_that_is_not_there_is_not_made(tmp_path):
    assert not claim(tmp_path / "run") and not (tmp_path / "run").exists()


def test_a_file_that_its_holder_has_just_removed_is_no_lock(tmp_path, monkeypatch):
    """Two processes wait for one lock; the first to get it must not share it with the one that comes later."""
    real = fcntl.flock

    def removed_meanwhile(descriptor, kind):
        monkeypatch.setattr(fcntl, "flock", real)
        (tmp_path / "lock").unlink()
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    assert claim(tmp_path)
    with pytest.raises(BlockingIOError), (tmp_path / "lock").open() as stream:
        real(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_other_ranks_look_whether_it_is_their_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1234")
    with held(tmp_path, MASTER_PORT="1234"):
        assert not claim(tmp_path, rank=1), "rank 0 of this run has it"
    assert not claim(tmp_path, rank=1), "nobody has it"
    with held(tmp_path, MASTER_PORT="4321"), pytest.raises(ValueError, match="is being trained in by process"):
        claim(tmp_path, rank=1)


def test_file_systems_without_locks_still_work(tmp_path, monkeypatch):
    def none(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert claim(tmp_path) and not claim(tmp_path, rank=1)
    release()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    def refuses(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", refuses)
    assert not claim(tmp_path)
