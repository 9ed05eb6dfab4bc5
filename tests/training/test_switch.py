"""The switch to end to end: a join that changes the model stops the run; processes that disagree never begin."""

import contextlib
import dataclasses
import json
import math
import os

import pytest

import pipeflow.training.switch
from pipeflow.config import Config, PhaseConfig
from pipeflow.data import Batches
from pipeflow.distributed import ParallelConfig, open_world
from pipeflow.errors import JoinError
from pipeflow.flow import Packet
from pipeflow.model import CutConfig
from pipeflow.storage import Manifest
from pipeflow.stream.process_links import ProcessInbox
from pipeflow.training import fit
from pipeflow.training.state import State
from tests.support.command_line import parse
from tests.support.processes import in_processes
from tests.support.small_runs import fit_in, small_config

SWITCH = [PhaseConfig("simultaneous", steps=3), PhaseConfig("end_to_end", steps=2)]


def test_a_wrong_join_stops_the_run(tmp_path, monkeypatch):
    load = pipeflow.training.switch.load

    def swapped(data):
        """Two flow steps of one shape change places: every name is there, every shape fits."""
        state = load(data)
        for name in [name for name in state if name.startswith("steps.2.")]:
            other = name.replace("steps.2.", "steps.3.")
            state[name], state[other] = state[other], state[name]
        return state

    monkeypatch.setattr(pipeflow.training.switch, "load", swapped)
    with pytest.raises(JoinError, match=r"do not join: \d.* bits/dim by parts, \d.* joined.*step 3"):
        fit(small_config(tmp_path / "run", SWITCH))
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_right_join_does_not(tmp_path):
    result = fit(small_config(tmp_path / "run", SWITCH))
    assert result["test_bits_per_dim"] == result["ledger"]["parts"][-1]["bits_per_dim"]
    assert [phase["steps"] for phase in result["phases"]] == [3, 2]
    for name in ("config.yaml", "result.json", "samples/step-3.png", "samples/step-5.png"):
        assert (tmp_path / "run" / name).is_file(), name


@pytest.mark.parametrize(("before", "after", "joins"), [(3.0, 3.0002, False), (4e14, 4e14 + 1e7, True)])
def test_bits_that_float32_cannot_tell_apart_join(tmp_path, monkeypatch, before, after, joins):
    """A run that diverges has bits/dim so large that float32 rounds them by far more than a ten-thousandth."""
    monkeypatch.setattr(pipeflow.training.switch, "_chain_bits", lambda _: before)
    monkeypatch.setattr(pipeflow.training.switch, "_joined_bits", lambda *_: after)
    with contextlib.nullcontext() if joins else pytest.raises(JoinError):
        fit(small_config(tmp_path / "run", SWITCH))


def disagree(init_method: str, config: Config) -> str:
    seed = int(os.environ["RANK"])
    with pytest.raises(ValueError) as caught:
        fit_in(init_method, dataclasses.replace(config, seed=seed))
    return str(caught.value)


def test_processes_that_disagree_about_the_settings_never_begin(tmp_path):
    config = small_config(tmp_path / "run", SWITCH)
    for sentence in in_processes(2, disagree, config, directory=tmp_path / "meet"):
        assert "disagree about the settings" in sentence and "rank 1" in sentence
    assert not (tmp_path / "run").exists()


def wait_for_nothing(init_method: str) -> str:
    from tests.stream.test_links import border

    world = open_world(ParallelConfig(), 2, "cpu", init_method)
    message = ""
    if world.rank == 1:
        inbox = ProcessInbox(border(world, 1, 1)._replace(name="part 2 (rank 1), from part 1 (rank 0)", timeout_s=1.5))
        with pytest.raises(ConnectionError) as caught:
            inbox.recv()
        message = str(caught.value)
    world.barrier()
    return message


def test_a_packet_that_never_comes_is_an_error_with_a_name(tmp_path):
    message = in_processes(2, wait_for_nothing, directory=tmp_path)[1]
    assert message.startswith("part 2 (rank 1), from part 1 (rank 0): packet 1 of 1 did not pass")


def test_a_balanced_cut_is_measured_once_and_becomes_explicit(tmp_path):
    config = small_config(tmp_path / "run", SWITCH[:1], cut=CutConfig("balanced", 3))
    fit(config)
    resolved = parse(["--config", str(tmp_path / "run" / "config.yaml")])
    assert resolved.cut.scheme == "explicit" and resolved.cut.at is not None
    assert len(resolved.cut.at) == 2 and 0 < resolved.cut.at[0] < resolved.cut.at[1] < 6
    assert dataclasses.replace(resolved, cut=config.cut) == config


def fit_with_a_bad_share(init_method: str, config: Config) -> list[bytes]:
    """End to end, rank 1's share of batch 2 is not finite; returns the weights' bytes at the end."""
    at = Batches.at

    def spoilt(self: Batches, t: int, within: slice = slice(None)) -> Packet:
        packet = at(self, t, within)
        return packet._replace(logp=packet.logp * math.nan) if t == 2 and os.environ["RANK"] == "1" else packet

    Batches.at = spoilt  # type: ignore[method-assign]
    seen = []
    manifest = State.manifest

    def watched(self: State, test_bits_per_dim: float | None) -> Manifest:
        """At the end of the phase, when it is saved."""
        seen.extend(tensor.numpy().tobytes() for tensor in self.weights.joined.global_state().values())
        return manifest(self, test_bits_per_dim)

    State.manifest = watched  # type: ignore[method-assign]
    fit_in(init_method, config)
    return seen


def test_a_bad_share_of_a_batch_is_skipped_by_all_processes_alike(tmp_path):
    config = small_config(tmp_path / "run", [PhaseConfig("end_to_end", steps=5)], cut=CutConfig("explicit", 2, [3]))
    weights = in_processes(2, fit_with_a_bad_share, config, directory=tmp_path / "meet")
    assert weights[0] and weights[0] == weights[1], "one process updated, the other did not"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics" / "end_to_end.jsonl").read_text().splitlines()]
    assert [line["updated"] for line in lines] == [True, True, False, True, True]
    assert math.isfinite(lines[2]["bits_per_dim"]), "rank 0's own share was finite, and it skipped all the same"
