"""Images and arrays that lie: one sentence, little memory, nothing run."""

import os
import pickle
import struct
import zlib

import numpy as np
from PIL import Image

from tests.support.hostile import check_refused

FOLDER = ["train", "--data.name", "folder", "--data.root", "images", "--run_dir", "new", "--data.init_batch", "16"]
FOLDER += ["--data.batch", "16", "--device", "cpu", "--data.image_size", "8"]
ARRAY = ["train", "--data.name", "npy", "--data.root", "images.npy", "--run_dir", "new", "--device", "cpu"]


def image(content, name="07.png"):
    """A folder of 20 sound images, and one that is not."""

    def make(here):
        (here / "images").mkdir()
        for number in range(20):
            Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(here / "images" / f"{number:02}.png")
        path = here / "images" / name
        content(path) if callable(content) else path.write_bytes(content)

    return make


def piped(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def lead(target):
    def link(path):
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return link


def to_one_another(path):
    for name in ("a", "b"):
        (path.parent / name).mkdir()
        for other in ("a", "b"):
            (path.parent / name / f"to-{other}").symlink_to(path.parent / other)


def png(width, height, *chunks, data=b""):
    """A PNG of this size, whatever its data have."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), *chunks, (b"IDAT", data or zlib.compress(bytes(1000))), (b"IEND", b"")]
    written = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


BOMB = zlib.compress(bytes(100_000_000), 1)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(outside/ran) (w) file closefile\n%%EOF\n"
IMAGES = {
    "60,000 x 60,000 pixels": image(png(60_000, 60_000)),
    "10,000 x 10,000 pixels, whole": image(png(10_000, 10_000, data=zlib.compress(bytes(10_000 * 30_001), 1))),
    "2 to the 31 pixels wide": image(png((1 << 31) - 1, 1)),
    "no pixels": image(png(0, 0)),
    "cut off": image(png(16, 16, data=os.urandom(1000))[:60]),
    "a text of 100 MB": image(png(16, 16, (b"zTXt", b"a\0\0" + BOMB))),
    "colours of 100 MB": image(png(16, 16, (b"iCCP", b"a\0\0" + BOMB), data=b"none")),
    "no data": image(png(16, 16, data=b"none")),
    "nothing in it": image(b""),
    "a picture that is a program": image(EPS),
    "wrong magic": image(b"\x89PNG\r\n\x1a\x0a" + bytes(100)),
    "a JPEG of 65,000 x 65,000 pixels": image(
        b"\xff\xd8\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xc0\x00\x11\x08\xfd\xe8\xfd\xe8\x03\x01\x11\x00"
        b"\x02\x11\x00\x03\x11\x00",
        "07.jpg",
    ),
    "a BMP of a size below zero": image(
        b"BM" + struct.pack("<IIIIiiHHI", 1 << 31, 0, 54, 40, -5, -5, 1, 24, 0), "x.bmp"
    ),
    "a PPM of a million digits": image(b"P6 " + b"9" * 1_000_000 + b" 1 255\n", "07.ppm"),
    "a pipe": image(piped),
    "a device": image(lead("/dev/zero")),
    "a link that leads nowhere": image(lead("nowhere")),
    "a link to itself": image(lead("07.png")),
    "a folder in itself": image(lambda path: (path.parent / "more").symlink_to(".")),
    "folders in one another": image(to_one_another),
}


class Trap:
    """Touches a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("outside/ran",)


def array(header, data=b"", version=b"\x01\x00", length=None):
    """A .npy file with this header."""
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header) if length is None else length)
    return lambda here: (here / "images.npy").write_bytes(b"\x93NUMPY" + version + size + header.encode() + data)


def of_shape(shape, kind="'|u1'"):
    return array(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n", bytes(6400))


ARRAYS = {
    "a pickle": lambda here: (here / "images.npy").write_bytes(pickle.dumps(Trap())),
    "objects": of_shape("(100,)", "'|O'"),
    "pickled objects": lambda here: np.save(
        here / "images.npy", np.array([Trap()] * 3, dtype=object), allow_pickle=True
    ),
    "more images than the file holds": of_shape("(10000000, 8, 8, 1)"),
    "2 to the 62 images": of_shape(f"({1 << 62}, 8, 8, 1)"),
    "2 to the 70 images": of_shape(f"({1 << 70}, 8, 8, 1)"),
    "fewer images than none": of_shape("(-100, 8, 8, 1)"),
    "no images": of_shape("(0, 8, 8, 1)"),
    "images of no size": of_shape("(100, 0, 0, 1)"),
    "a shape of texts": of_shape("('100', 8, 8, 1)"),
    "a shape that is a number": of_shape("100"),
    "a thousand dimensions": of_shape("(" + "1, " * 1000 + ")"),
    "a kind of 2 to the 40 bytes": of_shape("(1,)", f"'|V{1 << 40}'"),
    "a kind that is none": of_shape("(100, 8, 8, 1)", "'hello'"),
    "a kind of fields": of_shape("(100,)", "[('a', '|u1')]"),
    "a header that calls": array("__import__('os').mkdir('outside/ran')\n"),
    "a header of deep lists": array("[" * 5000 + "\n"),
    "a header of minus signs": array("-" * 9000 + "1\n"),
    "a header of 4 GB": array("{}\n", version=b"\x02\x00", length=(1 << 32) - 1),
    "a header of 60,000 bytes": array(" " * 60_000 + "{}\n"),
    "another version": array("{}\n", version=b"\x09\x00"),
    "nothing in it": lambda here: (here / "images.npy").touch(),
    "a zip of arrays": lambda here: (
        np.savez(here / "images.npz", a=np.zeros(3)) or os.rename(here / "images.npz", here / "images.npy")
    ),
    "a pipe": lambda here: os.mkfifo(here / "images.npy"),
    "a device": lambda here: (here / "images.npy").symlink_to("/dev/zero"),
}


def test_images(tmp_path):
    check_refused({name: (make, FOLDER) for name, make in IMAGES.items()}, None, tmp_path)


def test_arrays(tmp_path):
    check_refused({name: (make, ARRAY) for name, make in ARRAYS.items()}, None, tmp_path)
