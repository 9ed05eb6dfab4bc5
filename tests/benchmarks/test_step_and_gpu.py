"""A step on the CPU, and the benchmarks of a GPU run small on the CPU: the first run on a GPU is not the first run."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import gpu_suite
from benchmarks.lib.workload import Workload
from benchmarks.step.launches import SETTINGS, count
from tests.benchmarks.quick_runs import run


def reference(out, *words):
    words = ["--pair", "across3", "--quick", "--batch", 12, "--precision", "fp32", "--out", out, *words]
    text = run("-m", "benchmarks.gpu.reference_run", *words, "--runs", out / "runs")
    return text, json.loads((out / "reference_across3.json").read_text())


def test_a_pair_of_the_reference_table(tmp_path):
    text, found = reference(tmp_path)
    assert found["images"] == "digits" and found["config"]["batch"] == "12"
    for name in ("baseline", "by_parts", "heads"):
        one = found["runs"][name]
        assert one["complete"] and one["seconds"] > 0
        assert one["curve"][-1] == [12 * 12 / 1500, one["test_bits_per_dim"]]
        assert f"{one['test_bits_per_dim']:.4g}" in text
    phases = {name: [phase["schedule"] for phase in one["phases"]] for name, one in found["runs"].items()}
    assert phases["by_parts"] == ["alternate", "end_to_end"] and phases["heads"] == ["simultaneous"]


@pytest.mark.slow
def test_a_pair_goes_on_where_its_time_was_up(tmp_path):
    for _ in range(40):
        _, found = reference(tmp_path, "--minutes", 0.12)
        if all(one["complete"] for one in found["runs"].values()):
            break
    assert found["runs"]["by_parts"]["curve"][-1][0] == 12 * 12 / 1500


def suite(out, *words):
    run("-m", "benchmarks.gpu.gpu_suite", "--quick", "--device", "cpu", "--out", out, "--label", "here", *words)
    found = json.loads((out / "gpu_suite.json").read_text())
    assert found["hardware_of_rows"]["torch"] == torch.__version__
    return found["rows"]


def test_a_row_of_the_suite(tmp_path):
    (row,) = suite(tmp_path, "--sections", "ladder", "--rows", "bf16, channels last")
    assert row["images_per_s"] > 0 and row["kernels"] > 100 and row["most"][0]["ms"] > 0
    assert row["row"] in (tmp_path / "gpu_suite.txt").read_text()


ROWS = """
import json, os, sys, time
print('{"broken": ', flush=True)
if sys.argv[1] == "fails":
    sys.exit("a reason")
if sys.argv[1] == "hangs":
    os.fork()
    open(json.loads(sys.argv[2])["file"], "a").write(f"{os.getpid()} ")
    time.sleep(60)
print(json.dumps({"path": os.environ["PYTHONPATH"], "x": os.environ.get("X")}))
"""


def test_a_broken_row_spoils_no_other_and_the_suite_goes_on_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "rows.py").write_text(ROWS)
    monkeypatch.setattr(gpu_suite, "ROWS", tmp_path / "rows.py")
    hangs = gpu_suite.Row("hangs", "hangs", {"file": str(tmp_path / "pids")}, limit_s=2)
    rows = [gpu_suite.Row("fails", "fails", {}), hangs, gpu_suite.Row("works", "works", {}, variables={"X": "y"})]

    def measured(seconds):
        made = gpu_suite.Suite(tmp_path, tmp_path, "old", time.monotonic() + seconds, {"hardware_of_rows": {}})
        answers = [made.measure("section", row) for row in rows]
        return answers, json.loads(made.file.read_text())["rows"] if made.file.exists() else []

    rows, all_rows = [dataclasses.replace(hangs, limit_s=60)], rows
    assert measured(9) == ([False], []), "its time was cut short: it may be tried again"
    rows = all_rows
    answers, found = measured(60)
    assert answers == [True] * 3 and [row["row"] for row in found] == ["fails", "hangs", "works"]
    assert found[0]["not_measured"] == "exit code 1: a reason"
    assert found[1]["not_measured"] == "it took longer than 2 s"
    assert found[2]["path"].startswith(f"{tmp_path}") and found[2]["x"] == "y"
    for pid in (tmp_path / "pids").read_text().split():
        assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_text()
    assert measured(60) == (answers, found), "nothing is measured twice"


@pytest.mark.slow
def test_every_row_of_the_suite_is_measured_or_says_why_not(tmp_path):
    rows = suite(tmp_path, "--minutes", "30", "--sections", "parts,faults,ceilings,ladder,split,memory")
    assert {row["section"] for row in rows} == {"parts", "faults", "ceilings", "ladder", "split", "memory"}
    reasons = {"there is no GPU here", "normflows is not installed here"}
    figures = {"test_bits_per_dim", "sentences", "bytes_per_s", "images_per_s", "kept_bytes"}
    for row in rows:
        assert row.get("not_measured") in reasons or figures & row.keys(), row
        assert row.get("losses") == row.get("equal_losses") and abs(row.get("test_difference", 0)) < 1e-3, row
    faults = {row["row"]: row["sentences"] for row in rows if row["section"] == "faults"}
    assert all("part 2 (rank 1)" in sentences[0] for sentences in faults.values()), faults
    memory = {row["row"]: row for row in rows if row["section"] == "memory"}
    # Four small images: what weights made beforehand take weighs more than activations (tests/model/test_activations).
    assert max(memory[name]["kept_bytes"] for name in ("invert", "checkpoint")) < memory["keep"]["kept_bytes"]
    assert 0 < memory["invert"]["drift"] < 1e-4


@pytest.mark.parametrize(("setting", "most"), [("fp32", 2000), ("bf16, channels last", 2500)])
def test_a_training_step_launches_few_kernels(setting, most):
    """The budget of Glow 3 × 32, whose average of the weights comes on top.

    A convolution counts as one kernel here. Half precision takes products in place of convolutions: more that count,
    and fewer on a GPU (gpu_h100.json).
    """
    counts = count(dataclasses.replace(Workload(levels=3, steps=32, hidden=8, size=8, batch=2), **SETTINGS[setting]))
    assert 1000 < sum(sum(counts[phase].values()) for phase in ("forward", "backward", "update")) <= most
    assert sum(counts["EMA"].values()) <= 60


def test_launches_are_written_down(tmp_path):
    run("-m", "benchmarks.step.launches", "--quick", "--json", tmp_path / "launches.json")
    rows = json.loads((tmp_path / "launches.json").read_text())["rows"]
    assert [row["setting"] for row in rows] == list(SETTINGS)
    assert all(row["forward"] > 50 and row["backward"] > 50 for row in rows)


def test_a_step_beside_its_matrix_products(tmp_path):
    file = tmp_path / "cpu_step.json"
    words = ["--only", "fp32", "bf16, channels last", "bf16, channels last, invert"]
    text = run("-m", "benchmarks.step.cpu_step", "--quick", "--threads", 1, "--json", file, *words)
    rows = json.loads(file.read_text())["rows"]
    assert [row["setting"] for row in rows] == ["matrix products", *words[1:]]
    assert rows[0]["over_matrix_products"] == 1 and all(row["step_s"] > 0 for row in rows)
    assert all(row["setting"] in text for row in rows) and file.with_suffix(".png").exists()
