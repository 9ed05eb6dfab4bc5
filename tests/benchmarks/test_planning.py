"""Every benchmark of plans runs in its quick form and says what its readers rely on; no figure of speed is checked."""

import pytest

from tests.benchmarks.quick_runs import quick

pytestmark = pytest.mark.slow


def test_a_plan_is_compared_with_its_run(tmp_path):
    for row in quick("planning.plan", tmp_path)["rows"]:
        assert all(one["predicted"] > 0 and one["achieved"] > 0 for one in row["runs"])


def test_a_simulation_is_compared_with_processes_lines_and_kills(tmp_path):
    found = quick("planning.simulation", tmp_path)
    assert [(row["way"], row["processes"]) for row in found["processes"]] == [
        ("by parts", 2), ("1F1B", 2), ("DDP", 2),
    ]  # fmt: skip
    assert [row["way"] for row in found["kills"]] == ["one comes back"]
    for row in [*found["processes"], *found["lines"], *found["kills"]]:
        assert row["simulated"] > 0 and row["measured"] > 0
    for row in [*found["processes"], *found["lines"]]:
        senders = {"by parts": 1}.get(row["way"], row["processes"])  # end to end both processes send over the line
        assert row["measured_bytes"] == pytest.approx(senders * row["simulated_bytes"], rel=0.08)


def test_the_simulated_scale_begins_with_what_one_device_was_measured_to_do(tmp_path):
    found = quick("planning.scale", tmp_path)
    assert set(found["measured_step_s"]) == {"64", "512"} and len(found["places"]) == 3
    for ways in found["places"].values():
        assert 64 / ways["DDP"][0]["images_per_s"] == pytest.approx(found["measured_step_s"]["64"])
        assert {row["devices"] for row in ways["by parts"]} >= {1, 2, 4, 8}
