"""The grid: which sizes fit, who holds what, and that R replicas at batch B/R are one chain at batch B."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pipeflow.config import Config, PhaseConfig
from pipeflow.data import Batches, Pixels
from pipeflow.data.datasets import load as load_images
from pipeflow.distributed import ParallelConfig, World, grid, overlap, owners
from pipeflow.distributed.grid import Grid
from pipeflow.model import CutConfig, HeadConfig
from pipeflow.storage import CheckpointConfig
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
        (3, 4, [2, 1, 1], Grid(3, 3, 1, (2, 1, 1))),
        (2, 4, [2, 2], Grid(2, 2, 2)),  # equal numbers are chains
        (2, 2, [2, 2], Grid(2, 1, 2)),
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
        (3, 3, [2, 1, 1], r"parallel.replicas is \[2, 1, 1\], which takes 4 processes, but there are 3; start 4"),
        (3, 8, [2, 1, 1], r"parallel.replicas is \[2, 1, 1\], which takes 4 processes, but there are 8; start 4"),
        (3, 4, [3, 1], r"parallel.replicas lists 2 numbers for 3 parts \(cut.parts\); give one for each part"),
    ],
)
def test_numbers_of_processes_that_do_not_fit(parts, size, replicas, message):
    with pytest.raises(ValueError, match=message):
        grid(parts, size, replicas)


@pytest.mark.parametrize(("replicas", "size", "said"), [(2, 6, "2 replicas"), ([2, 1, 1], 4, r"\[2, 1, 1\] replicas")])
def test_replicas_cannot_come_back_alone(replicas, size, said):
    with pytest.raises(ValueError, match=rf"parallel.rejoin_s is 5.0, but there are {said}, which wait for each other"):
        World(ParallelConfig(replicas=replicas, rejoin_s=5.0), 3, "cpu", 0, size)


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


def test_replicas_of_a_part_share_its_packets_in_the_order_of_the_images():
    six = Grid(3, 3, 1, (1, 3, 2))
    assert (six.size, six.unit, six.owner(0), six.chain(0)) == (6, 6, (0, 1, 4), list(range(6)))
    assert [six.peers(stage) for stage in range(3)] == [[0], [1, 2, 3], [4, 5]]
    assert [six.held(rank) for rank in (0, 3, 4)] == [range(1), range(1, 2), range(2, 3)]
    assert [six.share(rank, 6) for rank in (0, 1, 3, 4)] == [range(6), range(2), range(4, 6), range(3)]
    assert [six.share(rank, 1) for rank in range(1, 4)] == [range(0), range(0), range(1)], "fewer images than replicas"
    assert six.edges() == [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (2, 5), (3, 5)]
    assert [six.describe(rank) for rank in (0, 2)] == ["part 1 (rank 0)", "part 2, replica 2 (rank 2)"]
    assert Grid(3, 2, 2).edges() == [(0, 1), (2, 3)] and Grid(3, 3, 1).edges() == [(0, 1), (1, 2)]


@pytest.mark.parametrize("sharers", [(2, 1), (1, 3), (2, 3), (4, 6), (3, 5)])
def test_every_image_crosses_a_border_once_whatever_the_size_of_a_packet(sharers):
    """Between processes that have a group of their own, opened before any packet is cut."""
    found = Grid(2, 2, 1, sharers)
    first, second = range(sharers[0]), range(sharers[0], sum(sharers))
    for images in range(1, 30):
        shares = [found.share(rank, images) for rank in range(found.size)]
        assert [image for rank in first for image in shares[rank]] == list(range(images))
        for rank in second:
            pieces = {other: overlap(shares[other], shares[rank]) for other in first}
            crossed = [shares[other][image] for other, piece in pieces.items() for image in piece]
            assert crossed == list(shares[rank])
            assert all((other, rank) in found.edges() for other, piece in pieces.items() if piece)


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


UNEQUAL = {
    # of the 297 test images one is left over, and the first replica has none of it
    "the first part": ([2, 1, 1], {"checkpoint": CheckpointConfig(every=3, keep=100), "batch": 8}),
    "3 after 1, 2 after 3; heads, inverted, in packets, averaged": (
        [1, 3, 2],
        {
            "activations": "invert",
            "cut": CutConfig("explicit", 3, [1, 4], "flow", HeadConfig(steps=1, hidden=4)),
            "ema": 0.9,
        },
    ),
    "2 before 3, rounded on the wire": ([2, 3, 1], {}),
}


def of_unequal(directory: Path, name: str, run: str, spread: bool = True) -> Config:
    """Digits in three parts; the replicas where they are `spread`, else one process; rounding in both."""
    replicas, others = UNEQUAL[name]
    wire, packets = ("bf16" if "wire" in name else "fp32"), (2 if "packets" in name and spread else 1)
    parallel = ParallelConfig(replicas=replicas if spread else None, micro_batches=packets, wire=wire)
    lr = {"lr": 1e-3}
    phases = [dataclasses.replace(PHASES[0], **lr), *PHASES[1:2], dataclasses.replace(PHASES[2], steps=2), PHASES[3]]
    return small_config(directory / name / run, phases, parallel=parallel, eval_every=STEPS, **others)


@pytest.fixture(scope="module", params=UNEQUAL)
def unequal(request, tmp_path_factory):
    """One process, unequal replicas twice, and where there are checkpoints each from step 9 of the other."""
    directory, name = tmp_path_factory.mktemp("unequal"), request.param
    one, many, again = of_unequal(directory, name, "one", False), *(of_unequal(directory, name, f"{n}") for n in (1, 2))
    size = sum(UNEQUAL[name][0])
    fit_each("", [one])
    in_processes(size, fit_each, [many, again], directory=directory / "meet")
    if "checkpoint" in UNEQUAL[name][1]:
        joined, spread = of_unequal(directory, name, "joined", False), of_unequal(directory, name, "spread")
        fit_each("", [joined], Path(many.run_dir) / "checkpoints" / "step-9")
        in_processes(size, fit_each, [spread], Path(many.run_dir) / "checkpoints" / "step-9", directory=directory / "2")
    return directory / name


def last(run: Path) -> dict[str, torch.Tensor]:
    return load(run / "checkpoints" / "step-18")[0]


def test_unequal_replicas_are_one_chain_within_float_tolerance(unequal):
    for name in ("1", "joined"):
        if not (unequal / name).exists():
            continue
        expected, found = last(unequal / "one"), last(unequal / name)
        assert expected.keys() == found.keys()
        for part in (1, 2, 3):
            steps = [
                [(line["step"], line["learn"]) for line in lines(unequal / run, f"part-{part}")]
                for run in ("one", name)
            ]
            assert steps[1] == [step for step in steps[0] if step[0] >= steps[1][0][0]]
        for key in expected:
            torch.testing.assert_close(
                found[key], expected[key], rtol=1e-3, atol=5e-5, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_unequal_replicas_score_every_test_image_once(unequal):
    expected, found = lines(unequal / "one", "evaluation"), lines(unequal / "1", "evaluation")
    assert len(expected) == len(found) > 4
    for one, many in zip(expected, found, strict=True):
        assert (one["step"], one["images"]) == (many["step"], many["images"])
        for part in range(len(one["parts"])):
            assert many["parts"][part]["bits_per_dim"] == pytest.approx(one["parts"][part]["bits_per_dim"], abs=1e-4)


def test_unequal_replicas_repeat_and_resume_to_the_bit(unequal):
    expected = last(unequal / "1")
    for name in ("2", "spread"):
        if (unequal / name).exists():
            found = last(unequal / name)
            assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)


def test_every_one_of_unequal_replicas_counts_its_bytes(unequal):
    result = json.loads((unequal / "1" / "result.json").read_text())
    assert result["replicas"] in [replicas for replicas, _ in UNEQUAL.values()]
    assert len(result["bytes_sent"]) == sum(result["replicas"]) and min(result["bytes_sent"]) > 0
    assert [path.name for path in (unequal / "1" / "samples").iterdir()]


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
