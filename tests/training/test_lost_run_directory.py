"""A run directory that disappears or refuses in mid-run ends the run: one sentence, no tracebacks, exit code 1."""

import errno
import io
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.fault_injection import Fault, Scene, at_the_batch, run
from tests.training.test_faults import WORDS


def directory_of(scene: Scene) -> Path:
    return scene.directory.with_name("run")


def remove(scene: Scene) -> None:
    """At one stroke: a checkpoint may be on its way into the directory."""
    gone = directory_of(scene).rename(scene.directory.with_name("gone"))
    shutil.rmtree(gone, ignore_errors=True)


def removed(scene: Scene) -> None:
    at_the_batch(scene, lambda: remove(scene))


def replaced_by_a_file(scene: Scene) -> None:
    def act() -> None:
        remove(scene)
        directory_of(scene).write_text("mine")

    at_the_batch(scene, act)


def read_only(scene: Scene) -> None:
    """Root may write whatever the permissions say, so the calls themselves refuse."""
    inside, open_before, mkdir_before = str(directory_of(scene)), io.open, os.mkdir

    def refuse(path):
        if str(path).startswith(inside):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def open_file(path, mode="r", *more, **others):
        if "r" not in mode:
            refuse(path)
        return open_before(path, mode, *more, **others)

    def make_directory(path, *more, **others):
        refuse(path)
        return mkdir_before(path, *more, **others)

    def act() -> None:
        io.open, os.mkdir = open_file, make_directory

    at_the_batch(scene, act)


class Case(NamedTuple):
    """What happens in how many processes at which step, and what the sentence says."""

    size: int
    fault: Fault
    step: int
    says: str


# By parts until step 33, then end to end until 43; a pause every 5 and 7 steps, a checkpoint every 5.
CASES = {
    "removed, one process": Case(1, removed, 8, "metrics/part-1.jsonl: No such file"),
    "removed, three processes": Case(3, removed, 8, "No such file"),
    "removed, last steps": Case(1, removed, 42, "No such file"),
    "a file in its place": Case(1, replaced_by_a_file, 8, ""),
    "read-only, one process": Case(1, read_only, 8, "Read-only file system"),
    "read-only, three processes": Case(3, read_only, 38, "Read-only file system"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_says_that_the_run_directory_is_lost(name, tmp_path):
    case = CASES[name]
    words = ["--run_dir", str(tmp_path / "run"), *WORDS]
    ended = run(case.size, words, tmp_path / "meet", case.fault, rank=0, target=0, step=case.step)
    assert (tmp_path / "meet" / "fired").exists(), "the fault was never there"
    assert ended.codes == [1] * case.size, ended.said
    assert not any("Traceback" in text or "Exception" in text for text in ended.said), ended.said
    (line,) = ended.lines
    assert case.says in line, line
    if case.fault is removed:
        assert not (tmp_path / "run").exists(), "nobody makes it again"
