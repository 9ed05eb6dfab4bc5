"""Settings are checked by one mechanism, in Python as on the command line; and every setting is described."""

import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeflow
from pipeflow import (
    CheckpointConfig,
    Config,
    CutConfig,
    DataConfig,
    EndToEndConfig,
    GlowConfig,
    ParallelConfig,
    PhaseConfig,
)
from pipeflow.config import describe
from tests.support.command_line import parse

CLASSES = (
    *("PhaseConfig", "CutConfig", "DataConfig", "ParallelConfig", "CheckpointConfig", "EndToEndConfig", "GlowConfig"),
    "Config",
)
WRONG = {
    "a word that is no schedule": (
        lambda: PhaseConfig("simultanous", steps=4),
        "phases.schedule is simultanous; it must be one of simultaneous, alternate, sequential, end_to_end.",
    ),
    "a word that is no scheme": (
        lambda: CutConfig("by_block", 3),
        "cut.scheme is by_block; it must be one of by_blocks, across_blocks, balanced, explicit.",
    ),
    "a word that is no precision": (
        lambda: Config(precision="fp61"),
        "precision is fp61; it must be one of fp32, tf32, bf16.",
    ),
    "a word that is no engine": (
        lambda: EndToEndConfig("dpp"),
        "end_to_end.engine is dpp; it must be one of ddp, fsdp, pipeline.",
    ),
    "a word for a number": (
        lambda: DataConfig(batch="x"),
        "data.batch is x; it must be a whole number of at least 1.",
    ),
    "a number in a word": (
        lambda: GlowConfig(levels="4"),
        "glow.levels is 4; it must be a whole number of at least 1.",
    ),
    "a fraction of a step": (
        lambda: PhaseConfig("simultaneous", steps=2.5),
        "phases.steps is 2.5; it must be a whole number of at least 1, or null.",
    ),
    "a truth for a whole number": (
        lambda: CutConfig(parts=True),
        "cut.parts is True; it must be a whole number of at least 1.",
    ),
    "a truth for a number": (lambda: Config(eval_every=True), "eval_every is True; it must be a positive number."),
    "a number for a truth": (lambda: DataConfig(flip=1), "data.flip is 1; it must be true or false."),
    "nothing for a number": (lambda: Config(seed=None), "seed is None; it must be a whole number."),
    "a number for a text": (lambda: Config(run_dir=3), "run_dir is 3; it must be a text."),
    "out of range": (
        lambda: ParallelConfig(timeout_s=0),
        "parallel.timeout_s is 0; it must be a positive number.",
    ),
    "in a list": (
        lambda: PhaseConfig("alternate", steps=3, lr=[1e-3, "fast"]),
        "phases.lr holds fast; it must be a positive, finite number, or a list of positive, finite numbers.",
    ),
    "no list": (lambda: CutConfig("explicit", 2, 3), "cut.at is 3; it must be a list of whole numbers, or null."),
    "a dict for a group": (
        lambda: Config(glow={"levels": 2}),
        "glow is {'levels': 2}; it must be a group of names and values (GlowConfig).",
    ),
    "a dict for a phase": (
        lambda: Config(phases=[{"schedule": "end_to_end", "steps": 3}]),
        "phases is {'schedule': 'end_to_end', 'steps': 3} in phase 1; it must be a group of names and values "
        "(PhaseConfig).",
    ),
    "a name that is none": (
        lambda: CheckpointConfig(evry=3),
        "checkpoint.evry is no setting. Did you mean checkpoint.every? `python -m pipeflow.train --help` lists them "
        "all.",
    ),
    "a phase without schedule": (
        lambda: PhaseConfig(steps=3),
        "phases.schedule is missing; it must be one of simultaneous, alternate, sequential, end_to_end.",
    ),
    "settings that contradict each other": (
        lambda: PhaseConfig("end_to_end"),
        "A phase needs a length in epochs or in steps, one of the two.",
    ),
    "a replacement": (
        lambda: dataclasses.replace(Config(), device="gpu"),
        "device is gpu; it must be one of auto, cpu, cuda.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_python_refuses_what_the_command_line_refuses(case):
    wrong, said = WRONG[case]
    with pytest.raises(ValueError) as caught:
        wrong()
    assert type(caught.value) is ValueError and str(caught.value) == said


def test_arguments_that_fit_no_setting():
    for wrong in (lambda: EndToEndConfig("ddp", None, 3), lambda: EndToEndConfig("ddp", engine="ddp")):
        with pytest.raises(ValueError, match=r"^end_to_end cannot be made of these arguments: .*\.$"):
            wrong()


def test_a_whole_number_will_do_for_a_number():
    phase = PhaseConfig("alternate", epochs=3, lr=[1, 2e-3])
    assert (phase.epochs, phase.lr) == (3.0, [1.0, 2e-3]) and isinstance(phase.epochs, float)


@pytest.mark.parametrize("name", CLASSES)
def test_settings_are_plain_frozen_dataclasses(name):
    kind = getattr(pipeflow, name)
    assert name in pipeflow.__all__ and kind.__doc__ and kind.__name__ == name and dataclasses.is_dataclass(kind)
    one = kind("end_to_end", steps=1) if name == "PhaseConfig" else kind()
    assert dataclasses.replace(one) == one == pickle.loads(pickle.dumps(one))
    assert list(dataclasses.asdict(one)) == [field.name for field in dataclasses.fields(kind)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, dataclasses.fields(kind)[0].name, 3)


def test_importing_the_package_imports_nothing_yet():
    program = "import sys, pipeflow; assert not {'torch', 'pydantic', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


# --- files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nglow: {levels: 1, levels: 2}\n", "levels is there twice"),
        ("a: &a [1, *a]\n", "recursive|Circular"),
        (
            "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
            "leave out anchors that repeat others",
        ),
        ("[" * 10_000, "no YAML file of settings"),
        ("seed: !!python/object/apply:os.getpid []\n", "no YAML file of settings"),
        ("seed: 2024-01-01\n", "seed is 2024-01-01; it must be a whole number"),
        ("run_dir: 2024-99-99\n", "no YAML file of settings"),
        ("eval_every: '3'\n", "eval_every is 3; it must be a positive number"),
        ("1: 2\n", "1 is no setting"),
    ],
    ids=["twice", "circle", "explosion", "depth", "tag", "date", "no date", "word", "number"],
)
def test_what_yaml_can_do_and_settings_cannot(tmp_path, text, said):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        parse(["--config", str(tmp_path / "bad.yaml")])


def test_anchors_and_dates_are_fine_where_they_fit(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "run_dir: 2024-01-01\nphases: [&first {schedule: end_to_end, steps: 3, lr: 1e-3}, {<<: *first, lr: 2E-4}]\n"
    )
    config = parse(["--config", str(tmp_path / "a.yaml")])
    assert config.run_dir == "2024-01-01"
    assert config.phases == [PhaseConfig("end_to_end", steps=3, lr=rate) for rate in (1e-3, 2e-4)]


@pytest.mark.parametrize("name", ["1e3", "007", "null ", "true", "a: b", "2024-01-01", "x # y", "é", "[1"])
def test_a_text_stays_as_it_is_written(tmp_path, name):
    for words in (["--run_dir", name, "--data.root", name], [f"--run_dir={name}", f"--data.root={name}"]):
        config = parse(words)
        assert (config.run_dir, config.data.root) == (name, name)
    (tmp_path / "config.yaml").write_text(config.as_yaml(), encoding="utf-8")
    assert parse(["--config", str(tmp_path / "config.yaml")]) == config
    assert parse(["--data.root", "null"]).data.root is None


def test_a_group_given_as_one_changes_what_it_names():
    config = parse(["--glow", "{levels: 3, steps: 4}", "--glow.steps=5", "--cut={scheme: by_blocks}"])
    assert (config.glow.levels, config.glow.steps, config.glow.hidden) == (3, 5, Config().glow.hidden)
    assert config.cut == CutConfig("by_blocks", 3, provisional_prior="flow"), "the quickstart's prior stays"


# --- every setting in words


def test_every_setting_is_described():
    rows = {row.name: row for row in describe()}
    assert len(rows) == len(describe()) and all(row.kind and row.meaning for row in rows.values())
    assert set(Config().as_dict()) <= rows.keys() and "phases.lr" in rows
    assert rows["glow.levels"].kind == "a whole number of at least 1" and rows["glow.levels"].default == "2"
    assert rows["precision"].kind == "one of fp32, tf32, bf16"
    assert rows["phases.turn_steps"].default == "null" and "one epoch by default" in rows["phases.turn_steps"].meaning
    assert rows["phases.schedule"].default == "" and "the whole model learns" in rows["phases.schedule"].meaning


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as done:
        parse(["--help"])
    assert done.value.code == 0
    printed = capsys.readouterr().out
    for name in (row.name for row in describe() if not row.name.startswith("phases.")):
        assert re.search(rf"^--{re.escape(name)}$", printed, re.MULTILINE), name
    assert "one of fp32, tf32, bf16; default: fp32" in " ".join(printed.split())
