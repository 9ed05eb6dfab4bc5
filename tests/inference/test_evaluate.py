"""The command that scores a finished run: the figures of training, how sure they are, and the same in any processes."""

import contextlib
import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeflow.config import PhaseConfig
from pipeflow.data import DataConfig, Purpose, share
from pipeflow.data.datasets import load
from pipeflow.evaluate import main
from pipeflow.inference import read, score, standard_error
from pipeflow.storage import CheckpointConfig
from pipeflow.storage.checkpoint import read_manifest
from pipeflow.training import fit
from tests.support.processes import in_processes
from tests.support.small_runs import small_config

PHASES = [PhaseConfig("sequential", steps=9, warmup_steps=4), PhaseConfig("end_to_end", steps=4)]
LABELS = ["after part 1 (1 flow step)", "after part 2 (4 flow steps)", "model"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits, saved at every step: part 2 starts to learn at step 3, part 3 at step 6."""
    directory = tmp_path_factory.mktemp("evaluate") / "run"
    fit(small_config(directory, PHASES, seed=3, checkpoint=CheckpointConfig(every=1, keep=100)))
    return directory


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Directories of images with 256 levels: digits made brighter, noise of the same size, and larger noise."""
    root, random = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    bright = load("digits", None, None).train[:60] * 15
    for name, images in {
        "bright": bright,
        "noise": random.integers(0, 256, bright.shape, dtype=np.uint8),
        "large": random.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8),
    }.items():
        (root / name).mkdir()
        np.save(root / name / "train.npy", images)
        np.save(root / name / "test.npy", images[:17])
    return root


@pytest.fixture(scope="module")
def bright(arrays, tmp_path_factory):
    """A run on images of 256 levels."""
    directory = tmp_path_factory.mktemp("evaluate") / "bright"
    data = DataConfig("npy", str(arrays / "bright"), batch=12, init_batch=32)
    fit(small_config(directory, [PhaseConfig("simultaneous", steps=8)], data=data))
    return directory


def figures(file):
    """label → what the JSON says of it, for the first data set in it."""
    return {row["label"]: row for row in json.loads(file.read_text())["results"][0]["truncations"]}


def by_hand(trained, parts, images, seed, draw=0):
    """Log-likelihood in nats of every image, (N,) float64, by the flow in double precision after `parts` parts."""
    pixels, flow = trained.data_space, trained.flow(parts)
    given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    packet = pixels.noisy(given, seed, Purpose.EVALUATE, draw, torch.arange(len(images)))
    z, logp = packet.z.double(), torch.full((len(images),), -pixels.dims * math.log(pixels.n)).double()
    with torch.no_grad():
        for part in flow.double().parts():
            for _, step in part.chain():
                z, dlogp = step(z)
                logp = logp + dlogp
        return (logp + flow.prior.log_prob(z)).numpy()


def test_the_figures_are_those_of_the_result(run, tmp_path, capsys):
    assert main([str(run), "--json", str(tmp_path / "a.json")]) == 0
    result, found = json.loads((run / "result.json").read_text()), figures(tmp_path / "a.json")
    assert list(found) == LABELS and [row["model"] for row in found.values()] == [False, False, True]
    assert found["model"]["bits_per_dim"]["mean"] == pytest.approx(result["test_bits_per_dim"], rel=0, abs=1e-6)
    for row, part in zip(found.values(), result["ledger"]["parts"], strict=True):
        assert row["bits_per_dim"]["mean"] == pytest.approx(part["bits_per_dim"], rel=0, abs=1e-6)
    said = capsys.readouterr().out
    assert "297 test images of digits, 1 draw of dequantisation noise (seed 3)" in said
    for label, row in found.items():
        (line,) = [line for line in said.splitlines() if line.startswith(label)]
        mean, error = line.removeprefix(label).split()
        assert mean == f"{row['bits_per_dim']['mean']:.4f}" and error == f"{row['bits_per_dim']['standard_error']:.4f}"
    about = json.loads((tmp_path / "a.json").read_text())
    assert about["step"] == 13 and about["processes"] == 1 and about["batch"] == 12
    one = about["results"][0]
    assert (one["data"], one["images"], one["seed"], one["samples"]) == ("digits", 297, 3, 1)


def test_a_checkpoint_is_scored_as_it_was(run, tmp_path):
    checkpoint = run / "checkpoints" / "step-9"
    assert main([str(checkpoint), "--json", str(tmp_path / "a.json")]) == 0
    then = read_manifest(checkpoint).test_bits_per_dim
    assert then is not None and json.loads((tmp_path / "a.json").read_text())["step"] == 9
    assert figures(tmp_path / "a.json")["model"]["bits_per_dim"]["mean"] == pytest.approx(then, rel=0, abs=1e-6)


@pytest.mark.parametrize(("step", "parts"), [(2, 1), (5, 2), (7, 3)])
def test_what_has_not_started_to_learn_has_no_figure(step, parts, run, tmp_path, capsys):
    checkpoint = run / "checkpoints" / f"step-{step}"
    assert main([str(checkpoint), "--json", str(tmp_path / "a"), "--histogram", str(tmp_path / "a.png")]) == 0
    assert list(figures(tmp_path / "a")) == LABELS[:parts]
    assert (f"no bits/dim of the model yet: part {parts + 1} has not" in capsys.readouterr().out) == (parts < 3)


def test_every_image_has_its_own_figure_in_double_precision(run):
    trained, images = read(run), load("digits", None, None).test
    scores = score(trained, images)
    scale = trained.data_space.dims * math.log(2)
    for part, row in enumerate(scores.rows, 1):
        bits = -by_hand(read(run), part, images, seed=3) / scale
        assert row.bits_per_dim.dtype == np.float64
        np.testing.assert_allclose(row.bits_per_dim, bits, rtol=0, atol=2e-5)
        assert standard_error(row.bits_per_dim) == pytest.approx(np.std(bits, ddof=1) / np.sqrt(297), rel=1e-4)
        assert row.bound.tolist() == row.bits_per_dim.tolist()  # one draw: the bound is the figure


def test_several_draws_and_their_bound(run):
    trained, images = read(run), load("digits", None, None).test[:40]
    scores = score(trained, images, seed=11, samples=3)
    scale = trained.data_space.dims * math.log(2)
    for part, row in enumerate(scores.rows, 1):
        draws = np.stack([by_hand(read(run), part, images, 11, draw) for draw in range(3)])
        assert (draws[0] != draws[1]).all() and (draws[1] != draws[2]).all()
        np.testing.assert_allclose(row.bits_per_dim, -draws.mean(0) / scale, rtol=0, atol=2e-5)
        np.testing.assert_allclose(row.bound, -np.log(np.exp(draws).mean(0)) / scale, rtol=0, atol=2e-5)
        assert (row.bound < row.bits_per_dim).all()


def test_the_seed_is_that_of_the_noise(run):
    trained, images = read(run), load("digits", None, None).test[:40]
    own, given, other = (score(trained, images, seed).rows[-1].bits_per_dim for seed in (None, 3, 4))
    assert (own == given).all() and (own != other).all()


def test_several_draws_are_printed_and_written(run, tmp_path, capsys):
    assert main([str(run), "--samples", "2", "--seed", "5", "--json", str(tmp_path / "a.json")]) == 0
    said, row = capsys.readouterr().out, figures(tmp_path / "a.json")["model"]
    assert "2 draws of dequantisation noise (seed 5)" in said
    (line,) = [line for line in said.splitlines() if line.startswith("model")]
    expected = [row[kind][name] for kind in ("bits_per_dim", "weighted_bound") for name in ("mean", "standard_error")]
    assert line.split()[1:] == [f"{value:.4f}" for value in expected]
    assert row["weighted_bound"]["mean"] < row["bits_per_dim"]["mean"]


SHARES = {  # images, batch, processes → images of each
    (10, 3, 1): [(0, 10)],
    (10, 3, 2): [(0, 6), (6, 10)],
    (10, 3, 3): [(0, 3), (3, 6), (6, 10)],
    (10, 3, 4): [(0, 3), (3, 6), (6, 9), (9, 10)],
    (10, 3, 5): [(0, 0), (0, 3), (3, 6), (6, 9), (9, 10)],
    (2, 7, 2): [(0, 0), (0, 2)],
}


@pytest.mark.parametrize("case", SHARES)
def test_shares_are_whole_batches_of_one_process(case):
    images, batch, size = case
    found = [share(images, batch, rank, size) for rank in range(size)]
    assert [(part.start, part.stop) for part in found] == SHARES[case]
    assert [image for part in found for image in part] == list(range(images))


def evaluated(init_method, words):
    """The command's exit code and what it says, in one of several processes."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words, init_method)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(("size", "batch"), [(2, "12"), (3, "200")])
def test_any_number_of_processes(size, batch, run, tmp_path, capsys):
    """With 200 images at a time there are two batches, and one of three processes has nothing to do."""
    words = [str(run), "--device", "cpu", "--samples", "2", "--batch", batch]
    assert main([*words, "--json", str(tmp_path / "one.json")]) == 0
    said = capsys.readouterr().out
    words += ["--json", str(tmp_path / "more.json")]
    found = in_processes(size, evaluated, words, directory=tmp_path / "meet")
    assert found == [(0, said if rank == 0 else "", "") for rank in range(size)]
    one, more = figures(tmp_path / "one.json"), figures(tmp_path / "more.json")
    assert json.loads((tmp_path / "more.json").read_text())["processes"] == size
    for label in LABELS:
        for kind in ("bits_per_dim", "weighted_bound"):
            assert more[label][kind] == pytest.approx(one[label][kind], rel=0, abs=1e-9)


def test_what_is_wrong_is_said_by_one_process(tmp_path):
    found = in_processes(2, evaluated, [str(tmp_path / "nowhere")], directory=tmp_path / "meet")
    assert [code for code, _, _ in found] == [2, 2]
    assert "".join(err for _, _, err in found) == f"pipeflow: {tmp_path / 'nowhere'} holds no checkpoint.\n"


def test_other_images(bright, arrays, tmp_path, capsys):
    """Noise lies far from what the flow has learned; figure and JSON have both data sets."""
    words = ["--data", "npy", "--root", str(arrays / "noise")]
    assert main([str(bright), *words, "--json", str(tmp_path / "a")]) == 0
    assert [result["data"] for result in json.loads((tmp_path / "a").read_text())["results"]] == ["npy (--data)"]
    assert main([str(bright), *words, "--json", str(tmp_path / "b"), "--histogram", str(tmp_path / "b.png")]) == 0
    other, own = json.loads((tmp_path / "b").read_text())["results"]
    assert (other["data"], other["images"], own["data"], own["images"]) == ("npy (--data)", 17, "npy", 17)
    assert other == json.loads((tmp_path / "a").read_text())["results"][0]
    assert other["truncations"][-1]["bits_per_dim"]["mean"] > own["truncations"][-1]["bits_per_dim"]["mean"]
    result = json.loads((bright / "result.json").read_text())["test_bits_per_dim"]
    assert own["truncations"][-1]["bits_per_dim"]["mean"] == pytest.approx(result, rel=0, abs=1e-6)
    assert "17 test images of npy (--data)," in capsys.readouterr().out


def test_the_runs_own_images_may_have_moved(bright, arrays, tmp_path):
    (tmp_path / "moved").symlink_to(arrays / "bright")
    words = [str(bright), "--json", str(tmp_path / "a"), "--root", str(tmp_path / "moved")]
    assert main(words) == 0
    result = json.loads((bright / "result.json").read_text())["test_bits_per_dim"]
    assert figures(tmp_path / "a")["model"]["bits_per_dim"]["mean"] == pytest.approx(result, rel=0, abs=1e-6)


def test_the_histogram_is_a_picture_and_tells_data_sets_apart(bright, arrays, tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert main([str(bright), "--histogram", str(one)]) == 0
    assert main([str(bright), "--data", "npy", "--root", str(arrays / "noise"), "--histogram", str(two)]) == 0
    assert one.read_bytes()[:8] == two.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert one.read_bytes() != two.read_bytes()


@pytest.mark.parametrize("option", ["--json", "--histogram"])
def test_files_are_never_written_over(option, run, tmp_path, capsys):
    file = tmp_path / "old.png"
    file.write_bytes(b"old")
    assert main([str(run), option, str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "is there already, and is not written over" in said.err
    assert file.read_bytes() == b"old"


WRONG = {
    "no run": ([], "the following arguments are required: RUN"),
    "an unknown option": (["{run}", "--sample", "3"], "there is no option --sample 3"),
    "no number": (["{run}", "--samples", "few"], "--samples: invalid int value: 'few'"),
    "no draw": (["{run}", "--samples", "0"], "--samples is 0; it must be at least 1"),
    "no batch": (["{run}", "--batch", "-1"], "--batch is -1; it must be at least 1"),
    "an unknown data set": (["{run}", "--data", "letters"], "--data: invalid choice: 'letters'"),
    "a missing directory": (["{empty}/nowhere"], "nowhere holds no checkpoint"),
    "an empty directory": (["{empty}"], "holds no checkpoint"),
    "a file": (["{run}/result.json"], "result.json holds no checkpoint"),
    "another size": (
        ["{run}", "--data", "npy", "--root", "{arrays}/large"],
        "The images of npy are 3×16×16 with 256 levels, those of the run 1×8×8 with 17 levels",
    ),
    "other levels": (
        ["{run}", "--data", "npy", "--root", "{arrays}/bright"],
        "The images of npy are 1×8×8 with 256 levels, those of the run 1×8×8 with 17 levels",
    ),
    "another size, not downloaded": (
        ["{bright}", "--data", "mnist", "--root", "{empty}"],
        "The images of mnist are 28×28 pixels with 256 levels, those of the run 1×8×8 with 256",
    ),
    "its own images, exchanged": (["{bright}", "--root", "{arrays}/large"], "The images of npy are 3×16×16"),
    "no root": (["{run}", "--data", "npy"], "point --root at a .npy file"),
    "an own root for nothing": (["{run}", "--own-root", "x"], "--own-root only says where"),
    "a picture of no kind": (["{run}", "--histogram", "{empty}/a.jpg"], "a.jpg must end in .png"),
    "no directory": (["{run}", "--json", "{empty}/b/a.json"], "b is no directory"),
    "one name for two files": (["{run}", "--json", "{empty}/a.png", "--histogram", "{empty}/a.png"], "give two names"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_a_sentence(name, run, bright, arrays, tmp_path, capsys):
    words, message = WRONG[name]
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"run": run, "bright": bright, "arrays": arrays, "empty": empty}
    assert main([word.format(**places) for word in words]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("pipeflow: ") and message in line, line
    assert said.out == "" and list(empty.iterdir()) == []


def test_a_flow_that_has_broken_is_said_to_be(run):
    """A scale out of all bounds: no mean hides it, and the JSON stays one."""
    trained = read(run)
    with torch.no_grad():
        next(parameter for name, parameter in trained.slices[2].named_parameters() if "log_scale" in name).fill_(100.0)
    scores = score(trained, load("digits", None, None).test[:10])
    assert "(10 of these images have a bits/dim that is not finite)" in scores.table()
    assert np.isfinite(scores.rows[1].bits_per_dim).all()
    last = json.loads(json.dumps(scores.as_dict(), allow_nan=False))["truncations"][-1]["bits_per_dim"]
    assert last["mean"] is None and last["not_finite"] == 10


def test_one_image_has_no_standard_error(run):
    scores = score(read(run), load("digits", None, None).test[:1])
    assert scores.as_dict()["truncations"][-1]["bits_per_dim"]["standard_error"] is None
    assert math.isnan(standard_error(scores.rows[-1].bits_per_dim))


def test_a_notebook_keeps_its_threads(run):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        score(read(run), load("digits", None, None).test[:5])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_there_is_nothing_to_score_before_the_start(run):
    trained = read(Path(run) / "checkpoints" / "step-2")
    unborn = dataclasses.replace(trained, manifest=dataclasses.replace(trained.manifest, started=0))
    with pytest.raises(ValueError, match="has started to learn; there is nothing to score yet"):
        score(unborn, load("digits", None, None).test)
