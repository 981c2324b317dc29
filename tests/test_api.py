"""The package from Python: what the scripts make with the same flags, byte for byte, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import script_runs
import torch
from PIL import Image
from refusals import one_sentence

import guided_diffusion as gd
from guided_diffusion import api, checkpoints
from guided_diffusion.flags import flags_of
from guided_diffusion.images import to_uint8
from guided_diffusion.jobs.launch import RunFlags

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "models" / "digits16.pt")
CLASSIFIER = str(ROOT / "models" / "digits16_classifier.pt")
COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def digits():
    return gd.load(DIGITS)


@pytest.fixture(scope="module")
def data(place):
    """Twelve images in the folders of three classes."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (place / "data" / name).mkdir(parents=True)
        for i in range(4):
            pixels = (rng.integers(50, size=(16, 16, 3)) + np.array(colour)).astype(np.uint8)
            Image.fromarray(pixels).save(place / "data" / name / f"{i}.png")
    return place / "data"


@pytest.fixture(scope="module")
def named(place, data):
    """The checkpoint of a network whose classes have names."""
    return script_runs.train_diffusion(data, place / "named", "--class_cond", True)


@pytest.fixture(scope="module")
def unconditional(place, data):
    return script_runs.train_diffusion(data, place / "unconditional")


@pytest.fixture(scope="module")
def array(place, data):
    """The images as uint8 [N, H, W, C], and their classes."""
    paths = sorted(data.rglob("*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in paths]), [path.parent.name for path in paths]


def by_script(folder, *words, script="image_sample"):
    """arr_0 of what a sampling script writes."""
    script_runs.run(script, *words, "--out_dir", folder)
    (path,) = folder.glob("samples_*.npz")
    with np.load(path) as made:
        return made["arr_0"]


# keywords, and the same on a command line
SAMPLERS = {
    "ddpm": ({"steps": 5}, "--timestep_respacing 5"),
    "text": ({"steps": "ddim5", "use_ddim": True}, "--timestep_respacing ddim5 --use_ddim True"),
    "sections": ({"steps": [3, 2]}, "--timestep_respacing 3,2"),
    "eta": ({"steps": 4, "solver": "ddim", "eta": 0.5}, "--timestep_respacing 4 --solver ddim --eta 0.5"),
    "issue": (
        {"steps": 5, "classes": [3, 7], "solver": "dpmpp_2m", "eps_scaler": 1.005},
        "--timestep_respacing 5 --classes 3,7 --solver dpmpp_2m --eps_scaler 1.005",
    ),
    "linear": (
        {"steps": 5, "eps_scaler": [0.0025, 1.0], "seed": np.int64(7)},
        "--timestep_respacing 5 --eps_scaler 0.0025,1.0 --seed 7",
    ),
    "second_order": (
        {"steps": 4, "solver": "heun", "spacing": "uniform"},
        "--timestep_respacing 4 --solver heun --spacing uniform",
    ),
    "sde": ({"steps": 4, "solver": "dpmpp_sde_2m"}, "--timestep_respacing 4 --solver dpmpp_sde_2m"),
    "shift": (
        {"steps": 5, "use_ddim": True, "do_time_shift": True, "window": 40, "cutoff": 300},
        "--timestep_respacing 5 --use_ddim True --do_time_shift True --window 40 --cutoff 300",
    ),
    "guided": (
        {"steps": 4, "solver": "unipc", "guidance_scale": 1.5, "classes": "1,2", "thresholding": "dynamic"},
        "--timestep_respacing 4 --solver unipc --guidance_scale 1.5 --classes 1,2 --thresholding dynamic",
    ),
    "array": (
        {"steps": 4, "classes": np.array([4, 4, 5]), "clip_denoised": False},
        "--timestep_respacing 4 --classes 4,4,5 --clip_denoised False",
    ),
    "preset": (
        {"timestep_respacing": 4, "preset": "ts_ddim_10"},
        "--timestep_respacing 4 --preset ts_ddim_10",
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_are_those_of_the_script(name, digits, tmp_path):
    keywords, words = SAMPLERS[name]
    made = digits.sample(5, batch_size=3, progress=False, **keywords)
    expected = by_script(tmp_path, "--model_path", DIGITS, "--num_samples", 5, "--batch_size", 3, *words.split())
    assert made.dtype == np.uint8 and made.shape == (5, 16, 16, 1)
    assert np.array_equal(made, expected)


def test_images_guided_by_a_classifier_are_those_of_its_script(digits, tmp_path):
    words = f"--num_samples 4 --timestep_respacing 4 --classifier_scale 2 --classes 1,8 --classifier_path {CLASSIFIER}"
    expected = by_script(tmp_path, "--model_path", DIGITS, *words.split(), script="classifier_sample")
    made = digits.sample(4, steps=4, classifier_scale=2, classifier_path=CLASSIFIER, classes=[1, 8], progress=False)
    assert np.array_equal(made, expected)
    assert not np.array_equal(made, digits.sample(4, steps=4, classes=[1, 8], progress=False))


def test_classes_may_be_names(named, tmp_path):
    words = ["--model_path", named, "--timestep_respacing", 4, "--per_class", 2, "--classes", "cat,ant"]
    model = gd.load(named)
    assert model.class_names == ["ant", "bee", "cat"] and model.num_classes == 3
    made = model.sample(per_class=2, steps=4, classes=["cat", "ant"], progress=False)
    assert np.array_equal(made, by_script(tmp_path, *words))
    assert np.array_equal(made, model.sample(4, steps=4, classes=[2, 0], progress=False))
    assert len(model.sample(per_class=1, steps=2, progress=False)) == 3


def test_a_network_without_classes(unconditional, tmp_path):
    model = gd.load(unconditional)
    made = model.sample(3, steps=4, progress=False)
    words = ["--model_path", unconditional, "--num_samples", 3, "--timestep_respacing", 4]
    assert np.array_equal(made, by_script(tmp_path, *words)) and model.num_classes is None


def test_what_is_given_to_load_counts_in_sampling(tmp_path):
    """A checkpoint that lies alone, whose tensors do not tell its schedule."""
    path = tmp_path / "alone.pt"
    path.write_bytes(Path(DIGITS).read_bytes())
    told = {"noise_schedule": "cosine", "num_head_channels": 32, "image_size": 16}
    model = gd.load(path, **told)
    made = model.sample(3, steps=4, progress=False)
    words = [word for name, value in told.items() for word in (f"--{name}", value)]
    count = ["--num_samples", 3, "--timestep_respacing", 4]
    assert np.array_equal(made, by_script(tmp_path / "out", "--model_path", path, *words, *count))
    assert model.flags["noise_schedule"] == "cosine" and len(model.process.grid) == 1000
    linear = gd.load(path, **{**told, "noise_schedule": "linear"})
    assert not np.array_equal(made, linear.sample(3, steps=4, progress=False))


def test_an_image_is_its_seed_and_index(digits):
    few = digits.sample(2, steps=3, seed=4, batch_size=2, progress=False)
    more = digits.sample(4, steps=3, seed=4, batch_size=2, progress=False)
    torch.manual_seed(1)
    assert np.array_equal(few, more[:2])
    assert np.array_equal(more, digits.sample(4, steps=3, seed=4, batch_size=2, progress=False))
    assert not np.array_equal(few, digits.sample(2, steps=3, seed=5, batch_size=2, progress=False))


def test_one_sampling_leaves_nothing_to_the_next(digits):
    before = digits.sample(2, steps=3, classes=[1], progress=False)
    digits.sample(2, steps=5, classes=[1], solver="heun", eps_scaler=1.1, progress=False)
    assert np.array_equal(before, digits.sample(2, steps=3, classes=[1], progress=False))


def test_tensors_records_and_the_bar(digits, capsys):
    records = []
    made = digits.sample(4, steps=3, batch_size=2, as_tensor=True, callback=records.append)
    assert "image" in capsys.readouterr().err
    assert made.shape == (4, 1, 16, 16) and made.dtype == torch.float32
    assert [record.i for record in records] == [2, 1, 0] * 2
    assert [int(record.t[0]) for record in records][:3] == [999, 500, 0] and int(records[-1].s[0]) == -1
    assert torch.equal(torch.cat([records[2].x, records[5].x]), made)
    quiet = digits.sample(4, steps=3, batch_size=2, progress=False)
    assert not capsys.readouterr().err and np.array_equal(quiet, to_uint8(made))


def test_a_denoiser_is_the_network_and_its_methods(digits):
    x, t = torch.randn(4, 1, 16, 16), torch.full((4,), 400)
    told = digits.denoiser(classes=[2, 5], clip_denoised=False, eps_scaler=1.25)(x, t)
    with torch.no_grad():
        eps = digits.network(x, t, y=torch.tensor([2, 5, 2, 5]))[:, :1] / 1.25
    alpha_bar = np.cos((401 / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    assert torch.allclose(told.eps, eps, atol=1e-5) and torch.allclose(told.x0, x0, atol=1e-4)
    assert digits.denoiser(classes=[2, 5])(x, t).x0.abs().max() <= 1


def test_encoded_images_come_back(named, data, array, tmp_path):
    images, names = array
    model = gd.load(named)
    encoded = model.encode(images, classes=names, steps=6, batch_size=5)
    assert np.array_equal(model.decode(encoded), images)
    assert encoded.timesteps == (99, 79) and encoded.noisiest.shape == (12, 3, 16, 16)
    words = ["--model_path", named, "--data_dir", data, "--num_samples", 12, "--batch_size", 5]
    script_runs.run("image_invert", *words, "--timestep_respacing", 6, "--edit_class", "bee", "--out_dir", tmp_path)
    with np.load(tmp_path / "states.npz") as states, np.load(tmp_path / "edits.npz") as edits:
        assert np.array_equal(states["noisiest"], encoded.noisiest.numpy())
        assert np.array_equal(states["before"], encoded.before.numpy())
        assert list(states["timesteps"]) == [*encoded.timesteps]
        assert np.array_equal(edits["arr_0"], model.decode(encoded, classes=["bee"]))
    floats = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(model.encode(floats, classes=names, steps=6, batch_size=5).noisiest, encoded.noisiest)
    assert (model.decode(encoded, as_tensor=True) - floats).abs().max() < 1e-5


@pytest.mark.parametrize("gamma", [0.9, 0.5])
def test_an_inversion_that_may_lose_is_warned_of(digits, gamma, capsys):
    encoded = digits.encode(np.full((1, 16, 16, 1), 40, np.uint8), classes=[1], steps=3, gamma=gamma)
    assert "rounding errors" in capsys.readouterr().out
    assert digits.decode(encoded).shape == (1, 16, 16, 1)


def test_scores_are_those_of_the_evaluator(digits, array, place, tmp_path):
    images = array[0][..., :1]
    other = np.roll(images, 3, axis=2)[:10]
    np.savez(tmp_path / "reference.npz", arr_0=images)
    np.savez(tmp_path / "samples.npz", arr_0=other)
    words = [tmp_path / "reference.npz", tmp_path / "samples.npz", "--features", f"classifier:{CLASSIFIER}"]
    folder = ROOT / "evaluations"
    words += ["--json", tmp_path / "scores.json", "--out_dir", tmp_path / "out", "--metrics", "frechet_distance,kid"]
    script_runs.run("evaluator", *words, folder=folder)
    expected = json.loads((tmp_path / "scores.json").read_text())["scores"]
    flags = {"features": f"classifier:{CLASSIFIER}", "metrics": ["frechet_distance", "kid"]}
    assert gd.evaluate(images, other, **flags) == expected
    assert gd.evaluate(tmp_path / "reference.npz", str(tmp_path / "samples.npz"), **flags) == expected


def test_a_measurement_is_that_of_the_script(named, data, tmp_path):
    words = ["--model_path", named, "--data_dir", data, "--num_samples", 6, "--use_ddim", True, "--steps", 4]
    script_runs.run("exposure_bias", *words, "--out_dir", tmp_path / "script")
    (expected,) = json.loads((tmp_path / "script" / "exposure_bias.json").read_text())
    result = gd.exposure_bias(gd.load(named), data, steps=4, num_samples=6, use_ddim=True, out_dir=tmp_path / "python")
    (saved,) = json.loads((tmp_path / "python" / "exposure_bias.json").read_text())
    assert {**saved, "budget": ""} == {**expected, "budget": ""}
    assert result.times.tolist() == expected["timesteps"][::-1]
    curve = result.curves["norms"]["eps_ratio"]
    assert curve.values[::-1].tolist() == expected["measures"]["norms"]["eps_ratio"]["value"]
    assert curve.errors[::-1].tolist() == expected["measures"]["norms"]["eps_ratio"]["se"]


def test_a_measurement_without_a_folder_leaves_none(named, data, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = gd.exposure_bias(gd.load(named), data, steps=3, num_samples=4, solver="dpmpp_2m")
    assert result.count == 4 and not list(tmp_path.iterdir())


def test_a_tuning_is_that_of_the_script(named, data, tmp_path):
    words = ["--model_path", named, "--data_dir", data, "--num_samples", 6, "--use_ddim", True]
    script_runs.run("tune_sampler", *words, "--timestep_respacing", 4, "--out_dir", tmp_path / "script")
    expected = json.loads((tmp_path / "script" / "preset.json").read_text())
    model = gd.load(named)
    tuned = gd.tune(model, data, steps=4, num_samples=6, use_ddim=True, out_dir=tmp_path / "python")
    assert tuned.flags == expected["flags"] and tuned.reason == expected["score"]
    for name in ("preset.json", "tuning.csv", "tuning.md"):
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "script" / name).read_bytes()
    assert tuned.candidates[0].values == {} and len(tuned.candidates) > 1
    assert model.sample(2, progress=False, **tuned.flags).shape == (2, 16, 16, 3)


# -- what is refused ---------------------------------------------------------------------------------

# keywords that scripts/image_sample.py refuses by the same sentence
WRONG = {
    "name": {"windou": 3},
    "solver": {"solver": "dpmpp_2"},
    "illegal": {"batch_size": 0},
    "not_whole": {"seed": 1.5},
    "no_number": {"eta": "much", "solver": "ddim"},
    "not_finite": {"eta": float("nan"), "solver": "ddim"},
    "no_truth": {"clip_denoised": "perhaps"},
    "contradiction": {"solver": "heun", "use_ddim": True},
    "unread": {"eta": 0.5, "solver": "heun"},
    "scaler": {"eps_scaler": "a"},
    "too_many": {"timestep_respacing": 2000},
    "no_stride": {"timestep_respacing": "ddim7000"},
    "no_steps": {"timestep_respacing": 0},
    "text": {"timestep_respacing": "some"},
    "class": {"classes": [3, 10]},
    "class_name": {"classes": ["dog"]},
    "count": {"per_class": 3, "classes": [1]},
    "unread_percentile": {"threshold_percentile": 50},
    "preset": {"preset": "nobody"},
    "preset_of_another_network": {"preset": "cifar10_adm_es_20"},
    "guided_channels": {"guidance_scale": 2, "guidance_channels": 9},
    "churn": {"solver": "heun", "S_churn": 1, "S_min": 5, "S_max": 1},
    "preset_file": {"preset": "nowhere.json"},
}


@pytest.mark.parametrize("name", WRONG)
def test_the_sentence_of_the_script(name, digits, tmp_path, capsys):
    words = [word for key, value in WRONG[name].items() for word in (f"--{key}", api._as_text(value))]
    with pytest.raises(SystemExit):
        script_runs.run(
            "image_sample", "--model_path", DIGITS, "--num_samples", 2, *words, "--out_dir", tmp_path / "out"
        )
    said = capsys.readouterr().err.rpartition("image_sample: ")[2].rstrip()
    with pytest.raises(gd.UserError) as refused:
        digits.sample(2, progress=False, **WRONG[name])
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, ["--num_samples", "--per_class"]),
        ({"num_samples": 2, "steps": 5, "timestep_respacing": 4}, ["steps 5", "--timestep_respacing 4"]),
        ({"num_samples": 2, "steps": 2.5}, ["2.5"]),
        ({"num_samples": 2, "num_channels": 64}, ["--num_channels", "load"]),
        ({"num_samples": 2, "noise_schedule": "linear"}, ["--noise_schedule", "load"]),
        ({"num_samples": 2, "use_fp16": True}, ["--use_fp16", "load"]),
        ({"num_samples": 2, "out_dir": "x"}, ["--out_dir is not a flag"]),
        ({"num_samples": 2, "rng": "published"}, ["--rng is not a flag"]),
        ({"num_samples": 2, "classifier_path": "nowhere.pt"}, ["--classifier_path", "nowhere.pt"]),
        ({"num_samples": 2.5}, ["--num_samples", "2.5"]),
        ({"num_samples": 0}, ["--num_samples is 0"]),
        ({"num_samples": 2, "callback": 3}, ["callback is 3", "Record"]),
    ],
)
def test_what_python_alone_can_mean_wrongly(flags, words, digits):
    one_sentence(lambda: digits.sample(progress=False, **flags), *words)


@pytest.mark.parametrize("flags", [{"classes": [0]}, {"per_class": 2}])
def test_classes_of_a_network_that_has_none(flags, unconditional):
    count = {} if "per_class" in flags else {"num_samples": 1}
    model = gd.load(unconditional)
    one_sentence(lambda: model.sample(**count, **flags), "--" + next(iter(flags)), unconditional, "no classes")


@pytest.mark.parametrize(
    ("path", "flags", "words"),
    [
        ("nowhere.pt", {}, ["--model_path", "nowhere.pt", "exist"]),
        (CLASSIFIER, {}, ["classifier", "expected a diffusion network"]),
        (DIGITS, {"solver": "ddim"}, ["--solver is not a flag"]),
        (DIGITS, {"timestep_respacing": 5}, ["--timestep_respacing is not a flag"]),
        (DIGITS, {"num_channel": 5}, ["did you mean --num_channels"]),
        (DIGITS, {"device": "tpu"}, ["--device tpu"]),
        (DIGITS, {"network": "gan"}, ["--network", "gan"]),
        (ROOT / "README.md", {}, ["README.md"]),
        ("", {}, ["--model_path is not given"]),
    ],
)
def test_what_cannot_be_loaded(path, flags, words):
    one_sentence(lambda: gd.load(path, **flags), *words)


def test_a_network_that_is_another_is_refused_in_few_lines():
    with pytest.raises(gd.UserError, match="--num_channels is 64, the checkpoint has 32"):
        gd.load(DIGITS, num_channels=64)


@pytest.mark.parametrize("t", [-1, 1000, 5000, float("nan")])
def test_times_that_no_training_had(t, digits):
    denoise = digits.denoiser(classes=[1])
    one_sentence(lambda: denoise(torch.zeros(1, 1, 16, 16), torch.tensor([t])), "t reaches from", "0 to 999")


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 8, 16), (1, 16, 16)])
def test_states_that_no_training_had(shape, digits):
    denoise = digits.denoiser(classes=[1])
    one_sentence(lambda: denoise(torch.zeros(shape), torch.tensor([5])), "x is [1, ", "expected [N, 1, 16, 16]")


def test_what_is_decoded_was_encoded(digits):
    one_sentence(lambda: digits.decode(PLAIN), "encoded is ndarray", "encode(...)")


PLAIN = np.zeros((2, 16, 16, 1), np.uint8)


@pytest.mark.parametrize(
    ("images", "flags", "words"),
    [
        (PLAIN.astype(float), {}, ["float64", "uint8 [N, H, W, C]"]),
        (PLAIN[0], {}, ["[16, 16, 1]"]),
        (PLAIN[:, :8], {}, ["8", "1x16x16"]),
        (PLAIN[:0], {}, ["at least 1"]),
        (torch.full((2, 1, 16, 16), 255.0), {}, ["from 255 to 255", "[-1, 1]"]),
        (torch.full((2, 1, 16, 16), float("nan")), {}, ["nan", "[-1, 1]"]),
        (torch.zeros(2, 16, 16, 1), {}, ["1x16x16"]),
        (PLAIN, {"classes": None}, ["--classes is not given"]),
        (PLAIN, {"solver": "ddim"}, ["--solver ddim", "bdia"]),
        (PLAIN, {"gamma": 0}, ["--gamma 0"]),
        (PLAIN, {"steps": 1}, ["keeps 1 timestep"]),
        (PLAIN, {"seed": 1}, ["--seed is not a flag"]),
    ],
)
def test_what_cannot_be_encoded(images, flags, words, digits):
    one_sentence(lambda: digits.encode(images, **{"classes": [1], "steps": 3, **flags}), *words)


@pytest.mark.parametrize(
    ("reference", "samples", "flags", "words"),
    [
        (PLAIN.astype(float), PLAIN, {}, ["--reference", "float64", "uint8"]),
        (PLAIN, PLAIN[:, 0, 0], {}, ["--samples", "[2, 1]"]),
        (PLAIN, "nowhere.npz", {}, ["--samples nowhere.npz"]),
        (PLAIN, PLAIN, {"metric": "fid"}, ["did you mean --metrics"]),
        (PLAIN, PLAIN, {"metrics": "fod"}, ["--metrics", "fod"]),
        (PLAIN, PLAIN[:, :8, :8], {}, ["classifier", "8x8"]),
        (PLAIN, PLAIN, {"json": "x"}, ["--json is not a flag"]),
        (PLAIN, PLAIN, {"features": "classifier:nowhere.pt"}, ["nowhere.pt"]),
    ],
)
def test_what_cannot_be_scored(reference, samples, flags, words):
    flags = {"features": f"classifier:{CLASSIFIER}", **flags}
    one_sentence(lambda: gd.evaluate(reference, samples, **flags), *words)


@pytest.mark.parametrize("function", [gd.exposure_bias, gd.tune])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"data_dir": "nowhere"}, ["--data_dir", "nowhere"]),
        ({"num_samples": 1}, ["--num_samples is 1"]),
        ({"classes": [1]}, ["--classes is not a flag"]),
        ({"random_flip": True}, ["--random_flip is not a flag"]),
        ({"steps": 2000}, ["2000"]),
        ({"data_dir": PLAIN}, ["data_dir is ndarray; expected the path"]),
        ({"model": DIGITS}, ["model is str; expected what load(...) returns"]),
    ],
)
def test_what_cannot_be_measured(function, flags, words, named, data):
    given = {"model": gd.load(named), "data_dir": data, "steps": 3, "num_samples": 4, **flags}
    one_sentence(lambda: function(**given), *words)


def test_a_trial_is_told_what_to_compare(named, data):
    model = gd.load(named)
    one_sentence(lambda: gd.tune(model, data, steps=3, num_samples=4, refine=40), "--refine 40", "--features")


# -- the face and the scripts ------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "more"), [("image_sample", []), ("classifier_sample", checkpoints.GUIDANCE)])
def test_the_flags_are_those_of_the_scripts(script, more):
    groups, _ = script_runs.groups_of(script)
    of_jobs = {"RngFlags", "ShardFlags", RunFlags.__name__}
    of_script = [group for group in groups if group.__name__ not in of_jobs]
    script, face = (
        {field.name for group in side for field in flags_of(group)}
        for side in (of_script, [*api.NETWORK, *api.SAMPLER, *more])
    )
    assert script == face


def test_importing_the_package_loads_nothing():
    """Not even torch; and a module that is imported by itself does not bring the others."""
    code = """
import sys
import guided_diffusion as gd
assert {"load", "tune", "evaluate"} < {*dir(gd)} and not {"torch", "numpy", "tqdm"} & {*sys.modules}
from guided_diffusion.errors import UserError
assert gd.UserError is UserError and "torch" not in sys.modules
import guided_diffusion.schedule
assert "guided_diffusion.api" not in sys.modules and "PIL" not in sys.modules
assert gd.schedule is guided_diffusion.schedule and not hasattr(gd, "sample")
gd.load
assert "guided_diffusion.api" in sys.modules and "evaluations" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_name_of_the_package_is_there():
    for name in gd.__all__:
        assert getattr(gd, name).__doc__
    with pytest.raises(AttributeError, match="nobody"):
        _ = gd.nobody


def test_types_are_told(digits):
    """Every public function of the face says the types of what it takes and returns."""
    made = [api.load, api.evaluate, api.exposure_bias, api.tune]
    made += [getattr(api.Model, name) for name in ("sample", "denoiser", "encode", "decode")]
    for function in made:
        names = {*function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]}
        assert names - {"self"} <= function.__annotations__.keys() and "return" in function.__annotations__
    assert repr(digits) == f"<Model {DIGITS}: x is 1x16x16, 10 classes>"


def test_each_network_computes_by_its_own_flags():
    """Whichever was loaded last, and whoever sampled last."""
    direct, winograd = (gd.load(DIGITS, conv=conv) for conv in ("direct", "winograd"))
    x, t, y = torch.randn(2, 1, 16, 16), torch.tensor([300, 600]), torch.tensor([3, 7])
    with torch.no_grad():
        plain = checkpoints.open_network(DIGITS)[0](x, t, y=y)
        off = {model: (model.network(x, t, y=y) - plain).abs().max() for model in (direct, winograd)}
        winograd.sample(1, steps=1, progress=False)
        assert torch.equal((direct.network(x, t, y=y) - plain).abs().max(), off[direct])
    assert off[direct] * 1.5 < off[winograd] < 1e-3


def test_half_precision_that_is_slow_is_warned_of_as_a_network_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"}, raising=False)
    gd.load(DIGITS)
    assert "no instructions" not in "".join(capsys.readouterr())
    gd.load(DIGITS, use_bf16=True)
    assert "".join(capsys.readouterr()).count("no instructions for bfloat16") == 1
