"""Every benchmark of faults runs in its quick form and says what its readers rely on; no time is checked."""

import pytest

from benchmarks.robustness.long_run import is_flat
from tests.benchmarks.quick_runs import quick

pytestmark = pytest.mark.slow


def test_a_long_run_does_not_grow(tmp_path):
    found = quick("robustness.long_run", tmp_path)
    assert found["flat"] and is_flat(found) and found["bytes_per_packet"]["metrics"] > 0
    assert list(found["processes"]) == ["torchrun", "rank 0", "rank 1", "rank 2"]
    for of in found["processes"].values():
        assert all(0 < figures["early"] <= figures["most"] for figures in of.values())
    files = found["processes"]["rank 1"]["open_files"]
    files["late"] = files["early"] + 1
    assert not is_flat(found)


@pytest.mark.parametrize("module", ["faults", "checkpoint"])
def test_what_faults_and_checkpoints_cost(module, tmp_path):
    found = quick(f"robustness.{module}", tmp_path)
    assert found["config"]["processes"] == 3


def test_what_is_kept_of_a_run_that_is_killed_again_and_again(tmp_path):
    found = quick("robustness.goodput", tmp_path)
    for mode in ("rejoin", "all"):
        row = found["modes"][mode]
        assert row["same_bits"] and row["failures"] >= 1 and row["goodput"] > 0
        assert all(outage["seconds"] > 0 and outage["ranks"] for outage in row["outages"])
