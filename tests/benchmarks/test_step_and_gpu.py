"""A step on the CPU, and the benchmarks of a GPU run small on the CPU: the first run on a GPU is not the first run."""

import json
from dataclasses import replace

import pytest

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
    for name in ("baseline", "by_parts"):
        one = found["runs"][name]
        assert one["complete"] and one["seconds"] > 0
        assert one["curve"][-1] == [12 * 12 / 1500, one["test_bits_per_dim"]]
        assert f"{one['test_bits_per_dim']:.4g}" in text
    assert [phase["schedule"] for phase in found["runs"]["by_parts"]["phases"]] == ["alternate", "end_to_end"]


@pytest.mark.slow
def test_a_pair_goes_on_where_its_time_was_up(tmp_path):
    for _ in range(40):
        _, found = reference(tmp_path, "--minutes", 0.12)
        if all(one["complete"] for one in found["runs"].values()):
            break
    assert found["runs"]["by_parts"]["curve"][-1][0] == 12 * 12 / 1500


@pytest.mark.slow
def test_every_row_of_the_suite_is_measured_or_says_why_not(tmp_path):
    run("-m", "benchmarks.gpu.gpu_suite", "--quick", "--device", "cpu", "--out", tmp_path)
    found = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert list(found["sections"]) == ["ceilings", "training steps", "parts on one device", "memory"]
    reasons = {"there is no GPU here", "normflows is not installed here"}
    rows = [row for section in found["sections"].values() for row in section]
    figures = {"bytes_per_s", "flops", "images_per_s", "kept_bytes"}
    for row in rows:
        assert row.get("not_measured") in reasons or figures & row.keys(), row
    memory = {row["row"]: row for row in found["sections"]["memory"]}
    assert memory["invert"]["kept_bytes"] < memory["checkpoint"]["kept_bytes"] < memory["keep"]["kept_bytes"]
    assert 0 < memory["invert"]["drift"] < 1e-4
    assert {path.name for path in tmp_path.iterdir()} >= {
        "gpu_suite.txt",
        "gpu_suite_steps.png",
        "gpu_suite_memory.png",
    }


@pytest.mark.parametrize(("setting", "most"), [("fp32", 2000), ("bf16, channels last", 2500)])
def test_a_training_step_launches_few_kernels(setting, most):
    """The budget of Glow 3 × 32, whose average of the weights comes on top."""
    counts = count(replace(Workload(levels=3, steps=32, hidden=8, size=8, batch=2), **SETTINGS[setting]))
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
