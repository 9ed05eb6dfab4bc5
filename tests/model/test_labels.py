"""Labels: they stay with their images from the data to every part, and flows that take them depend on them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import pipeflow
from pipeflow import evaluate, sample
from pipeflow.config import Config, PhaseConfig
from pipeflow.data import Batches, DataConfig, ImageSet, MicroBatches, Pixels, images_of
from pipeflow.distributed import ParallelConfig, Pulse, open_world
from pipeflow.flow import JetCoupling, Packet, Step, TarFlowBlock, channel_order
from pipeflow.inference import read, score
from pipeflow.model import CutConfig
from pipeflow.storage import CheckpointConfig
from pipeflow.storage.checkpoint import load
from pipeflow.stream import ReplayOutbox
from pipeflow.stream.process_links import Border
from pipeflow.training import fit
from tests.support.processes import in_processes
from tests.support.small_runs import FLOWS, LABELS, fit_each, small_config

IMAGE, CPU = (1, 2, 2), torch.device("cpu")
TRUTH = np.arange(40) % 7
MARKED = np.repeat(TRUTH, 4).reshape(40, 2, 2, 1).astype(np.uint8)  # every pixel of an image is its label


def batches(**others):
    given = {"seed": 3, "batch": 12, "flip": True, "device": CPU, "labels": TRUTH, **others}
    return Batches(MARKED, Pixels(IMAGE, 7, classes=7), **given)


def seen(packet):
    """What the images say that their labels are."""
    return ((packet.z[:, 0, 0, 0] + 0.5) * 7).floor().long()


# --- data


def test_labels_stay_with_their_images():
    for t in range(8):  # more than two epochs
        packet = batches().at(t)
        assert torch.equal(packet.label, seen(packet)) and packet.label.dtype == torch.int64
        shares = [batches(shard=(i, 3)).at(t) for i in range(3)]
        assert torch.equal(Packet.joined(shares).label, packet.label)
        pieces = MicroBatches(batches(start=t), (5, 4, 3))
        assert torch.equal(torch.cat([pieces.recv().label for _ in range(3)]), packet.label)


def test_withheld_labels_depend_on_image_and_epoch_alone():
    """… so they are the same in any number of processes, and after a run was resumed."""
    withheld = []
    for t in range(100):
        packet = batches(dropout=0.25).at(t)
        away = packet.label < 0
        assert torch.equal(packet.label[~away], seen(packet)[~away])
        assert torch.equal(packet.z, batches().at(t).z), "images are those of a run without dropout"
        shares = [batches(dropout=0.25, shard=(i, 4)).at(t).label for i in range(4)]
        assert torch.equal(torch.cat(shares), packet.label)
        withheld.append(away)
    assert torch.cat(withheld).float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert not torch.equal(torch.cat(withheld[:10]), torch.cat(withheld[10:20])), "drawn anew in every epoch"


def test_labels_are_held_out_with_their_images():
    split = ImageSet(MARKED, MARKED[:3], 7).labelled([TRUTH, TRUTH[:3]]).hold_out(11, seed=0)
    for images, labels in ((split.train, split.labels["train"]), (split.validation, split.labels["validation"])):
        assert np.array_equal(images[:, 0, 0, 0], labels)
    assert (len(split.labels["train"]), len(split.labels["validation"]), split.classes) == (29, 11, 7)


def test_labels_of_the_digits_and_of_arrays(tmp_path):
    from sklearn.datasets import load_digits

    digits, _ = images_of(DataConfig(labels=True))
    assert np.array_equal(np.concatenate([digits.labels["train"], digits.labels["test"]]), load_digits().target)
    for split, count in (("train", 40), ("test", 9)):
        np.save(tmp_path / f"{split}.npy", MARKED[:count])
        np.save(tmp_path / f"{split}_labels.npy", TRUTH[:count].astype(np.uint8))
    found, _ = images_of(DataConfig("npy", str(tmp_path), labels=True))
    assert np.array_equal(found.labels["test"], TRUTH[:9]) and found.classes == 7
    (tmp_path / "test_labels.npy").unlink()
    with pytest.raises(ValueError, match=r"test_labels\.npy' cannot be read"):
        images_of(DataConfig("npy", str(tmp_path), labels=True))
    with pytest.raises(ValueError, match="labels are in a directory"):
        images_of(DataConfig("npy", str(tmp_path / "train.npy"), labels=True))


def test_labels_of_a_folder_are_its_folders(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "images"
    for split, classes in (("train", "cab"), ("test", "ba")):
        for shade, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (4, 4), 10 * "abc".index(name) + shade).save(root / split / name / f"{number}.png")
    (root / "train" / "a" / "0.png").write_bytes(b"no image")
    settings = DataConfig("folder", str(root), on_corrupt="skip", labels=True)
    for _ in range(2):  # decoded, and from the cache
        found, _ = images_of(settings)
        assert found.labels["train"].tolist() == (found.train[:, 0, 0, 0] // 10).tolist() == [0, 1, 1, 2, 2]
        assert found.labels["test"].tolist() == (found.test[:, 0, 0, 0] // 10).tolist() == [0, 0, 1, 1]
    whole = tmp_path / "whole"  # no splits: "valid" is a class like any other
    for name in ("valid", "invalid"):
        (whole / name).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (4, 4), len(name)).save(whole / name / f"{number}.png")
    found, _ = images_of(DataConfig("folder", str(whole), labels=True))
    assert found.labels["train"].tolist() == [int(shade == len("valid")) for shade in found.train[:, 0, 0, 0]]
    Image.new("L", (4, 4)).save(root / "train" / "alone.png")
    with pytest.raises(ValueError, match=r"'train/alone\.png' lies in no folder of a class"):
        images_of(settings)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (TRUTH, TRUTH[:3] + 5, "A test label is 7, but labels are 0 to 6, as the training images have"),
        (TRUTH - 1, TRUTH[:3], "A train label is -1, but labels are 0 to 5"),
        (
            TRUTH[:39],
            TRUTH[:3],
            r"train labels are int64 of shape \(39,\); they must be whole numbers, one for each of",
        ),
        (TRUTH.astype(float), TRUTH[:3], "train labels are float64"),
    ],
)
def test_labels_that_do_not_fit_the_images(train, test, message):
    with pytest.raises(ValueError, match=message):
        images_of(DataConfig("own", labels=True), (MARKED, MARKED[:3], (train, test)))


def test_own_labels_are_handed_over_where_settings_say_so():
    _, without = images_of(DataConfig("own"), (MARKED, MARKED[:3]))
    found, digest = images_of(DataConfig("own", labels=True), (MARKED, MARKED[:3], (TRUTH, TRUTH[:3])))
    _, other = images_of(DataConfig("own", labels=True), (MARKED, MARKED[:3], (TRUTH[::-1], TRUTH[:3])))
    assert found.classes == 7 and len({without["data"], digest["data"], other["data"]}) == 3
    with pytest.raises(ValueError, match=r"data\.labels is True, but labels are not handed over"):
        images_of(DataConfig("own", labels=True), (MARKED, MARKED[:3]))
    with pytest.raises(ValueError, match=r"data\.labels is False, but labels are handed over"):
        images_of(DataConfig("own"), (MARKED, MARKED[:3], (TRUTH, TRUTH[:3])))


# --- packets


def test_a_label_takes_eight_bytes_of_a_packet_and_none_where_there_is_none():
    plain = Border("here", None, 1, (3, 5), (7, 4), 2, 1, 1.0, CPU, False, Pulse())
    labelled = plain._replace(labels=True)
    assert labelled.buffer().numel() - plain.buffer().numel() == 7 * 8
    config = ParallelConfig()
    assert config.bytes_per_image((3, 5), labels=True) - config.bytes_per_image((3, 5)) == 8
    for number, size in enumerate((7, 4)):
        sent = Packet(torch.randn(size, 3, 5), torch.randn(size), torch.randint(-1, 9, (size,)))
        buffer = labelled.buffer()
        labelled.packet(buffer, number).fill(sent)
        found = labelled.packet(buffer, number)
        assert all(torch.equal(*pair) for pair in zip(sent, found, strict=True))
    assert plain.packet(plain.buffer(), 0).label is None


def test_what_is_sent_again_has_its_labels():
    again, replay = [], ReplayOutbox()
    packets = [Packet(torch.zeros(2, 1), torch.zeros(2), torch.tensor([n, n])) for n in range(3)]
    for packet in packets:
        replay.send(packet)
    replay.open(type("Outbox", (), {"send": staticmethod(again.append)})(), made=3, taken=1)
    assert [packet.label.tolist() for packet in again] == [[1, 1], [2, 2]]


# --- steps


@pytest.fixture(params=["jet", "tarflow"])
def step(request, perturb):
    event = (4, 2, 2)
    if request.param == "jet":
        return perturb(JetCoupling(event, channel_order(event), 1, 8, 2, classes=5))
    return perturb(TarFlowBlock(event, False, 1, 8, 2, classes=5))


def test_a_label_adds_its_vector_and_an_unknown_one_the_mean(step):
    network, x = step.network, torch.randn(3, 4, step.network.enter.in_features)
    label = torch.tensor([4, -1, 0])
    found, none = network(x, label=label), network(x)
    vectors = network.class_embedding
    network.class_embedding = None
    network.enter.weight.requires_grad_(False)
    bias = network.enter.bias.detach().clone()
    for number, vector in enumerate((vectors[4], vectors.mean(0), vectors[0])):
        network.enter.bias.data = bias + vector.detach()
        torch.testing.assert_close(network(x)[number], found[number], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, none)
    torch.testing.assert_close(found[1], none[1], rtol=1e-4, atol=1e-5)


def test_guidance_goes_beyond_the_label_away_from_none(step):
    """f(z; label) + w (f(z; label) − f(z; none)) for what the network makes, patch by patch; f without a cache here."""
    torch.manual_seed(1)
    z, label, w = torch.randn(2, 4, 2, 2), torch.tensor([1, 3]), 1.5
    found = step.inverse(z, None, label, w)
    forward = step.network.forward

    def guided(x, label=None, **_):
        with_label, without = forward(x, label=label), forward(x)
        return with_label + w * (with_label - without)

    step.network.forward = guided
    torch.testing.assert_close(step(found, label)[0], z, rtol=1e-4, atol=1e-4)
    step.network.forward = forward
    assert not torch.allclose(found, step.inverse(z, None, label))
    torch.testing.assert_close(step.inverse(z, None, label, 0.0), step.inverse(z, None, label))


# --- runs


def config_in(run, flow="tarflow", **others):
    phases = [PhaseConfig("simultaneous", steps=6, lr=5e-3), PhaseConfig("alternate", steps=4, turn_steps=1, lr=5e-3)]
    settings = {"cut": CutConfig("explicit", 3, [1, 4], "flow"), "data": dataclasses.replace(LABELS, validation=100)}
    saves = CheckpointConfig(every=3, keep=9)
    return small_config(run, phases, **(FLOWS[flow] | settings | {"checkpoint": saves} | others))


def tensors(run, step=10):
    return load(run / "checkpoints" / f"step-{step}")[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("labels")
    fit(config_in(directory / "run"))
    return directory / "run"


def test_micro_batches_bf16_on_the_wire_and_replicas(tmp_path):
    """The same bits in two processes as in one; two replicas average to nearly the same."""
    packets = ParallelConfig(micro_batches=3, wire="bf16")
    for size in (1, 2):
        configs = [
            config_in(tmp_path / f"{size}-packets", "jet", parallel=packets, activations="invert"),
            config_in(tmp_path / f"{size}-replicas", parallel=ParallelConfig(replicas=size)),
        ]
        in_processes(size, fit_each, configs, directory=tmp_path / f"meet-{size}")
    one, two = (tensors(tmp_path / f"{size}-packets") for size in (1, 2))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    one, two = (tensors(tmp_path / f"{size}-replicas") for size in (1, 2))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-3)


def test_resumed_and_cut_anew(run, tmp_path):
    fit(config_in(tmp_path / "again"), resume=run / "checkpoints" / "step-3")
    one, two = tensors(run), tensors(tmp_path / "again")
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    with pytest.raises(ValueError, match=r"data\.label_dropout is 0\.0, but 0\.3 in"):
        fit(
            config_in(
                tmp_path / "other", data=dataclasses.replace(LABELS, labels=False, label_dropout=0.0, validation=100)
            ),
            resume=run,
        )
    assert not (tmp_path / "other" / "checkpoints").exists()


def test_likelihoods_and_samples_depend_on_the_label(run):
    flow = pipeflow.load(run)
    images = torch.randint(0, 17, (4, 1, 8, 8), dtype=torch.uint8)
    each = [flow.log_prob(images, label) for label in range(-1, 10)]
    assert len({tuple(one.tolist()) for one in each}) == 11
    assert torch.equal(flow.log_prob(images, [3, 1, 3, 0])[1], each[2][1])
    assert torch.equal(flow.log_prob(images, torch.tensor(3)), each[4])
    drawn = flow.sample(6, labels=[0, 1, 2, 0, 1, 2])
    assert torch.equal(drawn[:3], flow.sample(3, labels=[0, 1, 2]))
    assert not torch.equal(flow.sample(6, labels=5, guidance=8.0), flow.sample(6, labels=5))
    with pytest.raises(ValueError, match="Guidance is 2, but this flow was trained without labels"):
        pipeflow.Glow(pipeflow.GlowConfig(levels=1, steps=1, hidden=4), (1, 8, 8)).sample(1, guidance=2.0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "Labels are missing: this flow takes one of each image, from 0 to 9"),
        (10, "A label is 10, but this flow knows 0 to 9"),
        ([0, 1, -2], "A label is -2"),
        ([0, 1], r"Labels are torch.int64 of shape \(2,\)"),
        ([0.5, 1.0, 2.0], "Labels are torch.float32"),
    ],
)
def test_labels_that_a_flow_does_not_know(run, labels, message):
    flow = pipeflow.load(run)
    with pytest.raises(ValueError, match=message):
        flow.sample(3, labels=labels)
    with pytest.raises(ValueError, match=message):
        flow.log_prob(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), labels)


def test_a_flow_without_labels_takes_none():
    with pytest.raises(ValueError, match="this flow was trained without them"):
        pipeflow.Glow(pipeflow.GlowConfig(1, 1, 8), (1, 4, 4)).sample(2, labels=3)


def test_evaluate_says_bits_per_dim_of_every_class(run, tmp_path, capsys):
    assert evaluate.main([str(run), "--json", str(tmp_path / "scores.json")]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "scores.json").read_text())["results"][0]
    digits, _ = images_of(DataConfig(labels=True))
    counts = np.bincount(digits.labels["test"])
    means = [found["classes"][str(label)]["mean"] for label in range(10)]
    assert all(f"model, class {label}" in said and f"{mean:.4f}" in said for label, mean in enumerate(means))
    whole = found["truncations"][-1]["bits_per_dim"]["mean"]
    assert np.average(means, weights=counts) == pytest.approx(whole)
    assert whole == pytest.approx(json.loads((run / "result.json").read_text())["test_bits_per_dim"], abs=1e-6)
    assert evaluate.main([str(run), "--split", "validation"]) == 0
    trained = read(run)
    wrong = (digits.labels["test"] + 1) % 10
    assert score(trained, digits.test, labels=wrong).rows[-1].bits_per_dim.mean() != whole
    with pytest.raises(ValueError, match="Labels are missing"):
        score(trained, digits.test)


def sheet_in(init_method, run, out, words):
    return sample.main([str(run), "--out", str(out), *words], init_method=init_method or "env://")


def test_sheets_are_drawn_class_by_class(run, tmp_path, capsys):
    from PIL import Image

    words = ["--images", "3", "--labels", "7", "2", "--guidance", "1.5"]
    for size in (1, 2):
        in_processes(size, sheet_in, run, tmp_path / f"{size}.png", words, directory=tmp_path / f"meet-{size}")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert sample.main([str(run), "--out", str(tmp_path / "all.png")]) == 0
    assert "80 images, 8 of each label 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, at" in capsys.readouterr().out
    sizes = [Image.open(tmp_path / f"{name}.png").size for name in ("1", "all")]
    assert [round(width / 54) for width, _ in sizes] == [3, 8] and [round(height / 54) for _, height in sizes] == [
        2,
        10,
    ]
    for kind in ("--each-part", "--interpolate", "--reconstruct=3"):
        assert sample.main([str(run), kind, "--out", str(tmp_path / f"{kind[2:5]}.png")]) == 0
    for words, message in ((["--labels", "10"], "A label is 10"), (["--guidance", "-1"], "--guidance is -1")):
        assert sample.main([str(run), "--out", str(tmp_path / "no.png"), *words]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "no.png").exists()


def test_settings_that_labels_do_not_go_with():
    with pytest.raises(ValueError, match=r"data\.labels is on, but the steps of a Glow take no labels"):
        Config(data=DataConfig(labels=True))
    with pytest.raises(ValueError, match=r"data\.label_dropout is 0\.1, but the data are used without labels"):
        DataConfig(label_dropout=0.1)


HALVES = slice(24), slice(24, 48)


@pytest.mark.parametrize("flow", ["jet", "tarflow"])
def test_what_is_drawn_looks_like_its_label(flow, tmp_path):
    """Three classes of pictures: dark, bright on the left, bright on the right; the sheet has a row of each."""
    from PIL import Image

    labels = np.arange(600) % 3
    pictures = np.random.default_rng(0).integers(0, 60, (600, 4, 4, 1)).astype(np.uint8)
    pictures[labels == 1, :, :2] += 180
    pictures[labels == 2, :, 2:] += 180
    own = (pictures, pictures[:60], (labels, labels[:60]))
    families = {"jet": pipeflow.JetConfig(10, 1, 16, 2, 2), "tarflow": pipeflow.TarFlowConfig(4, 1, 16, 2, 2)}
    config = Config(
        run_dir=str(tmp_path / "run"),
        device="cpu",
        flow=flow,
        **{flow: families[flow]},
        data=DataConfig("own", batch=60, labels=True, label_dropout=0.1),
        cut=CutConfig("by_blocks", 2),
        phases=[PhaseConfig("simultaneous", steps=300, lr=5e-3, clip=1.0)],
        checkpoint=CheckpointConfig(every=None),
        eval_every=1e9,
    )
    fit(config, data=own)
    assert sample.main([str(tmp_path / "run"), "--out", str(tmp_path / "sheet.png"), "--images", "8"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L")) / 255.0
    rows = [[sheet[12 + 60 * row :, 12 + 60 * column :][:48, :48] for column in range(8)] for row in range(3)]
    left, right = (np.array([[image[:, side].mean() for image in row] for row in rows]) for side in HALVES)
    dark, more_left, less_left = (left - right).mean(1)
    assert abs(dark) < 0.2 and more_left > 0.4 and less_left < -0.4
    assert left[0].mean() < 0.3 and right[0].mean() < 0.3


# --- a flow of a script's own


class Moved(Step):
    """z' = z + shift of the label, on points."""

    conditional = True

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(7, 2))

    def _of(self, label):
        return self.shift.mean(0) if label is None else self.shift[label] * (label >= 0).unsqueeze(1)

    def forward(self, z, label=None):
        return z - self._of(label), z.new_zeros(len(z))

    def inverse(self, z, eps=None, label=None, guidance=0.0):
        return z + self._of(label)


def moved():
    return [Moved(), Moved()]


POINTS = (np.random.default_rng(0).normal(size=(40, 2)) + TRUTH[:, None]).astype(np.float32)
OWN = (POINTS, POINTS[:9], (TRUTH, TRUTH[:9]))


def own_config(run, **others):
    data = DataConfig("own", batch=8, init_batch=8, labels=True)
    phases = [PhaseConfig("simultaneous", steps=150, lr=0.1)]
    settings = {"flow": "moved", "data": data, "cut": CutConfig("explicit", 2, [1]), "phases": phases, "device": "cpu"}
    return Config(run_dir=str(run), **(settings | others))


def carry_out(init_method, config):
    world = open_world(config.parallel, config.cut.parts, config.device, init_method)
    result = fit(config, world, None, moved, OWN)
    world.close()
    return result


def test_steps_of_ones_own_take_labels(tmp_path):
    """Points around their label: what the flow learns is where each class lies."""
    for size in (1, 2):
        in_processes(size, carry_out, own_config(tmp_path / f"{size}"), directory=tmp_path / f"meet-{size}")
    one, two = (tensors(tmp_path / f"{size}", 150) for size in (1, 2))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    flow = pipeflow.load(tmp_path / "1", moved, parts=1)
    means = torch.stack([flow.sample(200, labels=label).mean(0) for label in range(7)])
    assert (means - torch.arange(7.0).view(7, 1)).abs().max() < 1


def test_own_flows_and_data_must_agree_about_labels(tmp_path):
    plain = dataclasses.replace(own_config(tmp_path / "run").data, labels=False)
    with pytest.raises(ValueError, match=r"'moved' takes labels \(conditional\), but data.labels is False"):
        fit(own_config(tmp_path / "run", data=plain), flow=moved, data=OWN[:2])
    with pytest.raises(ValueError, match="'moved' has no step that takes labels"):
        fit(own_config(tmp_path / "run"), flow=lambda: [pipeflow.flow.ActNorm(2)] * 2, data=OWN)
    assert not (tmp_path / "run" / "config.yaml").exists()
