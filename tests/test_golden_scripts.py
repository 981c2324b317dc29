"""The published numbers of the three papers once more, through the scripts and their flags."""

from unittest import mock

import numpy as np
import pytest
import script_runs
import torch
from goldens import PERTURBED_T, closed_form, published
from recipe import tensor

from guided_diffusion import checkpoints, generate
from guided_diffusion.images import to_uint8
from guided_diffusion.networks import UNetFlags
from guided_diffusion.process import DiffusionFlags, of_flags
from guided_diffusion.training.loop import Loop

PROCESS = ["--noise_schedule", "cosine", "--learn_sigma", True]


def golden_network(parsed):
    """What checkpoints.load_diffusion returns, with the network of the goldens for a checkpoint's."""
    process = parsed[DiffusionFlags]
    model = closed_form({"steps": 1000, "noise_schedule": process.noise_schedule, "learn_sigma": process.learn_sigma})
    model.shape = (3, *[parsed[UNetFlags].image_size] * 2)
    return parsed, model, of_flags(parsed)


@pytest.mark.parametrize(
    "file, key, count, flags",
    [
        (
            "time_shift",
            "cosine_ddim5_w80_c300.shifted.samples",
            6,
            "--use_ddim True --timestep_respacing ddim5 --do_time_shift True --window 80 --cutoff 300",
        ),
        ("time_shift", "cosine_ddim5_w80_c300.plain.samples", 6, "--use_ddim True --timestep_respacing ddim5"),
        (
            "epsilon_scaling",
            "ddim_cosine_learned.clip1.samples",
            3,
            "--use_ddim True --timestep_respacing ddim10 --eps_scaler 1.005",
        ),
    ],
)
def test_image_sample(tmp_path, file, key, count, flags):
    noises = []

    def normal(self, *shape):
        """The draws of the class API under seed 1, which begin with the start of all images."""
        noises.append(torch.randn(len(self.generators), *shape))
        return noises[-1]

    arguments = ["--image_size", 8, "--num_samples", count, "--batch_size", count, *PROCESS, *flags.split()]
    with (
        mock.patch.object(checkpoints, "load_diffusion", golden_network),
        mock.patch.object(generate.IndexedNoise, "normal", normal),
        mock.patch.object(torch, "manual_seed", lambda seed, original=torch.manual_seed: original(1)),
    ):
        script_runs.run("image_sample", *arguments, "--model_path", __file__, "--out_dir", tmp_path)
    (path,) = tmp_path.glob("samples_*.npz")
    golden = to_uint8(torch.from_numpy(published(file)[key][-1]))
    written = np.load(path)["arr_0"]
    # truncation to whole levels may fall either way where the float is at a level
    assert noises and np.abs(written.astype(int) - golden).max() <= 1 and (written == golden).mean() > 0.99
    assert len(np.unique(golden)) > 50


def test_image_train_perturbs_its_input(tmp_path):
    data = script_runs.draw_images(tmp_path / "data")
    process = [*PROCESS, "--rescale_learned_sigmas", True, "--input_perturbation", 0.15]
    built = []
    with mock.patch.object(Loop, "run_loop", lambda loop: built.append(loop.objective.diffusion)):
        arguments = ["--data_dir", data, "--out_dir", tmp_path / "run", "--batch_size", 4, *process]
        script_runs.run("image_train", *arguments, *script_runs.NETWORK, "--num_workers", 0)
    key = "cosine_rescaled_mse"
    x0 = tensor(f"{key}:x0", 3, 3, 8, 8).clamp(-1, 1)
    torch.manual_seed(1)
    model = closed_form({"steps": 1000, "noise_schedule": "cosine", "learn_sigma": True})
    for name, value in built[0].training_losses(model, x0, PERTURBED_T).items():
        golden = published("input_perturbation")[f"{key}.seeded.{name}"]
        np.testing.assert_allclose(value, golden, rtol=1e-4, atol=1e-5, err_msg=name)
