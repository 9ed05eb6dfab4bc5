"""The command as users type it: torchrun, its output, its exit codes."""

import json
import re
import subprocess
import sys

import pytest

from pipeflow.storage.checkpoint import load

SMALL = ["--glow.levels", "2", "--glow.steps", "3", "--glow.hidden", "8", "--data.init_batch", "64", "--device", "cpu"]
PHASES = ["--phases", "[{schedule: simultaneous, steps: 6}, {schedule: end_to_end, steps: 4}]"]


def torchrun(processes, *words, cwd, timeout=240):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, "-m", "pipeflow.train", *words], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("command")
    return directory / "a", torchrun(3, "--run_dir", "a", *SMALL, *PHASES, cwd=directory)


def test_three_processes_say_everything_once(run):
    _, done = run
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [sum(line.startswith(start) for line in lines) for start in ("digits", "Glow", "phase", "step")] == [
        1,
        1,
        2,
        2,
    ]
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout + done.stderr
    assert re.search(r"3 parts of \d \+ \d \+ \d flow steps on 3 processes \(cpu\)", done.stdout)
    assert re.search(r"truncated after part 1 \d", done.stdout)
    assert "Warning" not in done.stderr


def test_the_run_directory_holds_what_the_design_promises(run):
    directory, _ = run
    result = json.loads((directory / "result.json").read_text())
    assert 0 < result["test_bits_per_dim"] < 10
    for name in ("peak_memory_bytes", "bytes_sent", "bytes_received"):
        assert len(result[name]) == 3 and min(result[name]) > 0, name
    for name in ("seconds", "images_per_s"):
        assert len(result[name]) == 2 and min(result[name]) > 0, name
    boards = directory / "tensorboard"
    assert sorted(path.name for path in boards.iterdir()) == ["end_to_end", "model", "part-1", "part-2", "part-3"]
    files = {path for path in directory.rglob("*") if path.is_file() and boards not in path.parents}
    found = {path.relative_to(directory).as_posix() for path in files}
    parts = [f"part-{part}" for part in (1, 2, 3)]
    assert found == {
        "config.yaml",
        "result.json",
        "launch.json",
        *(f"metrics/{name}.jsonl" for name in [*parts, "end_to_end", "evaluation", "checkpoints"]),
        *(f"samples/step-{step}.png" for step in (6, 10)),
        *(f"checkpoints/step-{step}/{name}.safetensors" for step in (6, 10) for name in parts),
        *(f"checkpoints/step-{step}/manifest.json" for step in (6, 10)),
    }
    for part in parts:
        lines = [json.loads(line) for line in (directory / "metrics" / f"{part}.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 7))
    tensors, manifest = load(directory / "checkpoints" / "step-10")
    assert manifest.step == 10 and [phase["steps"] for phase in manifest.phases] == [6, 4]
    assert tensors["step/steps.1.coupling.network.0.weight"] == 10, "moments carry over between phases"


def test_a_number_of_processes_that_does_not_fit(tmp_path):
    done = torchrun(2, "--run_dir", "a", *SMALL, *PHASES, "--parallel.replicas", "3", cwd=tmp_path)
    assert done.returncode != 0 and not (tmp_path / "a").exists()
    sentences = [line for line in done.stderr.splitlines() if line.startswith("pipeflow: ")]
    assert len(sentences) == 1 and "2 processes" in sentences[0], done.stderr


def test_a_run_is_never_written_over(run):
    directory, _ = run
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    done = torchrun(2, "--run_dir", "a", *SMALL, *PHASES, cwd=directory.parent)
    assert done.returncode != 0
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("pipeflow: ")]
    assert "already holds a run" in sentence and "--run_dir" in sentence
    assert before == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
