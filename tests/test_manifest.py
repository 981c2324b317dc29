"""A set of files is complete or not there: damage of any kind is found and named, and nothing half written stays."""

import contextlib
import json
import os
import resource
import time

import numpy as np
import pytest

from guided_diffusion import files
from guided_diffusion.checkpoints import manifest, resume
from guided_diffusion.errors import UserError
from guided_diffusion.jobs import folder_lock

RNG = np.random.default_rng(0)
PARTS = {name: RNG.bytes(size) for name, size in (("model{}.pt", 3000), ("ema_0.9_{}.pt", 3000), ("opt{}.pt", 5000))}


def write(folder, *steps, run="this"):
    for step in steps:
        manifest.write(folder, step, [(name.format(f"{step:06d}"), data) for name, data in PARTS.items()], run)


def names(folder):
    return {path.name for path in folder.iterdir()}


def find(folder, capsys, wanted="auto"):
    """(what `resume.find` gives, what it says)."""
    capsys.readouterr()
    return resume.find(wanted, str(folder)), capsys.readouterr().out


def test_a_whole_set_passes(tmp_path, capsys):
    write(tmp_path, 2, 4)
    for step in (2, 4):
        manifest.check(tmp_path, step)
    path, said = find(tmp_path, capsys)
    assert path == str(tmp_path / "model000004.pt") and "warning" not in said
    assert json.loads((tmp_path / "manifest000004.json").read_text())["files"]["opt000004.pt"]["size"] == 5000


def damages():
    """20 lengths to truncate to, over all files, and one flipped bit in each."""
    cuts = [(name, int(RNG.integers(len(data)))) for name, data in list(PARTS.items()) * 7][:20]
    return [("cut", *cut) for cut in cuts] + [
        ("flip", name, int(RNG.integers(len(data)))) for name, data in PARTS.items()
    ]


@pytest.mark.parametrize("how, name, place", damages())
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, capsys, how, name, place):
    write(tmp_path, 2, 4)
    path = tmp_path / name.format("000004")
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[place:]
    else:
        data[place] ^= 1 << int(RNG.integers(8))
    path.write_bytes(data)
    found, said = find(tmp_path, capsys)
    assert found == str(tmp_path / "model000002.pt")
    assert f"warning: the checkpoint of step 4 is not taken: {path}" in said
    with pytest.raises(UserError, match=f"--resume_checkpoint .*model000004.pt: .*{path.name}"):
        resume.find(str(tmp_path / "model000004.pt"), str(tmp_path))


@pytest.mark.parametrize("what", ["missing", "cut manifest", "no object", "numbers as text"])
def test_other_damage(tmp_path, capsys, what):
    write(tmp_path, 2, 4)
    path = tmp_path / "manifest000004.json"
    if what == "missing":
        (tmp_path / "opt000004.pt").unlink()
    elif what == "cut manifest":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.write_text("[]" if what == "no object" else path.read_text().replace("5000", '"5000"'))
    found, said = find(tmp_path, capsys)
    assert found == str(tmp_path / "model000002.pt") and "the checkpoint of step 4 is not taken" in said


ENTRY = {"size": 1, "sha256": "0"}


@pytest.mark.parametrize(
    "content",
    [
        {"saved": 1.0},
        {"saved": 1.0, "files": [ENTRY]},
        {"saved": 1.0, "files": {"a": 1}},
        {"saved": 1.0, "files": {"a": {"size": 1}}},
        {"saved": 1.0, "files": {"a": ENTRY | {"size": "1"}}},
        {"saved": 1.0, "files": {"a": ENTRY | {"size": None}}},
        {"saved": 1.0, "files": {"a": ENTRY | {"sha256": 0}}},
        {"saved": "today", "files": {"a": ENTRY}},
        {"files": {"a": ENTRY}},
    ],
)
def test_entries_of_another_type_are_damage(tmp_path, content):
    (tmp_path / "manifest000002.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="manifest000002.json is damaged; expected the sizes and checksums"):
        manifest.read(tmp_path, 2)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "a\\b"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret").write_text("")
    write(folder, 2, 4)
    text = (folder / "manifest000002.json").read_text().replace("opt000002.pt", name.replace("\\", "\\\\"))
    (folder / "manifest000002.json").write_text(text)
    with pytest.raises(UserError, match="expected names of files beside it"):
        manifest.check(folder, 2)
    manifest.prune(folder, 1, "this")
    assert (tmp_path / "secret").exists()


def test_none_whole_is_an_error_and_none_at_all_a_fresh_start(tmp_path, capsys):
    found, said = find(tmp_path, capsys)
    assert found == "" and "training starts at step 0" in said
    (tmp_path / "model000002.json").touch()  # a first save that was killed before its manifest
    (tmp_path / "model000002.pt").touch()
    found, said = find(tmp_path, capsys)
    assert found == "" and "has no manifest" in said
    write(tmp_path, 2)
    (tmp_path / "opt000002.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint in .* is whole"):
        find(tmp_path, capsys)


@pytest.mark.parametrize("steps, beside", [((2,), False), ((2, 10), False), ((2, 10), True)])
def test_published_checkpoints_are_not_replaced_by_a_fresh_start(tmp_path, steps, beside):
    for step in steps:
        for name in ("model", "ema_0.9999_", "opt"):
            (tmp_path / f"{name}{step:06d}.pt").touch()
        if beside:
            (tmp_path / f"model{step:06d}.json").touch()
    newest = tmp_path / f"model{max(steps):06d}.pt"
    with pytest.raises(
        UserError, match=f"have no manifest, .* expected --resume_checkpoint {newest}, or another --out"
    ):
        resume.find("auto", str(tmp_path))
    assert resume.find(str(newest), str(tmp_path)) == str(newest)
    if beside:
        assert resume.find("", str(tmp_path)) == ""
    else:
        with pytest.raises(UserError, match=f"{tmp_path} has published checkpoints.*--resume_checkpoint {newest}"):
            resume.find("", str(tmp_path))


def test_one_that_was_not_written_to_its_end_is_refused_by_name(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "model000004.pt").write_bytes(PARTS["model{}.pt"])
    # without flags beside it it is a published one, which has no manifest
    assert resume.find(str(tmp_path / "model000004.pt"), str(tmp_path)) == str(tmp_path / "model000004.pt")
    (tmp_path / "model000004.json").touch()
    with pytest.raises(UserError, match="has no manifest000004.json, so it was not written to its end; .* of step 2"):
        resume.find(str(tmp_path / "model000004.pt"), str(tmp_path))


def test_a_run_leaves_the_checkpoints_of_another_alone(tmp_path):
    """Whether it starts afresh or goes on from elsewhere, unless it is the same run."""
    out_dir, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out_dir.mkdir()
    elsewhere.mkdir()
    write(out_dir, 2)
    write(elsewhere, 4, run="another")
    other = str(elsewhere / "model000004.pt")
    for wanted in ("", other):
        with pytest.raises(UserError, match="--out_dir .* has checkpoints of another run.* step 2.*auto"):
            resume.find(wanted, str(out_dir))
    write(elsewhere, 6)  # a copy of a later step
    for found in (str(out_dir / "model000002.pt"), str(elsewhere / "model000006.pt")):
        assert resume.find(found, str(out_dir)) == found
    assert resume.find("auto", str(out_dir)) == str(out_dir / "model000002.pt")


def test_the_newest_is_the_last_written(tmp_path):
    """A run that starts afresh in the folder of a longer one is not continued by that one's checkpoints."""
    write(tmp_path, 8, 2, 4)
    assert manifest.steps(tmp_path) == [4, 2, 8]


def test_pruning_keeps_the_newest_other_runs_and_what_is_no_complete_set(tmp_path):
    write(tmp_path, 8, run="an earlier one")
    write(tmp_path, 2, 4, 6)
    (tmp_path / "model000001.pt").touch()
    (tmp_path / "preview_000002.png").touch()
    manifest.prune(tmp_path, 2, "this")
    assert manifest.steps(tmp_path) == [6, 4, 8]
    assert "model000001.pt" in names(tmp_path) and "preview_000002.png" in names(tmp_path)
    assert not {name.format("000002") for name in PARTS} & names(tmp_path)
    for step in (4, 6, 8):
        manifest.check(tmp_path, step)


@contextlib.contextmanager
def small_files():
    """In this block no file may grow beyond 4000 bytes, as on a disk that is full; pytest's own log may lie outside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_set_whole_and_nothing_else(tmp_path):
    write(tmp_path, 2)
    before = names(tmp_path)
    with small_files(), pytest.raises(OSError, match="opt000004.pt"):
        write(tmp_path, 4)
    assert names(tmp_path) == before
    manifest.check(tmp_path, 2)


LEFT = "0123456789abcdef"


@pytest.mark.parametrize(
    "name, swept",
    [
        (f"model000004.pt.{LEFT}.unfinished", True),
        (f"ema_0.9999_000004.pt.{LEFT}.unfinished", True),
        (f"manifest000004.json.{LEFT}.unfinished", True),
        (f"progress.csv.{LEFT}.unfinished", True),
        (f"samples_100x16x16x3.npz.{LEFT}.unfinished", True),
        (f"adm_cifar10_ddim5step.npz.{LEFT}.unfinished", True),
        (f"states.npz.{LEFT}.unfinished", True),
        (".writable-0-4321", True),
        (f".writable-0-4321.{LEFT}.unfinished", True),
        ("thesis.2024.unfinished", False),
        (f"exposure_bias.csv.{LEFT}.unfinished", True),
        (f"rows/0123abcd.npz.{LEFT}.unfinished", True),
        (f"scores of ours.png.{LEFT}.unfinished", True),
        (f"{LEFT}.unfinished", False),
        (f"thesis.{LEFT}.tmp", False),
        ("model000004.pt.2024.unfinished", False),
        (f"model000004.pt.{LEFT.upper()}.unfinished", False),
        (f"model000004.pt.{LEFT}.unfinished.gz", False),
        ("model000004.pt", False),
        (".writable-0-x", False),
    ],
)
def test_what_a_killed_process_left_unfinished_is_swept_and_nothing_else(tmp_path, name, swept):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path, (1000, 1000))
    files.remove_unfinished(str(tmp_path), 1000)
    assert path.exists()  # it is not older
    with folder_lock.locked(str(tmp_path), "1-of-2"):
        assert path.exists()  # another part may be writing it
    with folder_lock.locked(str(tmp_path)):
        assert path.exists() != swept


@pytest.mark.parametrize("lock", [".lock", ".lock-1-of-2"])
def test_the_folder_of_another_job_is_not_swept(tmp_path, lock):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / lock).touch()
    (tmp_path / "other" / f"model000004.pt.{LEFT}.unfinished").touch()
    files.remove_unfinished(str(tmp_path), time.time() + 99)
    assert len(names(tmp_path / "other")) == 2


def test_a_folder_or_a_link_of_such_a_name_stays(tmp_path):
    (tmp_path / f"model000004.pt.{LEFT}.unfinished").mkdir()
    (tmp_path / "user").touch()
    (tmp_path / f"model000006.pt.{LEFT}.unfinished").symlink_to(tmp_path / "user")
    files.remove_unfinished(str(tmp_path), time.time() + 99)
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("clock", [300, -300, 0, float("inf")])
def test_the_order_is_that_of_writing_whatever_the_clock_says(tmp_path, clock, monkeypatch):
    for step in (2, 4, 6, 8):
        monkeypatch.setattr(time, "time", lambda step=step: 1000 if clock == float("inf") else 1000 + clock * step)
        write(tmp_path, step)
        manifest.prune(tmp_path, 2, "this")
    assert manifest.steps(tmp_path) == [8, 6]


def test_those_of_before_there_were_orders_come_first(tmp_path):
    write(tmp_path, 2)
    content = json.loads((tmp_path / "manifest000002.json").read_text())
    del content["order"]
    (tmp_path / "manifest000002.json").write_text(json.dumps(content | {"saved": content["saved"] + 300}))
    write(tmp_path, 4)
    manifest.prune(tmp_path, 1, "this")
    assert manifest.steps(tmp_path) == [4]
