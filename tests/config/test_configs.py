"""configs/: every file parses and says how to run it; and how files and the command line become settings."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from pipeflow.config import Config, PhaseConfig, from_dict, settle
from pipeflow.model import CutConfig, scheme_cut
from tests.support.command_line import parse

FOLDER = Path(__file__).parents[2] / "configs"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
every_file = pytest.mark.parametrize("name", FILES)


def read(name, *more):
    return parse(["--config", str(FILES[name]), *more])


def opening(name):
    """The comment with which a file opens."""
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def borders(config):
    return scheme_cut(config.cut, config.glow.levels, config.glow.steps)


# --- the files


def test_all_of_them_are_there():
    assert set(FILES) >= {
        *("quickstart", "cifar10_across2", "cifar10_across3", "cifar10_end_to_end_1e-4", "cifar10_end_to_end_1e-5"),
        *("cifar10_by_blocks", "cifar10_balanced3", "fashion_mnist", "imagenet32", "folder"),
        *("cifar10_heads2", "cifar10_heads3"),
        "digits_recipe",
    }


@every_file
def test_every_file_parses_and_has_a_run_directory_of_its_own(name):
    assert read(name).run_dir == f"runs/{name}"
    assert yaml.safe_load(FILES[name].read_text(encoding="utf-8"))["run_dir"] == f"runs/{name}"


@every_file
def test_every_file_opens_with_its_command_its_cost_and_what_to_expect(name):
    comment = opening(name)
    assert f"-m pipeflow.train --config configs/{name}.yaml" in comment
    assert "# Cost:" in comment and "# Expect:" in comment and "bits/dim" in comment.split("# Expect:")[1]


@every_file
def test_every_command_in_the_opening_can_be_run(name):
    """As many processes as the command starts share the batch evenly, and none of them is without a part."""
    commands = [line for line in opening(name).splitlines() if "pipeflow.train" in line]
    assert commands
    for command in commands:
        launcher, options = command.split("(")[0].split("-m pipeflow.train", 1)
        size = int(launcher.split("--nproc_per_node=")[1].split()[0]) if "torchrun" in launcher else 1
        _, file, *more = options.split()
        assert file == f"configs/{name}.yaml"
        config = read(name, *more)
        config.check_world(size)
        assert size <= config.cut.parts


def test_quickstart_is_the_default():
    assert read("quickstart") == Config() == parse([])
    _, _, body = FILES["quickstart"].read_text(encoding="utf-8").partition("\n\n")
    assert body == Config().as_yaml(), "write it anew with Config().as_yaml()"


@pytest.mark.parametrize(
    ("name", "at", "phases"),
    [
        ("cifar10_end_to_end_1e-4", (), [("end_to_end", 90, None, 1e-4)]),
        ("cifar10_across2", (16,), [("alternate", 60, 1, 1e-4), ("end_to_end", 30, None, 1e-4)]),
        ("cifar10_end_to_end_1e-5", (), [("end_to_end", 90, None, 1e-5)]),
        ("cifar10_across3", (16, 48), [("alternate", 60, 1, 1e-5), ("end_to_end", 30, None, 1e-5)]),
        ("cifar10_by_blocks", (32, 64), [("alternate", 60, 1, 1e-4), ("end_to_end", 30, None, 1e-4)]),
    ],
)
def test_the_rows_of_the_table(name, at, phases):
    config = read(name)
    assert (config.glow.levels, config.glow.steps, config.glow.hidden) == (3, 32, 512)
    assert (config.data.name, config.data.root, config.data.bits, config.data.batch) == ("cifar10", "data", 8, 64)
    assert (borders(config), config.cut.parts) == (at, len(at) + 1)
    assert config.phases == [
        PhaseConfig(schedule, epochs=epochs, turn_epochs=turn, lr=lr, optimizer="adam")
        for schedule, epochs, turn, lr in phases
    ]


@pytest.mark.parametrize(("parts", "baseline"), [(2, "cifar10_across2"), (3, "cifar10_across3")])
def test_heads_against_end_to_end_on_equally_many_images(parts, baseline):
    """The model, the borders and the data of the rows of the table, and no phase end to end."""
    config, reference, joined = read(f"cifar10_heads{parts}"), read(baseline), read("cifar10_end_to_end_1e-4")
    assert (config.glow, config.data, config.seed) == (joined.glow, joined.data, joined.seed)
    assert borders(config) == borders(reference) and config.cut.provisional_prior == "flow"
    (phase,), (end_to_end,) = config.phases, joined.phases
    assert phase == dataclasses.replace(end_to_end, schedule="simultaneous")
    config.check_world(parts)


def test_what_to_use_on_three_gpus():
    config = read("cifar10_balanced3")
    assert (config.cut, config.data.flip) == (CutConfig("balanced", 3), True)
    assert [phase.schedule for phase in config.phases] == ["simultaneous", "end_to_end"]
    config.check_world(3)


# --- files and the command line → settings


def glow(**others):
    """The default model but for some settings."""
    return dataclasses.replace(Config().glow, **others)


def test_dotted_names_override_the_defaults_and_the_file(tmp_path):
    assert parse(["--glow.levels", "1", "--cut.parts", "2", "--data.flip", "true"]).glow == glow(levels=1)
    file = tmp_path / "a.yaml"
    file.write_text("seed: 3\nglow: {steps: 4}\ndata: {batch: 10}\n")
    config = parse(["--config", str(file), "--data.batch", "20", "--run_dir", "elsewhere"])
    assert (config.seed, config.glow, config.data.batch, config.run_dir) == (3, glow(steps=4), 20, "elsewhere")


@pytest.mark.parametrize("equals", [True, False])
def test_a_list_is_given_whole(equals):
    phases = (
        "[{schedule: alternate, epochs: 2, turn_steps: 5, lr: [1e-3, 2.0e-3, 3]}, {schedule: end_to_end, steps: 7}]"
    )
    options = {"--phases": phases, "--cut.at": "[3, 9]", "--cut.scheme": "explicit"}
    words = [f"{k}={v}" for k, v in options.items()] if equals else [word for pair in options.items() for word in pair]
    config = parse(words)
    assert config.phases == [
        PhaseConfig("alternate", epochs=2, turn_steps=5, lr=[1e-3, 2e-3, 3.0]),
        PhaseConfig("end_to_end", steps=7),
    ]
    assert (config.cut.at, borders(config)) == ([3, 9], (3, 9))


@pytest.mark.parametrize("count", [1, 2])
def test_a_list_of_phases_takes_nothing_from_the_one_that_it_replaces(tmp_path, count):
    """Else a learning rate of the file would silently be that of the command line's phase."""
    old = "{schedule: simultaneous, epochs: 9, lr: 0.5, warmup_steps: 9, clip: 3}"
    new = "{schedule: simultaneous, steps: 2}"
    (tmp_path / "a.yaml").write_text(f"phases: [{', '.join([old] * count)}]\n")
    given = f"[{', '.join([new] * count)}]"
    for words in (["--config", str(tmp_path / "a.yaml")], ["--phases", f"[{', '.join([old] * count)}]"]):
        assert parse([*words, "--phases", given]).phases == [PhaseConfig("simultaneous", steps=2)] * count
        assert parse([*words, f"--phases={given}"]).phases == [PhaseConfig("simultaneous", steps=2)] * count


def test_small_learning_rates_are_numbers_however_they_are_written(tmp_path):
    for written in ("1e-5", "1.0e-5", "0.00001", "1E-5"):
        file = tmp_path / "a.yaml"
        file.write_text(f"phases: [{{schedule: end_to_end, steps: 1, lr: {written}}}]\n")
        assert parse(["--config", str(file)]).phases[0].lr == 1e-5


def test_the_separator_that_torchrun_needs_is_not_a_setting():
    assert parse(["--", "--run_dir", "elsewhere", "--seed", "4"]) == Config(run_dir="elsewhere", seed=4)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--cut.scheme", "explicit", "--cut.at", "[3, 9]", "--data.root", "a b/ü", "--data.bits", "5"],
        ["--cut.parts", "1", "--cut.scheme", "explicit", "--cut.at", "[]"],
        ["--phases", "[{schedule: sequential, epochs: 0.5, lr: [1e-5, 1.0e-4, 1], clip: 1e-3, optimizer: adamw}]"],
        ["--phases", "[{schedule: end_to_end, steps: 7, restart_optimizer: true}]", "--eval_every", "0.25"],
        ["--parallel.timeout_s", "1e-1", "--parallel.replicas", "1", "--seed", "123456789012345678"],
    ],
    ids=" ".join,
)
def test_resolved_settings_read_back_are_the_same(tmp_path, words):
    config = parse(words)
    file = tmp_path / "config.yaml"
    file.write_text(config.as_yaml())
    again = parse(["--config", str(file)])
    assert again == config and again.digest() == config.digest() and again.as_yaml() == config.as_yaml()


@every_file
def test_the_resolved_form_of_every_file_reads_back(name, tmp_path):
    (tmp_path / "config.yaml").write_text(read(name).as_yaml())
    assert parse(["--config", str(tmp_path / "config.yaml")]) == read(name)


def test_every_setting_is_in_the_digest():
    digests = {parse(words).digest() for words in ([], ["--seed", "1"], ["--glow.hidden", "65"], ["--run_dir", "x"])}
    assert len(digests) == 4


# --- what earlier versions have written


OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run_98f3799"


def test_run_is_still_understood_for_run_dir_in_files(tmp_path):
    (tmp_path / "old.yaml").write_text("run: runs/old\nseed: 3\n")
    for words in (["--config", str(tmp_path / "old.yaml")], [f"--config={tmp_path / 'old.yaml'}"]):
        assert parse(words) == Config(run_dir="runs/old", seed=3)
        assert parse([*words, "--run_dir", "runs/new"]).run_dir == "runs/new"


def test_a_run_of_an_earlier_version_can_be_read(tmp_path):
    config = parse(["--config", str(OLD_RUN / "config.yaml")])
    assert (config.run_dir, config.glow.hidden, config.phases[1].lr) == ("runs/old", 8, 1e-3)
    for step in (10, 20, 30):
        manifest = json.loads((OLD_RUN / "checkpoints" / f"step-{step}" / "manifest.json").read_text())
        assert from_dict(manifest["config"]).glow == config.glow
    resumed, source = settle(["--run_dir", str(tmp_path / "new"), "--resume", str(OLD_RUN / "checkpoints" / "step-10")])
    assert resumed == dataclasses.replace(config, run_dir=str(tmp_path / "new"))
    assert source == OLD_RUN / "checkpoints" / "step-10"
