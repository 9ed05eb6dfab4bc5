"""A process that waits beside the one that trains starts it again, hands signals on, and ends it when it ends.

All that one launch starts has one name, whoever starts it again.
"""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pipeflow.distributed import RESTARTS, launch_name, run_in_child
from tests.support.processes import CONTEXT

STOPPED = 75


def supervise(directory, restarts, fault):
    """What a test starts: a process that lets another do the work, which leaves a file per life."""

    def work():
        life = len(list(directory.glob("life-*")))
        (directory / f"life-{life}").write_text(f"{os.getpid()} {os.environ.get(RESTARTS)}")
        return fault(directory, life)

    (directory / "parent").write_text(str(os.getpid()))
    os._exit(run_in_child(work, restarts, (0, 2, STOPPED)))


def fails_twice(directory, life):
    return int(life < 2)


def is_killed_once(directory, life):
    if not life:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def raises(directory, life):
    raise RuntimeError("boom")


def names_its_launch(directory, life):
    with (directory / "launches").open("a") as file:
        file.write(launch_name() + "\n")
    return 1


def is_refused(directory, life):
    return 2


def is_killed_always(directory, life):
    os.kill(os.getpid(), signal.SIGKILL)


def prints_to_nobody(directory, life):
    read, write = os.pipe()
    os.close(read)
    sys.stdout = os.fdopen(write, "w")
    print("not flushed")
    return 0


def stops_when_asked(directory, life):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED))
    (directory / "ready").touch()
    while True:
        time.sleep(1)


def waits(directory, life):
    (directory / "ready").touch()
    while True:
        time.sleep(1)


def loses_the_starter(directory, life):
    starter = os.getpgid(0)
    (directory / "ready").touch()
    while os.path.exists(f"/proc/{starter}"):
        time.sleep(0.01)
    return 1


def start_and_leave(directory, restarts, fault):
    """Begins a supervisor, and ends once it has begun the work."""
    os.setpgid(0, 0)
    if not os.fork():
        supervise(directory, restarts, fault)
    ready(directory)
    os._exit(0)


def started(directory, restarts, fault):
    process = CONTEXT.Process(target=supervise, args=(directory, restarts, fault))
    process.start()
    return process


def ready(directory):
    deadline = time.monotonic() + 60
    while not (directory / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lives(directory):
    return [file.read_text().split() for file in sorted(directory.glob("life-*"))]


@pytest.mark.parametrize(
    ("fault", "restarts", "code", "times"),
    [
        (fails_twice, 3, 0, 3),
        (fails_twice, 1, 1, 2),
        (is_killed_once, 1, 0, 2),
        (is_killed_always, 2, 128 + signal.SIGKILL, 3),
        (raises, 1, 1, 2),
        (is_refused, 3, 2, 1),
        (prints_to_nobody, 3, 0, 1),
    ],
)
def test_the_work_is_begun_again_after_a_fault(fault, restarts, code, times, tmp_path):
    process = started(tmp_path, restarts, fault)
    process.join(timeout=60)
    found = lives(tmp_path)
    assert process.exitcode == code
    assert [count for _, count in found] == [str(number) for number in range(times)]
    assert len({pid for pid, _ in found} | {(tmp_path / "parent").read_text()}) == times + 1


def test_without_restarts_there_is_one_process(tmp_path):
    process = started(tmp_path, 0, fails_twice)
    process.join(timeout=60)
    assert process.exitcode == 1 and lives(tmp_path) == [[(tmp_path / "parent").read_text(), "None"]]


@pytest.mark.parametrize(("fault", "code"), [(stops_when_asked, STOPPED), (waits, 128 + signal.SIGTERM)])
def test_a_request_to_stop_is_handed_on_and_nothing_is_begun_again(fault, code, tmp_path):
    process = started(tmp_path, 5, fault)
    ready(tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=60)
    assert process.exitcode == code and len(lives(tmp_path)) == 1


def supervise_and_ask(directory, restarts, fault):
    """Like `supervise`, and is asked to stop after it has decided to begin the work again, before it does so."""
    parent, flush, calls = os.getpid(), sys.stdout.flush, []

    def meets():
        calls.append(os.getpid())
        if calls == [parent, parent]:
            os.kill(parent, signal.SIGTERM)
        flush()

    sys.stdout.flush = meets
    supervise(directory, restarts, fault)


def test_a_request_to_stop_that_comes_between_two_lives_is_heard(tmp_path):
    process = CONTEXT.Process(target=supervise_and_ask, args=(tmp_path, 3, fails_twice))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 1 and len(lives(tmp_path)) == 1


def test_without_the_one_that_has_started_it_nothing_is_begun_again(tmp_path):
    process = CONTEXT.Process(target=start_and_leave, args=(tmp_path, 5, loses_the_starter))
    process.start()
    process.join(timeout=60)
    parent, deadline = (tmp_path / "parent").read_text(), time.monotonic() + 60
    while os.path.exists(f"/proc/{parent}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(lives(tmp_path)) == 1


def test_the_one_that_works_ends_with_the_one_that_waits(tmp_path):
    process = started(tmp_path, 5, waits)
    ready(tmp_path)
    process.kill()
    process.join(timeout=60)
    child, deadline = int(lives(tmp_path)[0][0]), time.monotonic() + 60
    while os.path.exists(f"/proc/{child}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def launch_twice(directory, restarts, environment):
    """An agent, whose worker ends and is started again."""
    os.environ |= environment
    for restart in range(2):
        if RESTARTS in environment:
            os.environ[RESTARTS] = str(restart)
        if not (worker := os.fork()):
            supervise(directory, restarts, names_its_launch)
        os.waitpid(worker, 0)


STATIC = {"TORCHELASTIC_RUN_ID": "none", RESTARTS: "0"}  # torchrun's own where it is given no id


@pytest.mark.parametrize(
    ("environment", "restarts", "lives", "launches"),
    [(STATIC, 0, 2, 1), (STATIC, 1, 4, 1), ({}, 1, 4, 2), ({}, 0, 2, 2)],
    ids=["torchrun", "torchrun and a process that waits", "a process that waits, twice", "a process, twice"],
)
def test_all_lives_of_a_launch_have_one_name(environment, restarts, lives, launches, tmp_path):
    agents = [CONTEXT.Process(target=launch_twice, args=(tmp_path, restarts, environment)) for _ in range(2)]
    for number, agent in enumerate(agents, 1):
        agent.start()
        agent.join(timeout=60)
        names = (tmp_path / "launches").read_text().splitlines()
        assert len(names) == number * lives and len(set(names)) == number * launches, names


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when a process was started")
def test_a_process_that_has_the_id_of_an_earlier_one_is_another_launch(monkeypatch):
    name = launch_name.__wrapped__
    monkeypatch.delenv(RESTARTS, raising=False)
    here, started = name(), Path(f"/proc/{os.getpid()}/stat").read_text().rsplit(")", 1)[1].split()[19]
    assert here == name() and here.split()[-1] == started
    monkeypatch.setattr(Path, "read_text", lambda path, read=Path.read_text: read(path).replace(started, "1"))
    assert name() != here
