"""Every source gives the stored pixels and nothing else, and every failure is one sentence that helps."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from torchvision.datasets.utils import calculate_md5

from pipeflow.data import image_decoding as decode
from pipeflow.data import outline
from pipeflow.data.datasets import load
from pipeflow.data.image_folder import split

DATA = Path(os.environ.get("PIPEFLOW_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def needs(path: Path) -> Path:
    """The path of real images; skips where they are absent, except in CI."""
    if not path.exists() and "CI" not in os.environ:
        pytest.skip(f"real images are not at {path}; set PIPEFLOW_TEST_DATA to run this")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pipeflow"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "images"


@pytest.fixture
def offline(monkeypatch):
    """No network, and a count of the attempts to reach it."""
    attempts = []

    def refuse(*_, **__):
        attempts.append(1)
        raise URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return attempts


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def fill(root: Path, count: int = 10, *shape: int) -> list[np.ndarray]:
    return [save(root / f"{i:02}.png", pixels(i, *(shape or (6, 6, 3)))) for i in range(count)]


# --- digits


def test_digits_are_stable_and_hold_every_class_in_both_splits():
    images = load("digits", None, None)
    assert images.train.shape == (1500, 8, 8, 1) and images.test.shape == (297, 8, 8, 1)
    assert images.train.dtype == images.test.dtype == np.uint8
    assert images.levels == 17 and images.train.min() == 0 and images.train.max() == images.test.max() == 16
    content = hashlib.sha256(images.train.tobytes() + b"|" + images.test.tobytes()).hexdigest()
    assert content == "f01069d909f56cc6906ed94f1fe3df1b98018c2f7b883f8157ef14e6db2aa17d"

    from sklearn.datasets import load_digits

    labels = load_digits().target
    for part in (labels[:1500], labels[1500:]):
        share = np.bincount(part, minlength=10) / len(part)
        assert share.min() > 0.085 and share.max() < 0.115


def test_digits_ignore_root_and_refuse_another_size():
    assert load("digits", "/nowhere", 8).test.shape == (297, 8, 8, 1)
    with pytest.raises(ValueError, match=r"data\.image_size is 16, but the images of 'digits' are 8×8"):
        load("digits", None, 16)


# --- published sets


def test_fashion_mnist_as_published_without_network_or_writes(offline, monkeypatch, capsys):
    raw = needs(DATA / "FashionMNIST" / "raw")
    before = sorted((path, path.stat().st_mtime_ns) for path in raw.parent.rglob("*"))
    monkeypatch.setattr(os, "mkdir", lambda *_: pytest.fail("wrote a directory"))
    images = load("fashion_mnist", str(DATA), 28)
    assert images.train.shape == (60000, 28, 28, 1) and images.test.shape == (10000, 28, 28, 1)
    assert images.train.dtype == np.uint8 and images.levels == 256
    for part, name in ((images.train, "train"), (images.test, "t10k")):
        assert part.tobytes() == (raw / f"{name}-images-idx3-ubyte").read_bytes()[16:]
    assert not offline
    assert before == sorted((path, path.stat().st_mtime_ns) for path in raw.parent.rglob("*"))
    assert capsys.readouterr() == ("", "")


def idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.tobytes())


@pytest.mark.parametrize(
    ("name", "shape", "many"),
    [
        ("cifar10", (3, 32, 32), 50_000),
        ("cifar100", (3, 32, 32), 50_000),
        ("mnist", (1, 28, 28), 60_000),
        ("svhn", (3, 32, 32), 73_257),
    ],
)
def test_what_published_images_look_like_is_known_without_them(root, offline, name, shape, many):
    assert outline(name, str(root), None) == (shape, 256, many, 0)
    assert outline(name, str(root), None, labels=True) == (shape, 256, many, 100 if name == "cifar100" else 10)
    assert not offline and not root.exists()
    with pytest.raises(ValueError, match=r"data\.image_size is 5"):
        outline(name, str(root), 5)


def test_an_outline_is_that_of_the_images(tmp_path):
    assert outline("digits", None, None) == ((1, 8, 8), 17, 1500, 0)
    np.save(tmp_path / "train.npy", np.zeros((7, 6, 6, 3), np.uint8))
    np.save(tmp_path / "test.npy", np.zeros((2, 6, 6, 3), np.uint8))
    assert outline("npy", str(tmp_path), None) == ((3, 6, 6), 256, 7, 0)
    raw = needs(DATA / "FashionMNIST" / "raw")
    images = load("fashion_mnist", str(raw.parents[1]), None)
    assert outline("fashion_mnist", None, None) == ((1, 28, 28), images.levels, len(images.train), 0)


def test_mnist_keeps_28_pixels(root, offline):
    wanted = {"train": pixels(0, 5, 28, 28), "t10k": pixels(1, 2, 28, 28)}
    for name, array in wanted.items():
        idx(root / f"MNIST/raw/{name}-images-idx3-ubyte", array)
        idx(root / f"MNIST/raw/{name}-labels-idx1-ubyte", np.zeros(len(array), np.uint8))
    images = load("mnist", str(root), None)
    assert np.array_equal(images.train, wanted["train"][..., None])
    assert np.array_equal(images.test, wanted["t10k"][..., None])
    with pytest.raises(ValueError, match=r"data\.image_size is 32, but the images of 'mnist' are 28×28"):
        load("mnist", str(root), 32)
    assert not offline


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_channel_last(root, offline, monkeypatch, name):
    kind = getattr(torchvision.datasets, name.upper())
    wanted = {"train": pixels(0, 4, 32, 32, 3), "test": pixels(1, 2, 32, 32, 3)}

    def keep(file: str, content: dict) -> str:
        path = root / kind.base_folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return calculate_md5(path)

    for part, array in wanted.items():
        content = {"data": array.transpose(0, 3, 1, 2).reshape(len(array), -1), "fine_labels": [0] * len(array)}
        monkeypatch.setattr(kind, f"{part}_list", [[part, keep(part, content)]])
    meta = {"filename": "meta", "key": "names", "md5": keep("meta", {"names": ["a"]})}
    monkeypatch.setattr(kind, "meta", meta)
    images = load(name, str(root), 32)
    assert np.array_equal(images.train, wanted["train"]) and np.array_equal(images.test, wanted["test"])
    assert images.train.flags.c_contiguous and images.train.dtype == np.uint8
    assert not offline


def test_svhn_is_channel_last(root, offline, monkeypatch):
    from scipy.io import savemat

    wanted = {"train": pixels(0, 4, 32, 32, 3), "test": pixels(1, 2, 32, 32, 3)}
    root.mkdir()
    listed = {}
    for part, array in wanted.items():
        path = root / f"{part}_32x32.mat"
        savemat(path, {"X": array.transpose(1, 2, 3, 0), "y": np.ones((len(array), 1), np.uint8)})
        listed[part] = ["http://nowhere/", path.name, calculate_md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)
    images = load("svhn", str(root), None)
    assert np.array_equal(images.train, wanted["train"]) and np.array_equal(images.test, wanted["test"])
    assert images.train.flags.c_contiguous and not offline


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar10", "cifar-10-batches-py/{data_batch_1,…"),
        ("cifar100", "cifar-100-python/{train,test,meta}"),
        ("mnist", "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"),
        ("svhn", "{train,test}_32x32.mat"),
    ],
)
def test_no_files_and_no_network_is_one_sentence_that_helps(root, offline, name, files):
    with pytest.raises(ValueError) as caught:
        load(name, str(root), None)
    message = str(caught.value)
    assert offline
    for part in (f"'{name}'", f"{root}/{files}", "--data.root DIR", f"DIR holds {files}", "no network here"):
        assert part in message
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_published_sets_are_looked_for_in_data_by_default(tmp_path, monkeypatch, offline):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="read from 'data/cifar-10-batches-py/"):
        load("cifar10", None, None)


def test_the_size_is_refused_before_any_download(root, offline):
    with pytest.raises(ValueError, match="'cifar10' are 32×32"):
        load("cifar10", str(root), 64)
    assert not offline and not root.exists()


def test_a_broken_published_file_is_reported(root, offline):
    for name in ("train", "t10k"):
        idx(root / f"MNIST/raw/{name}-images-idx3-ubyte", pixels(0, 2, 28, 28))
        idx(root / f"MNIST/raw/{name}-labels-idx1-ubyte", np.zeros(2, np.uint8))
    path = root / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"'mnist' could neither be read .*invalid for input of size 1563"):
        load("mnist", str(root), None)


@pytest.fixture
def served(root, monkeypatch):
    """A slow network of four small archives, 3 training and 2 test images of MNIST, and what was asked of it."""
    pages, asked = {}, []
    for name, count in (("train", 3), ("t10k", 2)):
        for file, array in (("images-idx3", pixels(count, count, 28, 28)), ("labels-idx1", np.zeros(count, np.uint8))):
            path = root.parent / "served" / f"{name}-{file}-ubyte"
            idx(path, array)
            pages[f"{path.name}.gz"] = gzip.compress(path.read_bytes())

    class Response(io.BytesIO):
        def __init__(self, request):
            time.sleep(0.02)
            asked.append(request.full_url.rsplit("/", 1)[1])
            super().__init__(pages[asked[-1]])
            self.url, self.length = request.full_url, None

    monkeypatch.setattr(urllib.request, "urlopen", Response)
    listed = [(name, hashlib.md5(page).hexdigest()) for name, page in pages.items()]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", listed)
    return asked


def test_missing_files_are_downloaded_and_then_read(root, served, capfd):
    images = load("mnist", str(root), None)
    assert np.array_equal(images.train, pixels(3, 3, 28, 28)[..., None]) and len(images.test) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "downloading" in err  # no progress bars


def test_one_downloads_while_the_others_wait(root, served):
    with ThreadPoolExecutor(3) as pool:
        for images in pool.map(lambda _: load("mnist", str(root), None), range(3)):
            assert np.array_equal(images.train, pixels(3, 3, 28, 28)[..., None])
    assert len(set(served)) == 4 and len(served) == 8  # of each file its last redirect and its content, once


# --- folder: splits


def test_splits_are_a_table():
    names = [f"{i:02}" for i in range(21)]
    assert split(names, None) == ([n for n in names if n not in ("09", "19")], ["09", "19"])
    names = ["a.png", "train/a.png", "train/b/c.png", "trainer/x.png", "val/a.png"]
    assert split(names, "val") == (["train/a.png", "train/b/c.png"], ["val/a.png"])
    assert split(names[:2], "val") == (["train/a.png"], [])


def test_every_tenth_image_of_a_tree_is_a_test_image(root):
    names = [f"{folder}/{i}.png" for folder in ("a", "b/c") for i in range(10)]
    arrays = [save(root / name, pixels(i, 5, 5, 3)) for i, name in enumerate(names)]
    images = load("folder", str(root), None)
    assert np.array_equal(images.train, [a for i, a in enumerate(arrays) if i not in (9, 19)])
    assert np.array_equal(images.test, [arrays[9], arrays[19]])
    assert images.levels == 256 and images.train.dtype == np.uint8
    assert isinstance(images.train, np.memmap) and not images.train.flags.writeable


@pytest.mark.parametrize("held_out", ["test", "val", "valid"])
def test_train_and_test_folders_are_the_splits(root, held_out):
    train = [save(root / "train" / c / "x.png", pixels(i, 4, 4)) for i, c in enumerate("ab")]
    test = [save(root / held_out / "c" / "x.png", pixels(9, 4, 4))]
    save(root / "elsewhere.png", pixels(10, 9, 9))
    images = load("folder", str(root), None)
    assert np.array_equal(images.train[..., 0], train) and np.array_equal(images.test[..., 0], test)


def test_test_comes_before_val(root):
    for i, part in enumerate(("train", "val", "test")):
        save(root / part / "x.png", pixels(i, 4, 4))
    assert np.array_equal(load("folder", str(root), None).test[0, ..., 0], pixels(2, 4, 4))


def test_every_suffix_in_any_case_and_nothing_hidden(root):
    flat = np.full((8, 8, 3), 77, np.uint8)
    for name in ("a.jpg", "b.JPEG", "c.PNG", "d.bmp", "e.WebP", "f.ppm", "g.png", "h.png", "i.png", "j.png"):
        save(root / name, flat)
    save(root / ".thumbnails" / "a.png", flat)
    (root / "._a.jpg").write_bytes(b"resource fork")
    (root / "notes.txt").write_text("no image")
    images = load("folder", str(root), None)
    assert len(images.train) == 9 and len(images.test) == 1
    assert np.abs(images.train.astype(int) - 77).max() <= 2


# --- folder: sizes and colours


def test_images_of_the_right_size_are_untouched(root):
    arrays = fill(root)
    images = load("folder", str(root), 6)
    assert np.array_equal(np.concatenate([images.train, images.test]), arrays)


def test_the_middle_is_cut_out_without_resizing_where_the_short_side_fits(root):
    arrays = fill(root, 10, 6, 11, 3)
    assert np.array_equal(load("folder", str(root), 6).train, [a[:, 2:8] for a in arrays[:9]])


def test_resizing_is_antialiased_and_centred(root):
    checkers = np.indices((64, 96)).sum(0) % 2 * 255  # a subsampling without a filter would give 0s and 255s
    checkers[:, :16] = checkers[:, -16:] = 0  # outside of the centre
    for i in range(10):
        save(root / f"{i}.png", checkers.astype(np.uint8))
    image = load("folder", str(root), 16).train[0]
    assert image.shape == (16, 16, 1)
    assert np.abs(image[:, 2:-2].astype(int) - 127).max() < 12
    assert image.mean() > 115


def test_small_images_grow(root):
    fill(root)
    assert load("folder", str(root), 9).train.shape == (9, 9, 9, 3)


def test_without_image_size_all_must_share_the_size_of_the_first(root):
    fill(root)
    save(root / "05.png", pixels(5, 7, 8, 3))
    with pytest.raises(ValueError, match=r"'05\.png' is 8×7 pixels, but '00\.png' is 6×6.*set data\.image_size"):
        load("folder", str(root), None, "skip")
    assert load("folder", str(root), 6).train.shape == (9, 6, 6, 3)


def test_images_must_be_square(root):
    fill(root, 10, 6, 7, 3)
    with pytest.raises(ValueError, match=r"'00\.png' is 7×6 pixels, but images must be square; set data\.image_size"):
        load("folder", str(root), None)


def test_a_size_below_one_is_refused(root):
    fill(root)
    with pytest.raises(ValueError, match=r"data\.image_size is 0; it must be at least 1"):
        load("folder", str(root), 0)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)],
)
def test_modes_become_grey_or_colour(root, recwarn, mode, channels):
    grey = Image.fromarray(np.linspace(0, 255, 36).astype(np.uint8).reshape(6, 6))
    source = Image.fromarray(np.asarray(grey, np.uint16) * 256 + 255) if mode == "I;16" else grey.convert(mode)
    more = {"transparency": b"\x00\x80"} if mode == "P" else {}
    root.mkdir()
    for i in range(10):
        source.save(root / f"{i}.png", **more)
    image = load("folder", str(root), None).train[0]
    assert image.shape == (6, 6, channels)
    wanted = np.asarray(source.convert("L")) if mode == "1" else np.asarray(grey)
    assert np.array_equal(image, np.repeat(wanted[..., None], channels, 2))
    assert not recwarn.list


def test_16_bit_files_that_pillow_opens_as_32_bit(root):
    root.mkdir()
    for i in range(10):
        (root / f"{i}.ppm").write_bytes(b"P5 2 2 65535\n" + bytes([0, 0, 1, 0, 128, 7, 255, 255]))
    assert load("folder", str(root), None).train[0, ..., 0].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize(("first", "later"), [((6, 6), (6, 6, 3)), ((6, 6, 3), (6, 6))])
def test_grey_and_colour_do_not_mix(root, capsys, first, later):
    arrays = fill(root, 10, *first)
    save(root / "04.png", pixels(4, *later))
    kinds = ("grey", "in colour") if len(later) == 2 else ("in colour", "grey")
    with pytest.raises(ValueError, match=rf"'04\.png' is {kinds[0]}, but '00\.png' is {kinds[1]}.*'skip'"):
        load("folder", str(root), None)
    images = load("folder", str(root), None, "skip")
    wanted = np.array(arrays[:4] + arrays[5:9]).reshape(8, 6, 6, -1)
    assert np.array_equal(images.train, wanted) and len(images.test) == 1
    assert "1 of 10 images" in capsys.readouterr().err


def test_the_test_split_follows_the_first_training_image(root):
    save(root / "train" / "a.png", pixels(0, 4, 4))
    save(root / "test" / "a.png", pixels(0, 4, 4, 3))
    with pytest.raises(ValueError, match=r"'test/a\.png' is in colour, but 'train/a\.png' is grey"):
        load("folder", str(root), None)
    with pytest.raises(ValueError, match="None of the 1 test images"):
        load("folder", str(root), None, "skip")


# --- folder: broken files


BROKEN = {
    "empty": b"",
    "text": b"this is no image",
    "half": None,  # the first half of a real file
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("at", [0, 5, 9])
def test_a_corrupt_image_is_named_or_left_out_and_counted(root, cache, capsys, kind, at):
    arrays = fill(root, 20, 40, 40, 3)
    path = root / f"{at:02}.png"
    path.write_bytes(BROKEN[kind] if BROKEN[kind] is not None else path.read_bytes()[:2000])
    with pytest.raises(
        ValueError, match=rf"'{path.name}' cannot be decoded \(.+\); remove it, or set data\.on_corrupt"
    ):
        load("folder", str(root), None)
    assert list(cache.iterdir()) == []
    for _ in range(2):  # said again when the pixels come from the cache
        images = load("folder", str(root), None, "skip")
        kept = [i for i in range(20) if i != at]
        assert np.array_equal(images.train, [arrays[i] for i in kept if i % 10 != 9])
        assert np.array_equal(images.test, [arrays[i] for i in kept if i % 10 == 9])
        err = capsys.readouterr().err
        assert err.startswith("1 of 20 images") and err.count("\n") == 1


def test_images_through_the_threads_keep_their_order(root, capsys):
    arrays = fill(root, 200)
    for i in (0, 70, 131):
        (root / f"{i:02}.png").write_bytes(b"broken")
    images = load("folder", str(root), None, "skip")
    names = sorted(f"{i:02}.png" for i in range(200))
    train = [int(n[:-4]) for at, n in enumerate(names) if at % 10 != 9]
    assert np.array_equal(images.train, [arrays[i] for i in train if i not in (0, 70, 131)])
    assert "3 of 200 images" in capsys.readouterr().err


def test_nothing_but_corrupt_images(root):
    root.mkdir()
    for i in range(10):
        (root / f"{i}.png").write_bytes(b"broken")
    for on_corrupt in ("stop", "skip"):
        with pytest.raises(ValueError, match=r"None of the 9 training images.* the first is '0\.png'"):
            load("folder", str(root), None, on_corrupt)


# --- folder: missing things


def test_folder_needs_a_root():
    with pytest.raises(ValueError, match=r"data\.root is not given"):
        load("folder", None, 32)


@pytest.mark.parametrize("what", ["missing", "file"])
def test_root_must_be_a_readable_directory(root, what):
    if what == "file":
        root.write_text("")
    with pytest.raises(ValueError, match=rf"data\.root '{root}' is not a folder that can be read"):
        load("folder", str(root), None)


def test_an_unreadable_subfolder_is_no_silent_loss(root, monkeypatch):
    fill(root)
    save(root / "locked" / "a.png", pixels(0, 6, 6, 3))
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(ValueError, match=r"Permission denied: '.*locked'"):
        load("folder", str(root), None)


@pytest.mark.parametrize("count", [0, 9])
def test_too_few_images_for_a_split(root, count):
    root.mkdir()
    fill(root, count)
    with pytest.raises(ValueError, match=rf"holds {count} training and 0 test images .*every tenth"):
        load("folder", str(root), None)


def test_a_split_folder_without_images(root):
    save(root / "train" / "a.png", pixels(0, 4, 4))
    (root / "val").mkdir()
    with pytest.raises(ValueError, match=r"holds 1 training and 0 test images .*both 'train' and 'val'"):
        load("folder", str(root), None)


# --- folder: the cache


def decoded(monkeypatch) -> list[str]:
    names, read = [], decode.read
    monkeypatch.setattr(decode, "read", lambda path, size: (names.append(path.name), read(path, size))[1])
    return names


def test_the_second_time_nothing_is_decoded(root, cache, monkeypatch):
    fill(root)
    first = load("folder", str(root), None)
    assert sorted(path.name.rsplit("-")[-1] for path in cache.iterdir()) == ["test.npy", "train.npy"]
    names = decoded(monkeypatch)
    monkeypatch.chdir(root.parent)
    again = load("folder", root.name, None)  # the same folder by another path
    assert not names
    assert np.array_equal(first.train, again.train) and np.array_equal(first.test, again.test)


def rewrite(root):
    stat = (root / "03.png").stat()
    save(root / "03.png", np.zeros((6, 6, 3), np.uint8))
    os.utime(root / "03.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # another size at the same time


def touch(root):
    os.utime(root / "03.png", ns=(1, 1))


def rename(root):
    (root / "03.png").rename(root / "03b.png")


def add(root):
    save(root / "10.png", pixels(10, 6, 6, 3))


@pytest.mark.parametrize("change", [rewrite, touch, rename, add])
def test_a_changed_file_is_decoded_again(root, monkeypatch, change):
    fill(root)
    before = load("folder", str(root), None).train.copy()
    change(root)
    names = decoded(monkeypatch)
    after = load("folder", str(root), None).train
    assert set(names) == {path.name for path in root.iterdir()}
    if change is rewrite:
        assert not after[3].any() and before[3].any()
        assert np.array_equal(after[4:], before[4:])


def test_image_size_and_on_corrupt_are_part_of_the_key(root, monkeypatch):
    fill(root)
    names = decoded(monkeypatch)
    for size, on_corrupt in ((None, "stop"), (6, "stop"), (3, "stop"), (6, "skip")):
        names.clear()
        assert load("folder", str(root), size, on_corrupt).train.shape[1] == (size or 6)
        assert names


def test_an_interrupted_decode_leaves_nothing(root, cache, monkeypatch):
    fill(root)
    names, read = [], decode.read

    def interrupt(path, size):
        names.append(path)
        if len(names) == 6:
            raise KeyboardInterrupt
        return read(path, size)

    monkeypatch.setattr(decode, "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load("folder", str(root), None)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(root, tmp_path, monkeypatch):
    fill(root)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be kept in '.*file/pipeflow'.*set XDG_CACHE_HOME"):
        load("folder", str(root), None)


def test_the_cache_is_below_home_by_default(root, tmp_path, monkeypatch):
    fill(root)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("folder", str(root), None)
    assert len(list((tmp_path / "home/.cache/pipeflow").iterdir())) == 2


def test_racing_processes_see_whole_files(root, cache):
    fill(root, 300)
    code = (
        "import sys, hashlib; from pipeflow.data.datasets import load; print('ready', flush=True);"
        "sys.stdin.readline();"
        "i = load('folder', sys.argv[1], None); print(hashlib.sha256(i.train.tobytes() + i.test.tobytes()).hexdigest())"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    where = Path(__file__).parents[2]
    racers = [subprocess.Popen([sys.executable, "-c", code, root], cwd=where, **pipes) for _ in range(2)]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=60) for racer in racers]
    images = load("folder", str(root), None)
    wanted = hashlib.sha256(images.train.tobytes() + images.test.tobytes()).hexdigest()
    assert outputs == [(f"{wanted}\n", "")] * 2  # nor a progress bar outside of a terminal
    assert len(list(cache.iterdir())) == 2


def test_real_jpegs_keep_the_pixels_that_pillow_decodes(root):
    wanted = {}
    with tarfile.open(needs(DATA / "cifar10_jpeg.tar.xz"), "r|xz") as archive:
        for member in archive:
            if member.isfile():
                content = archive.extractfile(member).read()
                path = root / member.name.partition("/")[2].replace("test/", "")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                wanted[path.relative_to(root).as_posix()] = np.asarray(Image.open(io.BytesIO(content)))
                if len(wanted) == 300:
                    break
    images = load("folder", str(root), 32)
    names = sorted(wanted)
    assert images.train.shape == (270, 32, 32, 3) and images.test.shape == (30, 32, 32, 3)
    assert np.array_equal(images.test, [wanted[name] for name in names[9::10]])
    assert np.array_equal(images.train[:9], [wanted[name] for name in names[:9]])


# --- npy


def test_a_directory_of_arrays_is_mapped(root):
    root.mkdir()
    wanted = pixels(0, 7, 5, 5, 3), pixels(1, 2, 5, 5, 3)
    for name, array in zip(("train", "test"), wanted, strict=True):
        np.save(root / f"{name}.npy", array)
    images = load("npy", str(root), 5)
    assert np.array_equal(images.train, wanted[0]) and np.array_equal(images.test, wanted[1]) and images.levels == 256
    assert isinstance(images.train, np.memmap) and not images.train.flags.writeable


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (19, 1), (20, 2), (105, 10)])
def test_the_last_tenth_of_one_array_is_the_test_split(tmp_path, count, held_out):
    array = pixels(0, count, 4, 4, 1)
    np.save(tmp_path / "a.npy", array)
    images = load("npy", str(tmp_path / "a.npy"), None)
    assert np.array_equal(images.train, array[:-held_out]) and np.array_equal(images.test, array[-held_out:])
    assert isinstance(images.test, np.memmap)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((4, 5, 5, 3), np.float32), r"float32 of shape \(4, 5, 5, 3\)"),
        (np.zeros((4, 5, 6, 3), np.uint8), r"uint8 of shape \(4, 5, 6, 3\)"),
        (np.zeros((4, 3, 5, 5), np.uint8), r"uint8 of shape \(4, 3, 5, 5\)"),
        (np.zeros((4, 5, 5, 2), np.uint8), r"uint8 of shape \(4, 5, 5, 2\)"),
        (np.zeros((4, 5, 5), np.uint8), r"uint8 of shape \(4, 5, 5\)"),
        (np.zeros((0, 5, 5, 1), np.uint8), r"uint8 of shape \(0, 5, 5, 1\)|cannot be read"),
        (np.zeros((4, 0, 0, 1), np.uint8), r"uint8 of shape \(4, 0, 0, 1\)|cannot be read"),
        (np.zeros((1, 5, 5, 1), np.uint8), "holds one image"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, found):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy' .*{found}"):
        load("npy", str(tmp_path / "a.npy"), None)


def test_pickles_are_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read as an array"):
            load("npy", str(tmp_path / name), None)
    assert not (tmp_path / "sprung").exists()


def test_npy_needs_its_files(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root is not given.*train\.npy and test\.npy"):
        load("npy", None, None)
    with pytest.raises(ValueError, match=r"nowhere\.npy' cannot be read as an array .*No such file"):
        load("npy", str(tmp_path / "nowhere.npy"), None)
    np.save(tmp_path / "train.npy", pixels(0, 4, 5, 5, 1))
    with pytest.raises(ValueError, match=r"test\.npy' cannot be read"):
        load("npy", str(tmp_path), None)
    (tmp_path / "test.npy").write_bytes((tmp_path / "train.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"test\.npy' cannot be read"):
        load("npy", str(tmp_path), None)


def test_both_arrays_hold_images_of_one_shape(tmp_path):
    np.save(tmp_path / "train.npy", pixels(0, 4, 5, 5, 1))
    np.save(tmp_path / "test.npy", pixels(0, 4, 5, 5, 3))
    with pytest.raises(ValueError, match=r"\(5, 5, 1\) in train\.npy, \(5, 5, 3\) in test\.npy"):
        load("npy", str(tmp_path), None)


def test_npy_is_never_resized(tmp_path):
    np.save(tmp_path / "a.npy", pixels(0, 4, 5, 5, 1))
    with pytest.raises(ValueError, match=r"data\.image_size is 6, but the images of 'npy' are 5×5"):
        load("npy", str(tmp_path / "a.npy"), 6)


# --- images held out


def test_images_are_held_out_by_the_seed_and_their_number():
    images = load("digits", None, None)
    numbered = dataclasses.replace(images, train=np.arange(60, dtype=np.float32).reshape(20, 3), levels=0)
    held = numbered.hold_out(6, seed=0)
    assert (len(held.train), len(held.validation)) == (14, 6)
    assert sorted([*held.train[:, 0], *held.validation[:, 0]]) == numbered.train[:, 0].tolist()
    assert np.array_equal(held.validation, numbered.hold_out(6, seed=0).validation)
    assert not np.array_equal(held.validation, numbered.hold_out(6, seed=1).validation)
    assert held.test is images.test and [split.evaluated()[0] for split in (held, images)] == ["validation", "test"]
    assert images.hold_out(0, seed=0) is images
