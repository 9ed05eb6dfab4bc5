"""Pictures: every kind shows the images that it says, one process or several, and a wrong use writes nothing."""

import gc
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import pipeflow
from pipeflow import sample
from pipeflow.config import PhaseConfig
from pipeflow.data import DataConfig
from pipeflow.data.datasets import load
from pipeflow.data.image_grid import draw_sheet
from pipeflow.distributed import ParallelConfig, grid, open_world
from pipeflow.errors import LostError
from pipeflow.inference import difference, interpolate, locate, read, reconstruct, sample_sheet
from pipeflow.inference import distributed_sampling as sampling
from pipeflow.model import GlowConfig, build, build_parts
from pipeflow.model.glow import FlowStep
from pipeflow.storage import CheckpointConfig
from pipeflow.training import fit
from tests.support.processes import in_processes
from tests.support.small_runs import small_config

SIDE, ENLARGED = 8, 6  # a digit, and how much larger it is on the sheet
TILE = SIDE * ENLARGED + ENLARGED


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sample") / "run"
    fit(small_config(directory, [PhaseConfig("simultaneous", steps=20, lr=1e-2), PhaseConfig("end_to_end", steps=5)]))
    return directory


@pytest.fixture(scope="module")
def flow(run):
    return read(run).flow()


@pytest.fixture(scope="module")
def digits():
    """The test images, uint8 (N, 1, 8, 8)."""
    return torch.from_numpy(load("digits", None, None).test.transpose(0, 3, 1, 2).copy())


def drawn(capsys, run, *words):
    """Runs the command; returns the one line that it prints."""
    assert sample.main([str(run), "--device", "cpu", *map(str, words)]) == 0
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    assert said.err == ""
    return line


def tiles(file, *rows, columns=8):
    """The images on a sheet, uint8: a tensor (rows × columns, 1, 8, 8) for each of its blocks of so many rows."""
    with Image.open(file) as picture:
        sheet = np.asarray(picture.convert("L")).astype(np.float32)
    gap = 3 * ENLARGED
    assert sheet.shape == (sum(rows) * TILE + ENLARGED + (len(rows) - 1) * gap, columns * TILE + ENLARGED)
    blocks, top = [], ENLARGED
    for count in rows:
        band = torch.from_numpy(sheet[top : top + count * TILE, ENLARGED:]).view(count, TILE, columns, TILE)
        small = band[:, : SIDE * ENLARGED, :, : SIDE * ENLARGED].permute(0, 2, 1, 3).reshape(-1, 1, TILE - 6, TILE - 6)
        assert (small[..., ::6, ::6].repeat_interleave(6, 2).repeat_interleave(6, 3) == small).all()
        blocks.append((small[..., ::6, ::6] * 16 / 255).round().to(torch.uint8))
        top += count * TILE + gap
    return blocks


def blank(images):
    return bool((images == 8).all())  # half of the highest of 17 levels, as the margins


# --- what the pictures show


def test_the_grid_is_what_the_flow_samples(run, flow, tmp_path, capsys):
    line = drawn(capsys, run, "--out", tmp_path / "new" / "a.png", "--seed", 3)
    assert line == (
        f"{tmp_path}/new/a.png: 64 images at temperature 0.7 (seed 3), by the flow in {run}/checkpoints/step-25"
    )
    (images,) = tiles(tmp_path / "new" / "a.png", 8)
    assert torch.equal(images, flow.sample(64, 0.7, 3))
    assert len(images.unique()) > 8, "no picture of nothing"


def test_a_block_for_each_temperature(run, flow, tmp_path, capsys):
    line = drawn(capsys, run, "--n", 11, "--temperature", 0, 0.5, 1, "--out", tmp_path / "a.png")
    assert "3 × 11 images, from top to bottom at temperature 0, 0.5, 1 (seed 0)" in line
    for images, temperature in zip(tiles(tmp_path / "a.png", 2, 2, 2), (0, 0.5, 1), strict=True):
        assert torch.equal(images[:11], flow.sample(11, temperature, 0)) and blank(images[11:])


def test_an_image_depends_on_its_number_alone(run, tmp_path, capsys):
    drawn(capsys, run, "--n", 3, "--out", tmp_path / "few.png")
    drawn(capsys, run, "--n", 8, "--out", tmp_path / "more.png")
    few, more = tiles(tmp_path / "few.png", 1, columns=3)[0], tiles(tmp_path / "more.png", 1)[0]
    assert torch.equal(few, more[:3])


def test_in_batches_it_is_what_the_flow_samples(run, flow):
    """Two batches; sums of another shape may be rounded otherwise, which now and then moves a pixel by a level."""
    many = sampling.BATCH + 44
    world = open_world(ParallelConfig(), 3, "cpu")
    (images,) = sampling.draw(sampling.load_local_parts(world, locate(run)), many, [0.7], 0)
    same = flow.sample(many, 0.7)
    assert images.shape == same.shape and (images != same).float().mean() < 1e-3 and difference(images, same) <= 1


def test_an_exported_flow_and_a_checkpoint(run, tmp_path, capsys):
    pipeflow.export(run, tmp_path / "flow.safetensors")
    for name, place in {"run": run, "file": tmp_path / "flow.safetensors", "at": run / "checkpoints/step-25"}.items():
        drawn(capsys, place, "--out", tmp_path / f"{name}.png")
    images = (tmp_path / "run.png").read_bytes()
    assert (tmp_path / "file.png").read_bytes() == images == (tmp_path / "at.png").read_bytes()


def test_a_gpu_computes_as_precisely_as_in_training(run, tmp_path, capsys):
    """PyTorch lets convolutions of float32 round to TF32 unless it is told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        drawn(capsys, run, "--n", "2", "--out", tmp_path / "drawn.png")
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_a_picture_goes_to_the_run_and_is_never_written_over(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    for kind, words in {"grid": [], "each-part": ["--each-part"], "reconstruct": ["--reconstruct", "2"]}.items():
        line = drawn(capsys, tmp_path / "run", *words)
        file = tmp_path / "run" / "samples" / f"{kind}.png"
        before = file.read_bytes()
        assert line.startswith(f"{file}: ")
        assert sample.main([str(tmp_path / "run"), *words]) == 2
        assert f"{file} is there already" in capsys.readouterr().err
        assert file.read_bytes() == before


def test_between_two_images(run, digits, tmp_path, capsys):
    line = drawn(capsys, run, "--interpolate", 3, 200, 7, 7, 296, 0, "--out", tmp_path / "a.png")
    assert "3 to 200, 7 to 7, 296 to 0" in line and "ends: 0 of 17 levels" in line
    rows = tiles(tmp_path / "a.png", 3)[0].view(3, 8, 1, 8, 8)
    for row, (first, last) in zip(rows, [(3, 200), (7, 7), (296, 0)], strict=True):
        assert torch.equal(row[0], digits[first]) and torch.equal(row[-1], digits[last])
    assert all(torch.equal(image, digits[7]) for image in rows[1])
    assert len(rows[0].flatten(1).unique(dim=0)) > 4, "it goes in steps"
    drawn(capsys, run, "--interpolate", "--out", tmp_path / "b.png")
    ends = tiles(tmp_path / "b.png", 4)[0].view(4, 8, 1, 8, 8)[:, [0, -1]].flatten(0, 1)
    assert torch.equal(ends, digits[:8]), "by default the first eight"


def test_the_way_is_a_great_circle_through_all_latents(flow, digits, monkeypatch):
    asked = {}
    monkeypatch.setattr(type(flow), "decode", lambda self, latents, labels: asked.update(latents) or latents["top"])
    interpolate(flow, digits[0], digits[1], 5)
    with torch.no_grad():
        latents = flow.encode(digits[:2])
    assert asked.keys() == latents.keys() and len(asked) == 2
    a, b = np.concatenate([latents[name].flatten(1).numpy() for name in latents], 1).astype(np.float64)
    way = np.concatenate([asked[name].flatten(1).numpy() for name in latents], 1)
    omega = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for t, point in zip(np.linspace(0, 1, 5), way, strict=True):
        expected = (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)
        np.testing.assert_allclose(point, expected, atol=1e-4)
    assert (way[0] == a).all() and (way[-1] == b).all()


@pytest.mark.parametrize("count", [1, 8, 11])
def test_images_above_their_reconstructions(count, run, digits, tmp_path, capsys):
    line = drawn(capsys, run, "--reconstruct", count, "--out", tmp_path / "a.png")
    assert f"first {count} test images" in line and line.endswith("largest error of a pixel: 0 of 17 levels")
    columns = min(count, 8)
    blocks = tiles(tmp_path / "a.png", *[2] * -(-count // 8), columns=columns)
    for number, block in enumerate(blocks):
        above, below = block.split(columns)
        left = digits[:count][8 * number : 8 * number + 8]
        assert torch.equal(above[: len(left)], left) and torch.equal(below[: len(left)], left)
        assert blank(above[len(left) :]) and blank(below[len(left) :])


def test_the_error_is_measured(run, tmp_path, capsys, monkeypatch):
    """One pixel that comes back 3 levels lower is found, and drawn."""

    def worse(flow, images, labels):
        seen, back = reconstruct(flow, images, labels)
        row, column = divmod(int(seen[1, 0].argmax()), SIDE)
        back[1, 0, row, column] -= 3
        return seen, back

    monkeypatch.setattr(sample_sheet, "reconstruct", worse)
    line = drawn(capsys, run, "--reconstruct", 8, "--out", tmp_path / "a.png")
    assert line.endswith("largest error of a pixel: 3 of 17 levels")
    above, below = tiles(tmp_path / "a.png", 2)[0].split(8)
    assert difference(above, below) == 3 and (above != below).sum() == 1


def test_a_difference_does_not_wrap_around():
    low, high = torch.tensor([3], dtype=torch.uint8), torch.tensor([250], dtype=torch.uint8)
    assert difference(low, high) == difference(high, low) == 247


def test_what_the_flow_sees_of_eight_bits(perturb):
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    few = pipeflow.Glow(GlowConfig(levels=1, steps=2, hidden=8), (3, 8, 8), bits=5)
    seen, back = reconstruct(perturb(few), images)
    assert torch.equal(seen, images >> 3 << 3) and torch.equal(back, seen)


def test_each_part_and_the_last_is_the_model(run, flow, tmp_path, capsys):
    line = drawn(capsys, run, "--each-part", "--n", 9, "--seed", 2, "--temperature", 0.8, "--out", tmp_path / "a.png")
    assert "stops after part 1, after part 2, after part 3, at temperature 0.8 (seed 2)" in line
    blocks = tiles(tmp_path / "a.png", 2, 2, 2)
    trained = read(run)
    for parts, block in enumerate(blocks, 1):
        assert torch.equal(block[:9], trained.flow(parts).sample(9, 0.8, 2)) and blank(block[9:])
    assert torch.equal(blocks[-1][:9], flow.sample(9, 0.8, 2))
    assert not torch.equal(blocks[0], blocks[1]) and not torch.equal(blocks[1], blocks[2])


def test_a_part_that_has_not_begun_is_named(tmp_path, capsys):
    run = tmp_path / "run"
    phases = [PhaseConfig("sequential", steps=3)]
    fit(small_config(run, phases, checkpoint=CheckpointConfig(every=1, keep=9)))
    capsys.readouterr()
    for step, part in ((1, 2), (2, 3)):
        place = run / "checkpoints" / f"step-{step}"
        line = drawn(capsys, place, "--out", tmp_path / f"{step}.png")
        assert f"(part {part} has not begun to learn in it)" in line
    assert "to learn" not in drawn(capsys, run)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_for_a_notebook(channels):
    images = torch.randint(256, (10, channels, 64, 64), dtype=torch.uint8)
    sheet = draw_sheet([[images[:1], images[1:]], [images]], 256)
    assert sheet.shape == (channels, (1 + 2 + 2) * 65 + 1 + 3, 8 * 65 + 1)
    assert torch.equal(sheet[:, 1:65, 1:65], images[0] / 255)
    assert torch.equal(sheet[:, 66:130, 66:130], images[2] / 255)
    assert torch.equal(sheet[:, -65:-1, 66:130], images[9] / 255)
    assert (sheet[:, 1:65, 65:] == 0.5).all() and (sheet[:, 0] == 0.5).all() and (sheet[:, -1] == 0.5).all()


# --- in several processes


def draw_in(init_method, directory, *what):
    """Draws from a checkpoint that has, for several processes, a copy for each: `directory`-0, `directory`-1, …"""
    rank = os.environ.get("RANK")
    source = locate(directory if rank is None else directory.with_name(f"{directory.name}-{rank}"), verify=False)
    world = open_world(ParallelConfig(), source.config.cut.parts, "cpu", init_method)
    local = sampling.load_local_parts(world, source)
    gc.collect()
    alive = sum(type(thing) is FlowStep for thing in gc.get_objects())
    sizes, gather_bytes = [], world.gather_bytes
    world.gather_bytes = lambda data: sizes.append(len(data)) or gather_bytes(data)
    images = sampling.draw(local, *what)
    names = sorted(name for piece in local.slices.values() for name in piece.global_state())
    world.close()
    return names, alive, [block.numpy() for block in images], sum(sizes)


def copies_of_own_parts(run, place, size):
    """For every process a copy of the newest checkpoint, without the files of the other processes' parts."""
    (checkpoint,) = (run / "checkpoints").glob("step-25")
    for rank in range(size):
        copy = shutil.copytree(checkpoint, place / f"checkpoint-{rank}")
        for part in set(range(3)) - set(grid(3, size).held(rank)):
            (copy / f"part-{part + 1}.safetensors").unlink()
    return checkpoint, place / "checkpoint"


@pytest.mark.parametrize(("size", "steps"), [(2, [4, 2]), (3, [1, 3, 2])])
def test_every_process_loads_its_parts_alone_and_the_images_are_the_same(size, steps, run, tmp_path):
    """Nor does a latent go to everybody: what all processes exchange does not grow with the images."""
    what = (sampling.BATCH + 44, [0.7, 1.0], 5)
    whole, own = copies_of_own_parts(run, tmp_path, size)
    returned = in_processes(size, draw_in, own, *what, directory=tmp_path / "meet")
    names, _, images, _ = draw_in("env://", whole, *what)
    assert sorted(name for held, _, _, _ in returned for name in held) == names, "together all, and none of them twice"
    assert [alive for _, alive, _, _ in returned] == steps, "no flow step of another part is in memory"
    assert [len(blocks) for _, _, blocks, _ in returned] == [2] + [0] * (size - 1)
    assert all(0 < exchanged < 1000 for _, _, _, exchanged in returned)
    for block, same in zip(returned[0][2], images, strict=True):
        assert block.dtype == np.uint8 and np.array_equal(block, same)


def test_the_steps_of_other_parts_never_have_memory(run):
    source = locate(run)
    slices = build_parts(source.config.model, source.data_space, [1])
    devices = [{tensor.device.type for tensor in piece.part.state_dict().values()} for piece in slices]
    assert devices == [{"meta"}, {"cpu"}, {"meta"}]
    complete, _ = build(source.config.model, source.data_space)
    assert [piece.global_state().keys() for piece in slices] == [
        piece.global_state().keys() for piece in complete.values()
    ]


def damaged_in(init_method, directory):
    world = open_world(ParallelConfig(), 3, "cpu", init_method)
    with pytest.raises(ValueError) as raised:
        sampling.load_local_parts(world, locate(directory.with_name(f"checkpoint-{world.rank}"), verify=False))
    world.close()
    return str(raised.value)


def test_a_damaged_part_is_an_error_of_every_process(run, tmp_path):
    _, own = copies_of_own_parts(run, tmp_path, 3)
    (tmp_path / "checkpoint-1" / "part-2.safetensors").write_bytes(b"")
    first, *others = in_processes(3, damaged_in, own, directory=tmp_path / "meet")
    assert "part-2.safetensors" in first and others == [first] * 2


def late_in(init_method, directory):
    """The process of the last part has nothing to hand over: it is at something else."""
    world = open_world(ParallelConfig(timeout_s=1.0), 3, "cpu", init_method)
    source = locate(directory)
    local = sampling.load_local_parts(world, source)
    if world.rank == 2:
        world.agree("what to draw", f"4 images at [1.0], seed 0, settings {source.config.digest()}")
        time.sleep(4)
        return ""
    with pytest.raises(LostError) as raised:
        sampling.draw(local, 4, [1.0], 0)
    return f"{raised.value.rank}: {raised.value}"


def test_a_latent_that_does_not_come_in_time_is_an_error_with_a_name(run, tmp_path):
    first, second, _ = in_processes(3, late_in, run / "checkpoints" / "step-25", directory=tmp_path / "meet")
    assert second.startswith("2: part 2 (rank 1), from part 3 (rank 2): packet 1 of 1 did not pass")
    assert first.startswith("1: part 1 (rank 0), from part 2 (rank 1): packet 1 of 1 did not pass")


def main_in(init_method, words):
    return sample.main([word.replace("RANK", os.environ["RANK"]) for word in words], init_method)


def test_the_command_under_torchrun(run, tmp_path, capsys):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    words = [str(run), "--images", "5", "--temperature", "0.6", "0.9", "--device", "cpu", "--out"]
    done = subprocess.run(
        [*torchrun, "-m", "pipeflow.sample", *words, "three.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line]
    assert line.startswith("three.png: 2 × 5 images, from top to bottom at temperature 0.6, 0.9 (seed 0)")
    drawn(capsys, *words, tmp_path / "one.png")
    assert (tmp_path / "three.png").read_bytes() == (tmp_path / "one.png").read_bytes()


def test_processes_that_are_asked_for_different_pictures(run, tmp_path):
    words = [str(run), "--device", "cpu", "--seed", "RANK", "--out", str(tmp_path / "a.png")]
    assert in_processes(2, main_in, words, directory=tmp_path / "meet") == [2, 2]
    assert not (tmp_path / "a.png").exists()


def interrupted_in(init_method, words):
    if os.environ["RANK"] == "1":

        def interrupt(*_):
            raise KeyboardInterrupt

        sample_sheet.draw = interrupt
    return sample.main(words, init_method)


def test_a_process_that_goes_away_ends_the_other(run, tmp_path):
    words = [str(run), "--device", "cpu", "--out", str(tmp_path / "a.png")]
    assert in_processes(2, interrupted_in, words, directory=tmp_path / "meet") == [1, 130]
    assert not (tmp_path / "a.png").exists()


# --- wrong use


WRONG = {
    "no such run": (["nowhere"], "nowhere holds no checkpoint"),
    "no such file": (["flow.safetensors", "--out", "a.png"], "flow.safetensors"),
    "no run at all": ([], "RUN"),
    "a file that is there": (["run", "--out", "taken.png"], "taken.png is there already"),
    "a directory": (["run", "--out", "run.png"], "run.png is there already"),
    "another kind of file": (["run", "--out", "a.jpg"], "a.jpg must end in .png"),
    "no place for it": (["run", "--out", "taken.png/a.png"], "taken.png/a.png cannot be written"),
    "a checkpoint without a place": (["run/checkpoints/step-25"], "--out"),
    "a damaged checkpoint": (["damaged/checkpoints/step-25", "--out", "a.png"], "part-2.safetensors is damaged"),
    "damaged settings": (["unset/checkpoints/step-25", "--out", "a.png"], "damaged"),
    "an image too far": (["run", "--interpolate", "0", "297"], "no test image 297: the run has 297"),
    "an image before the first": (["run", "--interpolate", "-1", "2"], "no test image -1"),
    "too many images": (["run", "--reconstruct", "298"], "no test image 297"),
    "no image there and back": (["run", "--reconstruct", "0"], "--reconstruct is 0"),
    "an odd number": (["run", "--interpolate", "1", "2", "3"], "pairs of images, not 3"),
    "negative temperature": (["run", "--temperature", "0.5", "-0.5"], "--temperature is -0.5"),
    "no temperature": (["run", "--temperature", "nan"], "--temperature is nan"),
    "too hot": (["run", "--temperature", "inf"], "--temperature is inf"),
    "no images": (["run", "--n", "0"], "--n is 0"),
    "a word for a number": (["run", "--n", "many"], "--n: invalid int value: 'many'"),
    "two kinds": (["run", "--each-part", "--interpolate", "1", "2"], "--each-part"),
    "two kinds, other order": (["run", "--reconstruct", "2", "--each-part"], "--reconstruct"),
    "an unknown option": (["run", "--levels", "3"], "there is no option --levels"),
    "an abbreviated option": (["run", "--temp", "1"], "there is no option --temp"),
    "a seed where nothing is drawn": (["run", "--reconstruct", "2", "--seed", "1"], "--seed"),
    "a seed of 0 where nothing is drawn": (["run", "--interpolate", "--seed", "0"], "--seed"),
    "data where none are looked at": (["run", "--root", "."], "--root"),
    "parts at two temperatures": (["run", "--each-part", "--temperature", "1", "2"], "one --temperature, not 2"),
    "parts of an exported flow": (["flow.safetensors", "--each-part", "--out", "a.png"], "--each-part needs the run"),
    "another device": (["run", "--device", "abacus"], "--device: invalid choice: 'abacus'"),
}


@pytest.fixture
def here(run, tmp_path, monkeypatch):
    """A directory with runs, whole and damaged, and files in the way."""
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "checkpoints" / "step-25" / "part-2.safetensors").write_bytes(b"")
    shutil.copytree(run, tmp_path / "unset")
    manifest = tmp_path / "unset" / "checkpoints" / "step-25" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"levels": 2,', '"levels": 0,'))
    (tmp_path / "taken.png").write_bytes(b"mine")
    (tmp_path / "run.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(here, capsys, words):
    """The one sentence; nothing was written."""
    before = {path: path.read_bytes() if path.is_file() else b"" for path in here.rglob("*")}
    assert sample.main(words) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert said.out == "" and re.fullmatch(r"pipeflow: .*[.?)]", line), line
    assert before == {path: path.read_bytes() if path.is_file() else b"" for path in here.rglob("*")}
    return line


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(case, here, capsys):
    words, fragment = WRONG[case]
    assert fragment in refused(here, capsys, words)


@pytest.mark.parametrize("words", [["--each-part"], ["--reconstruct", "2"], ["--interpolate"]])
def test_what_runs_in_one_process(words, here, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert f"{words[0]} runs in one process" in refused(here, capsys, ["run", *words])


@pytest.mark.parametrize(("place", "size"), [("run", "4"), ("flow.safetensors", "2")])
def test_more_processes_than_parts(place, size, here, capsys, monkeypatch):
    pipeflow.export("run", "flow.safetensors")
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", "0")
    assert f"{size} processes" in refused(here, capsys, [place, "--device", "cpu", "--out", "a.png"])


def test_data_that_are_not_the_runs(tmp_path, capsys):
    """A run on images of one's own, looked at with others: of another shape, and nowhere."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    for name, array in {"own": images, "moved": images, "grey": images[..., :1]}.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "train.npy", array)
        np.save(tmp_path / name / "test.npy", array[:10])
    data = DataConfig(name="npy", root=str(tmp_path / "own"), batch=12, init_batch=32)
    run = tmp_path / "run"
    fit(small_config(run, [PhaseConfig("simultaneous", steps=3)], data=data))
    shutil.rmtree(tmp_path / "own")
    capsys.readouterr()
    asked = [str(run), "--reconstruct", "2", "--device", "cpu"]
    line = refused(tmp_path, capsys, [*asked, "--root", str(tmp_path / "grey")])
    assert "1×8×8 with 256 levels" in line and "3×8×8" in line
    line = refused(tmp_path, capsys, asked)
    assert str(tmp_path / "own") in line and "--data.root" not in line
    assert "0 of 256 levels" in drawn(capsys, run, "--reconstruct", 2, "--root", tmp_path / "moved")


def test_no_gpu_here(here, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "device is cuda" in refused(here, capsys, ["run", "--device", "cuda"])


def test_help_says_what_it_is(capsys):
    with pytest.raises(SystemExit) as end:
        sample.main(["--help"])
    assert end.value.code == 0 and "--each-part" in capsys.readouterr().out
