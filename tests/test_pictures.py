"""Files as people have them: what is known by its content, what is lost in reading, and the flags for it."""

import io
import os
import struct
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from guided_diffusion.errors import UserError
from guided_diffusion.image_datasets import DataFlags, Images
from guided_diffusion.image_files import kind_of, open_picture

PIXELS = np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8)


def encoded(image, form="PNG", **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


PNG = encoded(Image.fromarray(PIXELS))


def a_folder(path):
    path.mkdir()
    (path / "a.png").write_bytes(PNG)


def a_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", PNG)


def an_npz(path):
    with open(path, "wb") as file:
        np.savez(file, PIXELS[None])


def an_npy(path):
    with open(path, "wb") as file:
        np.save(file, PIXELS[None])


@pytest.mark.parametrize("name", ["x", "x.zip", "TOP.ZIP", "set.npz", "x.npy", "picture.png", "x.tar", "ÿ und x.Npz"])
@pytest.mark.parametrize("make", [a_folder, a_zip, an_npz, an_npy])
def test_what_lies_there_decides_and_not_its_name(tmp_path, make, name):
    make(tmp_path / name)
    dataset = Images(tmp_path / name, 6, random_flip=False)
    assert len(dataset) == 1
    pixels = np.round((dataset[0][0].numpy() + 1) * 127.5).astype(np.uint8)
    assert np.array_equal(pixels, PIXELS[:, 1:7].transpose(2, 0, 1))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("picture.png", PNG, "a single picture"),
        ("notes.txt", b"text", "none of these"),
        ("empty", b"", "none of these"),
        ("x.zip", b"text", "not a readable .zip"),
        ("x.npz", b"PK\3\4 cut", "cannot be read as an array"),
        ("x.npy", b"\x93NUMPY cut", "cannot be read as an array"),
    ],
)
def test_what_is_no_data_is_called_what_it_is(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        Images(tmp_path / name, 6)
    assert name in str(caught.value) and "is not there" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no regular file"):
        kind_of(str(tmp_path / "pipe"))


# ---- what is lost, and the flags that keep it ----


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(PIXELS), exif=exif)


def transparent(alpha=0):
    rgba = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    rgba[:3, :, 3] = alpha
    return encoded(Image.fromarray(rgba))


def deep(bits, channels=1):
    """A PNG of 16 bits a channel, white in so many of them."""
    return cv2.imencode(".png", np.full((6, 8, channels), 2**bits - 1, np.uint16))[1].tobytes()


def oddly_tagged():
    """A JPEG with an EXIF tag whose value Pillow reads and cannot write."""
    tag = struct.pack("<HHIi", 0x011A, 9, 1, -1)  # a resolution, by its type a signed number
    exif = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 1) + tag + struct.pack("<I", 0)
    return encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)


def animated(form):
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50)


TRAITS = {
    "turned": ("EXIF", [turned(n) for n in range(2, 9)], [turned(1), PNG]),
    "transparent": ("--background", [transparent(0), transparent(254)], [transparent(255), PNG]),
    "animated": ("animated", [animated("GIF"), animated("WEBP"), animated("PNG")], [PNG]),
    "deep": ("16 bits", [deep(16), deep(16, 3), deep(16, 4)], [PNG]),
    "dark": ("dark", [deep(12), deep(10), deep(12, 3), deep(10, 4)], [deep(16), deep(16, 3), deep(14, 3)]),
    "tiny": ("enlarged", [encoded(Image.fromarray(PIXELS[:5])), encoded(Image.fromarray(PIXELS[:, :5]))], [PNG]),
}


@pytest.mark.parametrize("trait", TRAITS)
def test_each_trait_is_one_line_with_its_count(tmp_path, trait):
    word, having, others = TRAITS[trait]
    for n, content in enumerate([*having, *others]):
        (tmp_path / f"{n}.png").write_bytes(content)
    said = [remark for remark in Images(tmp_path, 6).remarks() if word in remark]
    assert len(said) == 1 and said[0].startswith(f"{len(having)} of {len(having) + len(others)} images ")
    for n in range(len(having)):
        (tmp_path / f"{n}.png").unlink()
    assert not [remark for remark in Images(tmp_path, 6).remarks() if word in remark]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright_where_asked(tmp_path, orientation):
    (tmp_path / "a.png").write_bytes(turned(orientation))
    turns = {2: "fliplr", 3: "rot180", 4: "flipud", 5: "transpose", 6: "cw", 7: "transverse", 8: "ccw"}
    moved = {
        "fliplr": np.fliplr,
        "flipud": np.flipud,
        "rot180": lambda x: np.rot90(x, 2),
        "cw": lambda x: np.rot90(x, -1),
        "ccw": np.rot90,
        "transpose": lambda x: x.transpose(1, 0, 2),
        "transverse": lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    }
    upright = moved[turns[orientation]](PIXELS) if orientation in turns else PIXELS
    path = str(tmp_path / "a.png")
    assert np.array_equal(np.asarray(open_picture(path, exif=True)[0]), upright)
    assert np.array_equal(np.asarray(open_picture(path)[0]), PIXELS)
    flags = DataFlags(data_dir=str(tmp_path), exif=True)
    assert not [remark for remark in flags.dataset(6, False, None).remarks() if "EXIF" in remark]


@pytest.mark.parametrize("background, colour", [("white", (255, 255, 255)), ("#204060", (32, 64, 96))])
@pytest.mark.parametrize("alpha", [0, 100])
def test_a_background_shows_through(tmp_path, background, colour, alpha):
    (tmp_path / "a.png").write_bytes(transparent(alpha))
    found = np.asarray(open_picture(str(tmp_path / "a.png"), background=background)[0]).astype(float)
    expected = PIXELS.astype(float)
    expected[:3] = (alpha * expected[:3] + (255 - alpha) * np.array(colour)) / 255
    assert np.abs(found - expected).max() <= 1
    kept = np.asarray(open_picture(str(tmp_path / "a.png"), 4, background=background)[0])
    assert np.array_equal(kept[..., :3], PIXELS) and kept[0, 0, 3] == alpha


def test_a_palette_with_a_transparent_colour_has_a_background_too(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
    picture.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    picture.save(tmp_path / "a.png", transparency=0)
    found = np.asarray(open_picture(str(tmp_path / "a.png"), background="blue")[0])
    assert found[0, 0].tolist() == [0, 0, 255] and found[0, 1].tolist() == [0, 255, 0]


def test_odd_tags_are_no_reason_to_stop(tmp_path):
    (tmp_path / "a.jpg").write_bytes(oddly_tagged())
    path = str(tmp_path / "a.jpg")
    assert np.array_equal(np.asarray(open_picture(path, exif=True)[0]), np.asarray(open_picture(path)[0]))


@pytest.mark.parametrize("text", ["whit", "#12", "1,2", "#ffffff00", "rgba(1,2,3,4)", "rgb(999,0,0)"])
def test_a_background_that_is_no_colour_is_refused(text):
    with pytest.raises(UserError, match="--background"):
        DataFlags(background=text)


def test_many_files_are_looked_at_in_part(tmp_path, monkeypatch):
    from guided_diffusion import image_stream

    monkeypatch.setitem(image_stream.LOOKED_AT, "local", 5)
    for n in range(20):
        (tmp_path / f"{n:02d}.png").write_bytes(turned(3))
    (said,) = Images(tmp_path, 6).remarks()
    assert said.startswith("5 of 5 images looked at have an EXIF orientation")


def test_a_broken_file_spoils_no_remark(tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    (tmp_path / "b.png").write_bytes(turned(3))
    (said,) = Images(tmp_path, 6).remarks()
    assert said.startswith("1 of 2 images have an EXIF")
