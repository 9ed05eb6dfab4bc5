"""Run directories, checkpoints and settings that lie: one sentence, little memory, nothing written elsewhere."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from tests.support.hostile import check_refused, edit_manifest, head_of, safetensors_of, seal

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_98f3799"
PART = "part-2.safetensors"
DEEP = 100_000

STEP_10 = "run/checkpoints/step-10"
EVALUATE = ["evaluate", "run", "--device", "cpu"]
SAMPLE = ["sample", "run/checkpoints/step-30", "--n", "4", "--out", "run/new.png", "--device", "cpu"]
TRAIN = ["train", "--resume", STEP_10, "--run_dir", "new"]
RESUME = ["train", "--resume", "auto", "--run_dir", "run"]
REPORT = ["report", "run"]
CONFIG = ["train", "--config", "run/config.yaml", "--run_dir", "new"]


def manifest(**entries):
    return lambda run: edit_manifest(run / "checkpoints/step-10", **entries)


def manifest_text(text):
    return write("checkpoints/step-10/manifest.json", text)


def write(name, content):
    def damage(run):
        (run / name).parent.mkdir(exist_ok=True, parents=True)
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def append(name, content):
    def damage(run):
        with (run / name).open("ab") as stream:
            stream.write(content)

    return damage


def instead(name, make):
    """Something else in place of a file or a folder of the run."""

    def damage(run):
        path = run / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        make(path)

    return damage


def unfinished(damage):
    """The run has its last phase to do again."""

    def both(run):
        (run / "result.json").unlink()
        shutil.rmtree(run / "checkpoints/step-30")
        damage(run)

    return both


def link(target):
    return lambda path: path.symlink_to(target)


def config(**entries):
    """Other settings in the manifest of the checkpoint at step 10."""

    def damage(run):
        file = run / "checkpoints/step-10/manifest.json"
        now = json.loads(file.read_text())["config"]
        for name, value in entries.items():
            now[name] = now[name] | value if isinstance(value, dict) else value
        edit_manifest(file.parent, config=now)

    return damage


def tensors(change):
    """Changes the tensors of a part, whose file stays sound and has the manifest's checksum."""

    def damage(run):
        for step in (10, 20, 30):
            checkpoint = run / f"checkpoints/step-{step}"
            found = load((checkpoint / PART).read_bytes())
            change(found)
            (checkpoint / PART).write_bytes(save({name: one.contiguous() for name, one in found.items()}))
            seal(checkpoint)

    return damage


def header(change):
    """`change(header, data)` returns the bytes of the file of a part."""

    def damage(run):
        for step in (10, 20, 30):
            checkpoint = run / f"checkpoints/step-{step}"
            (checkpoint / PART).write_bytes(change(*head_of((checkpoint / PART).read_bytes())))
            seal(checkpoint)

    return damage


def entry(**values):
    """Other values in the header's entry of one tensor."""

    def change(found, data):
        name = sorted(name for name in found if name.startswith("steps."))[0]
        found[name] |= values
        return safetensors_of(found, data)

    return header(change)


def first(found):
    return sorted(name for name in found if name.startswith("steps.") and found[name].is_floating_point())[0]


def replaced(make):
    def change(found):
        found[first(found)] = make(found[first(found)])

    return tensors(change)


def moved(found):
    found["steps.999.weight"] = found.pop(first(found))


def overlapping(found, data):
    names = [name for name in found if name != "__metadata__"]
    for name in names:
        if found[name]["shape"] == found[names[0]]["shape"] and name != names[0]:
            found[name]["data_offsets"] = found[names[0]]["data_offsets"]
    return safetensors_of(found, data)


def doubled(found, data):
    text = json.dumps(found)
    name = next(name for name in found if name != "__metadata__")
    other = next(other for other in found if found[other] != found[name] and other != "__metadata__")
    return safetensors_of(text.replace(f'"{other}": ', f'"{name}": ').encode(), data)


LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))

YAML = {
    "billion laughs": LAUGHS + "seed: *a11\n",
    "billion merges": MERGES + "data: *a11\n",
    "a list in itself": "phases: &a [*a]\n",
    "a python object": "seed: !!python/object/apply:os.system ['touch /tmp/hostile-was-here']\n",
    "a python name": "device: !!python/name:os.system\n",
    "deep lists": "seed: " + "[" * 9_000,
    "lists of some depth": "seed: " + "[" * 300 + "]" * 300,
    "deep maps": "".join(" " * i + "a:\n" for i in range(900)),
    "a huge whole number": "seed: " + "9" * 100_000,
    "a whole number of 4,000 digits": "seed: " + "9" * 4_000,
    "a whole number in place of a small one": f"parallel: {{threads: {10**12}}}\n",
    "bytes for a name": "? !!binary aGVsbG8=\n: 1\n",
    "a date for a name": "2024-01-01: 1\n",
    "a list for a name": "? [1, 2]\n: 1\n",
    "null for a name": "~: 1\n",
    "a set": "data: !!set {batch}\n",
    "not UTF-8": b"seed: \xff\xfe\n",
    "control characters": "seed: \x00\x07\n",
    "many names": "".join(f"name{i}: {i}\n" for i in range(15_000)),
    "a long text": "device: " + "x" * 3_000_000,
    "two documents": "seed: 1\n---\nseed: 2\n",
    "nothing but an alias": "*a\n",
}

MANIFESTS = {
    "no JSON": manifest_text("{"),
    "a list": manifest_text("[]"),
    "deep lists": manifest_text("[" * DEEP + "]" * DEEP),
    "deep lists in an entry": manifest_text('{"format": 2, "step": ' + "[" * DEEP + "]" * DEEP + "}"),
    "a huge whole number": manifest_text('{"format": 2, "step": ' + "9" * 100_000 + "}"),
    "huge": manifest_text(" " * 200_000_000 + "{}"),
    "not UTF-8": manifest_text(b'{"format": 2, "own": {"\xff": "a"}}'),
    "step is a text": manifest(step="10"),
    "step is negative": manifest(step=-1),
    "step is NaN": manifest(step=float("nan")),
    "step is of another checkpoint": manifest(step=10**30),
    "step is true": manifest(step=True),
    "config is a list": manifest(config=[]),
    "config is empty and so the quickstart": manifest(config={}),
    "unknown settings": config(unknown=1),
    "a path upward as a file": manifest(files={"../../../secret": "0" * 64}),
    "an absolute path as a file": manifest(files={"/etc/passwd": "0" * 64}),
    "a file of no part": manifest(files={"part-3.safetensors": "0" * 64}),
    "files is a list": manifest(files=["part-1.safetensors"]),
    "borders that fall": manifest(at=[3, 1]),
    "no borders": manifest(at=[]),
    "borders of nobody": manifest(at=list(range(1, 100_000))),
    "an image of no size": manifest(image=[]),
    "an image of zero": manifest(image=[0, 0, 0]),
    "a huge image": manifest(image=[1, 1 << 20, 1 << 20]),
    "an image of another size": manifest(image=[3, 16, 16]),
    "many levels": manifest(levels=10**9),
    "points": manifest(levels=0, image=[10**12]),
    "phases of another kind": manifest(phases=[1]),
    "phases with nothing in them": manifest(phases=[{}, {}]),
    "times of another kind": manifest(elapsed={"seconds": "1", "train_seconds": []}),
    "a huge network": config(glow={"hidden": 10**7}),
    "a network of no end": config(glow={"steps": 10**9}),
    "a flow of somebody's": config(flow="os.system"),
    "begun after its step": manifest(begun=10**9),
}

EVALUATED = {
    **{
        name: MANIFESTS[name]
        for name in ("a huge image", "an image of another size", "points", "a huge network", "a network of no end")
    },
    "more parts than files": config(cut={"scheme": "explicit", "parts": 3, "at": [1, 2]}),
}

TENSORS = {
    "no header": header(lambda found, data: b""),
    "a header cut off": header(lambda found, data: safetensors_of(found, data)[:100]),
    "a header of 2 to the 63 bytes": header(lambda found, data: safetensors_of(found, data, 1 << 63)),
    "a header of 99 MB": header(lambda found, data: safetensors_of(found, data, 99_000_000)),
    "a header of no length": header(lambda found, data: safetensors_of(found, data, 0)),
    "a header that is no JSON": header(lambda found, data: safetensors_of(b"x" * 64, data)),
    "a header of deep lists": header(lambda found, data: safetensors_of(b"[" * DEEP, data)),
    "a header that is no UTF-8": header(lambda found, data: safetensors_of(b'{"\xff": 1}', data)),
    "data cut off": header(lambda found, data: safetensors_of(found, data[:-4])),
    "data left over": header(lambda found, data: safetensors_of(found, data + b"more")),
    "offsets beyond the file": entry(data_offsets=[0, 1 << 62]),
    "offsets that fall": entry(data_offsets=[64, 0]),
    "offsets below zero": entry(data_offsets=[-4, 0]),
    "offsets that overlap": header(overlapping),
    "a name twice": header(doubled),
    "a shape that is too large": entry(shape=[1 << 40, 1 << 40]),
    "a shape that overflows": entry(shape=[1 << 63, 2]),
    "a shape below zero": entry(shape=[-1]),
    "a kind that is none": entry(dtype="F1"),
    "a kind of other width": entry(dtype="F64"),
    "a pickle": header(lambda found, data: b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    "a zip": header(lambda found, data: b"PK\x03\x04" + data),
    "NaN": replaced(lambda tensor: tensor * float("nan")),
    "infinity": replaced(lambda tensor: tensor + float("inf")),
    "another shape": replaced(lambda tensor: torch.zeros(3, 5, 7)),
    "an empty tensor": replaced(lambda tensor: torch.zeros(0)),
    "double precision": replaced(lambda tensor: tensor.double()),
    "whole numbers": replaced(lambda tensor: tensor.long()),
    "complex numbers": replaced(lambda tensor: tensor.to(torch.complex64)),
    "a tensor of another model": tensors(moved),
    "a tensor of no model": tensors(lambda found: found.update({"steps.0.backdoor": torch.zeros(1)})),
    "a part's tensor in another part too": tensors(
        lambda found: found.update(load((FIXTURE / "checkpoints/step-30/part-1.safetensors").read_bytes()))
    ),
}

OUTSIDE = "../outside"
PLACES = {  # what is in the place of something in the run directory, and a command that meets it
    "a lock that is a folder": (instead("lock", Path.mkdir), RESUME),
    "a lock that is a pipe": (instead("lock", os.mkfifo), RESUME),
    "a lock that leads outside": (instead("lock", link(OUTSIDE + "/kept")), RESUME),
    "metrics that lead outside": (instead("metrics/part-1.jsonl", link("../" + OUTSIDE + "/kept")), RESUME),
    "a metrics folder that leads outside": (instead("metrics", link(OUTSIDE)), RESUME),
    "a checkpoints folder that leads outside": (instead("checkpoints", link(OUTSIDE)), RESUME),
    "a checkpoint that leads outside": (instead("checkpoints/step-30", link("../" + OUTSIDE)), RESUME),
    "settings that lead outside": (instead("config.yaml", link(OUTSIDE + "/kept")), RESUME),
    "settings in writing that lead outside": (instead("config.yaml.partial", link(OUTSIDE + "/kept")), RESUME),
    "TensorBoard that leads outside": (instead("tensorboard", link(OUTSIDE)), RESUME),
    "samples that lead outside": (instead("samples", link(OUTSIDE)), RESUME),
    "a link to itself": (instead("metrics", link("metrics")), RESUME),
    "metrics that are a pipe": (instead("metrics/part-1.jsonl", os.mkfifo), RESUME),
    "metrics that are a device": (instead("metrics/part-1.jsonl", link("/dev/zero")), RESUME),
    "a metrics folder that is a file": (unfinished(instead("metrics", Path.touch)), RESUME),
    "settings that are a pipe": (instead("config.yaml", os.mkfifo), RESUME),
    "a manifest that is a pipe": (instead("checkpoints/step-10/manifest.json", os.mkfifo), TRAIN),
    "a manifest that is a device": (instead("checkpoints/step-10/manifest.json", link("/dev/zero")), TRAIN),
    "a manifest that is a folder": (instead("checkpoints/step-10/manifest.json", Path.mkdir), TRAIN),
    "a part that is a pipe": (instead("checkpoints/step-10/part-1.safetensors", os.mkfifo), TRAIN),
    "a part that is a device": (instead("checkpoints/step-10/part-1.safetensors", link("/dev/zero")), TRAIN),
    "a part that is a folder": (instead("checkpoints/step-10/part-1.safetensors", Path.mkdir), TRAIN),
    "a result that is a pipe": (instead("result.json", os.mkfifo), RESUME),
    "a pipe with a name that is no UTF-8": (instead("metrics/part-\udcff.jsonl", os.mkfifo), RESUME),
    "reported settings that are a pipe": (instead("config.yaml", os.mkfifo), REPORT),
    "reported metrics that are a device": (instead("metrics/part-1.jsonl", link("/dev/zero")), REPORT),
    "reported samples that are a pipe": (instead("samples/step-30.png", os.mkfifo), REPORT),
    "reported evaluations that are a pipe": (instead("metrics/evaluation.jsonl", os.mkfifo), REPORT),
    "a reported result that is a device": (instead("result.json", link("/dev/zero")), REPORT),
    "a report that leads outside": (instead("report", link(OUTSIDE)), REPORT),
    "a page that leads outside": (instead("report.html", link(OUTSIDE + "/new.html")), REPORT),
    "a figure that leads outside": (instead("report/loss.png", link("../" + OUTSIDE + "/kept")), REPORT),
    "a sampled part that is a pipe": (instead("checkpoints/step-30/part-1.safetensors", os.mkfifo), SAMPLE),
    "a metrics folder whose name is a file's": (unfinished(instead("metrics/part-\udcff.jsonl", Path.mkdir)), RESUME),
}

LINE = json.loads((FIXTURE / "metrics/part-1.jsonl").read_text().splitlines()[0])


def line(**values):
    return json.dumps(LINE | {"step": 31} | values).encode() + b"\n"


METRICS = {
    "words": b"garbage\n",
    "not UTF-8": b"\xff\xfe\x00\n",
    "a list": b"[]\n",
    "a number": b"1\n",
    "nothing in it": b"{}\n",
    "deep lists": b"[" * DEEP + b"\n",
    "a huge whole number": b'{"step": ' + b"9" * 100_000 + b"}\n",
    "a step that is a text": line(step="x"),
    "a step beyond 64 bits": line(step=10**30),
    "a step without end": line(step=float("inf")),
    "a step that is no number": line(step=float("nan")),
    "a step below zero": line(step=-5),
    "a phase that is a list": line(phase=[]),
    "a phase without end": line(phase=float("inf")),
    "a time beyond all years": line(time=1e300),
    "a time that is no number": line(time=float("nan")),
    "an error that is a text": line(drift="large"),
    "a switch that is a list": line(learn=[[]]),
}
EVALUATIONS = {
    "an epoch of zero": b'{"step": 31, "epoch": 0, "dequantisation": 4, "complete": true, "parts": [{"log_det": 0, '
    b'"split_prior": 0, "prior": 0, "bits_per_dim": 4}], "bits_per_dim": 4}\n',
    "figures that are texts": b'{"step": 31, "epoch": 1, "dequantisation": 4, "complete": true, "parts": [{"log_det": '
    b'"a", "split_prior": [], "prior": {}, "bits_per_dim": null}], "bits_per_dim": "x"}\n',
    "parts of nothing": b'{"step": 31, "epoch": 1, "dequantisation": 4, "complete": true, "parts": []}\n',
}
RESULTS = {
    "a list": b"[]",
    "deep lists": b"[" * DEEP,
    "phases that are a number": b'{"test_bits_per_dim": 1, "ledger": {}, "phases": 1}',
    "phases that are numbers": b'{"test_bits_per_dim": 1, "ledger": {}, "phases": [1, 2]}',
    "a figure that is a text": b'{"test_bits_per_dim": "x", "ledger": {}, "phases": [{}, {}]}',
    "not UTF-8": b'{"\xff": 1}',
}

GROUPS = {
    "settings": {
        **{name: (write("config.yaml", text), CONFIG) for name, text in YAML.items()},
        "of a run: billion merges": (write("config.yaml", YAML["billion merges"]), REPORT),
        "of a run: deep lists": (write("config.yaml", YAML["deep lists"]), REPORT),
        "on the command line: deep lists": (lambda run: None, ["train", "--seed", "[" * 20_000]),
    },
    "manifest": {
        **{name: (damage, TRAIN) for name, damage in MANIFESTS.items()},
        **{
            f"evaluated: {name}": (damage, [*EVALUATE[:1], STEP_10, *EVALUATE[2:]])
            for name, damage in EVALUATED.items()
        },
    },
    "tensors": {
        **{name: (damage, EVALUATE) for name, damage in TENSORS.items()},
        "for training: NaN": (TENSORS["NaN"], TRAIN),
        "for training: a tensor of no model": (TENSORS["a tensor of no model"], TRAIN),
        "for training: another shape": (TENSORS["another shape"], TRAIN),
    },
    "places": PLACES,
    "metrics": {
        **{name: (append("metrics/part-1.jsonl", text), REPORT) for name, text in METRICS.items()},
        **{name: (append("metrics/evaluation.jsonl", text), REPORT) for name, text in EVALUATIONS.items()},
        **{f"result: {name}": (write("result.json", text), REPORT) for name, text in RESULTS.items()},
        "finished, with a result that is no JSON": (write("result.json", RESULTS["deep lists"]), RESUME),
    },
}


@pytest.mark.parametrize("group", GROUPS)
def test_one_sentence(group, tmp_path):
    check_refused(
        {name: (partial(_in_run, make), words) for name, (make, words) in GROUPS[group].items()}, FIXTURE, tmp_path
    )


def _in_run(make, here):
    make(here / "run")
