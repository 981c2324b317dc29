"""The data-set commands, on small files in the format of each source, against pixels known or decoded apart."""

import contextlib
import hashlib
import importlib
import io
import itertools
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.image_stream import Images

ROOT = Path(__file__).parents[1]
SAVED = ROOT / "tests" / "data" / "huggingface"  # made by datasets 5.2.0: 7 and 3 PNGs of 8x12 in 3 classes
DRAWS = itertools.count()
sys.path.insert(0, str(ROOT / "datasets"))


def noise(*shape):
    return np.random.default_rng(next(DRAWS)).integers(256, size=shape, dtype=np.uint8)


def smooth(height, width):
    """A picture that survives JPEG."""
    return cv2.resize(noise(4, 5, 3), (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(pixels, kind, **told):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **told)
    return data.getvalue()


def decoded(data):
    """RGB of a file by OpenCV."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def halved(pixels):
    """Means of 2x2, as an 8-bit box filter takes them: in rows, then in columns, halves rounded up."""
    wide = pixels.astype(int)
    rows = (wide[:, ::2] + wide[:, 1::2] + 1) // 2
    return ((rows[::2] + rows[1::2] + 1) // 2).astype(np.uint8)


def middle(pixels, size):
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


# ---- sources: each makes its files in a folder; (script, flags, images, name of the class of each or None) ----


def python2_pickle(content):
    """{str: array, list of int or list of str} as Python 2's cPickle wrote the published batches, in protocol 2."""

    def text(value):
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    def array(value):
        kind = b"cnumpy\ndtype\n(U\x02u1" + number(0) + number(1) + b"tR("
        kind += number(3) + b"U\x01|NNN" + number(-1) + number(-1) + number(0) + b"tb"
        shape = b"(" + b"".join(map(number, value.shape)) + b"t"
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"tU\x01btR"
        return made + b"(" + number(1) + shape + kind + b"\x89" + text(value.tobytes()) + b"tb"

    def sequence(values):
        parts = (number(v) if isinstance(v, int) else text(v.encode()) for v in values)
        return b"](" + b"".join(parts) + b"e"

    items = ((k, array(v) if isinstance(v, np.ndarray) else sequence(v)) for k, v in content.items())
    return b"\x80\x02}(" + b"".join(text(k.encode()) + v for k, v in items) + b"u."


PICKLES = {"python2": python2_pickle} | {
    f"protocol{number}": lambda content, number=number: pickle.dumps(content, number) for number in (2, 3, 4, 5)
}
CIFAR = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar_batches(folder, dumps=python2_pickle):
    """The train images, and the labels."""
    parts = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images, labels = noise(4, 32, 32, 3), [int(n) for n in noise(4) % 10]
        data = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(4, 3072))
        save(folder / name, dumps({"data": data, "labels": labels, "filenames": ["a.png"] * 4}))
        parts.append((images, labels))
    images, labels = (np.concatenate(part) for part in zip(*parts[:5]))
    return images, [CIFAR[label] for label in labels]


def cifar10(folder, dumps=python2_pickle):
    where = folder / "cifar-10-batches-py"
    found = cifar_batches(where, dumps)
    return "cifar10", ["--data_dir", where], *found


def cifar10_archive(folder):
    found = cifar_batches(folder / "x")
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder / "x", "cifar-10-batches-py")
    return "cifar10", ["--data_dir", folder / "cifar-10-python.tar.gz"], *found


def cifar10_torchvision(folder):
    found = cifar_batches(folder / "cifar-10-batches-py")
    return "cifar10", ["--data_dir", folder, "--split", "train"], *found


def npz_batches(folder, size=16, savez=np.savez):
    images, labels = noise(30, size, size, 3), 1 + np.arange(30) * 30
    data = images.transpose(0, 3, 1, 2).reshape(30, -1)
    for i in range(10):
        part = slice(3 * i, 3 * i + 3)
        savez(folder / f"train_data_batch_{i + 1}.npz", data=data[part], labels=labels[part], mean=data.mean(0))
    return images, labels


def imagenet_downsampled(folder, savez=np.savez):
    images, labels = npz_batches(folder, savez=savez)
    flags = ["--data_dir", folder, "--image_size", 16]
    return "imagenet_downsampled", flags, images, [str(label - 1) for label in labels]


def imagenet_compressed(folder):
    return imagenet_downsampled(folder, np.savez_compressed)


def imagenet_mapped(folder):
    images, labels = npz_batches(folder)
    ids = [f"n{(7919 * n) % 10**8:08d}" for n in range(1, 1001)]
    (folder / "map.txt").write_text("".join(f"{name} {n} some_name\n" for n, name in enumerate(ids, 1)))
    flags = ["--data_dir", folder, "--image_size", 16, "--class_map", folder / "map.txt"]
    return "imagenet_downsampled", flags, images, [ids[label - 1] for label in labels]


def ilsvrc(folder, flat=False):
    expected, names = [], []
    for name, height, width in (("n01440764", 32, 40), ("n01443537", 44, 32), ("n02119789", 32, 32)):
        for i in range(2):
            data = encoded(smooth(height, width), "JPEG")
            save(folder / ("" if flat else name) / f"{name}_{i}.JPEG", data)
            expected.append(middle(halved(decoded(data)), 16))
            names.append(name)
    return "imagenet", ["--data_dir", folder, "--image_size", 16], np.stack(expected), names


def ilsvrc_flat(folder):
    return ilsvrc(folder, flat=True)


def celeba_files(folder):
    data = [encoded(smooth(218, 178), "JPEG") for _ in range(4)]
    for i, content in enumerate(data, 1):
        save(folder / "img_align_celeba" / f"{i:06d}.jpg", content)
    return [decoded(content) for content in data]


def celeba_fork(folder):
    expected = [cv2.resize(picture, (64, 64)) for picture in celeba_files(folder)]
    return "celeba", ["--data_dir", folder / "img_align_celeba", "--crop", "fork"], np.stack(expected), None


def celeba_zip(folder):
    *_, expected, _ = celeba_fork(folder)
    shutil.make_archive(folder / "faces", "zip", folder, "img_align_celeba")
    return "celeba", ["--data_dir", folder / "faces.zip", "--crop", "fork"], expected, None


def celeba_split(folder):
    *_, expected, _ = celeba_fork(folder)
    (folder / "p.txt").write_text("000001.jpg 0\n000002.jpg 1\n000003.jpg 0\n000004.jpg 2\n")
    flags = ["--data_dir", folder / "img_align_celeba", "--crop", "fork", "--partition", folder / "p.txt"]
    return "celeba", [*flags, "--split", "train"], expected[[0, 2]], None


def ffhq(folder):
    images = noise(5, 128, 128, 3)
    for i, image in enumerate(images):
        save(folder / f"{i // 3 * 1000:05d}" / f"{i:05d}.png", encoded(image, "PNG"))
    return "ffhq", ["--data_dir", folder], images, None


def ffhq_large(folder):
    images = noise(2, 1024, 1024, 3)
    for i, image in enumerate(images):
        save(folder / f"{i:05d}.png", encoded(image, "PNG", compress_level=1))
    expected = [halved(halved(image)) for image in images]
    return "ffhq", ["--data_dir", folder, "--image_size", 256], np.stack(expected), None


def celeba_hq(folder):
    data = [encoded(smooth(256, 256), "JPEG") for _ in range(3)]
    for i, content in enumerate(data):
        save(folder / f"{i:05d}.jpg", content)
    return "celeba_hq", ["--data_dir", folder], np.stack([decoded(content) for content in data]), None


def celeba_hq_split(folder):
    *_, expected, _ = celeba_hq(folder / "train")
    celeba_hq(folder / "val")
    return "celeba_hq", ["--data_dir", folder, "--split", "train"], expected, None


def database(folder, contents):
    env = lmdb.open(str(folder), map_size=2**27)
    with env.begin(write=True) as transaction:
        for i, content in enumerate(contents):
            transaction.put(f"{i:040x}".encode(), content)
    env.close()


def lsun_webp(folder):
    pictures = [smooth(32, 48), smooth(40, 32), smooth(32, 32)]
    database(folder, [encoded(picture, "WEBP", lossless=True) for picture in pictures])
    expected = [middle(halved(picture), 16) for picture in pictures]
    return "lsun", ["--data_dir", folder, "--image_size", 16], np.stack(expected), None


def lsun_jpeg(folder):
    data = [encoded(smooth(40, 32), "JPEG"), encoded(smooth(32, 64), "JPEG")]
    database(folder, data)
    expected = [middle(halved(decoded(content)), 16) for content in data]
    return "lsun", ["--data_dir", folder, "--image_size", 16, "--resize", "fork"], np.stack(expected), None


def lsun_adm(folder):
    pictures = [smooth(512, 600), smooth(560, 512)]
    database(folder, [encoded(picture, "WEBP", lossless=True) for picture in pictures])
    expected = [halved(halved(middle(halved(picture), 256))) for picture in pictures]
    return "lsun", ["--data_dir", folder, "--resize", "adm"], np.stack(expected), None


def huggingface(folder, split="train"):
    rng = np.random.default_rng(0)
    images = [rng.integers(256, size=(8, 12, 3), dtype=np.uint8) for _ in range(10)]
    part = images[:7] if split == "train" else images[7:]
    names = [["golden_retriever", "cat", "dog"][i % 3] for i in range(len(part))]
    flags = ["--data_dir", SAVED, "--split", split, "--image_size", 8]
    return "huggingface", flags, np.stack(part)[:, :, 2:10], names


def huggingface_test(folder):
    return huggingface(folder, "test")


def huggingface_without_splits(folder):
    _, _, images, names = huggingface(folder)
    return "huggingface", ["--data_dir", SAVED / "train", "--image_size", 8], images, names


SOURCES = [
    *(cifar10, cifar10_archive, cifar10_torchvision, imagenet_downsampled, imagenet_compressed, imagenet_mapped),
    *(ilsvrc, ilsvrc_flat, celeba_fork, celeba_zip, celeba_split, ffhq, ffhq_large, celeba_hq, celeba_hq_split),
    *(lsun_webp, lsun_jpeg, lsun_adm, huggingface, huggingface_test, huggingface_without_splits),
]


def run(script, *flags):
    """What a command writes to the terminal; a refusal is a SystemExit."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        importlib.import_module(script).main([str(flag) for flag in flags])
    return said.getvalue()


def order_of(names):
    return sorted(set(names), key=int if all(name.isdigit() for name in names) else None)


def written(target, form):
    """(images, name of the class of each or None), read without the writer's help."""
    if form == "npy":
        return np.load(f"{target}.npy"), None
    if form == "npz":
        with np.load(f"{target}.npz", allow_pickle=False) as npz:
            return npz["arr_0"], [npz["classes"][i] for i in npz["arr_1"]] if "arr_1" in npz.files else None
    names = sorted(os.listdir(target), key=lambda name: name.split("_")[-1])
    images = np.stack([cv2.cvtColor(cv2.imread(str(target / name)), cv2.COLOR_BGR2RGB) for name in names])
    return images, [name.split("_")[0] for name in names] if "_" in names[0] else None


@pytest.mark.parametrize("form", ["npz", "npy", "png"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_a_source_becomes_its_pixels_and_classes(tmp_path, source, form):
    (tmp_path / "in").mkdir()
    script, flags, images, names = source(tmp_path / "in")
    target = tmp_path / "made" / "out"
    said = run(script, *flags, "--out_dir", target, "--format", form).splitlines()
    found, classes = written(target, form)
    assert np.array_equal(found, images)
    if names is not None and form != "npy":
        assert classes == [name.replace("_", "-") if form == "png" else name for name in names]
    assert f"wrote {len(images):,} images of {images.shape[1]}x{images.shape[2]}" in said[0]
    with Image.open(f"{target}_preview.png") as preview:
        assert preview.mode == "RGB"
    content = images.tobytes()
    if names is not None:
        known = json.loads(Path(f"{target}.json").read_text())["classes"]
        content += np.array([known.index(name) for name in names], np.int64).tobytes()
        assert known == order_of(known)
    assert said[2].split()[:2] == ["sha256", hashlib.sha256(content).hexdigest()]


@pytest.mark.parametrize("form", ["npz", "png"])
@pytest.mark.parametrize("source", [cifar10, imagenet_mapped, ilsvrc, huggingface], ids=lambda source: source.__name__)
def test_training_reads_what_was_written(tmp_path, source, form):
    (tmp_path / "in").mkdir()
    script, flags, images, names = source(tmp_path / "in")
    run(script, *flags, "--out_dir", tmp_path / "out", "--format", form)
    data = Images(
        tmp_path / ("out.npz" if form == "npz" else "out"), images.shape[1], class_cond=True, random_flip=False
    )
    named = [name.replace("_", "-") if form == "png" else name for name in names]
    places = (
        range(len(images)) if form == "npz" else sorted(range(len(images)), key=lambda i: f"{named[i]}_{i:05d}.png")
    )
    for place, original in enumerate(places):
        image, told = data[place]
        assert torch.equal(((image + 1) * 127.5).round().byte().permute(1, 2, 0), torch.from_numpy(images[original]))
        assert data.class_names[told["y"]] == named[original]
    if form == "npz":
        assert isinstance(data.images, np.memmap)


@pytest.mark.parametrize("dumps", PICKLES.values(), ids=PICKLES)
def test_pickles_of_every_age_are_read(tmp_path, dumps):
    script, flags, images, names = cifar10(tmp_path / "in", dumps)
    run(script, *flags, "--out_dir", tmp_path / "out")
    found, classes = written(tmp_path / "out", "npz")
    assert np.array_equal(found, images) and classes == names


def test_the_ddim_crop_is_a_triangle_filter_around_the_face(tmp_path):
    """Weights 1, 3, 3, 1 of four pixels in each direction, but for 0.5 of rounding twice; at the edge of three."""
    pictures = celeba_files(tmp_path)
    run("celeba", "--data_dir", tmp_path / "img_align_celeba", "--crop", "ddim", "--out_dir", tmp_path / "out")
    weights = np.zeros((64, 128))
    for i in range(64):
        for place, weight in zip(range(2 * i - 1, 2 * i + 3), (1, 3, 3, 1)):
            if 0 <= place < 128:
                weights[i, place] = weight
    weights /= weights.sum(1, keepdims=True)
    for found, picture in zip(np.load(tmp_path / "out.npz")["arr_0"], pictures):
        face = picture[121 - 64 : 121 + 64, 89 - 64 : 89 + 64].astype(float)
        expected = np.einsum("ij,jkc,lk->ilc", weights, face, weights)
        assert np.abs(found - expected).max() <= 1.1


def test_the_published_lsun_command_writes_the_published_files(tmp_path):
    picture = smooth(512, 600)
    database(tmp_path / "tower", [encoded(picture, "WEBP", lossless=True)] * 2)
    run("lsun_bedroom", tmp_path / "tower", tmp_path / "out", "--prefix", "tower")
    assert sorted(os.listdir(tmp_path / "out")) == ["tower_0000000.png", "tower_0000001.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "tower_0000001.png")), middle(halved(picture), 256))
    run("lsun_bedroom", "--image-size", 128, tmp_path / "tower", tmp_path / "small")
    with Image.open(tmp_path / "small" / "bedroom_0000000.png") as small:
        assert small.size == (128, 128)


# ---- stopped and run again ----


def bytes_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("form", ["npz", "npy", "png"])
@pytest.mark.parametrize("after", [0, 1, 3, 19])
@pytest.mark.parametrize("source", [cifar10_archive, imagenet_compressed], ids=lambda source: source.__name__)
def test_stopped_and_run_again_gives_the_same_bytes(tmp_path, monkeypatch, source, after, form):
    import sources

    (tmp_path / "in").mkdir()
    script, flags, *_ = source(tmp_path / "in")
    flags = [*flags, "--format", form, "--out_dir"]
    said = run(script, *flags, tmp_path / "a" / "out")
    kind = sources.FORMATS[form]

    def append(self, place, image):
        if place == after:
            raise Stopped
        return original(self, place, image)

    original = kind.append
    monkeypatch.setattr(kind, "append", append)
    with pytest.raises(Stopped):
        run(script, *flags, tmp_path / "b" / "out")
    monkeypatch.setattr(kind, "append", original)
    unfinished = bytes_of(tmp_path / "b")
    assert "out.npz" not in unfinished and "out.npy" not in unfinished
    assert run(script, *flags, tmp_path / "b" / "out") == said.replace(f"{tmp_path}/a", f"{tmp_path}/b")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


MOMENTS = ["square", "append", "finish", "save_grid", "_record", "stream_npz", "remove", "replace"]


def killed(moment, form, when, calls, flags):
    """Run ffhq.py in a process of its own that kills itself before or after so many calls of a step."""
    import ffhq
    import pictures
    import sources

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 says that threads are lost: the child begins its own
        child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] in (0, signal.SIGKILL)
        return
    kind = sources.FORMATS[form]
    owners = dict(square=pictures, append=kind, finish=kind, save_grid=sources, _record=sources)
    owners |= dict(stream_npz=sources.files, remove=os, replace=os)
    original, left = getattr(owners[moment], moment), [calls]

    def killing(*given, **told):
        left[0] -= 1
        made = original(*given, **told) if left[0] or when == "after" else None
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    setattr(owners[moment], moment, killing)
    try:
        ffhq.main(flags)
    finally:
        os._exit(0)


@pytest.mark.parametrize("form", ["npz", "npy", "png"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_anywhere_and_run_again_gives_the_same_bytes(tmp_path, moment, form):
    ffhq(tmp_path / "in")
    flags = ["--data_dir", str(tmp_path / "in"), "--num_workers", "1", "--format", form, "--out_dir"]
    run("ffhq", *flags, tmp_path / "whole" / "out")
    for when, calls in (("before", 1), ("after", 1), ("after", 2)):
        target = tmp_path / f"{when}{calls}" / "out"
        killed(moment, form, when, calls, [*flags, str(target)])
        run("ffhq", *flags, target)
        assert bytes_of(target.parent) == bytes_of(tmp_path / "whole")


def test_a_finished_set_is_told_and_not_written_again(tmp_path):
    script, flags, *_ = cifar10(tmp_path / "in")
    said = run(script, *flags, "--out_dir", tmp_path / "out")
    stamp = os.stat(tmp_path / "out.npz").st_mtime_ns
    assert run(script, *flags, "--out_dir", tmp_path / "out") == said
    assert os.stat(tmp_path / "out.npz").st_mtime_ns == stamp


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Images are handed over one by one: with 64 images more, no more of them are alive at once."""
    import sources

    alive = []
    for count in (64, 128):
        living, most = set(), 0

        class Image(np.ndarray):
            def __del__(self, living=living):
                living.discard(id(self))

        def read(start, living=living, count=count, Image=Image):
            nonlocal most
            for i in range(start, count):
                image = np.full((4, 4, 3), i, np.uint8).view(Image)
                living.add(id(image))
                most = max(most, len(living))
                yield image

        parser = sources.source_parser("", "", out_dir=str(tmp_path / str(count)))
        args = parser.parse_args(["--data_dir", "x"])
        sources.convert(lambda _, read=read, count=count: sources.Source(count, read, (4, 4, 3)), args)
        alive.append(most)
    assert alive[0] == alive[1] <= 4


# ---- what is refused ----


def refused(capsys, script, *flags):
    """The sentence of a command that exits with 2."""
    with pytest.raises(SystemExit) as stopped:
        run(script, *flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in error
    return error.splitlines()[-1]


SCRIPTS = ["cifar10", "imagenet", "imagenet_downsampled", "celeba", "celeba_hq", "ffhq", "lsun", "huggingface"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_folder_that_is_not_there_is_named(tmp_path, capsys, script):
    more = ["--crop", "ddim"] if script == "celeba" else []
    said = refused(capsys, script, "--data_dir", tmp_path / "none", "--out_dir", tmp_path / "out", *more)
    assert str(tmp_path / "none") in said and "expected" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_empty_folder_is_refused(tmp_path, capsys, script):
    more = ["--crop", "ddim"] if script == "celeba" else []
    (tmp_path / "none").mkdir()
    said = refused(capsys, script, "--data_dir", tmp_path / "none", "--out_dir", tmp_path / "out", *more)
    assert str(tmp_path / "none") in said and [path.name for path in tmp_path.iterdir()] == ["none"]


def cut(path, part=0.6):
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


def first(folder, pattern):
    return sorted(folder.rglob(pattern))[-1]


TRUNCATED = [
    (cifar10, "data_batch_5"),
    (cifar10_archive, "*.tar.gz"),
    (imagenet_downsampled, "train_data_batch_9.npz"),
    (ilsvrc, "*.JPEG"),
    (celeba_fork, "*.jpg"),
    (celeba_zip, "faces.zip"),
    (ffhq, "*.png"),
    (celeba_hq, "*.jpg"),
    (lsun_adm, "data.mdb"),
]


@pytest.mark.parametrize("part", [0, 0.1, 0.6, 0.95])
@pytest.mark.parametrize(("source", "pattern"), TRUNCATED, ids=lambda part: getattr(part, "__name__", part))
def test_a_truncated_file_is_named(tmp_path, capsys, source, pattern, part):
    (tmp_path / "in").mkdir()
    script, flags, *_ = source(tmp_path / "in")
    damaged = first(tmp_path / "in", pattern)
    cut(damaged, part)
    said = refused(capsys, script, *flags, "--out_dir", tmp_path / "out")
    assert damaged.name in said or str(damaged.parent) in said
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("part", [0, 0.1, 0.6, 0.95])
def test_a_truncated_arrow_file_is_named(tmp_path, capsys, part):
    shutil.copytree(SAVED, tmp_path / "in")
    damaged = first(tmp_path / "in" / "train", "*.arrow")
    cut(damaged, part)
    said = refused(
        capsys, "huggingface", "--data_dir", tmp_path / "in", "--split", "train", "--out_dir", tmp_path / "out"
    )
    assert damaged.name in said


def test_a_damaged_picture_in_a_database_is_named_and_can_be_mended(tmp_path, capsys):
    good = encoded(smooth(32, 32), "WEBP", lossless=True)
    database(tmp_path / "in", [good, good[:40], good])
    flags = ["--data_dir", tmp_path / "in", "--image_size", 16, "--out_dir", tmp_path / "out"]
    assert f"{1:040x}" in refused(capsys, "lsun", *flags)
    database(tmp_path / "in", [good] * 3)
    run("lsun", *flags)
    assert len(np.load(tmp_path / "out.npz")["arr_0"]) == 3


class Call:
    """Pickled as a call of a function with arguments."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


CALLS = {
    "os.system": Call(os.system, "touch hacked"),
    "eval": Call(eval, "open('hacked', 'w')"),
    "open": Call(open, "hacked", "w"),
    "numpy.fromfile": Call(np.fromfile, "hacked"),
    "getattr": Call(getattr, "x", "upper"),
    "subprocess": Call(subprocess.Popen, ["touch", "hacked"]),
    "set": {1, 2},
    "complex": 1j,
    "objects": np.array([object], dtype=object),
    "floats": np.zeros((4, 3072)),
    "path": Path("hacked"),
}


@pytest.mark.parametrize("place", ["data", "labels", "filenames"])
@pytest.mark.parametrize("call", CALLS)
def test_a_pickle_lets_in_nothing_else(tmp_path, capsys, monkeypatch, call, place):
    monkeypatch.chdir(tmp_path)
    script, flags, *_ = cifar10(tmp_path / "in")
    good = {"data": noise(4, 3072), "labels": [0, 1, 2, 3], "filenames": ["a"] * 4}
    save(tmp_path / "in" / "cifar-10-batches-py" / "data_batch_2", pickle.dumps(good | {place: CALLS[call]}, 2))
    if (call, place) == ("floats", "filenames"):
        run(script, *flags, "--out_dir", "out")
        return
    assert "data_batch_2" in refused(capsys, script, *flags, "--out_dir", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["in"]


def pickled(folder, **content):
    cifar10(folder)
    save(folder / "cifar-10-batches-py" / "data_batch_3", pickle.dumps(content, 2))
    return "cifar10", ["--data_dir", folder]


def archived(folder, **content):
    npz_batches(folder)
    np.savez(folder / "train_data_batch_4.npz", **content)
    return "imagenet_downsampled", ["--data_dir", folder, "--image_size", 16]


def saved_by_others(folder, name, content):
    """The saved set of Hugging Face with another JSON file."""
    shutil.copytree(SAVED, folder / "saved")
    (folder / "saved" / name).write_text(content)
    return "huggingface", ["--data_dir", folder / "saved", "--split", "train", "--image_size", 8]


def piped(folder, script, name="", more=()):
    """A pipe that nobody writes to in place of a file."""
    if name:
        npz_batches(folder)
        (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / (name or "pipe"))
    return script, ["--data_dir", folder if name else folder / "pipe", *more]


def pictures_of(folder, script, size, name="a.png", more=()):
    save(folder / name, encoded(noise(*size, 3), "PNG"))
    return script, ["--data_dir", folder, *more]


ROWS = noise(2, 3 * 16 * 16)
WRONG = {
    "cifar of another size": (
        lambda f: pickled(f, data=noise(2, 3000), labels=[1, 2]),
        "data_batch_3 has data of [2, 3000]",
    ),
    "cifar with a class 10": (lambda f: pickled(f, data=noise(2, 3072), labels=[1, 10]), "0..9"),
    "cifar with a label too few": (lambda f: pickled(f, data=noise(2, 3072), labels=[1]), "no 2 numbers"),
    "cifar without labels": (lambda f: pickled(f, data=noise(2, 3072)), "labels"),
    "npz of another size": (lambda f: (npz_batches(f), ("imagenet_downsampled", ["--data_dir", f]))[1], "16 pixels"),
    "npz without labels": (lambda f: archived(f, data=ROWS), "train_data_batch_4.npz"),
    "npz with the class 0": (lambda f: archived(f, data=ROWS, labels=np.array([0, 5])), "expected 1 to 1000"),
    "npz with the class 1001": (lambda f: archived(f, data=ROWS, labels=np.array([1001, 5])), "expected 1 to 1000"),
    "npz of floats": (lambda f: archived(f, data=ROWS / 255, labels=np.array([1, 5])), "float64"),
    "npz of objects": (lambda f: archived(f, data=ROWS, labels=np.array([1, None])), "labels"),
    "npz of no rows": (
        lambda f: archived(f, data=np.uint8(3), labels=np.array([1])),
        "train_data_batch_4.npz holds uint8",
    ),
    "a set of others": (lambda f: saved_by_others(f, "train/dataset_info.json", "{}"), "of others; expected a folder"),
    "files that are none": (lambda f: saved_by_others(f, "train/state.json", '{"_data_files": null}'), "state.json"),
    "a list of others": (lambda f: saved_by_others(f, "train/state.json", "[1]"), "of others; expected a folder"),
    "splits that are none": (lambda f: saved_by_others(f, "dataset_dict.json", '{"splits": 3}'), "dataset_dict.json"),
    "a pipe as an archive": (lambda f: piped(f, "cifar10"), "it is a pipe"),
    "a pipe as a batch": (
        lambda f: piped(f, "imagenet_downsampled", "val_data.npz", ["--image_size", 16, "--split", "val"]),
        "it is a pipe",
    ),
    "a list in Latin-1": (
        lambda f: (
            (f / "list.txt").write_bytes(b"\xe9.jpg 0\n"),
            pictures_of(
                f, "celeba", (218, 178), more=["--crop", "fork", "--split", "test", "--partition", f / "list.txt"]
            ),
        )[1],
        "list.txt is no text in UTF-8",
    ),
    "npz with labels too few": (lambda f: archived(f, data=ROWS, labels=np.array([1])), "integers [2]"),
    "a class of ImageNet that is none": (lambda f: pictures_of(f, "imagenet", (64, 64), "cat/a.png"), "cat"),
    "a CelebA of another size": (lambda f: pictures_of(f, "celeba", (178, 178), more=["--crop", "fork"]), "178x218"),
    "a split without a list": (
        lambda f: pictures_of(f, "celeba", (218, 178), more=["--crop", "fork", "--split", "test"]),
        "--partition",
    ),
    "FFHQ that is too small": (lambda f: pictures_of(f, "ffhq", (127, 127)), "127x127, expected 128x128"),
    "FFHQ that is no square": (lambda f: pictures_of(f, "ffhq", (128, 130)), "130x128, expected 128x128"),
    "FFHQ of a size that is not published": (
        lambda f: pictures_of(f, "ffhq", (64, 64), more=["--image_size", 64]),
        "--image_size",
    ),
    "a split without a folder": (
        lambda f: pictures_of(f, "celeba_hq", (256, 256), more=["--split", "valid"]),
        "--split valid",
    ),
    "a split that is not there": (lambda f: ("huggingface", ["--data_dir", SAVED, "--split", "val"]), "train, test"),
    "no split where there are some": (lambda f: ("huggingface", ["--data_dir", SAVED]), "--split is not given"),
    "a split where there are none": (
        lambda f: ("huggingface", ["--data_dir", SAVED / "train", "--split", "train"]),
        "has no splits",
    ),
    "a column that is not there": (
        lambda f: ("huggingface", ["--data_dir", SAVED / "train", "--image_column", "img"]),
        "--image_column is img",
    ),
    "a file in place of a database": (lambda f: pictures_of(f, "lsun", (64, 64), "data.mdb"), "no lmdb database"),
    "a size of none": (lambda f: ("huggingface", ["--data_dir", SAVED / "train", "--image_size", 0]), "--image_size"),
    "a prefix with a line": (lambda f: ("lsun_bedroom", ["--prefix", "a_b", f, f / "out"]), "--prefix is 'a_b'"),
    "no workers at all": (lambda f: pictures_of(f, "ffhq", (128, 128), more=["--num_workers", -1]), "--num_workers"),
}


@pytest.mark.parametrize("make, words", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_sentence(tmp_path, capsys, make, words):
    (tmp_path / "in").mkdir()
    script, flags = make(tmp_path / "in")
    out = [] if script == "lsun_bedroom" else ["--out_dir", tmp_path / "out"]
    assert words in refused(capsys, script, *flags, *out)
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("form", ["npz", "npy", "png"])
def test_a_disk_that_is_too_small_is_refused_before(tmp_path, capsys, monkeypatch, form):
    script, flags, *_ = cifar10(tmp_path / "in")
    need = 20 * 3072 * (2 if form == "npz" else 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need - 1))
    flags = [*flags, "--format", form, "--out_dir", tmp_path / "out"]
    assert "GB free" in refused(capsys, script, *flags)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".lock")] == ["in"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need))
    run(script, *flags)


def test_other_flags_and_other_data_are_not_mixed(tmp_path, capsys):
    script, flags, *_ = cifar10(tmp_path / "in")
    flags = [*flags, "--out_dir", tmp_path / "out"]
    run(script, *flags)
    before = bytes_of(tmp_path)
    assert "--split train, not test" in refused(capsys, script, *flags, "--split", "test")
    assert "--format npz, not png" in refused(capsys, script, *flags, "--format", "png")
    assert bytes_of(tmp_path) == before
    (tmp_path / "out.json").unlink()
    assert "out.npz" in refused(capsys, script, *flags)
    ffhq(tmp_path / "faces")
    run("ffhq", "--data_dir", tmp_path / "faces", "--out_dir", tmp_path / "f")
    save(tmp_path / "faces" / "more.png", encoded(noise(128, 128, 3), "PNG"))
    said = refused(capsys, "ffhq", "--data_dir", tmp_path / "faces", "--out_dir", tmp_path / "f")
    assert "has changed" in said


@pytest.mark.parametrize("source, library", [(lsun_webp, "lmdb"), (huggingface, "pyarrow")], ids=["lmdb", "pyarrow"])
def test_a_library_that_is_missing_is_one_sentence(tmp_path, capsys, monkeypatch, source, library):
    script, flags, *_ = source(tmp_path / "in")
    monkeypatch.setitem(sys.modules, library, None)
    assert f"pip install {library}" in refused(capsys, script, *flags, "--out_dir", tmp_path / "out")


def test_no_library_is_imported_that_is_not_needed():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'datasets')!r}); import {', '.join(SCRIPTS)}; print(*sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
    assert not {"lmdb", "pyarrow", "datasets"} & set(loaded.split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_a_sentence_for_every_flag(script, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(script).main(["--help"])
    options = capsys.readouterr().out.split("options:")[1]
    assert options.count("\n  --") >= 4 and "out_dir" in options
