"""Chunks of images on disk: whole or not there, and byte for byte what numpy would have written of all at once."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from guided_diffusion import files, logger
from guided_diffusion.errors import UserError
from guided_diffusion.images import grid
from guided_diffusion.jobs import sample_store
from guided_diffusion.jobs.sample_store import SampleStore

SETTINGS = {
    "decisive": {"seed": 0, "eps_scaler": "1.0"},
    "files": {"model_path": {"path": "ema.pt", "sha256": "00"}},
    "threads": 1,
    "rounding": {"device": "cpu", "torch": "2.0"},
}


def images(count, labelled=True):
    rng = np.random.default_rng(0)
    arrays = {"arr_0": rng.integers(256, size=(count, 4, 4, 3), dtype=np.uint8)}
    return {**arrays, "arr_1": rng.integers(10, size=count)} if labelled else arrays


def cut(arrays, size):
    """[(chunk, its arrays)]."""
    count = len(arrays["arr_0"])
    chunks = [range(i, min(i + size, count)) for i in range(0, count, size)]
    return [(c, {name: array[c.start : c.stop] for name, array in arrays.items()}) for c in chunks]


def stored(folder, arrays, size=7):
    store = SampleStore(str(folder), "samples")
    store.begin(SETTINGS, alone=True)
    parts = cut(arrays, size)
    for chunk, part in parts:
        store.save(chunk, part)
    return store, [chunk for chunk, _ in parts]


@pytest.mark.parametrize("count, size", [(103, 7), (5, 7), (128, 128), (120, 1)])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_npz_is_what_numpy_writes_of_all_images_at_once(tmp_path, count, size, labelled):
    arrays = images(count, labelled)
    store, chunks = stored(tmp_path, arrays, size)
    assert store.finished(count) is None
    path, picture = store.assemble(chunks)
    assert path == str(tmp_path / f"samples_{count}x4x4x3.npz") == store.finished(count)
    np.savez(tmp_path / "expected.npz", **arrays)
    assert (tmp_path / "expected.npz").read_bytes() == (tmp_path / f"samples_{count}x4x4x3.npz").read_bytes()
    with Image.open(picture) as shown:
        assert np.array_equal(np.asarray(shown)[::16, ::16], grid(arrays["arr_0"][:100]))
    left = {entry.name for entry in (tmp_path / "samples.chunks").iterdir()}
    assert left == {"settings.json", f"finished_{count}.json"}


def test_the_npz_has_the_name_asked_for(tmp_path):
    store, chunks = stored(tmp_path, images(9))
    assert store.assemble(chunks, "mine.npz") == (str(tmp_path / "mine.npz"), str(tmp_path / "mine.png"))


@pytest.mark.parametrize("change", [lambda data: data + b"more", lambda data: data[:-300] + b"!" + data[-299:]])
def test_a_changed_npz_is_not_finished(tmp_path, monkeypatch, change):
    store, chunks = stored(tmp_path, images(9))
    path, _ = store.assemble(chunks)
    said = []
    monkeypatch.setattr(logger, "warn", said.append)
    assert store.finished(9) == path and store.finished(8) is None and not said
    files.write_bytes(path, change(files.read_bytes(path)))
    assert store.finished(9) is None
    assert said == [f"{path} is not as it was assembled: its size or SHA-256 is another than its run recorded"]


def test_two_machines_with_the_same_process_id_may_assemble_at_once(tmp_path, monkeypatch):
    """The second begins when the first has written half of its npz, and is done before it."""
    monkeypatch.setattr(files.os, "getpid", lambda: 7)
    arrays = images(20)
    store, chunks = stored(tmp_path, arrays)
    whole, ended = SampleStore.whole, []

    def interrupted(self, chunk):
        if chunk == chunks[1] and not ended:
            ended.append(True)
            ended.append(SampleStore(str(tmp_path), "samples").assemble(chunks))
        return whole(self, chunk)

    monkeypatch.setattr(SampleStore, "whole", interrupted)
    with pytest.raises(FileNotFoundError):
        store.assemble(chunks)
    path = store.finished(20)
    assert path == ended[1][0] and not list(tmp_path.glob("*.tmp"))
    with np.load(path) as npz:
        assert all(np.array_equal(npz[name], arrays[name]) for name in arrays)


def test_a_flipped_byte_anywhere_is_noticed(tmp_path):
    store, (chunk,) = stored(tmp_path, images(3))
    (path,) = (tmp_path / "samples.chunks").glob("images_*")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        assert store.missing([chunk]) == [chunk]
    path.write_bytes(whole)
    assert store.missing([chunk]) == []


def test_a_truncated_chunk_is_missing_and_not_assembled(tmp_path):
    store, chunks = stored(tmp_path, images(20))
    path = tmp_path / "samples.chunks" / "images_00000007_00000013.chunk"
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        assert store.missing(chunks) == [range(7, 14)]
    assert store.absent(chunks) == []
    with pytest.raises(UserError, match=str(path)):
        store.assemble(chunks)
    assert store.absent(chunks) == [range(7, 14)] and not list(tmp_path.glob("*.npz*"))
    with pytest.raises(FileNotFoundError):
        store.assemble(chunks)


def test_the_chunks_of_a_larger_run_stay_until_it_is_finished(tmp_path):
    arrays = images(20)
    store, chunks = stored(tmp_path, arrays)
    few = [range(7), range(7, 9)]
    store.save(few[1], {name: array[7:9] for name, array in arrays.items()})
    path, _ = store.assemble(few)
    assert store.finished(9) == path and store.absent(chunks) == []
    store.assemble(chunks)
    assert store.absent(chunks + few) == chunks + few


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_ranks_share_the_reading(tmp_path, monkeypatch, size):
    store, chunks = stored(tmp_path, images(40))
    for chunk in (chunks[0], chunks[3]):
        files.remove(files.join(store.folder, sample_store._name(chunk)))
    parts, read = [], []
    monkeypatch.setattr(SampleStore, "_read", lambda self, chunk: read.append(chunk) or {})
    for rank in reversed(range(size)):
        ranks = SimpleNamespace(
            rank=lambda rank=rank: rank,
            world_size=lambda: size,
            gather_object=lambda mine: parts.append(mine) or parts,
            broadcast_object=lambda starts: starts,
        )
        monkeypatch.setattr(sample_store, "dist_util", ranks)
        missing = store.missing(chunks)
    assert missing == [chunks[0], chunks[3]]
    assert sorted(c.start for c in read) == [c.start for c in chunks if c not in missing]


def test_other_settings_are_refused_by_name_in_one_sentence(tmp_path):
    store, chunks = stored(tmp_path, images(9))
    assert store.begin({**SETTINGS, "threads": 9}, alone=True) == SETTINGS
    store.assemble(chunks)
    other = {**SETTINGS, "decisive": {"seed": 1, "eps_scaler": "1.0", "new": True}}
    with pytest.raises(UserError) as caught:
        store.begin(other, alone=True)
    for word in (str(tmp_path), "--seed is 1, there it is 0", "--new is True, there it is absent", "--out_dir"):
        assert word in str(caught.value)
    assert "eps_scaler" not in str(caught.value) and "\n" not in str(caught.value)
    assert json.loads((tmp_path / "samples.chunks" / "settings.json").read_text()) == SETTINGS


def test_a_flag_newer_than_the_folder_was_at_its_default_there(tmp_path):
    store, _ = stored(tmp_path, images(9))
    newer = {**SETTINGS, "decisive": {**SETTINGS["decisive"], "scale": 1.0}}
    assert store.begin(newer, alone=True, defaults={"scale": 1.0, "seed": 7, "unknown": 3}) == SETTINGS
    with pytest.raises(UserError, match="--scale is 1.0, there it is 2.0[)]"):
        store.begin(newer, alone=True, defaults={"scale": 2.0})
    older = {**SETTINGS, "decisive": {"seed": 0}}
    with pytest.raises(UserError, match="--eps_scaler is absent, there it is '1.0'[)]"):
        store.begin(older, alone=True, defaults={"eps_scaler": "1.0"})


def test_settings_that_made_no_image_are_replaced_unless_another_job_may_be_at_work(tmp_path):
    store = SampleStore(str(tmp_path), "samples")
    other = {**SETTINGS, "decisive": {"seed": 1}}
    store.begin(SETTINGS, alone=True)
    with pytest.raises(UserError):
        store.begin(other, alone=False)
    assert store.begin(other, alone=True) == other == store.begin(other, alone=False)


@pytest.mark.parametrize(
    "damage",
    [
        {"decisive": None},
        {"files": []},
        {"files": {"model_path": {}}},
        {"threads": "1"},
        {"threads": 0},
        {"rounding": {}},
        {"rounding": {"device": "cpu"}},
        {"rounding": {"device": "cpu", "torch": "2", "moon": "full"}},
        None,
    ],
)
def test_damaged_settings_are_named(tmp_path, damage):
    store, _ = stored(tmp_path, images(9))
    text = json.dumps({**SETTINGS, **damage}) if damage else "{"
    (tmp_path / "samples.chunks" / "settings.json").write_text(text)
    with pytest.raises(UserError, match="settings.json is damaged"):
        store.begin(SETTINGS, alone=True)


def test_what_killed_processes_left_is_deleted_and_nothing_else(tmp_path):
    store, chunks = stored(tmp_path, images(9))
    left = [
        tmp_path / "samples_9x4x4x3.npz.0123456789abcdef.unfinished",
        tmp_path / "samples.chunks" / "images_00000000_00000006.chunk.0123456789abcdef.unfinished",
    ]
    others = [
        tmp_path / "model000100.pt.123.unfinished",
        tmp_path / "samples_9x4x4x3.npz.123.unfinished",
        tmp_path / "samples.chunks" / "images_x.chunk",
        tmp_path / "samples_9x4x4x3.npz.old",
        tmp_path / "images_old.npz",
    ]
    for path in left + others:
        path.write_bytes(b"")
    store.assemble(chunks)
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)


def test_a_remote_folder(monkeypatch):
    """Fake remote store: {address: bytes}."""
    blobfile, store = pytest.importorskip("blobfile"), {}

    def scandir(folder):
        names = [path.removeprefix(folder + "/") for path in store if path.startswith(folder + "/")]
        return [SimpleNamespace(name=name, is_dir=False) for name in names if "/" not in name]

    def read_bytes(path):
        if path not in store:
            raise FileNotFoundError(path)
        return store[path]

    def stat(path):
        return SimpleNamespace(size=len(read_bytes(path)))

    def copy(source, target, overwrite):
        store[target] = Path(source).read_bytes()

    fake = dict(scandir=scandir, read_bytes=read_bytes, stat=stat, copy=copy, exists=store.__contains__)
    fake |= dict(join=lambda *parts: "/".join(parts), makedirs=lambda path: None, remove=store.pop)
    fake |= dict(write_bytes=store.__setitem__, isdir=lambda path: bool(scandir(path)))
    for name, function in fake.items():
        monkeypatch.setattr(blobfile, name, function)
    arrays = images(20)
    there, chunks = stored("gs://bucket/run", arrays)
    assert there.missing([*chunks, range(20, 27)]) == [range(20, 27)]
    there.assemble(chunks)
    with np.load(io.BytesIO(store["gs://bucket/run/samples_20x4x4x3.npz"])) as npz:
        assert all(np.array_equal(npz[name], arrays[name]) for name in arrays)
    assert there.finished(20) and not [path for path in store if "images_" in path]


@pytest.fixture(autouse=True)
def quiet():
    logger.set_level(logger.ERROR)
    yield
    logger.reset()
