"""Files of others, damaged in every way that chance finds: refused in a sentence, or read as if they were whole."""

import contextlib
import shutil
from pathlib import Path

import graph_writer
import inception_recipe
import launched
import numpy as np
import pytest
import script_runs
import torch
from PIL import Image

from evaluations import features, frozen_graph
from evaluations.batches import open_images
from evaluations.comparison import plan, rows, settings
from guided_diffusion import base_samples, checkpoints, flags, logger, presets
from guided_diffusion.checkpoints import manifest, resume
from guided_diffusion.errors import UserError
from guided_diffusion.image_datasets import Images
from guided_diffusion.jobs.sample_store import SampleStore
from guided_diffusion.tensor_files import load_checkpoint, load_state_dict, load_torchscript

pytestmark = pytest.mark.slow

TIMES = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a whole file of each kind."""
    place = tmp_path_factory.mktemp("foreign")
    data = script_runs.draw_images(place / "data")
    script_runs.train_class_conditional(data, place / "run", "--class_source", "prefix")
    (place / "bare").mkdir()
    for kind in ("model", "opt", "state", "ema_0.9999_"):
        shutil.copy(place / "run" / f"{kind}000002.pt", place / "bare")
    pixels = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
    np.savez(place / "images.npz", arr_0=pixels, arr_1=np.arange(6) % 3)
    sigma = np.eye(4) + 0.1
    np.savez(place / "statistics.npz", mu=np.arange(4.0), sigma=sigma)
    shutil.make_archive(str(place / "images"), "zip", data)
    (place / "pictures").mkdir()
    Image.fromarray(pixels[0]).save(place / "pictures" / "one.png")
    with contextlib.suppress(ImportError):
        from safetensors.torch import save_file

        save_file(torch.load(place / "bare" / "model000002.pt", weights_only=True), place / "x.safetensors")
    store = SampleStore(str(place), "samples")
    Path(store.folder).mkdir()
    store.save(range(6), {"arr_0": pixels})
    (place / "rows").mkdir()
    row = rows.Row("a", "10 steps", 10, [1.0, 2.0], 10.0, 0.1, {}, pixels)
    rows.save(str(place / "rows"), "key", row)
    weights = {
        name: np.ones((1,) * array.ndim, array.dtype) for name, array in inception_recipe.graph_weights().items()
    }
    (place / "graph.pb").write_bytes(graph_writer.frozen_graph(weights))
    script_runs.mean_colours(place / "network.pt", 8, square=4)
    (place / "features").mkdir()
    features_of(str(place / "features" / "its"))
    lines = [
        "a: --solver ddim",
        "b: --eps_scaler {sweep 1.0,1.01} --spacing 'logsnr'",
        "c: --do_time_shift True --cutoff {5:80}",
    ]
    (place / "settings.txt").write_text("\n".join(lines))
    preset = presets.Preset({"solver": "ddim", "eps_scaler": "1.01", "timestep_respacing": "10"})
    presets.write(str(place / "preset.json"), preset)
    logger.reset()
    return place


def of_images(path):
    images = open_images(path, "samples")
    found = [pixels for _, pixels in images.batches(4, 0, 1)]
    return [found, images.count, {k: list(v) for k, v in images.statistics.items()}]


def of_data(path):
    dataset = Images(path, 8) if not path.endswith("npz") else Images(path, 8, class_cond=True)
    return [[np.array(dataset[i][0]) for i in range(len(dataset))], dataset[0][1]]


def of_log(path):
    """Nothing, but that a run goes on with it."""
    with logger.scoped_configure(str(Path(path).parent), "csv,json"):
        logger.rewind(1)
        logger.logkv("step", 3)
        logger.dumpkvs()


def read_chunk(path):
    found = SampleStore(str(Path(path).parents[1]), "samples")._read(range(6))
    return found and list(found.values())


def read_row(path):
    row = rows.load(str(Path(path).parent), "key")
    return row and vars(row)


def features_of(path):
    """Those of six images by a network whose features are kept; of a damaged file they are computed again."""
    images = torch.arange(6 * 8 * 8 * 3, dtype=torch.uint8).view(6, 8, 8, 3)
    look = features._cached(lambda x: (x.double().mean(dim=(1, 2)),), {"sha256": "0", "dtype": "x"}, Path(path).parent)
    return [array.numpy() for array in look(images)]


def of_script(path):
    return load_torchscript(path, "cpu", path)(torch.arange(96.0).view(2, 3, 4, 4))


def of_settings(path):
    """Nothing, but that every line is a sampler, or a mistake in one."""
    groups = launched.read("image_sample").groups
    found = settings.Settings(settings.read_settings(path), groups, flags.parse([], groups, ""))
    for name in found.lines:
        found.parse(name, 5, plan.Budget(5, "steps"), {})


def of_preset(path):
    groups = launched.read("image_sample").groups
    flags.parse([], groups, "", fill=lambda given, legal: presets.expand(path, legal))


KINDS = {
    "checkpoint": ("bare/model000002.pt", load_state_dict),
    "average": ("bare/ema_0.9999_000002.pt", load_state_dict),
    "optimiser": ("bare/opt000002.pt", load_checkpoint),
    "state": ("bare/state000002.pt", lambda path: resume.read_state(path.replace("state", "model"))),
    # which have no checksums, so another number is not seen
    "safetensors": ("x.safetensors", lambda path: load_state_dict(path) and None),
    "listed checkpoint": ("run/model000002.pt", lambda path: checkpoints.open_network(path)[0].state_dict()),
    "flags": ("run/model000002.json", lambda path: checkpoints.open_network(path.replace("json", "pt"))[2]),
    "manifest": ("run/manifest000002.json", lambda path: manifest.check(str(Path(path).parent), 2)),
    "auto": ("run/manifest000002.json", lambda path: resume.find("auto", str(Path(path).parent))),
    "samples": ("images.npz", of_images),
    "statistics": ("statistics.npz", of_images),
    "base samples": ("images.npz", lambda path: list(base_samples.open_base(path, 8, 3, 3))),
    "data": ("images.npz", of_data),
    "zip": ("images.zip", of_data),
    "picture": ("pictures/one.png", lambda path: of_data(str(Path(path).parent))),
    "csv log": ("run/progress.csv", of_log),
    "json log": ("run/progress.json", of_log),
    "chunk": ("samples.chunks/images_00000000_00000005.chunk", read_chunk),
    "row": ("rows/key.npz", read_row),
    "features": ("features/*.npz", features_of),
    "torchscript": ("network.pt", of_script),
    # whose numbers or words mean something else when they are others
    "graph": ("graph.pb", lambda path: frozen_graph.read(Path(path).read_bytes(), path) and None),
    "settings": ("settings.txt", of_settings),
    "preset": ("preset.json", of_preset),
}


# a run goes on without what is damaged, or computes it again
UNNOTICED = ["csv log", "json log", "features"]


def damaged(data, rng):
    """The bytes with a mistake that a disk, a network or a person makes."""
    data = bytearray(data)
    start = int(rng.integers(len(data)))
    length = int(min(len(data) - start, 2 ** rng.integers(10)))
    kind = rng.integers(8)
    if kind == 0:
        return bytes(data[:start])
    if kind == 1:
        data[start] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        data[start : start + length] = bytes(length)
    elif kind == 3:
        data[start : start + length] = rng.bytes(length)
    elif kind == 4:
        del data[start : start + length]
    elif kind == 5:
        data[start:start] = data[start : start + length]
    elif kind == 6:
        data[start:start] = rng.bytes(length)
    else:  # the numbers at the ends of a zip, and in headers
        place = int(rng.integers(min(64, len(data))))
        place = place if rng.integers(2) else len(data) - 1 - place
        data[place] = int(rng.integers(256))
    return bytes(data)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_in_a_sentence_or_changes_nothing(place, tmp_path, kind):
    name, read = KINDS[kind]
    found = list(place.glob(name))
    if not found:
        pytest.skip("without safetensors")
    folder = shutil.copytree(found[0].parent, tmp_path / Path(name).parent, dirs_exist_ok=True)
    path, whole = Path(folder) / found[0].name, found[0].read_bytes()
    expected = read(str(path))
    path.write_bytes(whole)
    rng, refused = np.random.default_rng(sum(kind.encode())), 0
    for turn in range(TIMES):
        path.write_bytes(damaged(whole, rng))
        try:
            found = read(str(path))
        except (UserError, OSError) as error:
            assert "\n" not in str(error) and str(error).strip(), error
            refused += 1
            continue
        finally:
            for other in path.parent.glob("*.damaged*"):
                other.unlink()
        if found is None and expected is not None:
            refused += 1  # it is made anew
            continue
        assert same(expected, found), f"{kind}, turn {turn}"
    assert refused or kind in UNNOTICED
