"""Files of a run directory: whole or as they were, and a stream notices when its file is gone."""

import errno
import json
import os
from pathlib import Path

import pytest

from pipeflow.storage import RunDirectory, Stream, part_stream, rewind, write_whole


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    write_whole(file, "first")
    write_whole(file, "sécond", durable=True)
    assert file.read_bytes() == "sécond".encode() and [path.name for path in tmp_path.iterdir()] == ["result.json"]

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, b"third", durable=True)
    assert file.read_text() == "sécond"
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "gone" / "result.json", "nowhere")


def test_a_stream_is_cut_back_and_goes_on(tmp_path):
    file = tmp_path / "metrics" / "part-1.jsonl"
    stream = Stream(file)
    for step in (1, 2, 3):
        stream.write(step=step)
    stream.close()
    file.write_text(file.read_text() + '{"step": 4, "bi')
    rewind(file, 2)
    stream = Stream(file)
    stream.write(step=3, again=True)
    stream.flush()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_stream_notices_that_its_file_is_gone(tmp_path):
    stream = Stream(tmp_path / "metrics" / "part-1.jsonl")
    stream.write(step=1)
    stream.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"part-1\.jsonl"):
        stream.flush()


def test_what_is_in_a_run_directory_is_found_by_number(tmp_path):
    run = RunDirectory(tmp_path)
    assert not run.holds_run() and run.saved_steps() == run.recorded_parts() == run.drawn_samples() == []
    for step in (9, 10, 100):
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "manifest.json").write_text("{}")
    for name in ("step-10.partial", "step-11.damaged-1", "step-x", "step-12"):
        (run.checkpoints / name).mkdir()
    run.metrics.mkdir()
    for name in (part_stream(10), part_stream(1), "evaluation", "part-x"):
        run.stream(name).write_text("")
    run.settings_until(7).write_text("")
    assert run.holds_run() and run.saved_steps() == [9, 10, 100] and run.recorded_parts() == [1, 10]
    assert run.earlier_settings() == [(7, Path(tmp_path / "config-until-step-7.yaml"))]
