"""--rng published: the scripts against loops over the class API that draw as published scripts do."""

import inspect
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import script_runs
import torch
import torch.nn.functional as F
from PIL import Image
from processes import MPIRUN, needs_mpirun, slow
from processes import run as start
from refusals import one_sentence
from script_runs import draw_images, train_class_conditional, train_super_res

from guided_diffusion import dist_util, flags, generate, script_util
from guided_diffusion.image_datasets import load_data
from guided_diffusion.images import to_uint8
from guided_diffusion.jobs.sample_store import SampleStore
from guided_diffusion.solvers import SOLVERS

MODELS = Path(__file__).parents[2] / "models"
DIGITS, CLASSIFIER = MODELS / "digits16.pt", MODELS / "digits16_classifier.pt"
STEPS = ["--timestep_respacing", 4]


@pytest.fixture(scope="module")
def in_colour(tmp_path_factory):
    """A class-conditional network of RGB images, as published data are."""
    place = tmp_path_factory.mktemp("colour")
    return train_class_conditional(draw_images(place / "data"), place / "run")


@pytest.fixture(scope="module")
def upsampler(tmp_path_factory):
    place = tmp_path_factory.mktemp("upsampler")
    return train_super_res(draw_images(place / "data"), place / "run")


@pytest.fixture(scope="module")
def small_images(tmp_path_factory):
    """Five images of 8x8 in three classes."""
    path = tmp_path_factory.mktemp("small") / "small.npz"
    rng = np.random.default_rng(0)
    np.savez(path, rng.integers(256, size=(5, 8, 8, 3), dtype=np.uint8), np.array([0, 2, 1, 1, 0]))
    return path


def created(create, defaults, path, **changes):
    """What a published function makes of the flags beside a checkpoint, with its weights."""
    saved, names = json.loads(path.with_suffix(".json").read_text()), inspect.signature(create).parameters
    made = create(**{**defaults(), **{k: v for k, v in saved.items() if k in names}, **changes})
    network = made[0] if isinstance(made, tuple) else made
    network.load_state_dict(torch.load(path, weights_only=True))
    network.eval()
    return made


def published_samples(path, count, batch_size, seed=0, loop="p_sample_loop", told=None, guide=None, **changes):
    """(images, labels) of what image_sample does: a seed, the network, and for each whole batch labels and a loop."""
    torch.manual_seed(seed)
    create = script_util.create_model_and_diffusion
    model, diffusion = created(create, script_util.model_and_diffusion_defaults, path, **changes)
    guided = {}
    if guide is not None:
        classifier = created(script_util.create_classifier, script_util.classifier_defaults, CLASSIFIER)

        def towards(x, t, y):
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                chosen = F.log_softmax(classifier(x, t), dim=-1)[range(len(x)), y]
                return torch.autograd.grad(chosen.sum(), x)[0] * guide

        guided = {"cond_fn": towards}
    images, labels = [], []
    while len(images) * batch_size < count:
        y = torch.randint(low=0, high=10, size=(batch_size,))
        shape = (batch_size, 1, 16, 16)
        images.append(getattr(diffusion, loop)(model, shape, model_kwargs={"y": y}, **guided))
        labels.append(y)
    return to_uint8(torch.cat(images))[:count], torch.cat(labels).numpy()[:count]


def saved(folder):
    (path,) = folder.glob("*.npz")
    with np.load(path) as npz:
        return npz["arr_0"], npz["arr_1"]


def equal_up_to_a_grey_level(made, expected):
    images, labels = made
    assert images.dtype == np.uint8 and images.shape == expected[0].shape
    assert np.abs(images.astype(int) - expected[0]).max() <= 1
    assert np.array_equal(labels, expected[1])


SETTINGS = {
    "ddpm": ("", {}),
    "ddim": ("--use_ddim True", {"loop": "ddim_sample_loop"}),
    "seed": ("--seed 7", {"seed": 7}),
    "scaled": ("--eps_scaler 1.05", {"eps_scaler": 1.05}),
    "shifted": (
        "--use_ddim True --do_time_shift True --window 40 --cutoff 100",
        {"loop": "ddim_sample_loop", "do_time_shift": True, "window": 40, "cutoff": 100},
    ),
    "unclipped": ("--noise_schedule cosine --rescale_learned_sigmas False", {}),
}


@pytest.mark.parametrize("count, batch_size", [(6, 3), (5, 2), (2, 4)], ids=["whole", "part", "less"])
@pytest.mark.parametrize("setting", [*list(SETTINGS)[:2], *slow(*list(SETTINGS)[2:])])
def test_image_sample_draws_as_published(tmp_path, setting, count, batch_size):
    line, changes = SETTINGS[setting]
    arguments = ["--num_samples", count, "--batch_size", batch_size, "--rng", "published", *STEPS, *line.split()]
    script_runs.run("image_sample", "--model_path", DIGITS, "--out_dir", tmp_path, *arguments)
    expected = published_samples(DIGITS, count, batch_size, timestep_respacing="4", **changes)
    equal_up_to_a_grey_level(saved(tmp_path), expected)


def test_image_sample_1gpu_draws_as_published(tmp_path):
    arguments = ["--num_samples", 3, "--batch_size", 2, "--rng", "published", *STEPS]
    script_runs.run("image_sample_1gpu", "--model_path", DIGITS, "--out_dir", tmp_path, *arguments)
    equal_up_to_a_grey_level(saved(tmp_path), published_samples(DIGITS, 3, 2, timestep_respacing="4"))


@pytest.mark.parametrize("solver, loop", [("ddpm", "p_sample_loop"), ("ddim", "ddim_sample_loop")])
def test_classifier_sample_draws_as_published(tmp_path, solver, loop):
    arguments = ["--num_samples", 5, "--batch_size", 2, "--rng", "published", "--classifier_scale", 2, *STEPS]
    paths = ["--model_path", DIGITS, "--classifier_path", CLASSIFIER]
    script_runs.run("classifier_sample", *paths, "--out_dir", tmp_path, *arguments, "--solver", solver)
    expected = published_samples(DIGITS, 5, 2, guide=2, loop=loop, timestep_respacing="4")
    equal_up_to_a_grey_level(saved(tmp_path), expected)


def test_super_res_sample_draws_as_published(tmp_path, upsampler, small_images):
    """Seven images of five small ones, which are taken in turn."""
    arguments = ["--num_samples", 7, "--batch_size", 3, "--rng", "published", *STEPS, "--base_samples", small_images]
    script_runs.run("super_res_sample", "--model_path", upsampler, "--out_dir", tmp_path, *arguments)

    torch.manual_seed(0)
    create, defaults = script_util.sr_create_model_and_diffusion, script_util.sr_model_and_diffusion_defaults
    model, diffusion = created(create, defaults, upsampler, timestep_respacing="4")
    with np.load(small_images) as npz:
        pairs = list(zip(torch.from_numpy(npz["arr_0"]), torch.from_numpy(npz["arr_1"])))
    images, labels, turns = [], [], itertools.cycle(pairs)
    while len(images) * 3 < 7:
        small, y = zip(*itertools.islice(turns, 3))
        low_res = torch.stack(small).float().permute(0, 3, 1, 2) / 127.5 - 1
        told = {"low_res": low_res, "y": torch.stack(y)}
        images.append(diffusion.p_sample_loop(model, (3, 3, 16, 16), model_kwargs=told))
        labels.append(told["y"])
    expected = to_uint8(torch.cat(images))[:7], torch.cat(labels)[:7].numpy()
    equal_up_to_a_grey_level(saved(tmp_path), expected)


def test_images_have_their_own_generators_unless_told_otherwise(tmp_path):
    arguments = ["--model_path", DIGITS, "--num_samples", 4, *STEPS]
    for name, more in {"default": [], "images": ["--rng", "images"], "published": ["--rng", "published"]}.items():
        for size in (2, 4):
            folder = tmp_path / f"{name}{size}"
            script_runs.run("image_sample", *arguments, "--batch_size", size, "--out_dir", folder, *more)
    of = {path.name: saved(path)[1].tolist() for path in tmp_path.iterdir()}
    assert of["default2"] == of["default4"] == of["images2"] == of["images4"]
    assert of["published2"] != of["published4"] and of["published2"] != of["images2"]


@pytest.mark.parametrize(
    "count, batch_size, whole", [(4, 2, 4), (5, 3, 6), (14, 6, 18)], ids=["whole", "part", "again"]
)
def test_image_nll_draws_as_published(tmp_path, in_colour, count, batch_size, whole):
    """Whole batches are averaged, and the twelve images come again where there are not enough."""
    data = draw_images(tmp_path / "data")
    arguments = ["--num_samples", count, "--batch_size", batch_size, "--rng", "published", *STEPS]
    paths = ["--model_path", in_colour, "--data_dir", data, "--out_dir", tmp_path]
    line = script_runs.run("image_nll", *paths, *arguments)

    torch.manual_seed(0)
    create, defaults = script_util.create_model_and_diffusion, script_util.model_and_diffusion_defaults
    model, diffusion = created(create, defaults, in_colour, timestep_respacing="4")
    batches = load_data(data_dir=data, batch_size=batch_size, image_size=16, class_cond=True, deterministic=True)
    found = [
        diffusion.calc_bpd_loop(model, x, model_kwargs=told)
        for x, told in itertools.islice(batches, whole // batch_size)
    ]
    total = torch.cat([terms["total_bpd"] for terms in found])
    (printed,) = re.findall(rf"\n{whole} images: (\S+) ", line)
    assert float(printed) == pytest.approx(total.mean().item(), rel=1e-6)
    for name in ("vb", "mse", "xstart_mse"):
        with np.load(tmp_path / f"{name}_terms.npz") as npz:
            np.testing.assert_allclose(npz["arr_0"], torch.cat([t[name] for t in found]).mean(dim=0), rtol=1e-5)


# -- what cannot be --------------------------------------------------------------------------------


def parsed(*argv, name="image_sample"):
    groups, overrides = script_runs.groups_of(name)
    return flags.parse(list(map(str, argv)), groups, "", overrides)


@pytest.mark.parametrize("solver", sorted(SOLVERS.keys() - {"ddpm", "ddim"}))
def test_a_solver_without_a_published_order_of_draws_is_refused(solver):
    refused = parsed("--rng", "published", "--solver", solver)
    one_sentence(lambda: generate.noise_of(refused), "--rng published", f"--solver {solver}", "ddpm or ddim")


def test_several_ranks_are_refused(monkeypatch):
    monkeypatch.setattr(dist_util, "world_size", lambda: 2)
    one_sentence(lambda: generate.noise_of(parsed("--rng", "published")), "--rng published", "2 ranks", "expected 1")
    generate.noise_of(parsed())


@needs_mpirun
def test_a_job_of_two_ranks_ends_with_one_sentence(tmp_path):
    words = ["--model_path", DIGITS, "--rng", "published", "--num_samples", 2, "--out_dir", tmp_path, *STEPS]
    done = start(MPIRUN, "-n", 2, sys.executable, script_runs.FOLDER / "image_sample.py", *words, OMP_NUM_THREADS="1")
    assert done.returncode == 2 and done.stderr.count("--rng published is one stream") == 1
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("words", [["--skip_bad", True], ["--class_source", "prefix"]])
def test_image_nll_refuses_what_published_data_cannot_be(tmp_path, in_colour, words, capsys):
    arguments = ["--model_path", in_colour, "--data_dir", draw_images(tmp_path / "data"), "--rng", "published", *words]
    with pytest.raises(SystemExit):
        script_runs.run("image_nll", *arguments, "--out_dir", tmp_path)
    assert f"{words[0]} {words[1]} has no counterpart in --rng published" in capsys.readouterr().err


def test_shards_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        words = ["--model_path", DIGITS, "--rng", "published", "--shard", "1/2", *STEPS]
        script_runs.run("image_sample", *words, "--out_dir", tmp_path)
    assert ended.value.code == 2 and "--shard 1/2 contradicts --rng published" in capsys.readouterr().err


def stopped(*arguments):
    raise RuntimeError("stopped")


def test_a_folder_that_is_half_done_is_refused_and_a_finished_one_is_not(tmp_path, capsys):
    words = ["--model_path", DIGITS, "--rng", "published", "--num_samples", 4, "--batch_size", 2, *STEPS]
    first = tmp_path / "samples.chunks" / "images_00000000_00000001.chunk"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(SampleStore, "assemble", stopped)
        script_runs.run("image_sample", *words, "--out_dir", tmp_path)
    kept = first.read_bytes()
    first.unlink()
    with pytest.raises(SystemExit) as ended:
        script_runs.run("image_sample", *words, "--out_dir", tmp_path)
    assert ended.value.code == 2 and "cannot go on in the middle of its stream" in capsys.readouterr().err

    first.write_bytes(kept)  # all are there: they only have to be joined
    script_runs.run("image_sample", *words, "--out_dir", tmp_path)
    equal_up_to_a_grey_level(saved(tmp_path), published_samples(DIGITS, 4, 2, timestep_respacing="4"))
    assert "nothing to do" in script_runs.run("image_sample", *words, "--out_dir", tmp_path)


def test_a_folder_of_the_other_stream_is_not_continued(tmp_path, capsys):
    words = ["--model_path", DIGITS, "--num_samples", 2, *STEPS, "--out_dir", tmp_path]
    script_runs.run("image_sample", *words)
    with pytest.raises(SystemExit):
        script_runs.run("image_sample", *words, "--rng", "published")
    assert "--rng is 'published', there it is 'images'" in capsys.readouterr().err


@pytest.mark.parametrize("kept", ["cat", "bee cat"])
@pytest.mark.parametrize("form", ["folder", "array"])
def test_image_nll_knows_classes_by_name(tmp_path, in_colour, kept, form):
    """Of images of some classes, which the published reading would number from 0."""
    data, numbers = draw_images(tmp_path / "data"), []
    for path in sorted(data.iterdir()):
        name = path.name.split("_")[0]
        if name in kept.split():
            numbers.append(["ant", "bee", "cat"].index(name))
        else:
            path.unlink()
    paths = sorted(data.iterdir())
    if form == "array":
        images, words = np.stack([np.asarray(Image.open(path)) for path in paths]), kept.split()
        labels = [words.index(path.name.split("_")[0]) for path in paths]
        np.savez(data := tmp_path / "data.npz", arr_0=images, arr_1=np.array(labels), classes=np.array(words))
    count = len(numbers)
    arguments = ["--num_samples", count, "--batch_size", count, "--rng", "published", *STEPS, "--out_dir", tmp_path]
    line = script_runs.run("image_nll", "--model_path", in_colour, "--data_dir", data, *arguments)
    torch.manual_seed(0)
    create, defaults = script_util.create_model_and_diffusion, script_util.model_and_diffusion_defaults
    model, diffusion = created(create, defaults, in_colour, timestep_respacing="4")
    x, _ = next(load_data(data_dir=data, batch_size=count, image_size=16, deterministic=True))
    expected = diffusion.calc_bpd_loop(model, x, model_kwargs={"y": torch.tensor(numbers)})["total_bpd"].mean()
    (printed,) = re.findall(rf"\n{count} images: (\S+) ", line)
    assert float(printed) == pytest.approx(expected.item(), abs=6e-5)


@pytest.mark.parametrize(
    "placed, sentence",
    [
        (["gnu_1.png", "cat_2.png"], "has the class gnu, which the checkpoint does not know"),
        (["cat/IMG_1.png", "bee/IMG_2.png"], "--rng published tells the classes of .* by the names of files"),
    ],
)
def test_image_nll_refuses_classes_that_the_published_reading_confuses(tmp_path, in_colour, capsys, placed, sentence):
    for name in placed:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path)
    with pytest.raises(SystemExit):
        script_runs.run(
            "image_nll", "--model_path", in_colour, "--data_dir", tmp_path / "data", "--rng", "published", *STEPS,
            "--num_samples", 2, "--batch_size", 2, "--out_dir", tmp_path / "out",
        )  # fmt: skip
    assert re.search(sentence, capsys.readouterr().err.strip().splitlines()[-1])
