"""What is the user's to fix: one sentence that names the value and what would do, a non-zero exit, nothing written."""

import json
import re
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from pipeflow.cli import wait_so_only_rank_0_prints
from pipeflow.config import Config
from pipeflow.train import main
from tests.support.command_line import parse

SMALL = ["--glow.levels", "2", "--glow.steps", "2", "--glow.hidden", "8", "--data.batch", "16", "--device", "cpu"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty directory to work in; one process, whatever environment the tests run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(tmp_path.name + "-cache")))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def refused(here, capfd):
    """main(words) must refuse: returns the sentence, having checked all that every refusal has in common."""

    def refused(*words, code=2, untouched=True, chatter=False):
        before = tree(here)
        assert main(["--run_dir", "run", *SMALL, *phases(phase(steps=1)), *words]) == code
        err = capfd.readouterr().err
        lines = err.splitlines()
        (sentence,) = [line for line in lines if line.startswith("pipeflow: ")]
        assert chatter or lines == [sentence], err
        assert "Traceback" not in err and "<class" not in sentence and "class_path" not in sentence
        assert "typing." not in sentence and "Parser key" not in sentence
        assert not untouched or tree(here) == before, "something was written"
        return sentence.removeprefix("pipeflow: ")

    return refused


def tree(root):
    """Everything below a directory: path → content and time of change, None for a directory."""
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in root.rglob("*")
    }


def says(sentence, *fragments):
    """All fragments occur, and it is a sentence."""
    for fragment in fragments:
        assert fragment in sentence, f"'{fragment}' is not in: {sentence}"
    assert re.search(r"[.?)]$", sentence), sentence


def phases(*settings):
    return ["--phases", json.dumps(list(settings))]


def phase(schedule="simultaneous", steps=3, **settings):
    return {"schedule": schedule} | ({"steps": steps} if steps is not None else {}) | settings


# --- names and kinds


UNKNOWN = {
    "misspelt": (["--sed", "1"], ["--sed", "seed"]),
    "misspelt with =": (["--sed=1"], ["--sed", "seed"]),
    "nested": (["--glow.level", "1"], ["--glow.level", "glow.levels"]),
    "group": (["--glwo.levels", "1"], ["--glwo.levels", "glow.levels"]),
    "abbreviated": (["--max_bad", "3"], ["--max_bad", "max_bad_steps"]),
    "like nothing": (["--xyzzy", "1"], ["--xyzzy", "--help"]),
    "no option": (["quickstart"], ["quickstart", "--help"]),
    "in phases": (phases(phase(lrr=1e-3)), ["lrr", "lr", "phases"]),
    "in the second phase": (phases(phase(), phase(epohcs=2)), ["epohcs", "epochs", "phases"]),
    "a phase without schedule": (phases({"steps": 3}), ["schedule", "phases"]),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_names(refused, case):
    words, fragments = UNKNOWN[case]
    says(refused(*words), *fragments)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("sed: 1\n", ["sed", "seed"]),
        ("glow: {level: 1}\n", ["glow", "level", "glow.levels"]),
        ("phases: [{schedule: simultaneous, step: 1}]\n", ["step", "steps", "phases"]),
        ("seed: [1\n", ["bad.yaml"]),
        ("just text\n", ["bad.yaml"]),
        ("", ["bad.yaml"]),
    ],
)
def test_files_that_do_not_fit(refused, here, text, fragments):
    (here / "bad.yaml").write_text(text)
    says(refused("--config", "bad.yaml"), *fragments)


def test_a_file_that_is_not_there(refused):
    says(refused("--config", "nowhere.yaml"), "nowhere.yaml", "--config")


CODE = {
    "a class": ["--glow", '{"class_path": "trap.Trap"}'],
    "a class with arguments": ["--parallel={class_path: trap.Trap, init_args: {}}"],
    "a name": ["--glow", "trap.Trap"],
    "among the phases": ["--phases", '[{"class_path": "trap.Trap"}]'],
    "one phase more": ["--phases+", '{"class_path": "trap.Trap"}'],
    "a member": ["--cut.class_path", "trap.Trap"],
    "a tag": ["--seed", "!!python/object/apply:trap.Trap []"],
    "in a file": ["--config", "bad.yaml"],
    "a tag in a file": ["--config", "tagged.yaml"],
}


@pytest.mark.parametrize("case", CODE)
def test_no_setting_is_code(here, case, monkeypatch):
    monkeypatch.syspath_prepend(here)
    (here / "trap.py").write_text("import pathlib\npathlib.Path('trapped').touch()\nclass Trap: pass\n")
    (here / "bad.yaml").write_text("glow: {class_path: trap.Trap}\n")
    (here / "tagged.yaml").write_text("glow: !!python/object/apply:trap.Trap []\n")
    with pytest.raises(ValueError):
        parse(CODE[case])
    assert not (here / "trapped").exists()


KINDS = {
    "word for a number": (["--seed", "x"], ["seed", "x", "whole number"]),
    "nested": (["--glow.levels", "two"], ["glow.levels", "two", "whole number"]),
    "fraction": (["--glow.levels", "2.5"], ["glow.levels", "2.5", "whole number"]),
    "word for a length": (["--eval_every", "often"], ["eval_every", "often", "number"]),
    "switch": (["--data.flip", "maybe"], ["data.flip", "maybe", "true", "false"]),
    "choice": (["--data.name", "cifar"], ["data.name", "cifar", "cifar10", "cifar100"]),
    "choice in phases": (phases(phase("simultanous")), ["phases", "schedule", "simultanous", "simultaneous"]),
    "in phases": (phases(phase(lr="fast")), ["phases", "lr", "fast", "number"]),
    "fraction of a step": (phases(phase(steps=1.5)), ["phases", "steps", "1.5", "whole number"]),
    "no list": (["--phases", "simultaneous"], ["phases", "simultaneous", "list"]),
    "cut no list": (["--cut.at", "3"], ["cut.at", "3", "list"]),
    "no value": (["--seed"], ["--seed", "value"]),
}


@pytest.mark.parametrize("case", KINDS)
def test_wrong_kinds(refused, case):
    words, fragments = KINDS[case]
    says(refused(*words), *fragments)


# --- ranges


RANGES = {
    "data.batch": (["--data.batch", "0"], ["data.batch is 0", "at least 1"]),
    "data.init_batch": (["--data.init_batch", "-5"], ["data.init_batch is -5", "at least 1"]),
    "data.image_size": (["--data.image_size", "0"], ["data.image_size is 0", "at least 1"]),
    "data.bits": (["--data.bits", "9"], ["data.bits is 9", "between 1 and 8"]),
    "data.validation": (["--data.validation", "-1"], ["data.validation is -1", "not negative"]),
    "glow.levels": (["--glow.levels", "0"], ["glow.levels is 0", "at least 1"]),
    "glow.hidden": (["--glow.hidden", "0"], ["glow.hidden is 0", "at least 1"]),
    "cut.parts": (["--cut.parts", "0"], ["cut.parts is 0", "at least 1"]),
    "parallel.depth": (["--parallel.depth", "0"], ["parallel.depth is 0", "at least 1"]),
    "parallel.micro_batches": (
        ["--parallel.micro_batches", "0"],
        ["parallel.micro_batches is 0", "at least 1, or auto"],
    ),
    "parallel.memory": (["--parallel.memory", "80"], ["parallel.memory: '80'", "an amount such as 80GB"]),
    "parallel.threads": (["--parallel.threads", "-1"], ["parallel.threads is -1", "at least 1"]),
    "fsdp and invert": (
        ["--activations", "invert", "--end_to_end.engine", "fsdp"],
        ["activations is invert and end_to_end.engine is fsdp", "use activations checkpoint"],
    ),
    "end_to_end.micro_batches": (
        ["--end_to_end.engine", "pipeline", "--end_to_end.micro_batches", "0"],
        ["end_to_end.micro_batches is 0", "at least 1"],
    ),
    "micro-batches of ddp": (
        ["--end_to_end.micro_batches", "4"],
        ["end_to_end.micro_batches is 4", "end_to_end.engine is ddp", "leave it out"],
    ),
    "parallel.rejoin_s": (["--parallel.rejoin_s", "-1"], ["parallel.rejoin_s is -1", "not negative"]),
    "parallel.timeout_s": (["--parallel.timeout_s", "0"], ["parallel.timeout_s is 0", "positive"]),
    "parallel.replicas": (["--parallel.replicas", "0"], ["parallel.replicas is 0", "at least 1"]),
    "a part without a process": (["--parallel.replicas", "[2, 0, 1]"], ["parallel.replicas holds 0", "at least 1"]),
    "replicas of two of three parts": (
        ["--parallel.replicas", "[2, 1]"],
        ["parallel.replicas lists 2 numbers for 3 parts", "one for each part"],
    ),
    "replicas that are too many for one process": (
        ["--parallel.replicas", "[2, 1, 1]"],
        ["parallel.replicas is [2, 1, 1], which takes 4 processes", "there is 1", "start 4"],
    ),
    "replicas that cannot share a batch": (
        ["--parallel.replicas", "[5, 1, 1]"],
        ["parallel.replicas is [5, 1, 1]", "a batch of 16 images", "nearest that they can is 15"],
    ),
    "replicas that cannot share a packet": (
        ["--parallel.replicas", "[2, 1, 1]", "--parallel.micro_batches", "9"],
        ["parallel.replicas is [2, 1, 1]", "micro_batches 9", "at most 8 packets"],
    ),
    "unequal replicas in a pipeline": (
        [*phases(phase("end_to_end")), "--parallel.replicas", "[2, 1, 1]", "--end_to_end.engine", "pipeline"],
        ["parallel.replicas is [2, 1, 1]", "a pipeline", "ddp or fsdp"],
    ),
    "unequal replicas of equal parts": (
        ["--parallel.replicas", "[2, 1, 1]", "--cut.scheme", "balanced"],
        ["parallel.replicas is [2, 1, 1]", "cut.scheme balanced", "equal replicas"],
    ),
    "eval_every": (["--eval_every", "0"], ["eval_every is 0", "positive"]),
    "max_bad_steps": (["--max_bad_steps", "0"], ["max_bad_steps is 0", "at least 1"]),
    "lr 0": (phases(phase(lr=0)), ["lr is 0", "phase 1", "positive"]),
    "lr -1": (phases(phase(lr=-1)), ["lr is -1", "phase 1", "positive"]),
    "one lr of three": (phases(phase(lr=[1e-3, 0, 1e-3])), ["lr holds 0", "positive"]),
    "lr inf": (["--phases", "[{schedule: simultaneous, steps: 3, lr: .inf}]"], ["lr is inf"]),
    "lr nan": (["--phases", "[{schedule: simultaneous, steps: 3, lr: .nan}]"], ["lr is nan", "positive"]),
    "epochs": (phases(phase(steps=None, epochs=0)), ["epochs is 0", "positive"]),
    "steps of the second phase": (phases(phase(), phase("end_to_end", steps=0)), ["steps is 0", "phase 2"]),
    "warmup_steps": (phases(phase(warmup_steps=-1)), ["warmup_steps is -1", "negative"]),
    "clip": (phases(phase(clip=0)), ["clip is 0", "positive"]),
    "turn_steps": (phases(phase("alternate", turn_steps=0)), ["turn_steps is 0", "at least 1"]),
    "two lengths": (phases(phase(epochs=1)), ["epochs", "steps", "one of the two"]),
    "no length": (phases(phase(steps=None)), ["epochs", "steps", "one of the two"]),
    "two turns": (phases(phase("alternate", turn_steps=1, turn_epochs=1)), ["turn_epochs", "turn_steps", "not both"]),
    "turns of another schedule": (phases(phase("sequential", turn_steps=1)), ["turn_steps", "alternate", "sequential"]),
    "too few lr": (phases(phase(), phase("alternate", lr=[1e-3, 1e-3])), ["Phase 2", "2 learning rates", "3 parts"]),
    "lr list end to end": (phases(phase("end_to_end", lr=[1e-3])), ["end_to_end", "one lr"]),
    "no phases": (["--phases", "[]"], ["phases is empty", "at least one"]),
}


@pytest.mark.parametrize("case", RANGES)
def test_out_of_range(refused, case):
    words, fragments = RANGES[case]
    says(refused(*words), *fragments)


EXPLICIT = ["--cut.scheme", "explicit"]
CUTS = {
    "outside": ([*EXPLICIT, "--cut.at", "[3, 16]"], ["[3, 16]", "between 1 and 15", "16 flow steps"]),
    "at the start": ([*EXPLICIT, "--cut.at", "[0, 3]"], ["[0, 3]", "between 1 and 15"]),
    "empty": ([*EXPLICIT, "--cut.at", "[]"], ["cut.at", "0 borders", "3 parts", "have 2"]),
    "missing": (EXPLICIT, ["cut.at is None", "explicit"]),
    "unsorted": ([*EXPLICIT, "--cut.at", "[9, 3]"], ["[9, 3]", "must rise"]),
    "doubled": ([*EXPLICIT, "--cut.at", "[3, 3]"], ["[3, 3]", "none twice"]),
    "another scheme": (["--cut.at", "[3, 9]"], ["cut.at is [3, 9]", "across_blocks", "explicit"]),
    "too many blocks": (["--cut.scheme", "by_blocks"], ["by_blocks", "at most 2 parts", "not 3"]),
    "too many across": (["--cut.parts", "4"], ["across_blocks", "at most 3 parts", "not 4"]),
    "too many balanced": (["--cut.scheme", "balanced", "--cut.parts", "17"], ["cut.parts is 17", "16 flow steps"]),
}


@pytest.mark.parametrize("case", CUTS)
def test_cuts(refused, case):
    words, fragments = CUTS[case]
    says(refused("--glow.steps", "8", *words), *fragments)


def test_more_parts_than_flow_steps_are_found_before_anything_is_measured():
    with pytest.raises(ValueError, match=r"cut\.parts is 17.*16 flow steps"):
        parse(["--glow.levels", "2", "--glow.steps", "8", "--cut.scheme", "balanced", "--cut.parts", "17"])


# --- data


DATA = {
    "image size": (["--glow.levels", "4"], ["8×8", "glow.levels", "multiples of 16", "16×16"]),
    "batch": (["--data.batch", "1501"], ["data.batch is 1501", "1500 training images"]),
    "init_batch": (["--data.init_batch", "1501"], ["data.init_batch is 1501", "1500 training images"]),
    "validation": (["--data.validation", "1500"], ["data.validation is 1500", "1500 training images", "at least one"]),
    "bits of 17 levels": (["--data.bits", "5"], ["data.bits is 5", "17 levels", "8"]),
    "other size": (["--data.image_size", "16"], ["data.image_size is 16", "8×8"]),
    "no root": (["--data.name", "folder"], ["data.root is not given", "--data.root"]),
    "missing root": (["--data.name", "folder", "--data.root", "nowhere"], ["data.root 'nowhere'", "No such file"]),
    "missing array": (["--data.name", "npy", "--data.root", "no.npy"], ["no.npy", "No such file", "train.npy"]),
    "sequential": (phases(phase("sequential", steps=2)), ["sequential phase of 2 steps", "3 parts"]),
}


@pytest.mark.parametrize("case", DATA)
def test_data(refused, case):
    words, fragments = DATA[case]
    says(refused(*words), *fragments)


def test_an_image_size_of_ones_own_that_cannot_be_halved(refused, here):
    (here / "images").mkdir()
    for number in range(20):
        Image.fromarray(np.full((30, 30), number, np.uint8)).save(here / "images" / f"{number:02}.png")
    words = ["--data.name", "folder", "--data.root", "images", "--data.init_batch", "16"]
    says(refused(*words, "--data.image_size", "30"), "30×30", "multiples of 4", "32×32")
    (here / "images" / "07.png").write_bytes(b"no image")
    says(refused(*words, "--data.image_size", "32"), "07.png", "on_corrupt")


def test_a_data_set_that_is_not_there_without_a_network(refused, here, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    for name in ("fashion_mnist", "cifar10"):
        # The directory for the downloads may be made; the run directory may not.
        sentence = refused("--data.name", name, "--data.root", "images", untouched=False, chatter=True)
        says(sentence, name, "no network here", "--data.root DIR")
        assert not (here / "run").exists()


# --- devices, processes, directories


def test_a_device_that_is_not_there(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    says(refused("--device", "cuda"), "device is cuda", "--device cpu")


def test_nccl_needs_a_gpu(refused):
    says(refused("--parallel.backend", "nccl"), "parallel.backend is nccl", "gloo", "auto")


@pytest.mark.parametrize(
    ("batch", "size", "nearest"), [(64, 3, 63), (62, 4, 64), (2, 3, 3), (1, 3, 3), (50, 3, 51), (97, 2, 96)]
)
def test_batches_that_the_processes_cannot_share(batch, size, nearest):
    words = ["--data.batch", str(batch)]
    with pytest.raises(ValueError, match=f"data.batch is {batch}, which {size} processes .* is {nearest}"):
        parse([*words, *phases(phase(), phase("end_to_end"))]).check_world(size)
    apart = parse([*words, *phases(phase(), phase("alternate"))])
    apart.check_world(size)
    with pytest.raises(ValueError, match=f"data.batch is {batch}, which {size} replicas .* is {nearest}"):
        apart.check_world(2 * size, replicas=size)
    parse(["--data.batch", str(nearest)]).check_world(size)
    Config().check_world(1)


@pytest.mark.parametrize(
    ("batch", "wanted", "size", "replicas", "said"),
    [
        (48, None, 3, 1, ""),
        (50, None, 3, 1, ""),  # 5 micro-batches of 10: a batch need not be shared by processes
        (48, 5, 3, 1, "micro_batches is 5, .* 48 images a batch, .* at least 3: 3, 4, 6, 8, 12, 16, 24, 48 will do"),
        (48, 2, 3, 1, "end_to_end.micro_batches is 2, but a chain of 3 processes"),
        (2, None, 3, 1, "the 2 images of a batch that a chain takes cannot be 3 micro-batches"),
        (49, None, 4, 2, "data.batch is 49, which 2 replicas cannot share"),
        (2, None, 4, 2, "the 1 image of a batch that a chain takes cannot be 2 micro-batches"),
        (3, None, 2, 2, "data.batch is 3, which 2 processes cannot share"),
        (2, None, 2, 2, ""),  # chains of one process, which are no pipelines
    ],
)
def test_batches_that_a_pipeline_cannot_cut(batch, wanted, size, replicas, said):
    engine = ["--end_to_end.engine", "pipeline", *(["--end_to_end.micro_batches", str(wanted)] if wanted else [])]
    config = parse(["--data.batch", str(batch), *engine, *phases(phase("end_to_end"))])
    if not said:
        return config.check_world(size, replicas)
    with pytest.raises(ValueError, match=said):
        config.check_world(size, replicas)


def test_a_pipeline_on_a_gpu_needs_nccl(refused, monkeypatch):
    monkeypatch.setattr("pipeflow.distributed.world.World.staged", True)
    monkeypatch.setattr("pipeflow.config.config.Config.pipelined", lambda config, stages: True)
    sentence = refused("--end_to_end.engine", "pipeline", *phases(phase("end_to_end")))
    says(sentence, "end_to_end.engine is pipeline", "ddp or fsdp", "device cpu")


def test_a_directory_that_holds_a_run_is_left_alone(refused, here, capfd):
    words = [*SMALL, *phases(phase("end_to_end", steps=1)), "--run_dir", "run"]
    assert main(words) == 0
    capfd.readouterr()
    says(refused(*words), "run already holds a run", "--run_dir DIR", "rename")
    says(refused(*words, "--seed", "5"), "run already holds a run")


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints"])
def test_the_remains_of_a_run_are_a_run(refused, here, name):
    (here / "run").mkdir()
    (here / "run" / name).mkdir() if name == "checkpoints" else (here / "run" / name).write_text("seed: 1\n")
    says(refused(), "already holds a run")


def test_a_run_directory_that_is_a_file(refused, here):
    (here / "taken").write_text("mine")
    says(refused("--run_dir", "taken"), "taken is a file", "directory")
    says(refused("--run_dir", "taken/run"), "taken", "directory")


# --- a run that breaks


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(refused, here):
    words = [*phases(phase("simultaneous", steps=60, lr=1e6)), "--max_bad_steps", "3", "--eval_every", "1000"]
    sentence = refused(*words, code=1, untouched=False)
    found = re.search(r"part (\d) \(rank 0\) stops at step (\d+)", sentence)
    assert found and "3 times in a row" in sentence and "max_bad_steps" in sentence
    part, last = found.groups()
    lines = [json.loads(line) for line in (here / "run" / "metrics" / f"part-{part}.jsonl").read_text().splitlines()]
    finite = [line["bits_per_dim"] for line in lines if not line["bad"]]
    assert f"last finite loss was {finite[-1]:.4f} bits/dim" in sentence
    assert [line["bad"] for line in lines[-3:]] == [True] * 3 and lines[-1]["step"] == int(last)
    assert not any(line["updated"] for line in lines[-3:])
    assert not (here / "run" / "result.json").exists()


def test_a_loss_that_is_no_number_for_a_while_does_not_stop_it(monkeypatch, here):
    """Skips are counted in a row: one bad batch in three is no reason to stop, and its update is left out."""
    from pipeflow.data import Batches

    at, drawn = Batches.at, []

    def spoilt(self, t, within=slice(None)):
        packet = at(self, t, within)
        drawn.append(t)
        return packet._replace(logp=packet.logp * float("nan")) if t % 3 == 2 else packet

    monkeypatch.setattr(Batches, "at", spoilt)
    words = [*SMALL, *phases(phase("simultaneous", steps=8)), "--max_bad_steps", "2", "--run_dir", "run"]
    assert main(words) == 0 and set(drawn) == set(range(8))
    lines = [json.loads(line) for line in (here / "run" / "metrics" / "part-1.jsonl").read_text().splitlines()]
    assert [line["bad"] for line in lines] == [step % 3 == 2 for step in range(8)]
    assert [line["updated"] for line in lines] == [step % 3 != 2 for step in range(8)]


def test_a_phase_too_short_to_be_stopped_does_not_end_well_with_a_broken_model(refused, here):
    """Finite gradients may still throw the weights to where every loss is NaN; max_bad_steps is not reached then."""
    words = phases(phase("simultaneous", lr=1e30))
    sentence = refused(*words, code=1, untouched=False)
    assert "phase 1" in sentence.lower() and "not finite" in sentence and "lower lr" in sentence
    assert not (here / "run" / "result.json").exists() and not (here / "run" / "checkpoints").exists()


@pytest.mark.parametrize(("rank", "local_rank", "seconds"), [(0, 0, 0), (1, 1, 10), (3, 0, 5), (4, 1, 10)])
def test_what_all_processes_find_the_first_of_a_host_says(rank, local_rank, seconds, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    wait_so_only_rank_0_prints()
    assert sum(slept) == seconds
