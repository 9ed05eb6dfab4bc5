"""A run goes on by itself in the later lives of the launch that has begun or resumed it, and of no other."""

import pytest

from pipeflow.distributed import RESTARTS, launch_name
from pipeflow.storage import is_later_life, note_launch


@pytest.fixture(autouse=True)
def restarted(monkeypatch):
    monkeypatch.setenv(RESTARTS, "1")


def test_a_launch_knows_its_run_again(tmp_path):
    assert not is_later_life(tmp_path)
    note_launch(tmp_path, ["another host", launch_name()])
    assert is_later_life(tmp_path)
    note_launch(tmp_path, ["another launch"])
    assert not is_later_life(tmp_path), "it was resumed by another launch since"


@pytest.mark.parametrize("count", [None, "0"])
def test_a_first_life_is_none_that_goes_on(count, tmp_path, monkeypatch):
    note_launch(tmp_path, [launch_name()])
    if count is None:
        monkeypatch.delenv(RESTARTS)
    else:
        monkeypatch.setenv(RESTARTS, count)
    assert not is_later_life(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "7", '{"names": []}', "[7, null]", "[" * 100000, "\x00"])
def test_a_damaged_file_names_nobody(text, tmp_path):
    (tmp_path / "launch.json").write_text(text)
    assert not is_later_life(tmp_path)
    note_launch(tmp_path, [launch_name()])
    assert is_later_life(tmp_path)
