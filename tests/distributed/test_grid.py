"""The grid: which sizes fit, who holds what, and that R replicas at batch B/R are one chain at batch B."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pipeflow.config import Config, PhaseConfig
from pipeflow.data import Batches, Pixels
from pipeflow.data.datasets import load as load_images
from pipeflow.distributed import ParallelConfig, grid, owners
from pipeflow.distributed.grid import Grid
from pipeflow.model import CutConfig
from pipeflow.storage.checkpoint import load
from tests.support.processes import in_processes
from tests.support.small_runs import fit_each, small_config

STEPS = 5 / 125  # of an epoch with batches of 12: phases pause for evaluations within their turns
PHASES = [
    PhaseConfig("simultaneous", steps=6, lr=[2e-3, 1e-3], warmup_steps=3, clip=0.5),
    PhaseConfig("alternate", steps=6, turn_steps=2, lr=2e-3, optimizer="adamax"),
    PhaseConfig("end_to_end", steps=4, clip=1.0, lr=1e-3),
    PhaseConfig("sequential", steps=4, lr=1e-3),
]


@pytest.mark.parametrize(
    ("parts", "stages", "owner"),
    [
        (1, 1, (0,)),
        (3, 1, (0, 0, 0)),
        (3, 2, (0, 0, 1)),
        (3, 3, (0, 1, 2)),
        (5, 2, (0, 0, 0, 1, 1)),
        (7, 3, (0, 0, 0, 1, 1, 2, 2)),
    ],
)
def test_owners(parts, stages, owner):
    assert owners(parts, stages) == owner


@pytest.mark.parametrize(
    ("parts", "size", "replicas", "expected"),
    [
        (3, 1, None, Grid(3, 1, 1)),
        (3, 2, None, Grid(3, 2, 1)),
        (3, 3, None, Grid(3, 3, 1)),
        (3, 6, None, Grid(3, 3, 2)),
        (1, 4, None, Grid(1, 1, 4)),
        (3, 2, 2, Grid(3, 1, 2)),
        (3, 4, 2, Grid(3, 2, 2)),
        (4, 4, 1, Grid(4, 4, 1)),
        (4, 4, 4, Grid(4, 1, 4)),
    ],
)
def test_replicas_are_inferred_or_given(parts, size, replicas, expected):
    assert grid(parts, size, replicas) == expected
    assert expected.size == size


@pytest.mark.parametrize(
    ("parts", "size", "replicas", "message"),
    [
        (3, 4, None, r"4 processes do not fit 3 parts: start 1 to 3 .* or a multiple of 3 .*the nearest are 3 and 6"),
        (3, 8, None, r"8 processes do not fit 3 parts: .*the nearest are 6 and 9"),
        (3, 6, 1, r"6 processes do not fit one chain of 3 parts: start 1 to 3 processes"),
        (3, 3, 2, r"parallel.replicas is 2, but 3 processes cannot .* start a multiple of 2, at most 6"),
        (3, 8, 2, r"parallel.replicas is 2, but 8 processes cannot .* start a multiple of 2, at most 6"),
        (3, 1, 2, r"parallel.replicas is 2, but 1 process cannot"),
    ],
)
def test_numbers_of_processes_that_do_not_fit(parts, size, replicas, message):
    with pytest.raises(ValueError, match=message):
        grid(parts, size, replicas)


def test_ranks_of_a_chain_follow_one_another():
    """Launchers number host by host: a chain stays inside a host if it fits, and replicas are apart."""
    six = Grid(3, 3, 2)
    assert [six.chain(replica) for replica in range(2)] == [[0, 1, 2], [3, 4, 5]]
    assert [six.peers(stage) for stage in range(3)] == [[0, 3], [1, 4], [2, 5]]
    assert six.owner(1) == (3, 4, 5)
    assert [six.held(rank) for rank in (2, 4)] == [range(2, 3), range(1, 2)]
    assert Grid(3, 2, 2).held(2) == range(2)
    assert [Grid(3, 2, 2).describe(rank) for rank in (0, 3)] == [
        "parts 1 to 2 of replica 1 (rank 0)",
        "part 3 of replica 2 (rank 3)",
    ]
    assert Grid(3, 3, 1).describe(1) == "part 2 (rank 1)"


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_replicas_see_exactly_the_images_of_one_chain(replicas):
    images = load_images("digits", None, None, "stop").train
    pixels = Pixels((1, 8, 8), 17, 8)
    arguments = (images, pixels, 3, 12, True, torch.device("cpu"))
    one = Batches(*arguments)
    shares = [Batches(*arguments, shard=(replica, replicas)) for replica in range(replicas)]
    for t in (0, 1, 124, 125, 126):  # 125 batches an epoch
        whole = one.at(t)
        parts = [share.at(t) for share in shares]
        assert torch.equal(torch.cat([part.z for part in parts]), whole.z)
        assert torch.equal(torch.cat([part.logp for part in parts]), whole.logp)


def two_parts(run: Path, **others) -> Config:
    cut = CutConfig("explicit", 2, [2], provisional_prior="learned")
    return small_config(run, PHASES, cut=cut, ema=0.9, eval_every=STEPS, **others)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process; 2 replicas × 2 parts, twice; and each from step 12 of the other, in one process and in two."""
    directory = tmp_path_factory.mktemp("grid")
    names = ("one", "pairs", "again", "joined", "spread")
    one, pairs, again, joined, spread = (two_parts(directory / name) for name in names)
    spread = dataclasses.replace(spread, parallel=ParallelConfig(replicas=2))
    fit_each("", [one])
    in_processes(4, fit_each, [pairs, again], directory=directory / "meet-4")
    fit_each("", [joined], directory / "pairs" / "checkpoints" / "step-12")
    in_processes(2, fit_each, [spread], directory / "one" / "checkpoints" / "step-12", directory=directory / "meet-2")
    return {name: directory / name for name in names}


@pytest.mark.parametrize("name", ["pairs", "joined", "spread"])
def test_replicas_are_one_chain_within_float_tolerance(runs, name):
    assert saved(runs["one"]) == saved(runs["pairs"]) == [12, 16, 20]
    for step in saved(runs[name]):
        expected, found = (load(runs[run] / "checkpoints" / f"step-{step}")[0] for run in ("one", name))
        assert expected.keys() == found.keys()
        for key in expected:
            torch.testing.assert_close(
                found[key], expected[key], rtol=1e-3, atol=5e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
    results = {run: json.loads((runs[run] / "result.json").read_text()) for run in ("one", name)}
    assert results[name]["test_bits_per_dim"] == pytest.approx(results["one"]["test_bits_per_dim"], abs=1e-4)
    assert {run: result["replicas"] for run, result in results.items()} == {
        "one": 1,
        name: 1 if name == "joined" else 2,
    }


def test_replicas_repeat_to_the_bit(runs):
    for step in saved(runs["pairs"]):
        first, again = (load(runs[run] / "checkpoints" / f"step-{step}")[0] for run in ("pairs", "again"))
        for key in first:
            assert torch.equal(first[key], again[key]), key
    assert lines(runs["pairs"], "evaluation") == lines(runs["again"], "evaluation")


def test_the_first_replica_writes_one_line_a_step(runs):
    for part in (1, 2):
        expected = lines(runs["one"], f"part-{part}")
        found = lines(runs["pairs"], f"part-{part}")
        assert [(line["step"], line["learn"]) for line in found] == [(line["step"], line["learn"]) for line in expected]
    assert len(lines(runs["pairs"], "end_to_end")) == 4


def test_every_test_image_is_scored_once(runs):
    expected, found = lines(runs["one"], "evaluation"), lines(runs["pairs"], "evaluation")
    assert len(expected) == len(found)
    for one, many in zip(expected, found, strict=True):
        assert (one["step"], one["images"]) == (many["step"], many["images"])
        assert many["parts"][0]["bits_per_dim"] == pytest.approx(one["parts"][0]["bits_per_dim"], abs=1e-4)


def saved(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def lines(run: Path, stream: str) -> list[dict]:
    text = (run / "metrics" / f"{stream}.jsonl").read_text()
    kept = ("step", "learn", "bits_per_dim", "images", "parts", "updated")
    return [{name: line[name] for name in kept if name in line} for line in map(json.loads, text.splitlines())]
