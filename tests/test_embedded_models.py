"""The models in models/: they load without flags, stay small, and do what model-card.md says of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import script_runs
import torch
from PIL import Image
from sklearn.datasets import load_digits

from guided_diffusion.script_util import classifier_defaults, create_classifier

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
CLASSIFIER = MODELS / "digits16_classifier.pt"


def held_out_digits():
    """uint8 [360, 16, 16, 3] and labels [360]: the digits that neither model was trained on."""
    data = load_digits()
    images = [Image.fromarray(np.round(d * (255 / 16)).astype(np.uint8)) for d in data.images[-360:]]
    grown = [np.asarray(i.resize((16, 16), Image.Resampling.BICUBIC).convert("RGB")) for i in images]
    return np.stack(grown), data.target[-360:]


def says(images):
    """What the embedded classifier says of uint8 images at timestep 0, computed without the script."""
    flags = json.loads(CLASSIFIER.with_suffix(".json").read_text())
    model = create_classifier(**{k: flags[k] for k in classifier_defaults()})
    model.load_state_dict(torch.load(CLASSIFIER, weights_only=True))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return model.eval()(x, torch.zeros(len(x), dtype=torch.long)).argmax(dim=1).numpy()


def test_all_models_together_are_small():
    files = list(MODELS.glob("*.pt"))
    assert len(files) >= 3 and sum(f.stat().st_size for f in files) <= 24 * 2**20


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.pt")), ids=lambda path: path.stem)
def test_weights_are_a_plain_state_dict(path):
    state = torch.load(path, weights_only=True)
    assert all(torch.isfinite(v).all() for v in state.values())


def test_the_accuracy_script_counts_what_the_classifier_says(tmp_path):
    images, labels = held_out_digits()
    np.savez(tmp_path / "digits.npz", images, labels)
    arguments = ["--samples", tmp_path / "digits.npz", "--classifier_path", CLASSIFIER, "--out_dir", tmp_path / "out"]
    printed = script_runs.run("classifier_accuracy", *arguments, folder=ROOT / "evaluations")
    right = says(images) == labels
    assert f"{right.sum()} of 360 images are of their class" in printed
    assert f"class 8: {right[labels == 8].sum()} of {(labels == 8).sum()}\n" in printed
    assert right.mean() > 0.95


def test_guided_digits_are_of_their_class_and_grey(tmp_path):
    arguments = "--num_samples 60 --batch_size 60 --timestep_respacing 50 --classifier_scale 1".split()
    models = ["--model_path", MODELS / "digits16.pt", "--classifier_path", CLASSIFIER]
    script_runs.run("classifier_sample", *models, *arguments, "--out_dir", tmp_path)
    samples = np.load(tmp_path / "samples_60x16x16x3.npz")
    assert (says(samples["arr_0"]) == samples["arr_1"]).mean() >= 0.9
    pixels = samples["arr_0"].astype(float)
    assert np.ptp(pixels.mean(axis=(1, 2)), axis=1).mean() < 4  # of 255, between the means of the channels
