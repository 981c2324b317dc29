"""The Frechet distance that training logs, computed again from its checkpoint."""

import csv

import numpy as np
import pytest
import script_runs
import torch
from PIL import Image

from evaluations.fid import frechet_distance, moments_of
from guided_diffusion.generate import preview_sampler
from guided_diffusion.networks import UNetFlags
from guided_diffusion.script_util import DiffusionFlags

SAMPLES = 5


def test_a_run_logs_the_distance_of_its_average_from_the_data(tmp_path):
    data = script_runs.draw_images(tmp_path / "data")
    network = script_runs.mean_colours(tmp_path / "means.pt", 16)
    flags = [
        "--eval_interval",
        2,
        "--eval_samples",
        SAMPLES,
        "--trust_code",
        True,
        "--features",
        f"torchscript:{tmp_path}/means.pt",
    ]
    checkpoint = script_runs.train_class_conditional(data, tmp_path / "run", *flags, "--ema_rate", 0.5)
    with open(tmp_path / "run" / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["frechet_distance"] != "" for row in rows] == [False, True]

    shape = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1"}
    model = UNetFlags(**shape, attention_resolutions="8", class_cond=True, num_classes=3).create(learn_sigma=True)
    model.load_state_dict(torch.load(checkpoint.with_name("ema_0.5_000002.pt"), weights_only=True))
    labels = {"y": torch.arange(SAMPLES) % 3}
    sample = preview_sampler(DiffusionFlags(learn_sigma=True, diffusion_steps=100), SAMPLES, labels)
    real = np.stack([np.asarray(Image.open(path)) for path in sorted(data.iterdir())])
    sets = [network(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255) for x in (real, sample(model.eval()))]
    expected = frechet_distance(*map(moments_of, sets))
    assert float(rows[1]["frechet_distance"]) == pytest.approx(expected, rel=1e-3)


def test_each_score_has_a_row_of_its_step(tmp_path):
    data = script_runs.draw_images(tmp_path / "data")
    script_runs.mean_colours(tmp_path / "means.pt", 16)
    flags = [
        "--eval_interval",
        2,
        "--eval_samples",
        2,
        "--trust_code",
        True,
        "--features",
        f"torchscript:{tmp_path}/means.pt",
    ]
    script_runs.train_diffusion(data, tmp_path / "run", *flags, "--iterations", 7, "--log_interval", 5)
    with open(tmp_path / "run" / "progress.csv") as file:
        scored = {row["step"]: row["frechet_distance"] != "" for row in csv.DictReader(file)}
    assert scored == {"1": False, "2": True, "4": True, "5": False, "6": True, "7": False}
