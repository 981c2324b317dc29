"""Archives of arrays and of images that are damaged, by every reader of them: refused in a sentence, or made anew."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from evaluations import features
from evaluations.batches import open_images
from evaluations.comparison import rows
from evaluations.exposure import sums
from guided_diffusion import base_samples
from guided_diffusion.errors import UserError
from guided_diffusion.image_arrays import read_arrays
from guided_diffusion.image_datasets import Images

PIXELS = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3), dtype=np.uint8)


def members(path, save=np.savez_compressed):
    save(path, arr_0=PIXELS, arr_1=np.arange(6) % 3)
    return path.read_bytes()


def in_each_header(data, at_local, at_central, value):
    """A number of two bytes in both headers of each member."""
    data = bytearray(data)
    for mark, at in ((b"PK\3\4", at_local), (b"PK\1\2", at_central)):
        place = data.find(mark)
        while place >= 0:
            data[place + at : place + at + 2] = struct.pack("<H", value)
            place = data.find(mark, place + 4)
    return bytes(data)


def unpackable(data):
    """Compressed members of which the first bytes are no beginning of any."""
    data = bytearray(data)
    place = data.find(b"PK\3\4")
    while place >= 0:
        name, extra = struct.unpack("<HH", data[place + 26 : place + 30])
        start = place + 30 + name + extra
        data[start : start + 8] = b"\xff" * 8
        place = data.find(b"PK\3\4", place + 4)
    return bytes(data)


def with_header(text):
    header = text.encode() + b"\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + PIXELS.tobytes()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("arr_0.npy", member)
        with archive.open("arr_1.npy", "w") as labels:
            np.save(labels, np.zeros(len(PIXELS), np.int64))
    return data.getvalue()


def claiming(shape):
    return with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}")


# of any archive
ARCHIVES = {
    "another compression": lambda data: in_each_header(data, 8, 10, 99),
    "a password": lambda data: in_each_header(data, 6, 8, 1),
    "bytes that do not unpack": unpackable,
    "a cut": lambda data: data[: len(data) // 2],
    "no directory": lambda data: data[: data.index(b"PK\1\2")],
    "nothing": lambda data: b"",
    "text": lambda data: b"no archive\n",
}
# of arrays
DAMAGES = ARCHIVES | {
    "1e12 images": lambda data: claiming("(1000000000000, 8, 8, 3)"),
    "2^80 images": lambda data: claiming("(1099511627776, 1099511627776)"),
    "a deep header": lambda data: with_header("(" * 3000 + ")" * 3000),
    "a deep shape": lambda data: claiming("(" * 300 + "1," + ")" * 300),
    "objects": lambda data: with_header("{'descr': '|O', 'fortran_order': False, 'shape': (4,), }"),
    "no numbers": lambda data: claiming("('a',)"),
    "fewer than none": lambda data: claiming("(-1, 8, 8, 3)"),
}


def of_images(path):
    return [list(open_images(str(path), "samples").batches(4, 0, 1))]


REFUSING = {
    "data": lambda path: read_arrays(str(path)),
    "training": lambda path: Images(path, 8, class_cond=True)[0],
    "samples": of_images,
    "base samples": lambda path: base_samples.open_base(str(path), 8, 3, 3),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reader", REFUSING)
def test_a_damaged_array_is_refused_in_a_sentence(tmp_path, reader, damage):
    path = tmp_path / "x.npz"
    data = members(path)
    REFUSING[reader](path)  # which reads it
    path.write_bytes(DAMAGES[damage](data))
    with pytest.raises((UserError, OSError)) as error:
        REFUSING[reader](path)
    assert "x.npz" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_row_or_part_is_made_again(tmp_path, damage):
    path = tmp_path / "key.npz"
    row = rows.Row("a", "10 steps", 10, [1.0, 2.0], 10.0, 0.1, {}, PIXELS)
    rows.save(str(tmp_path), "key", row)
    assert rows.load(str(tmp_path), "key") is not None and sums._load(str(path)) is not None
    for data in (path.read_bytes(), members(path)):
        path.write_bytes(DAMAGES[damage](data))
        assert rows.load(str(tmp_path), "key") is None and sums._load(str(path)) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_features_are_computed_again(tmp_path, damage):
    calls = []

    def compute(x):
        calls.append(len(x))
        return (x.double().mean(dim=(1, 2)),)

    look = features._cached(compute, {"sha256": "0", "dtype": "x"}, tmp_path)
    found = look(torch.from_numpy(PIXELS))
    (path,) = tmp_path.glob("*.npz")
    assert torch.equal(look(torch.from_numpy(PIXELS))[0], found[0]) and calls == [6]
    path.write_bytes(DAMAGES[damage](members(tmp_path / "x.npz")))
    assert torch.equal(look(torch.from_numpy(PIXELS))[0], found[0]) and calls == [6, 6]


@pytest.mark.parametrize("damage", ARCHIVES)
def test_a_damaged_zip_of_images_is_refused_in_a_sentence(tmp_path, damage):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, pixels in enumerate(PIXELS):
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "PNG")
            archive.writestr(f"{number}.png", data.getvalue())
    readers = (lambda path: Images(path, 8)[0], of_images)
    for read in readers:
        read(path)
    other = tmp_path / "y.zip"  # as archives are kept open by name
    other.write_bytes(ARCHIVES[damage](path.read_bytes()))
    for read in readers:
        with pytest.raises((UserError, OSError)) as error:
            read(other)
        assert "y.zip" in str(error.value) and "\n" not in str(error.value)
