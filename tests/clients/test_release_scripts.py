"""Scripts written here after what releases' scripts do, in scripts/: alone, on two ranks, and with methods' flags."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import script_runs
import torch
from processes import MPIRUN, needs_mpirun, slow
from processes import run as start
from script_runs import draw_images

from guided_diffusion import as_improved, logger, resample, script_util, train_util
from guided_diffusion.image_datasets import load_data

SCRIPTS = Path(__file__).parent / "scripts"
NETWORK = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "8", "class_cond": True}
NETWORK |= {"channel_mult": "1,1", "learn_sigma": True, "noise_schedule": "cosine"}
SIZES = {"large_size": 16, "small_size": 8}
UPSAMPLER = {k: v for k, v in NETWORK.items() if k not in ("image_size", "channel_mult")} | SIZES
CLASSIFIER = {"image_size": 16, "classifier_width": 32, "classifier_depth": 1, "classifier_attention_resolutions": "8"}
FEW = ["--timestep_respacing", 5]


def words(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def save(network, path):
    """A checkpoint of random weights: those that begin as zeros would leave the network without effect."""
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value if value.any() else 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in network.state_dict().items()
    }
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Toy checkpoints of all kinds, a folder of images, and small images to enlarge."""
    folder = tmp_path_factory.mktemp("releases")
    torch.manual_seed(0)
    model = script_util.create_model_and_diffusion(**script_util.model_and_diffusion_defaults() | NETWORK)[0]
    save(model, folder / "model.pt")
    save(
        script_util.create_classifier(**script_util.classifier_defaults() | CLASSIFIER),
        folder / "classifier.pt",
    )
    upsampler = script_util.sr_create_model_and_diffusion(**script_util.sr_model_and_diffusion_defaults() | UPSAMPLER)[
        0
    ]
    save(upsampler, folder / "upsampler.pt")
    draw_images(folder / "data")
    rng = np.random.default_rng(0)
    np.savez(folder / "small.npz", rng.integers(256, size=(4, 8, 8, 3), dtype=np.uint8), np.arange(4))
    return folder


def run(name, out, *arguments, ranks=1, old=False):
    """What a script said, run to its end; its output goes to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    module = ["-m", "guided_diffusion.as_improved"] if old else []
    launcher = [MPIRUN, "-n", ranks] if ranks > 1 else []
    script = [*module, SCRIPTS / f"{name}.py"]
    done = start(*launcher, sys.executable, *script, *arguments, OPENAI_LOGDIR=str(out), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def arrays(path):
    with np.load(path) as npz:
        return npz["arr_0"], npz["arr_1"]


def differ(a, b):
    """The mean difference in grey levels of the images of two runs."""
    return np.abs(a[0].astype(int) - b[0]).mean()


SAMPLE = [*words(NETWORK), *FEW]
ON_RANKS = [1, pytest.param(2, marks=[needs_mpirun, pytest.mark.slow])]


# the script, what it is called with, and the project's own script with its flags
SAMPLED = {
    "image": ("sample", [], "image_sample", []),
    "image, ddim": ("sample", ["--use_ddim", True], "image_sample", ["--use_ddim", True]),
    "guided": (
        "sample",
        ["--classifier_path", "{place}/classifier.pt", "--classifier_scale", 3, *words(CLASSIFIER)],
        "classifier_sample",
        ["--classifier_path", "{place}/classifier.pt", "--classifier_scale", 3],
    ),
    "one gpu": ("sample_1gpu", [], "image_sample", ["--use_ddim", True]),
}
METHODS = {
    "scaled": ["--eps_scaler", 1.05],
    "scaled by step": ["--eps_scaler", "0.01,1.0"],
    "shifted": ["--do_time_shift", True, "--window", 80, "--cutoff", 100],
    "both": ["--do_time_shift", True, "--window", 80, "--cutoff", 100, "--eps_scaler", 1.03],
}


def sampled(place, out, kind, method=()):
    """(images, labels) of a client's script, and of the project's own with the same flags."""
    script, told, own, own_told = SAMPLED[kind]
    told, own_told = ([str(word).format(place=place) for word in line] for line in (told, own_told))
    model = ["--model_path", place / "model.pt"]
    folder = ["--out_dir", out / "client"] if script == "sample_1gpu" else []
    run(script, out / "client", *model, *SAMPLE, *told, *method, *folder)
    (path,) = (out / "client").glob("*.npz")
    few = ["--num_samples", 3, "--batch_size", 2, "--rng", "published", "--out_dir", out / "own"]
    script_runs.run(own, *model, *SAMPLE, *own_told, *few, *method)
    return arrays(path), arrays(out / "own" / "samples_3x16x16x3.npz")


@pytest.fixture(scope="module")
def plain(place):
    """Samples without methods, by kind: made once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = sampled(place, place / f"plain {kind}".replace(", ", "_"), kind)
        return made[kind]

    return of


@pytest.mark.parametrize("kind", [*list(SAMPLED)[1:3], *slow(*(list(SAMPLED)[:1] + list(SAMPLED)[3:]))])
def test_a_client_s_script_samples_what_the_project_s_own_does(plain, kind):
    client, own = plain(kind)
    assert client[0].shape == (3, 16, 16, 3)
    assert np.abs(client[0].astype(int) - own[0]).max() <= 1 and np.array_equal(client[1], own[1])


@pytest.mark.parametrize(
    "kind, method",
    [
        ("image, ddim", "both"),
        ("guided", "scaled"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("image", "scaled"), ("image", "scaled by step"), ("one gpu", "shifted"), ("one gpu", "both")]
        ),
    ],
)
def test_methods_act_in_a_client_s_script_as_in_the_project_s_own(place, tmp_path, plain, kind, method):
    client, own = sampled(place, tmp_path, kind, METHODS[method])
    assert np.abs(client[0].astype(int) - own[0]).max() <= 1 and np.array_equal(client[1], own[1])
    assert differ(client, plain(kind)[0]) > 0.2


@needs_mpirun
@pytest.mark.parametrize("kind", ["guided", *slow("one gpu")])
def test_two_ranks_sample_together(place, tmp_path, kind):
    script, told, *_ = SAMPLED[kind]
    told = [str(word).format(place=place) for word in told]
    method = METHODS["shifted"] if kind == "one gpu" else METHODS["scaled"]
    folder = ["--out_dir", tmp_path] if kind == "one gpu" else []
    run(script, tmp_path, "--model_path", place / "model.pt", *SAMPLE, *told, *method, *folder, ranks=2)
    (path,) = tmp_path.glob("*.npz")
    images, labels = arrays(path)
    assert images.shape == (3, 16, 16, 3) and labels.shape == (3,)


@pytest.mark.parametrize("ranks", ON_RANKS)
def test_images_are_enlarged(place, tmp_path, ranks):
    told = [*words(UPSAMPLER), *FEW, "--base_samples", place / "small.npz"]
    results = []
    for name, method in {"plain": [], "scaled": METHODS["scaled"]}.items():
        run("enlarge", tmp_path / name, "--model_path", place / "upsampler.pt", *told, *method, ranks=ranks)
        with np.load(tmp_path / name / "samples.npz") as npz:
            results.append([npz["arr_0"]])
    assert results[0][0].shape == (4, 16, 16, 3) and differ(*results) > 0.2


@pytest.mark.parametrize("ranks", ON_RANKS)
def test_likelihoods(place, tmp_path, ranks):
    told = ["--model_path", place / "model.pt", "--data_dir", place / "data", *SAMPLE]
    printed = run("likelihood", tmp_path / "client", *told, ranks=ranks).split("bits per dimension: ")[1].split()[0]
    if ranks == 1:
        more = ["--num_samples", 4, "--batch_size", 2, "--rng", "published", "--out_dir", tmp_path]
        own = script_runs.run("image_nll", *told, *more).split("4 images: ")[1].split()[0]
        assert float(printed) == pytest.approx(float(own), rel=1e-4)
    assert np.isfinite(float(printed))


# -- training --------------------------------------------------------------------------------------

PERTURBED = {
    "plain": {},
    "perturbed": {"input_pertub": 0.5},
    "by time": {"input_pertub": 0.5, "perturb_schedule_type": "linear"},
}


def weights(folder):
    return torch.load(folder / "model000002.pt", weights_only=True)


def by_the_class(place, out, told):
    """The weights after three steps of the published loop on a process with a method's flags."""
    for seeded in (torch.manual_seed, np.random.seed, random.seed):
        seeded(0)
    values = script_util.model_and_diffusion_defaults() | NETWORK
    model, diffusion = script_util.create_model_and_diffusion(**values, **told)
    logger.configure(str(out), ["csv"])
    try:
        train_util.TrainLoop(
            model=model,
            diffusion=diffusion,
            data=load_data(data_dir=place / "data", batch_size=2, image_size=16, class_cond=True),
            batch_size=2,
            microbatch=-1,
            lr=1e-3,
            ema_rate="0.9,0.99",
            log_interval=1,
            save_interval=2,
            resume_checkpoint="",
            schedule_sampler=resample.UniformSampler(diffusion),
            lr_anneal_steps=3,
        ).run_loop()
    finally:
        logger.reset()
    return weights(out)


@pytest.mark.slow
def test_input_perturbation_acts_in_a_client_s_training(place, tmp_path):
    trained = {}
    for name, told in PERTURBED.items():
        folder = tmp_path / name
        run("train", folder, "--data_dir", place / "data", *words(NETWORK), *words(told))
        trained[name] = weights(folder)
        expected = by_the_class(place, tmp_path / f"{name} by the class", told)
        assert all(torch.allclose(trained[name][k], v, atol=1e-5) for k, v in expected.items())
        assert {path.name for path in folder.glob("*.pt")} == {
            f"{kind}{step}.pt" for kind in ("model", "ema_0.9_", "ema_0.99_", "opt") for step in ("000000", "000002")
        }
    for a, b in (("plain", "perturbed"), ("plain", "by time"), ("perturbed", "by time")):
        assert any((trained[a][k] - trained[b][k]).abs().max() > 1e-4 for k in trained[a])


@needs_mpirun
def test_two_ranks_train_together(place, tmp_path):
    run("train", tmp_path, "--data_dir", place / "data", *words(NETWORK), "--input_pertub", 0.15, ranks=2)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize("ranks", ON_RANKS)
def test_an_upsampler_is_trained(place, tmp_path, ranks):
    told = ["--upsampler", "--data_dir", place / "data", *words(UPSAMPLER)]
    run("train", tmp_path, *told, ranks=ranks)
    assert weights(tmp_path)["input_blocks.0.0.weight"].shape[1] == 6


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ON_RANKS)
def test_a_classifier_is_trained_and_goes_on(place, tmp_path, ranks):
    told = ["--data_dir", place / "data", *words(CLASSIFIER)]
    run("train_classifier", tmp_path, *told, ranks=ranks)
    more = ["--resume_checkpoint", tmp_path / "model000003.pt", "--iterations", 4]
    run("train_classifier", tmp_path, *told, *more, ranks=ranks)
    third, fourth = (torch.load(tmp_path / f"model00000{step}.pt", weights_only=True) for step in (3, 4))
    assert third.keys() == fourth.keys() and any(not torch.equal(third[k], fourth[k]) for k in third)


# -- improved-diffusion ----------------------------------------------------------------------------

OLD = {k: v for k, v in NETWORK.items() if k != "channel_mult"} | {"diffusion_steps": 200}
OLD_DEFAULTS = dict(
    image_size=64, num_channels=128, num_res_blocks=2, num_heads=4, num_heads_upsample=-1, attention_resolutions="16,8",
    dropout=0.0, learn_sigma=False, sigma_small=False, class_cond=False, diffusion_steps=1000, noise_schedule="linear",
    timestep_respacing="", use_kl=False, predict_xstart=False, rescale_timesteps=True, rescale_learned_sigmas=True,
    use_checkpoint=False, use_scale_shift_norm=True,
)  # fmt: skip


@pytest.mark.parametrize("ranks", ON_RANKS)
def test_a_script_of_improved_diffusion_runs_with_that_package_s_defaults(tmp_path, ranks):
    values = script_util.model_and_diffusion_defaults() | OLD
    torch.manual_seed(0)
    path = save(script_util.create_model_and_diffusion(**values)[0], tmp_path / "model.pt")
    run("sample_old", tmp_path, "--model_path", path, *words(OLD), *FEW, ranks=ranks, old=True)
    assert json.loads((tmp_path / "defaults.json").read_text()) == OLD_DEFAULTS

    def expected(rescaled):
        torch.manual_seed(0)
        model, diffusion = script_util.create_model_and_diffusion(
            **{**values, "timestep_respacing": "5", "rescale_timesteps": rescaled}
        )
        model.load_state_dict(torch.load(path, weights_only=True))
        return diffusion.p_sample_loop(model.eval(), (2, 3, 16, 16), model_kwargs={"y": torch.arange(2)})

    made = torch.load(tmp_path / "samples.pt", weights_only=True)
    assert torch.allclose(made, expected(True), atol=1e-5)
    assert (made - expected(False)).abs().max() > 0.01


def test_the_old_name_is_no_package_until_it_is_registered(tmp_path):
    script = tmp_path / "imports.py"
    script.write_text("import improved_diffusion.nn as nn, sys\nprint(nn.__name__, sys.argv[1:], sys.path[0])\n")
    done = start(sys.executable, script)
    assert done.returncode == 1 and "No module named 'improved_diffusion'" in done.stderr
    done = start(sys.executable, "-m", "guided_diffusion.as_improved", script, "--a", "1")
    assert done.stdout == f"guided_diffusion.nn ['--a', '1'] {tmp_path}\n"


@pytest.mark.parametrize("argv, word", [([], "no script is given"), (["nowhere.py"], "'nowhere.py' is no file")])
def test_a_script_that_is_not_there_is_said_in_one_sentence(argv, word):
    with pytest.raises(SystemExit, match=f"^as_improved: {word}; expected .*$"):
        as_improved.main(argv)


def test_the_old_upsampler_has_the_old_signature():
    values = as_improved.sr_model_and_diffusion_defaults()
    assert "sigma_small" not in values and values["rescale_timesteps"] and values["large_size"] == 256
    small = {"large_size": 16, "small_size": 8, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "8"}
    model, diffusion = as_improved.sr_create_model_and_diffusion(**values | small, eps_scaler=1.1)
    assert model.input_blocks[0][0].in_channels == 6 and diffusion.rescale_timesteps
