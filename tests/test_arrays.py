"""Images in one array on disk: what is mapped, what is read, what is refused; and datasets/pack.py, which writes it."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import script_runs
import torch
from PIL import Image

from guided_diffusion.errors import UserError
from guided_diffusion.image_arrays import checksums, read_arrays, read_npz
from guided_diffusion.image_datasets import Images, batches, center_crop_arr

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PIXELS = np.random.default_rng(0).integers(256, size=(7, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(7) % 3


def mapped(array):
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


WRITERS = {
    "savez": (lambda path: np.savez(path, PIXELS, LABELS), True),
    "savez with names": (lambda path: np.savez(path, PIXELS, LABELS, classes=["a", "b", "c"]), True),
    "Fortran order": (lambda path: np.savez(path, np.asfortranarray(PIXELS), LABELS), True),
    "compressed": (lambda path: np.savez_compressed(path, PIXELS, LABELS), False),
    "labels first": (lambda path: np.savez(path, arr_1=LABELS, arr_0=PIXELS), True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_arrays_are_read_as_numpy_reads_them_and_mapped_where_they_can_be(tmp_path, name):
    path = str(tmp_path / "x.npz")
    write, is_mapped = WRITERS[name]
    write(path)
    images, labels, names = read_arrays(path)
    assert np.array_equal(images, PIXELS) and np.array_equal(labels, LABELS) and mapped(images) == is_mapped
    assert names == (["a", "b", "c"] if "names" in name else None)
    assert np.array_equal(read_npz(path)[0], np.load(path)["arr_0"])
    images[0] = 0  # as torch expects of an array; the file stays
    assert np.array_equal(np.load(path)["arr_0"], PIXELS)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [False, True])
def test_a_mapped_array_gives_the_batches_of_the_same_files(tmp_path, flip, crop):
    (tmp_path / "png").mkdir()
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS)):
        Image.fromarray(pixels).save(tmp_path / "png" / f"{label}_{i}.png")
    order = np.argsort(LABELS, kind="stable")  # that of the files
    np.savez(tmp_path / "x.npz", PIXELS[order], LABELS[order])
    np.savez_compressed(tmp_path / "packed.npz", PIXELS[order], LABELS[order])
    told = dict(class_cond=True, random_flip=flip, random_crop=crop, seed=3)
    streams = [batches(Images(tmp_path / name, 8, **told), 5) for name in ("png", "x.npz", "packed.npz")]
    for _ in range(6):
        (images, extra), *others = (next(stream) for stream in streams)
        for other, labels in others:
            assert torch.equal(images, other) and torch.equal(extra["y"], labels["y"])


def test_a_draw_is_mirrored_by_its_own_generator(tmp_path):
    """As it was before arrays had a way of their own: by default_rng([seed, epoch, 1 + index])."""
    np.savez(tmp_path / "x.npz", PIXELS)
    dataset = Images(tmp_path / "x.npz", 8, seed=5)
    for index in range(7):
        for epoch in range(4):
            mirrored = np.random.default_rng([5, epoch, 1 + index]).random() < 0.5
            expected = PIXELS[index][:, ::-1] if mirrored else PIXELS[index]
            found = dataset[index, epoch][0].numpy()
            assert np.array_equal(found, expected.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1)


def test_an_array_of_another_size_is_scaled(tmp_path):
    np.savez(tmp_path / "x.npz", PIXELS)
    image, _ = Images(tmp_path / "x.npz", 4, random_flip=False)[2]
    expected = center_crop_arr(Image.fromarray(PIXELS[2]), 4)
    assert np.array_equal(np.round((image.numpy() + 1) * 127.5), expected.transpose(2, 0, 1))


def test_an_npy_is_an_array_without_classes(tmp_path):
    np.save(tmp_path / "x.npy", PIXELS)
    dataset = Images(tmp_path / "x.npy", 8, random_flip=False)
    assert len(dataset) == 7 and mapped(dataset.images)
    with pytest.raises(UserError, match="arr_1"):
        Images(tmp_path / "x.npy", 8, class_cond=True)


@pytest.mark.parametrize("place", ["content", "header", "directory"])
def test_a_flipped_bit_of_a_stored_array_is_found(tmp_path, place):
    path = tmp_path / "x.npz"
    np.savez(path, PIXELS, LABELS)
    data = bytearray(path.read_bytes())
    at = {"content": data.index(PIXELS[3].tobytes()) + 50, "header": data.index(b"NUMPY"), "directory": len(data) - 20}
    data[at[place]] ^= 64
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        Images(path, 8, class_cond=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("claimed", [(10**12, 8, 8, 3), (8, 8, 8, 3), (2**40, 2**40, 8, 3)])
def test_an_array_that_claims_more_than_is_there_is_refused(tmp_path, claimed):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": claimed})
        member.write(PIXELS.tobytes())
    with pytest.raises(UserError, match="x.npz"):
        Images(path, 8)


def test_checksums_tell_arrays_apart(tmp_path):
    sums = set()
    for name, images, labels in (("a", PIXELS, LABELS), ("b", PIXELS, LABELS[::-1]), ("c", PIXELS[::-1], LABELS)):
        np.savez(tmp_path / f"{name}.npz", images, labels)
        sums.add(checksums(tmp_path / f"{name}.npz"))
    np.savez(tmp_path / "again.npz", PIXELS, LABELS)
    np.savez(tmp_path / "turned.npz", arr_1=LABELS, arr_0=PIXELS)
    assert len(sums) == 3 and {checksums(tmp_path / f"{name}.npz") for name in ("again", "turned")} <= sums


# ---- datasets/pack.py ----


def pack(*flags):
    return script_runs.run("pack", *flags, folder=Path(ROOT, "datasets"))


def test_packing_crops_as_training_does_and_keeps_names(tmp_path):
    rng = np.random.default_rng(1)
    for i, name in enumerate(["cat/a.png", "cat/b.jpg", "dog/c.png"]):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(20 + i, 31, 3), dtype=np.uint8)).save(tmp_path / "in" / name)
    said = pack("--data_dir", tmp_path / "in", "--out_dir", tmp_path / "made" / "out", "--image_size", 8, "--labels")
    assert "wrote 3 images of 8x8" in said
    told = dict(class_cond=True, random_flip=False)
    plain, packed = Images(tmp_path / "in", 8, **told), Images(tmp_path / "made" / "out.npz", 8, **told)
    assert packed.class_names == plain.class_names == ["cat", "dog"] and mapped(packed.images)
    for i in range(3):
        assert torch.equal(packed[i][0], plain[i][0]) and packed[i][1] == plain[i][1]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_packing_has_the_channels_asked_for(tmp_path, channels):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    flags = ("--data_dir", tmp_path, "--out_dir", tmp_path / "out", "--image_size", 8)
    pack(*flags, "--image_channels", channels)
    assert np.load(tmp_path / "out.npz")["arr_0"].shape == (1, 8, 8, channels)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--data_dir", "/nowhere"], ["--data_dir /nowhere"]),
        (["--image_size", 0], ["--image_size is 0"]),
        (["--labels"], ["a.png names no class"]),
        (["--class_source", "csv", "--labels"], ["--class_source is csv"]),
    ],
)
def test_what_cannot_be_packed_is_one_sentence(tmp_path, flags, words, capsys):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    given = flags if "--data_dir" in flags else ["--data_dir", tmp_path, *flags]
    with pytest.raises(SystemExit) as ended:
        pack("--out_dir", tmp_path / "out", *given)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said and not (tmp_path / "out.npz").exists()
    assert all(word in said.splitlines()[-1] for word in words), said
