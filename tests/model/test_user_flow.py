"""A flow and data of a script's own keep every law of the package's own, and what breaks the contract is named."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pipeflow
from pipeflow import evaluate, sample
from pipeflow.config import Config, PhaseConfig
from pipeflow.data import DataConfig, Points, save_sheet
from pipeflow.distributed import open_world
from pipeflow.flow import ActNorm, Squeeze, Step
from pipeflow.inference import read, score
from pipeflow.model import CutConfig
from pipeflow.storage import CheckpointConfig, checkpoint
from pipeflow.train import main
from pipeflow.training import fit
from tests.support.processes import in_processes

BY_PARTS = [PhaseConfig("simultaneous", steps=9, warmup_steps=4), PhaseConfig("alternate", steps=6, turn_steps=2)]
PHASES = [*BY_PARTS, PhaseConfig("end_to_end", steps=6, clip=1.0), PhaseConfig("sequential", steps=6)]


class Shift(Step):
    """z_b' = z_b · exp(s(z_a)) + t(z_a) for vectors of three numbers, which it then turns around."""

    def __init__(self, hidden=8):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def forward(self, z):
        s, t = self.network(z[:, :2]).chunk(2, 1)
        return torch.cat([z[:, 2:] * s.exp() + t, z[:, :2]], 1), s.sum(1)

    def inverse(self, z, eps=None):
        s, t = self.network(z[:, 1:]).chunk(2, 1)
        return torch.cat([z[:, 1:], (z[:, :1] - t) * (-s).exp()], 1)


class Leave(Step):
    """The last number leaves the flow, and is scored by a standard normal."""

    place, entry = "closes", "split_prior"

    def forward(self, z):
        return self.encode(z)[:2]

    def encode(self, z):
        eps = z[:, 2:]
        return z[:, :2], torch.distributions.Normal(0, 1).log_prob(eps).sum(1), eps

    def inverse(self, z, eps=None):
        return torch.cat([z, eps], 1)

    def out_shape(self, event):
        return (2,)

    def eps_shape(self, event):
        return (1,)


def vectors():
    """A flow on (3,), a number of which leaves behind the second part."""
    return [step for _ in range(3) for step in (ActNorm(3), Shift())] + [Leave(), ActNorm(2)]


def points(n, seed, skew=0.5):
    """Three numbers that hang together: (n, 3) float32."""
    z = np.random.default_rng(seed).normal(size=(n, 3))
    z[:, 1] += skew * z[:, 0] ** 2
    z[:, 2] = 0.3 * z[:, 2] + np.sin(z[:, 0])
    return (2 * z + 1).astype(np.float32)


DATA = points(240, 0), points(100, 1)


def config_in(run, **others):
    settings = {
        "run_dir": str(run),
        "device": "cpu",
        "flow": "vectors",
        "data": DataConfig("own", batch=24, init_batch=64),
        "cut": CutConfig("explicit", 3, [2, 6], provisional_prior="learned"),
        "phases": PHASES,
        "checkpoint": CheckpointConfig(every=1, keep=100),
    }
    return Config(**(settings | others))


def carry_out(init_method, config, resume=None):
    world = open_world(config.parallel, config.cut.parts, config.device, init_method)
    result = fit(config, world, resume, vectors, DATA)
    world.close()
    return result


def tensors_at(config, step):
    return checkpoint.load(Path(config.run_dir) / "checkpoints" / f"step-{step}")[0]


def assert_equal_at(one, other, step):
    tensors, others = tensors_at(one, step), tensors_at(other, step)
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of every schedule, in one process, saved at every step."""
    config = config_in(tmp_path_factory.mktemp("own") / "run")
    in_processes(1, carry_out, config, directory=Path(config.run_dir).parent / "meet")
    return config


# --- the laws


@pytest.mark.parametrize("size", [2, 3])
def test_by_parts_the_same_bits_in_any_number_of_processes(size, whole, tmp_path):
    config = dataclasses.replace(whole, run_dir=str(tmp_path / "run"), phases=PHASES[:3])
    in_processes(size, carry_out, config, directory=tmp_path / "meet")
    for step in (1, 9, 15):
        assert_equal_at(whole, config, step)
    joined, others = tensors_at(whole, 21), tensors_at(config, 21)
    for name in joined:  # end to end, gradients are added up in another order
        torch.testing.assert_close(others[name], joined[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("step", [1, 8, 9, 12, 15, 18, 21, 24])
def test_from_any_step_to_the_same_bits(step, whole, tmp_path):
    config = dataclasses.replace(whole, run_dir=str(tmp_path / "run"))
    fit(config, resume=Path(whole.run_dir) / "checkpoints" / f"step-{step}", flow=vectors, data=DATA)
    assert_equal_at(whole, config, 27)


def test_training_changed_every_parameter(whole):
    start, end = tensors_at(whole, 9), tensors_at(whole, 27)
    moves = [name for name in end if "/" not in name and not name.endswith("initialised")]
    assert moves and not [name for name in moves if torch.equal(start[name], end[name])]


def test_actnorm_starts_from_the_data(whole, tmp_path):
    config = dataclasses.replace(
        whole, run_dir=str(tmp_path / "run"), phases=[PhaseConfig("simultaneous", steps=1, lr=1e-9)]
    )
    fit(config, flow=vectors, data=DATA)
    tensors = tensors_at(config, 1)
    assert all(tensors[name] for name in tensors if name.endswith("initialised"))
    train = torch.from_numpy(DATA[0])
    torch.testing.assert_close(tensors["steps.0.bias"], -train.mean(0), atol=0.7, rtol=0)
    torch.testing.assert_close(tensors["steps.0.log_scale"], -train.std(0).log(), atol=0.4, rtol=0)


def test_the_ledger_adds_up_and_is_the_mean_over_the_test_points(whole):
    result = json.loads((Path(whole.run_dir) / "result.json").read_text())
    trained = read(whole.run_dir, vectors)
    scores = score(trained, DATA[1])
    assert result["ledger"]["dequantisation"] == 0
    for part, row in zip(result["ledger"]["parts"], scores.rows, strict=True):
        assert part["bits_per_dim"] == pytest.approx(row.bits_per_dim.mean(), abs=1e-6)
    assert [part["split_prior"] != 0 for part in result["ledger"]["parts"]] == [False, True, False]
    nats = -pipeflow.load(whole.run_dir, vectors).log_prob(torch.from_numpy(DATA[1])).mean()
    assert result["test_bits_per_dim"] == pytest.approx(nats.item() / (3 * np.log(2)), abs=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_loaded_flow_has_the_jacobian_of_its_encoding_and_undoes_it(parts, whole):
    flow = pipeflow.load(whole.run_dir, vectors, parts)
    x = torch.from_numpy(DATA[1][:5])
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, rtol=1e-4, atol=1e-4)
    standard = torch.distributions.Normal(0, 1)
    for point, log_prob in zip(x, flow.log_prob(x), strict=True):

        def latents(point):
            return torch.cat([latent.flatten() for latent in flow.encode(point[None]).values()])

        jacobian = torch.autograd.functional.jacobian(latents, point)
        by_hand = standard.log_prob(latents(point)).sum() + torch.linalg.slogdet(jacobian.double())[1]
        torch.testing.assert_close(log_prob, by_hand.float(), rtol=1e-4, atol=1e-4)


def test_samples_are_points_and_do_not_depend_on_how_many(whole):
    flow = pipeflow.load(whole.run_dir, vectors)
    drawn = flow.sample(50, seed=3)
    assert drawn.shape == (50, 3) and drawn.is_floating_point()
    torch.testing.assert_close(flow.sample(5, seed=3), drawn[:5])
    assert not (Path(whole.run_dir) / "samples").exists()


def test_an_exported_flow_is_the_same(whole, tmp_path):
    pipeflow.export(whole.run_dir, tmp_path / "flow.safetensors", vectors)
    x = torch.from_numpy(DATA[1])
    loaded = pipeflow.load(tmp_path / "flow.safetensors", vectors)
    assert torch.equal(loaded.log_prob(x), pipeflow.load(whole.run_dir, vectors).log_prob(x))
    with pytest.raises(ValueError, match="script's own"):
        pipeflow.load(tmp_path / "flow.safetensors")


def test_weights_depend_on_the_seed_and_the_generator_is_left_alone(whole, tmp_path):
    before = torch.get_rng_state()
    first = {}
    for seed in (0, 1):
        config = config_in(tmp_path / str(seed), seed=seed, phases=[PhaseConfig("simultaneous", steps=1)])
        fit(config, flow=vectors, data=DATA)
        first[seed] = tensors_at(config, 1)["steps.1.network.0.weight"]
    assert not torch.allclose(first[0], first[1], atol=1e-2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_balanced_cut_is_measured(tmp_path):
    config = config_in(tmp_path / "run", cut=CutConfig("balanced", 2), phases=[PhaseConfig("simultaneous", steps=1)])
    fit(config, flow=vectors, data=DATA)
    at = checkpoint.read_manifest(tmp_path / "run" / "checkpoints" / "step-1").at
    assert len(at) == 1 and 1 <= at[0] <= 6


def test_images_of_ones_own(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)
    flow = lambda: [Squeeze(), ActNorm(12), ActNorm(12)]  # noqa: E731
    config = config_in(
        tmp_path / "run",
        flow="squeezed",
        data=DataConfig("own", batch=12, init_batch=32),
        cut=CutConfig("explicit", 2, [1]),
        phases=[PhaseConfig("simultaneous", steps=2)],
    )
    result = fit(config, flow=flow, data=(images[:50], images[50:]))
    assert 7.5 < result["test_bits_per_dim"] < 10  # noise: 8 bits, and what a Gaussian wastes on the uniform
    assert pipeflow.load(tmp_path / "run", flow).sample(2).dtype == torch.uint8
    assert (tmp_path / "run" / "samples" / "step-2.png").is_file()


# --- what is refused


class Liar(Shift):
    """Says that it makes one number more than it does."""

    def out_shape(self, event):
        return (4,)


class WrongInverse(Shift):
    """Undoes nothing."""

    def inverse(self, z, eps=None):
        return z


class Scalar(Shift):
    """Adds its increments up over the batch."""

    def forward(self, z):
        out, dlogp = super().forward(z)
        return out, dlogp.sum()


class Random(Shift):
    """Is another map at every call."""

    def forward(self, z):
        return super().forward(z + torch.rand_like(z))


class InPlace(Shift):
    """Writes into what it was given."""

    def forward(self, z):
        z += 0
        z[:, 0] *= 2
        return super().forward(z)


class Entry(Shift):
    """Has a line of the ledger that there is not."""

    entry = "mine"


SHARED = Shift()

FLOWS = {
    "a shape that is not so": (lambda: [ActNorm(3), Liar()], "steps.1 of the flow 'vectors' (Liar)", "(3,)", "(4,)"),
    "another event": (lambda: [ActNorm(5)], "steps.0", "ActNorm", "does not take latents of shape (3,)"),
    "an inverse that is none": (lambda: [WrongInverse()], "not undone by its inverse"),
    "one dlogp for all": (lambda: [Scalar()], "dlogp of shape ()", "(B,)"),
    "chance": (lambda: [Random()], "nothing in it may be random"),
    "an argument overwritten": (lambda: [InPlace()], "writes into its argument"),
    "an entry of no ledger": (lambda: [Entry()], "'mine'", "log_det or split_prior"),
    "no steps": (lambda: [nn.Linear(3, 3)], "holds a Linear", "Step"),
    "nothing": (list, "has no flow step"),
    "shared weights": (lambda: [SHARED, ActNorm(3), SHARED], "steps.0 and steps.2", "share"),
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_that_breaks_the_contract(name, tmp_path):
    flow, *fragments = FLOWS[name]
    refused(config_in(tmp_path / "run", cut=CutConfig("explicit", 1, [])), flow, DATA, *fragments)


def test_a_cut_that_lies_outside(tmp_path):
    config = config_in(tmp_path / "run", cut=CutConfig("explicit", 2, [7]))
    refused(config, vectors, DATA, "cut at [7]", "between 1 and 6", "7 flow steps")
    refused(config_in(tmp_path / "run", cut=CutConfig()), vectors, DATA, "across_blocks", "balanced or explicit")


def test_names_and_what_is_handed_over_go_together(tmp_path):
    config = config_in(tmp_path / "run", cut=CutConfig("explicit", 1, []))
    refused(config, None, DATA, "'vectors'", "flow=")
    refused(dataclasses.replace(config, flow="glow"), vectors, DATA, "flow: glow", "name")
    refused(dataclasses.replace(config, flow="glow"), None, DATA, "Glow", "(3,)")
    refused(config, vectors, None, "data.name is own", "data=")
    refused(dataclasses.replace(config, data=DataConfig("digits")), vectors, DATA, "data.name is digits", "own")


@pytest.mark.parametrize(
    ("data", "fragments"),
    [
        ((points(50, 0), points(50, 1)[:, :2]), ("(50, 3)", "(50, 2)", "alike")),
        ((np.zeros((50, 3), int), np.zeros((50, 3), int)), ("int64", "float", "uint8")),
        ((points(50, 0), points(0, 1)), ("empty",)),
        ((np.full((300, 3), np.nan), points(50, 1).astype(float)), ("finite",)),
        ((points(9, 0), points(9, 1)), ("data.batch is 24", "9 training")),
    ],
    ids=["two shapes", "whole numbers", "empty", "not finite", "too few"],
)
def test_data_that_do_not_fit(data, fragments, tmp_path):
    refused(config_in(tmp_path / "run"), vectors, data, *fragments)


def test_settings_for_images(tmp_path):
    for settings in ({"flip": True}, {"bits": 5}):
        data = DataConfig("own", batch=24, init_batch=64, **settings)
        refused(config_in(tmp_path / "run", data=data), vectors, DATA, "data.flip and data.bits")


class Other(Shift):
    """Of the same shapes, and another map."""


@pytest.mark.parametrize(
    ("change", "flow", "data", "fragments"),
    [
        ({"flow": "other"}, vectors, DATA, ("flow is other, but vectors",)),
        ({}, lambda: [ActNorm(3), Shift(16), *vectors()[2:]], DATA, ("The flow handed over",)),
        ({}, lambda: [ActNorm(3), Other(), *vectors()[2:]], DATA, ("The flow handed over",)),
        ({}, vectors, (points(240, 2), DATA[1]), ("The data handed over",)),
    ],
    ids=["another name", "other shapes", "another class", "other data"],
)
def test_a_run_goes_on_with_what_it_has_begun_with(change, flow, data, fragments, whole, tmp_path):
    config = dataclasses.replace(whole, run_dir=str(tmp_path / "run"), **change)
    source = Path(whole.run_dir) / "checkpoints" / "step-9"
    refused(config, flow, data, *fragments, "cannot change", resume=source)


def test_another_flow_is_not_loaded(whole):
    with pytest.raises(ValueError, match="The flow handed over is not"):
        pipeflow.load(whole.run_dir, lambda: [ActNorm(3), Other(), *vectors()[2:]])
    with pytest.raises(ValueError, match="'vectors' is one of a script's own"):
        pipeflow.load(whole.run_dir)
    with pytest.raises(ValueError, match="parts 1 to 3"):
        pipeflow.load(whole.run_dir, vectors, 4)


def disagree(init_method, config):
    world = open_world(config.parallel, config.cut.parts, config.device, init_method)
    try:
        fit(config, world, None, vectors, (points(240, int(os.environ["RANK"])), DATA[1]))
    except ValueError as error:
        return str(error)
    finally:
        world.close()
    return "nothing"


def test_processes_whose_data_differ_are_told(tmp_path):
    said = in_processes(2, disagree, config_in(tmp_path / "run"), directory=tmp_path / "meet")
    assert all("disagree about what the script hands over" in text for text in said), said
    assert not (tmp_path / "run").exists()


def refused(config, flow, data, *fragments, resume=None):
    """fit must refuse, in one sentence, before anything is written."""
    with pytest.raises(ValueError) as caught:
        fit(config, resume=resume, flow=flow, data=data)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)
    assert not Path(config.run_dir).exists()


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--data.batch", "300"], "data.batch is 300, but own has only 240"),
        (["--flow", "glow"], "A flow is handed over"),
        (["--config", "nowhere.yaml"], "nowhere.yaml is no file that can be read"),
        (["--resume", "nowhere"], "nowhere is no checkpoint"),
    ],
)
def test_as_a_command_what_is_wrong_is_a_sentence(words, fragment, tmp_path, capsys):
    assert main(words, config_in(tmp_path / "run"), vectors, DATA) == 2
    said = capsys.readouterr().err
    assert said.startswith("pipeflow: ") and said.count("\n") == 1 and fragment in said
    assert not (tmp_path / "run").exists()


def test_as_a_command_settings_are_the_script_s_and_words_override_them(tmp_path):
    words = ["--run_dir", str(tmp_path / "run"), "--seed", "3", "--phases", "[{schedule: simultaneous, steps: 2}]"]
    assert main(words, config_in(tmp_path / "other"), vectors, DATA) == 0
    manifest = checkpoint.read_manifest(tmp_path / "run" / "checkpoints" / "step-2")
    expected = config_in(tmp_path / "run", seed=3, phases=[PhaseConfig("simultaneous", steps=2)])
    assert manifest.config == expected.as_dict()
    assert main([*words, "--resume", "auto"], config_in(tmp_path / "other"), vectors, DATA) == 0
    assert main([], config_in(tmp_path / "no words", phases=[PhaseConfig("simultaneous", steps=1)]), vectors, DATA) == 0
    assert (tmp_path / "no words" / "result.json").is_file()


# --- points


def test_points_enter_as_they_are():
    space = Points((3,))
    packet = space.dequantise(torch.ones(4, 3, dtype=torch.float64))
    assert packet.z.dtype == torch.float32 and packet.logp.tolist() == [0] * 4
    assert space.dims == 3 and space.bits_per_dim(-3 * np.log(2)) == pytest.approx(1)
    for wrong in (torch.ones(4, 2), torch.ones(4, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"\(B, 3\)"):
            space.dequantise(wrong)


# --- evaluate and sample, as a script calls them


def test_evaluate_has_the_figures_of_training(whole, tmp_path, capsys):
    words = [whole.run_dir, "--device", "cpu", "--json", str(tmp_path / "scores.json")]
    assert evaluate.main(words, flow=vectors, data=DATA) == 0
    assert "100 test points of own\n" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "scores.json").read_text())["results"]
    expected = json.loads((Path(whole.run_dir) / "result.json").read_text())["ledger"]["parts"]
    means = [row["bits_per_dim"]["mean"] for row in found["truncations"]]
    assert means == pytest.approx([part["bits_per_dim"] for part in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "flow", "data", "fragment"),
    [
        ([], None, DATA, "'vectors' is one of a script's own"),
        ([], lambda: [ActNorm(3), *vectors()], DATA, "The flow handed over"),
        ([], vectors, None, "data=(train, test)"),
        ([], vectors, (points(240, 2), DATA[1]), "The data handed over"),
        (["--data", "digits"], vectors, None, "the run 3 with 0 levels"),
        (["--data", "cifar10"], vectors, None, "the run 3 with 0 levels"),
    ],
)
def test_evaluate_refuses_in_a_sentence(words, flow, data, fragment, whole, capsys):
    assert evaluate.main([whole.run_dir, "--device", "cpu", *words], flow=flow, data=data) == 2
    assert_sentence(capsys, fragment)


def test_points_are_no_picture(whole, tmp_path, capsys):
    pipeflow.export(whole.run_dir, tmp_path / "flow.safetensors", vectors)
    for place, *words in ((whole.run_dir,), (whole.run_dir, "--each-part"), (str(tmp_path / "flow.safetensors"),)):
        out = tmp_path / "points.png"
        assert sample.main([place, *words, "--out", str(out), "--device", "cpu"], flow=vectors) == 2
        assert_sentence(capsys, "one of points")
        assert not out.exists()


def assert_sentence(capsys, fragment):
    said = capsys.readouterr().err
    assert said.startswith("pipeflow: ") and said.count("\n") == 1 and fragment in said, said


GREYS = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1), dtype=np.uint8)


def squares():
    """A flow on images of 4 × 4 pixels."""
    return [Squeeze(), ActNorm(4), Squeeze(), ActNorm(16)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A run on images of a script's own, in two parts."""
    config = config_in(
        tmp_path_factory.mktemp("pictures") / "run",
        flow="squares",
        cut=CutConfig("explicit", 2, [1]),
        phases=[PhaseConfig("simultaneous", steps=2)],
    )
    fit(config, flow=squares, data=(GREYS[:250], GREYS[250:]))
    return config.run_dir


def draw(init_method, run, out):
    assert sample.main([run, "--out", out, "--device", "cpu"], init_method, squares) == 0


def test_sample_draws_in_one_process_and_in_two(pictures, tmp_path):
    drawn = pipeflow.load(pictures, squares).sample(64, 0.7)
    save_sheet([[drawn]], 256, tmp_path / "expected.png")
    for size in (1, 2):
        out = tmp_path / f"{size}.png"
        in_processes(size, draw, pictures, str(out), directory=tmp_path / f"meet-{size}")
        assert out.read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_sample_looks_at_the_script_s_own_images(pictures, tmp_path, capsys):
    words = [pictures, "--device", "cpu", "--reconstruct", "8", "--out", str(tmp_path / "out.png")]
    assert sample.main(words, flow=squares) == 2
    assert_sentence(capsys, "data=(train, test)")
    assert sample.main(words, flow=squares, data=(GREYS[:250], GREYS[:50])) == 2
    assert_sentence(capsys, "The data handed over")
    assert sample.main(words, flow=squares, data=(GREYS[:250], GREYS[250:])) == 0
    assert "largest error of a pixel: 0 of 256 levels" in capsys.readouterr().out
    assert (tmp_path / "out.png").stat().st_size > 0
