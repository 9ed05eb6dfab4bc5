"""Every speed benchmark runs in its quick form and says what its readers rely on; no figure of speed is checked."""

import json
import subprocess
import sys

import pytest

from benchmarks.lib import results
from benchmarks.lib.namespaces import why_not
from benchmarks.lib.torchrun import ROOT
from benchmarks.speed.replicas import ENGINES
from pipeflow.model import FAMILIES
from tests.benchmarks.quick_runs import quick

pytestmark = pytest.mark.slow
WAYS = {"forward", "backward", "allreduce", "total"}


# --- bytes


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return quick("speed.comm_volume", tmp_path_factory.mktemp("volume"))


def test_bytes_are_computed_and_measured_for_every_approach(volume):
    for approaches in (volume["approaches"], volume["larger_batch"]["approaches"]):
        assert list(approaches) == ["parts", "1f1b", "gpipe", "ddp"]
        for one in approaches.values():
            for kind in ("computed", "measured"):
                assert one[kind].keys() >= WAYS
                assert one[kind]["total"] == sum(one[kind][way] for way in WAYS - {"total"})
            assert one["measured"]["total"] == pytest.approx(one["computed"]["total"], rel=0.05)
            assert one["measured"]["total"] > one["computed"]["total"], "the transport adds, and is counted"


def test_by_parts_only_answers_go_backward_however_large_the_batch(volume):
    small, large = volume["approaches"]["parts"], volume["larger_batch"]["approaches"]["parts"]
    assert 0 < small["measured"]["backward"] <= 64 * small["messages"]
    assert small["measured"]["backward"] == large["measured"]["backward"]
    assert large["measured"]["forward"] > 3.9 * small["measured"]["forward"]
    for border in small["measured"]["borders"]:
        assert border["backward"] <= 64 < border["forward"]


def test_by_parts_at_most_half_of_a_pipelines_bytes_cross(volume):
    total = {name: one["measured"]["total"] for name, one in volume["approaches"].items()}
    assert total["parts"] <= total["1f1b"] / 2 and total["parts"] <= total["gpipe"] / 2
    paper = {name: one["computed"]["total"] for name, one in volume["paper"]["approaches"].items()}
    assert paper["parts"] == paper["1f1b"] / 2
    assert paper["ddp"] > 100 * paper["parts"]


def test_what_the_transport_adds_explains_the_difference(volume):
    """What a message costs besides its payload, seen by parts, is what the pipelines' many messages cost too."""
    frame = sum(volume["framing_bytes"].values())
    for name in ("1f1b", "gpipe"):
        one = volume["approaches"][name]
        assert one["measured"]["total"] == pytest.approx(one["computed"]["total"] + frame * one["messages"], rel=1e-3)


# --- speed, slow lines, memory


def test_throughput_says_how_fast_each_approach_is_and_where_time_goes(tmp_path):
    found = quick("speed.throughput", tmp_path)
    (run,) = found["runs"]
    assert run["approaches"].keys() == {"parts", "1f1b", "gpipe", "ddp", "one", "one_all"}
    for one in run["approaches"].values():
        assert one["images_per_s"] > 0
        for share in one["share"]:
            assert share["compute"] > 0
    parts = run["approaches"]["parts"]
    assert parts["efficiency"] == pytest.approx(parts["images_per_s"] / run["slowest_part_alone"])
    assert run["slowest_part_alone"] == min(run["parts_alone"].values())
    for tried in run["settings_tried"].values():
        assert tried[0]["images_per_s"] == max(one["images_per_s"] for one in tried)
    assert found["zero_bubble"]["runs"] or found["zero_bubble"]["error"]


def test_each_flow_is_trained_by_every_approach_and_its_bytes_are_counted(tmp_path):
    for run, flow in zip(quick("speed.flows", tmp_path)["runs"], FAMILIES, strict=True):
        assert run["workload"]["flow"] == flow and run["parameters"] > 0
        found = run["approaches"]
        assert found.keys() == {"parts", "heads", "1f1b", "ddp", "fsdp"}
        assert all(one["images_per_s"] > 0 for one in found.values())
        assert found["parts"]["all"] == pytest.approx(found["heads"]["all"], rel=0.02), "nothing is sent for a head"
        assert found["parts"]["all"] < found["1f1b"]["all"]


def test_slow_links_puts_the_same_bytes_on_every_line_or_says_why_not(tmp_path):
    if why := why_not():
        command = [sys.executable, "-m", "benchmarks.speed.slow_links", "--quick"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.stderr.startswith("pipeflow: slow_links is skipped: ") and why in done.stderr
        return
    first, second = quick("speed.slow_links", tmp_path)["lines"]
    assert (first["bits_per_s"], second["bits_per_s"]) == (None, 1e7)
    assert first["approaches"].keys() == second["approaches"].keys() == {"parts", "parts_bf16", "1f1b", "gpipe", "ddp"}
    for name, one in first["approaches"].items():
        other = second["approaches"][name]
        if one["setting"] == other["setting"]:  # another number of micro-batches has other bytes around them
            assert one["bytes_per_step"] == pytest.approx(other["bytes_per_step"], rel=0.01)
    exact, half = (first["approaches"][name]["bytes_per_step"] for name in ("parts", "parts_bf16"))
    assert half == pytest.approx(exact / 2, rel=0.05)


def test_memory_has_a_figure_for_every_process(tmp_path):
    (point,) = quick("speed.memory", tmp_path)["points"]
    found = [(one["name"], one["setting"].get("micro")) for one in point["approaches"]]
    assert found == [("parts", 1), ("parts", 4), ("1f1b", 4), ("ddp", None), ("one", None)]
    for one in point["approaches"]:
        assert len(one["training_bytes"]) == (1 if one["name"] == "one" else 2) and one["images_per_s"] > 0
        assert all(0 < training < peak for training, peak in zip(one["training_bytes"], one["peak_bytes"], strict=True))
        assert one["worst_bytes"] == max(one["training_bytes"])


# --- grids of processes


def test_replicas_compares_every_grid_and_engine_on_the_same_training(tmp_path):
    first, *rows = quick("speed.replicas", tmp_path)["rows"]
    assert first["processes"] == 1 and first["bytes_sent"]["all"] == 0
    assert [(row["stages"], row["replicas"]) for row in rows if row["engine"] == ENGINES[0]] == [(2, 1), (1, 2)]
    assert {row["engine"] for row in rows} == set(ENGINES)
    for row in rows:
        assert row["bytes_sent"]["all"] > 0
        assert all(rate > 0 for rates in row["images_per_s"].values() for rate in rates)
        exact = row["replicas"] == 1
        assert (row["bits_per_dim"]["by_parts"] == first["bits_per_dim"]["by_parts"]) or not exact
        assert row["by_parts"]["apart"] <= (0 if exact else 1e-4)
        assert row["end_to_end"]["apart"] < 1e-4
        assert row["bits_per_dim"]["end_to_end"][0][-1] < row["bits_per_dim"]["by_parts"][0][-1]


# --- the promised path, and where results go


def test_the_bytes_can_be_measured_from_any_directory_at_the_promised_path(tmp_path):
    file = tmp_path / "volume.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "comm_volume.py"), "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text())["command"] == "python benchmarks/comm_volume.py --quick"


def test_a_quick_run_is_kept_only_where_it_is_told_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    for words, expected in (
        (["--quick"], []),
        (["--quick", "--json", f"{tmp_path}/mine.json"], ["mine.json", "mine.png"]),
        ([], ["results/volume.json", "results/volume.png"]),
        (["--png", f"{tmp_path}/picture.png"], ["picture.png", "results/volume.json"]),
    ):
        figure, _ = results.axes()
        results.keep("volume", {"figure": 1}, results.make_parser("").parse_args(words), figure)
        written = [path for path in tmp_path.rglob("*.*") if path.is_file()]
        assert sorted(path.relative_to(tmp_path).as_posix() for path in written) == expected
        for path in written:
            path.unlink()


def test_a_table_is_aligned_and_a_gap_is_a_dash():
    assert results.table(["", "rate"], [["by parts", 12.3456], ["DDP", None]]).splitlines() == [
        "           rate",
        "by parts  12.35",
        "DDP           –",
    ]
