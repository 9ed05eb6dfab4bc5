"""Manifests, settings and safetensors files with random damage are read, or refused with a ValueError; nothing else."""

import json
import random
import traceback
from pathlib import Path

import pytest
import yaml

from pipeflow.config import from_dict, read_file
from pipeflow.inference import load
from pipeflow.storage import checkpoint
from tests.support.hostile import head_of, little_memory, safetensors_of, seal
from tests.support.processes import in_processes

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_98f3799"
ODD = [None, True, 0, -1, 1, 3, 10**6, 1 << 63, 10**400, 0.5, float("nan"), float("inf"), "", "é", "x" * 999, [], {}]
ODD += [[[]], [None], {"": {}}, "../../x", "/dev/zero", "F64", "!!python/object:os.system", "&a [*a]"]


def of_bytes(content, draw):
    """Some bytes changed, left out, put in, written twice or cut off."""
    at = draw.randrange(len(content) + 1)
    some = draw.randrange(1, 9)
    return draw.choice(
        [
            content[:at],
            content[:at] + content[at + some :],
            content[:at] + draw.randbytes(some) + content[at + some :],
            content[:at] + draw.randbytes(some) + content[at:],
            content[:at] + content[at : at + 2] + content[at:],
            content[:at] + draw.choice(b'"\\{}[]:,-0 \n&*!<?|').to_bytes() + content[at + 1 :],
        ]
    )


def of_values(found, draw):
    """One entry, however deep, replaced, left out, or given another name; None changes the whole."""
    holders = [found]
    for holder in holders:
        values = holder.values() if isinstance(holder, dict) else holder
        holders += [value for value in values if isinstance(value, dict | list) and value]
    holder = draw.choice(holders)
    key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    value = draw.choice([*ODD, draw.choice(holders)] if draw.random() < 0.8 else [holder[key]])
    value = json.loads(json.dumps(value))  # no list holds itself
    if draw.random() < 0.15:
        del holder[key]
    elif isinstance(holder, dict) and draw.random() < 0.15:
        holder[str(draw.choice(ODD))[:30]] = value
    else:
        holder[key] = value
    return found


def fuzz_manifest(scratch, draw):
    file = scratch / "manifest.json"
    content = file.read_bytes()
    if draw.random() < 0.6:
        found = of_values(json.loads(content), draw)
        content = json.dumps(of_values(found, draw) if found and draw.random() < 0.3 else found).encode()
    else:
        content = of_bytes(content, draw)
    file.write_bytes(content)
    load(scratch)


def fuzz_settings(scratch, draw):
    file = scratch / "config.yaml"
    content = (FIXTURE / "config.yaml").read_bytes()
    if draw.random() < 0.6:
        content = yaml.safe_dump(of_values(yaml.safe_load(content), draw)).encode()
    else:
        content = of_bytes(content, draw)
    file.write_bytes(content)
    from_dict(read_file(file))


def fuzz_tensors(scratch, draw):
    file = scratch / draw.choice(["part-1.safetensors", "part-2.safetensors"])
    content = file.read_bytes()
    head, data = head_of(content)
    if draw.random() < 0.5:
        content = safetensors_of(of_values(head, draw), data)
    elif draw.random() < 0.7:
        text = of_bytes(json.dumps(head).encode(), draw)
        content = safetensors_of(
            text, data, draw.choice([len(text), len(text), len(text) + draw.randrange(-9, 99) ** 7]) % (1 << 64)
        )
    else:
        content = of_bytes(content, draw)
    file.write_bytes(content)
    seal(scratch)
    checkpoint.load(scratch)
    load(scratch)


def fuzz(init_method, scratch, target, tries):
    """Tries → how many were read; a list of what else came out, with the number that its damage was drawn from."""
    sound = {file.name: file.read_bytes() for file in (FIXTURE / "checkpoints/step-10").iterdir()}
    read, problems = 0, []
    for number in range(tries):
        for name, content in sound.items():
            (scratch / name).write_bytes(content)
        try:
            with little_memory(seconds=60):
                target(scratch, random.Random(number))
            read += 1
        except ValueError:
            continue
        except BaseException as error:
            if not (isinstance(error, MemoryError) or "can't allocate memory" in str(error)):
                problems.append(f"{number}: {traceback.format_exc()[-1500:]}")
    return read, problems


@pytest.mark.slow
def test_random_damage_is_refused_or_does_no_harm(tmp_path):
    for target, tries in ((fuzz_manifest, 700), (fuzz_settings, 500), (fuzz_tensors, 700)):
        scratch = tmp_path / target.__name__
        scratch.mkdir()
        ((read, problems),) = in_processes(1, fuzz, scratch, target, tries, directory=tmp_path / "meet", timeout_s=900)
        print(f"{target.__name__}: {read} of {tries} were read")
        assert not problems, f"{len(problems)} of {tries}\n" + "\n".join(problems[:5])
        assert 0 < read < tries
