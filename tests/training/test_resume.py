"""Going on from a checkpoint: from any step to the same bits, in any cut, and never from what is damaged or foreign."""

import dataclasses
import hashlib
import json
import pickle
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeflow.config import PhaseConfig, settle
from pipeflow.data import DataConfig
from pipeflow.data.datasets import load
from pipeflow.distributed import Stop, open_world
from pipeflow.distributed.graceful_stop import ask
from pipeflow.errors import StopRequested
from pipeflow.model import CutConfig
from pipeflow.storage import CheckpointConfig, Saver, checkpoint
from pipeflow.train import main
from pipeflow.training import fit
from pipeflow.training.restore import find, restore
from tests.storage.test_run_lock import held
from tests.support.processes import in_processes
from tests.support.small_runs import fit_in, small_config

PHASES = [
    PhaseConfig("simultaneous", steps=5, warmup_steps=4),
    PhaseConfig("alternate", steps=6, turn_steps=2, lr=[1e-3, 2e-3, 5e-4], optimizer="adamw", weight_decay=0.1),
    PhaseConfig("end_to_end", steps=4, clip=1.0, warmup_steps=4, optimizer="adamw"),
    PhaseConfig("sequential", steps=5, optimizer="adamw", restart_optimizer=True),
    PhaseConfig("end_to_end", steps=3, optimizer="adamax"),
]
STEPS = 23


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of every schedule, saved at every step."""
    config = small_config(
        tmp_path_factory.mktemp("resume") / "run", PHASES, ema=0.8, checkpoint=CheckpointConfig(every=1, keep=100)
    )
    fit(config)
    assert checkpoint.steps_saved(Path(config.run_dir)) == list(range(1, STEPS + 1))
    return config


def saved(config, step):
    return Path(config.run_dir) / "checkpoints" / f"step-{step}"


def assert_equal_ends(one, other, step=STEPS):
    tensors, others = checkpoint.load(saved(one, step))[0], checkpoint.load(saved(other, step))[0]
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


@pytest.mark.parametrize("step", range(1, STEPS))
def test_from_any_step_to_the_same_bits(step, whole, tmp_path):
    config = dataclasses.replace(whole, run_dir=str(tmp_path / "run"))
    result = fit(config, resume=saved(whole, step))
    assert_equal_ends(whole, config)
    assert (
        result["test_bits_per_dim"]
        == json.loads((Path(whole.run_dir) / "result.json").read_text())["test_bits_per_dim"]
    )
    assert [phase["steps"] for phase in result["phases"]] == [5, 6, 4, 5, 3]


def go_on(init_method: str, config, source) -> None:
    fit_in(init_method, config, source)


@pytest.mark.parametrize(("size", "step"), [(2, 3), (3, 8)])
def test_in_other_processes_to_the_same_bits_while_by_parts(size, step, whole, tmp_path):
    config = dataclasses.replace(whole, run_dir=str(tmp_path / "run"), phases=PHASES[:2])
    in_processes(size, go_on, config, saved(whole, step), directory=tmp_path / "meet")
    assert_equal_ends(whole, config, 11)


def test_in_other_processes_close_to_it_end_to_end(whole, tmp_path):
    config = dataclasses.replace(whole, run_dir=str(tmp_path / "run"), phases=PHASES[:3])
    in_processes(2, go_on, config, saved(whole, 12), directory=tmp_path / "meet")
    tensors, others = checkpoint.load(saved(whole, 15))[0], checkpoint.load(saved(config, 15))[0]
    for name in tensors:
        torch.testing.assert_close(tensors[name], others[name], rtol=1e-3, atol=1e-5)


CUTS = {
    "2 parts": CutConfig("explicit", 2, [2], provisional_prior="learned"),
    "5 parts": CutConfig("explicit", 5, [1, 2, 4, 5], provisional_prior="learned"),
    "1 part": CutConfig("explicit", 1, []),
    "6 parts": CutConfig("explicit", 6, [1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize("name", CUTS)
def test_cut_anew_nothing_is_lost(name, whole, tmp_path, capsys, monkeypatch):
    """All weights and moments of the model are there after the switch of cuts, and training goes on."""
    cut = CUTS[name]
    phases = [PhaseConfig("simultaneous", steps=2, optimizer="adamw")]
    config = dataclasses.replace(whole, run_dir=str(tmp_path / "run"), cut=cut, phases=phases)
    carried = {}

    def watched(state, source):
        said = restore(state, source)
        for part in range(cut.parts):
            carried.update({name: tensor.clone() for name, tensor in state.weights.part_state(part).items()})
        return said

    monkeypatch.setattr(import_module("pipeflow.training.prepare"), "restore", watched)
    source = saved(whole, 17)  # sequential: part 3 has not learned in this phase, so it has no moments yet
    fit(config, resume=source)
    before = checkpoint.load(source)[0]
    model = {name for name in before if "provisional" not in name}
    assert {name.split("/")[0] for name in model if "/" in name} == {"exp_avg", "exp_avg_sq", "step", "ema"}
    assert model <= carried.keys() and all(torch.equal(before[name], carried[name]) for name in model)

    said = capsys.readouterr().out
    assert f"cut anew: borders at {cut.at}, in the checkpoint at [1, 4]" in said
    assert "other phases than the checkpoint's: the first of them begins here, at step 17" in said
    for border in (1, 4):
        kept = cut.provisional_prior == "learned" and border in cut.at
        assert (f"provisional.{border} is not carried over" in said) == (not kept), said
    for border in cut.at:
        fresh = cut.provisional_prior == "learned" and border not in (1, 4)
        assert (f"provisional.{border} starts afresh" in said) == fresh, said
    after, manifest = checkpoint.load(saved(config, 19))
    assert (manifest.begun, manifest.at, manifest.step) == (17, cut.at, 19)
    weight = "steps.1.coupling.network.0.weight"
    assert not torch.equal(after[weight], before[weight]) and after[f"step/{weight}"] == before[f"step/{weight}"] + 2


def test_cut_anew_while_some_parts_have_not_started(tmp_path):
    """Sequential: only part 1 (1 flow step) has started; in a cut at 3 the first part is half started."""
    config = small_config(
        tmp_path / "a", [PhaseConfig("sequential", steps=6)], checkpoint=CheckpointConfig(every=1, keep=9)
    )
    fit(config)
    source = saved(config, 1)
    assert checkpoint.load(source)[1].started == 1
    other = dataclasses.replace(config, run_dir=str(tmp_path / "b"), cut=CutConfig("explicit", 2, [3]))
    fit(other, resume=source)
    before, after = checkpoint.load(source)[0], checkpoint.load(saved(other, 6))[0]
    started = [name for name in before if name.endswith("actnorm.initialised") and before[name]]
    assert len(started) == 1 and all(after[name] for name in after if name.endswith("actnorm.initialised"))
    # What has started is not started again: two updates of 1e-3 cannot move a scale further than that.
    name = started[0].replace("initialised", "log_scale")
    assert (after[name] - before[name]).abs().max() < 5e-3


def test_end_to_end_from_a_run_by_parts(whole, tmp_path):
    config = dataclasses.replace(whole, run_dir=str(tmp_path / "run"), phases=[PhaseConfig("end_to_end", steps=2)])
    fit(config, resume=saved(whole, 4))
    weight = "step/steps.1.coupling.network.0.weight"
    assert checkpoint.load(saved(config, 6))[0][weight] == 6


def test_a_stop_leaves_out_no_evaluation(tmp_path):
    config = small_config(tmp_path / "run", [PhaseConfig("simultaneous", steps=4)], eval_every=1 / 125)
    world = open_world(config.parallel, config.cut.parts, config.device)
    ask(world, "a test")
    with pytest.raises(StopRequested, match="stopped at step 1 by a test"):
        fit(config, world)
    fit(config, resume="auto")
    lines = (tmp_path / "run" / "metrics" / "evaluation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


# --- which checkpoint, which directory, which settings


def words(config, *more):
    file = Path(config.run_dir).with_suffix(".yaml")
    file.write_text(config.as_yaml())
    return ["--config", str(file), *more]


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the run that a test may damage, without its result, up to step 12."""
    shutil.copytree(whole.run_dir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    for step in range(13, STEPS + 1):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step}")
    return dataclasses.replace(whole, run_dir=str(tmp_path / "run"))


def test_auto_goes_on_with_the_settings_of_the_run(copy, whole):
    assert main(["--run_dir", copy.run_dir, "--resume", "auto"]) == 0
    assert_equal_ends(whole, copy)


def test_what_was_written_behind_the_checkpoint_comes_once(copy, whole):
    assert main(["--run_dir", copy.run_dir, "--resume", "auto"]) == 0
    for name in ("part-1", "part-2", "part-3", "end_to_end"):
        lines = [(Path(run.run_dir) / "metrics" / f"{name}.jsonl").read_text().splitlines() for run in (copy, whole)]
        figures = [[(line["step"], line["bits_per_dim"]) for line in map(json.loads, text)] for text in lines]
        assert figures[0] == figures[1]


def test_a_finished_run_is_left_as_it_is(whole, capsys):
    before = {path: path.read_bytes() for path in Path(whole.run_dir).rglob("*") if path.is_file()}
    assert main(["--run_dir", whole.run_dir, "--resume", "auto"]) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in Path(whole.run_dir).rglob("*") if path.is_file()}


def test_more_phases_go_on_from_the_end(copy, whole):
    longer = [*PHASES, PhaseConfig("end_to_end", steps=2, optimizer="adamax")]
    assert main(words(dataclasses.replace(copy, phases=longer), "--resume", "auto")) == 0
    assert_equal_ends(whole, copy)
    assert checkpoint.steps_saved(Path(copy.run_dir))[-1] == STEPS + 2


def test_auto_without_a_run_starts_afresh(tmp_path, capsys):
    config = small_config(tmp_path / "run", [PhaseConfig("simultaneous", steps=2)])
    assert main(words(config, "--resume", "auto")) == 0
    assert "has no checkpoint yet: the run starts afresh" in capsys.readouterr().out


def test_a_damaged_newest_one_is_passed_over_and_kept(copy, whole, capsys):
    (saved(copy, 12) / "part-2.safetensors").write_bytes(b"")
    assert main(["--run_dir", copy.run_dir, "--resume", "auto"]) == 0
    out = capsys.readouterr().out
    assert "part-2.safetensors is damaged: its checksum is not the manifest's." in out and "goes on from" in out
    assert_equal_ends(whole, copy)
    assert len(list((Path(copy.run_dir) / "checkpoints").glob("step-12.damaged-*"))) == 1


def test_a_newest_one_whose_manifest_is_damaged_is_passed_over(copy, whole, capsys):
    (saved(copy, 12) / "manifest.json").write_text("{")
    assert main(["--run_dir", copy.run_dir, "--resume", "auto"]) == 0
    assert "manifest.json is damaged" in capsys.readouterr().out
    assert_equal_ends(whole, copy)


def test_the_command_line_wins_over_the_checkpoints_settings(copy):
    config, resume = settle(
        ["--run_dir", copy.run_dir, "--resume", "auto", "--checkpoint.every", "7", "--cut.scheme", "balanced"]
    )
    assert resume == "auto" and config.checkpoint.every == 7 and config.glow == copy.glow
    assert config.cut == copy.cut and config.phases == copy.phases, "a balanced cut of 3 was measured once"
    config, _ = settle(["--run_dir", copy.run_dir, "--resume", "auto", "--cut.scheme", "across_blocks"])
    assert config.cut == CutConfig("across_blocks", 3, provisional_prior="learned")
    phases = '[{"schedule": "simultaneous", "steps": 5}]'
    config, _ = settle(["--run_dir", copy.run_dir, "--resume", "auto", "--phases", phases])
    assert config.phases == [PhaseConfig("simultaneous", steps=5)], "a list is given whole"


def test_a_run_without_a_checkpoint_has_the_settings_of_its_file(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 7\ncut: {scheme: explicit, parts: 2, at: [3]}\n")
    config, resume = settle(["--run_dir", str(tmp_path), "--resume", "auto", "--cut.scheme", "balanced"])
    assert (config.seed, config.cut.parts, resume) == (7, 3, "auto")
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    assert settle(["--run_dir", str(tmp_path), "--resume", "auto"])[0].seed == 7
    (tmp_path / "config.yaml").write_text("cut: 5\n")
    with pytest.raises(ValueError, match=r"With the settings of .*config\.yaml: cut is 5"):
        settle(["--run_dir", str(tmp_path), "--resume", "auto"])


def test_a_path_belongs_to_its_run(copy, tmp_path):
    config, resume = settle(["--resume", str(saved(copy, 12))])
    assert (Path(config.run_dir), resume) == (Path(copy.run_dir), saved(copy, 12))
    config, resume = settle(["--resume", copy.run_dir, "--run_dir", str(tmp_path / "branch")])
    assert (Path(config.run_dir), resume) == (tmp_path / "branch", Path(copy.run_dir))
    assert find(config, resume)[0] == saved(copy, 12), "the newest of that run"
    (saved(copy, 12) / "part-1.safetensors").write_bytes(b"")
    assert find(config, resume)[0] == saved(copy, 11), "the newest that is not damaged"


def test_a_restarted_worker_goes_on_whatever_its_command_line_says(copy, monkeypatch):
    assert settle(words(copy))[1] is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert settle(words(copy))[1] == "auto"
    assert settle(words(copy, "--resume", str(saved(copy, 3))))[1] == "auto"


@pytest.mark.parametrize("names", ["of an earlier version", "of another launch"])
def test_a_restarted_worker_does_not_go_on_with_what_its_launch_was_refused(names, copy, whole, monkeypatch, capsys):
    launch = Path(copy.run_dir) / "launch.json"
    launch.unlink() if names == "of an earlier version" else launch.write_text('["another"]')
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    before = {path: path.read_bytes() for path in Path(copy.run_dir).rglob("*") if path.is_file()}
    for more in ([], ["--resume", str(saved(whole, 3))], ["--data.batch", "7"]):
        assert main(words(copy, *more)) == 2
        assert "already holds a run, which is never written over" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in Path(copy.run_dir).rglob("*") if path.is_file()} == before
    assert main(words(copy, "--resume", "auto")) == 0, "as the command line says it may"
    assert settle(words(copy))[1] == "auto", "from now on it is a run of this launch"


# --- what is refused


def sums(directory):
    """Makes the manifest agree with the files again, after one was changed."""
    file = directory / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"] = {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in manifest["files"]
    }
    file.write_text(json.dumps(manifest))


def change_manifest(**entries):
    def damage(directory):
        file = directory / "manifest.json"
        manifest = json.loads(file.read_text()) | entries
        file.write_text(json.dumps({name: value for name, value in manifest.items() if value != "gone"}))

    return damage


def change_tensors(change):
    """A file that was changed on purpose, checksum and all."""

    def damage(directory):
        tensors = load_file(directory / "part-2.safetensors")
        change(tensors)
        save_file(tensors, directory / "part-2.safetensors")
        sums(directory)

    return damage


def rewrite(name, text):
    return lambda directory: (directory / name).write_bytes(text)


def truncate(directory):
    file = directory / "part-3.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(directory):
    file = directory / "part-1.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


class Trap:
    """Pickled code that leaves a trace where it runs."""

    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def pickled(directory):
    (directory / "part-1.safetensors").write_bytes(pickle.dumps(Trap()))
    sums(directory)


def twice(directory):
    shutil.copy(directory / "part-1.safetensors", directory / "part-3.safetensors")
    sums(directory)


def name_of(tensors, end):
    return next(name for name in sorted(tensors) if name.endswith(end) and "/" not in name)


DAMAGED = {
    "no manifest": (lambda directory: (directory / "manifest.json").unlink(), "it has no manifest.json"),
    "an empty manifest": (rewrite("manifest.json", b""), "manifest.json is damaged: it is no JSON object"),
    "half a manifest": (rewrite("manifest.json", b'{"format": 2, "st'), "manifest.json is damaged: it is no JSON"),
    "a manifest that is a list": (rewrite("manifest.json", b"[]"), "manifest.json is damaged: it is no JSON object"),
    "a manifest of bytes": (
        rewrite("manifest.json", b"\xff\xfe\x00"),
        "manifest.json is damaged: it is no JSON object",
    ),
    "another format": (change_manifest(format=99), "has checkpoint format 99; this version reads 2"),
    "an entry that is missing": (change_manifest(started="gone"), "manifest.json is damaged: started is missing"),
    "an entry of another kind": (change_manifest(step="12"), 'manifest.json is damaged: step is "12"'),
    "a negative step": (change_manifest(step=-1), "manifest.json is damaged: step is -1"),
    "another step": (change_manifest(step=11), "is of step 11, which is not what its directory is called"),
    "an entry too many": (change_manifest(code="import os"), "code is no entry of a manifest"),
    "a path in place of a file": (change_manifest(files={"../../x": "0"}), "manifest.json is damaged: files is"),
    "no files": (change_manifest(files={}), "manifest.json is damaged: files is {}"),
    "settings that are none": (change_manifest(config={"glow": {"levels": "two"}}), "With the settings of"),
    "settings that name a class": (
        change_manifest(config={"glow": {"class_path": "antigravity.X"}}),
        "With the settings",
    ),
    "a file that is missing": (lambda d: (d / "part-2.safetensors").unlink(), "part-2.safetensors is missing"),
    "an empty file": (rewrite("part-2.safetensors", b""), "part-2.safetensors is damaged: its checksum"),
    "a file cut short": (truncate, "part-3.safetensors is damaged: its checksum"),
    "a flipped bit": (flip, "part-1.safetensors is damaged: its checksum"),
    "a pickle": (pickled, "part-1.safetensors is no safetensors file"),
    "a part twice": (twice, "which another part of this checkpoint holds as well"),
    "a tensor that is missing": (
        change_tensors(lambda t: t.pop(name_of(t, "actnorm.bias"))),
        "actnorm.bias, which the model has: it belongs to another model, or is damaged",
    ),
    "a tensor too many": (
        change_tensors(lambda t: t.update({"steps.99.bias": torch.zeros(2)})),
        "holds steps.99.bias, which the model does not have",
    ),
    "another shape": (
        change_tensors(lambda t: t.update({name_of(t, "actnorm.bias"): torch.zeros(3)})),
        "of shape (3,); here it must be (4,)",
    ),
    "another kind of number": (
        change_tensors(lambda t: t.update({name_of(t, "actnorm.bias"): torch.zeros(4, dtype=torch.float16)})),
        "as torch.float16; here it must be torch.float32",
    ),
    "values that are not finite": (
        change_tensors(lambda t: t[name_of(t, "actnorm.bias")].fill_(float("inf"))),
        "that are not finite",
    ),
    "moments of another shape": (
        change_tensors(lambda t: t.update({"exp_avg/" + name_of(t, "actnorm.bias"): torch.zeros(9)})),
        "of shape (9,); here it must be (4,)",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_checkpoints_are_refused_in_a_sentence(name, copy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, message = DAMAGED[name]
    damage(saved(copy, 12))
    assert main(["--resume", str(saved(copy, 12)), "--run_dir", str(tmp_path / "branch")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pipeflow: ") and message in line, line
    assert not (tmp_path / "branch").exists() and not (tmp_path / "trapped").exists()


def test_there_are_enough_damages():
    assert len(DAMAGED) >= 15


FOREIGN = {
    "width": (["--glow.hidden", "16"], "glow.hidden is 16, but 8 in"),
    "steps": (["--glow.steps", "4"], "glow.steps is 4, but 3 in"),
    "coupling": (["--glow.coupling", "additive"], "glow.coupling is additive, but affine in"),
    "seed": (["--seed", "5"], "seed is 5, but 0 in"),
    "batch": (["--data.batch", "24"], "data.batch is 24, but 12 in"),
    "flips": (["--data.flip", "true"], "data.flip is True, but False in"),
    "phases that have begun": (["--phases", '[{"schedule": "end_to_end", "steps": 9}]'], "The phases differ from"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_past_cannot_change(name, copy, capsys):
    changes, message = FOREIGN[name]
    before = {path: path.read_bytes() for path in Path(copy.run_dir).rglob("*") if path.is_file()}
    assert main(["--run_dir", copy.run_dir, "--resume", "auto", *changes]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line, line
    assert before == {path: path.read_bytes() for path in Path(copy.run_dir).rglob("*") if path.is_file()}


def test_fewer_images_that_would_end_the_phase_in_the_past_are_refused(tmp_path):
    images = load("digits", None, None).train
    for name, count in {"all": 60, "fewer": 30}.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "train.npy", images[:count])
        np.save(tmp_path / name / "test.npy", images[:20])
    data = DataConfig("npy", str(tmp_path / "all"), batch=12, init_batch=12)
    every = CheckpointConfig(every=1, keep=100)
    config = small_config(tmp_path / "run", [PhaseConfig("simultaneous", epochs=2)], data=data, checkpoint=every)
    fit(config)
    data = dataclasses.replace(data, root=str(tmp_path / "fewer"))
    fewer = dataclasses.replace(config, run_dir=str(tmp_path / "branch"), data=data)
    with pytest.raises(ValueError, match="Phase 1 would end at step 5, but the checkpoint is of step 9"):
        fit(fewer, resume=saved(config, 9))
    assert not (tmp_path / "branch").exists()


def test_a_branch_needs_a_directory_of_its_own(copy, whole, capsys):
    assert main(["--resume", str(saved(copy, 7))]) == 2
    assert "goes on to step 12, after step-7. Give the branch that begins here" in capsys.readouterr().err
    assert main(["--resume", str(saved(copy, 7)), "--run_dir", whole.run_dir]) == 2
    assert "already holds a run" in capsys.readouterr().err


class Interrupted(Exception):
    """Ends `fit` as a fault would."""


def interrupted(monkeypatch, owner, name, when, config, resume):
    """`fit` until `owner.name` is called with arguments that `when` accepts."""
    real = getattr(owner, name)

    def meets(*arguments):
        if when(*arguments):
            raise Interrupted
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(owner, name, meets)
        fit(config, resume=resume)


IN_THE_THIRD_BATCH = (Stop, "before", lambda _, step: step == 9)
BEFORE_IT_HAS_SAVED = (Saver, "save", lambda *_: True)


@pytest.mark.parametrize(
    ("when", "restarted"), [(IN_THE_THIRD_BATCH, False), (IN_THE_THIRD_BATCH, True), (BEFORE_IT_HAS_SAVED, True)]
)
def test_a_branch_that_dies_before_a_checkpoint_is_due_goes_on(when, restarted, whole, tmp_path, monkeypatch):
    """By --resume auto, or by its own command in a restarted worker; never from weights drawn anew."""
    undisturbed, config = (
        dataclasses.replace(whole, run_dir=str(tmp_path / name), phases=PHASES[3:4], checkpoint=CheckpointConfig())
        for name in ("undisturbed", "branch")
    )
    fit(undisturbed, resume=saved(whole, 6))
    interrupted(monkeypatch, *when, config, saved(whole, 6))
    if restarted:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        assert main(words(config, "--resume", str(saved(whole, 6)))) == 0
    else:
        assert main(["--run_dir", config.run_dir, "--resume", "auto"]) == 0
    assert_equal_ends(undisturbed, config, 11)


def test_the_settings_until_a_step_are_those_that_led_to_it(copy, monkeypatch):
    """Other settings that came to no checkpoint do not take their place."""
    first = (Path(copy.run_dir) / "config.yaml").read_text()
    for every in (50, 60):
        config = dataclasses.replace(copy, checkpoint=CheckpointConfig(every=every, keep=100))
        interrupted(monkeypatch, Stop, "before", lambda _, step: step == 14, config, "auto")
        assert (Path(copy.run_dir) / "config.yaml").read_text() == config.as_yaml()
    assert (Path(copy.run_dir) / "config-until-step-12.yaml").read_text() == first


def test_no_whole_checkpoint_at_all(copy, capsys):
    for step in range(1, 13):
        (saved(copy, step) / "part-1.safetensors").write_bytes(b"")
    assert main(["--run_dir", copy.run_dir, "--resume", "auto"]) == 2
    assert "has no whole checkpoint" in capsys.readouterr().err


def test_a_path_that_is_none(tmp_path, capsys):
    assert main(["--resume", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no checkpoint: it has no manifest.json" in capsys.readouterr().err


def test_a_run_that_others_train_in_is_left_alone(copy, capfd, monkeypatch):
    """Nothing of it is read, either: the other one may be just replacing it."""
    monkeypatch.setattr("pipeflow.storage.run_lock._PATIENCE_S", 0.3)
    directory = Path(copy.run_dir)
    (saved(copy, 12) / "manifest.json").unlink()
    (directory / "config.yaml").write_text("{")
    for step in range(1, 12):
        shutil.rmtree(saved(copy, step))
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with held(directory) as other:
        for words in (["--resume", "auto"], [], ["--resume", str(saved(copy, 12))]):
            assert main(["--run_dir", str(directory), *words]) == 2
            assert f"is being trained in by process {other.pid} on " in capfd.readouterr().err
        assert main(["--resume", str(saved(copy, 12))]) == 2, "the run directory is the checkpoint's"
        assert f"is being trained in by process {other.pid} on " in capfd.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


# --- who reads what


class Prepared(Exception):
    """Ends `fit` where everything has been read."""


def reads_of_a_resume(init_method: str, config, source) -> tuple[list[str], list[str], list[str]]:
    """Files whose checksums this process computes, files that it reads from, and names of the tensors that it reads."""
    hashed, opened, names = [], [], []
    digest, safe_open = hashlib.file_digest, checkpoint.safe_open

    def ends(*_):
        raise Prepared

    class Spy:
        def __init__(self, file, framework):
            self.real, self.file = safe_open(file, framework), file

        def __enter__(self):
            self.tensors = self.real.__enter__()
            return self

        def __exit__(self, *error):
            return self.real.__exit__(*error)

        def keys(self):
            return self.tensors.keys()

        def get_tensor(self, name):
            opened.append(self.file.name)
            names.append(name)
            return self.tensors.get_tensor(name)

    def counted(stream, kind):
        hashed.append(Path(stream.name).name)
        return digest(stream, kind)

    checkpoint.safe_open, hashlib.file_digest = Spy, counted
    import_module("pipeflow.training.fit").Record = ends
    world = open_world(config.parallel, config.cut.parts, config.device, init_method)
    with pytest.raises(Prepared):
        fit(config, world, source)
    world.close()
    return hashed, sorted(set(opened)), names


FILES = [f"part-{number}.safetensors" for number in (1, 2, 3)]
READERS = {  # cut, checkpoint → the files that each rank reads from
    "by parts": (CutConfig("explicit", 3, [1, 4], provisional_prior="learned"), 8, [[file] for file in FILES]),
    "end to end": (CutConfig("explicit", 3, [1, 4], provisional_prior="learned"), 13, [[file] for file in FILES]),
    "cut anew": (CutConfig("explicit", 3, [2, 4]), 8, [FILES[:2], FILES[1:2], FILES[2:]]),
}


@pytest.mark.parametrize("name", READERS)
def test_each_process_reads_the_tensors_of_its_parts_once(name, whole, tmp_path):
    cut, step, expected = READERS[name]
    config = dataclasses.replace(whole, run_dir=str(tmp_path / "run"), cut=cut)
    ranks = in_processes(3, reads_of_a_resume, config, saved(whole, step), directory=tmp_path / "meet")
    assert [sorted(hashed) for hashed, _, _ in ranks] == [FILES, [], []], "the checksums are verified once"
    assert [opened for _, opened, _ in ranks] == expected
    names = [name for _, _, names in ranks for name in names]
    tensors = checkpoint.load(saved(whole, step))[0]
    assert sorted(names) == sorted(name for name in tensors if "provisional" not in name or cut.at == [1, 4])


def test_one_process_reads_everything_once(whole, tmp_path):
    config = dataclasses.replace(whole, run_dir=str(tmp_path / "run"))
    (found,) = in_processes(1, reads_of_a_resume, config, saved(whole, 8), directory=tmp_path / "meet")
    hashed, opened, names = found
    assert sorted(hashed) == opened == FILES and sorted(names) == sorted(checkpoint.load(saved(whole, 8))[0])


def damaged_for_one(init_method: str, config, source) -> str:
    with pytest.raises(ValueError) as refused:
        fit_in(init_method, config, source)
    return str(refused.value)


def test_what_one_process_finds_wrong_all_say(copy, tmp_path):
    change_tensors(lambda t: t[name_of(t, "actnorm.bias")].fill_(float("nan")))(saved(copy, 12))
    config = dataclasses.replace(copy, run_dir=str(tmp_path / "branch"))
    (sentence,) = set(in_processes(3, damaged_for_one, config, saved(copy, 12), directory=tmp_path / "meet"))
    assert "that are not finite" in sentence and not (tmp_path / "branch").exists()
