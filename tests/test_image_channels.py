"""--image_channels: grey and RGBA images from their files to a network and back, by way of every script."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_runs import CLASSIFIER, NETWORK, SUPER_RES, run, train

from guided_diffusion import flags, images
from guided_diffusion.networks import NETWORKS
from guided_diffusion.networks.levels import IMAGE_CHANNELS
from guided_diffusion.script_util import DiffusionFlags

MODES = {1: "L", 4: "RGBA"}


@pytest.fixture(params=MODES)
def channels(request):
    return request.param


@pytest.fixture
def data(tmp_path, channels):
    """A folder of random pictures of that many channels, in two classes."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(8):
        pixels = rng.integers(256, size=(16, 16, 4), dtype=np.uint8)
        picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        assert picture.mode == MODES[channels]
        picture.save(tmp_path / "data" / f"{'ab'[i % 2]}_{i}.png")
    return tmp_path / "data"


def saved(out_dir, count, size, channels):
    """The images of a sampling run, whose picture is of their kind."""
    name = f"samples_{count}x{size}x{size}x{channels}"
    with Image.open(out_dir / f"{name}.png") as picture:
        assert picture.mode == MODES[channels]
        assert channels == 1 or np.asarray(picture)[..., 3].min() >= 0
    return np.load(out_dir / f"{name}.npz")["arr_0"]


def test_a_diffusion_network_and_its_classifier(tmp_path, data, channels):
    told = ["--image_channels", channels]
    classes = ["--class_cond", True, "--num_classes", 2]
    path = train("image_train", data, tmp_path / "net", *NETWORK, *classes, *told, "--sample_interval", 2)
    assert json.loads((tmp_path / "net" / "model000002.json").read_text())["image_channels"] == channels
    state = torch.load(path, weights_only=True)
    assert state["input_blocks.0.0.weight"].shape[1] == state["out.2.weight"].shape[0] == channels
    (preview,) = (tmp_path / "net").glob("*.png")
    with Image.open(preview) as picture:
        assert picture.mode == MODES[channels]
    guide = train("classifier_train", data, tmp_path / "guide", *CLASSIFIER, "--num_classes", 2, *told)
    sampling = ["--model_path", path, "--num_samples", 3, "--timestep_respacing", 2]
    run("image_sample", *sampling, "--out_dir", tmp_path / "out")
    images = saved(tmp_path / "out", 3, 16, channels)
    assert images.dtype == np.uint8 and images.shape == (3, 16, 16, channels)
    run("classifier_sample", *sampling, "--classifier_path", guide, "--out_dir", tmp_path / "guided")
    saved(tmp_path / "guided", 3, 16, channels)
    of_data = ["--model_path", path, "--data_dir", data, "--num_samples", 3, "--timestep_respacing", 3]
    run("image_nll", *of_data, "--out_dir", tmp_path / "nll")
    run("image_invert", *of_data, "--out_dir", tmp_path / "invert")
    original = np.load(tmp_path / "invert" / "reconstructions.npz")["arr_0"]
    with Image.open(data / "a_0.png") as picture:
        expected = np.asarray(picture).reshape(16, 16, channels)
    assert np.abs(original[0].astype(int) - expected).max() <= 1


def test_a_super_resolution_network(tmp_path, data, channels):
    told = ["--image_channels", channels, "--learn_sigma", True]
    path = train("super_res_train", data, tmp_path / "net", *SUPER_RES, *told)
    state = torch.load(path, weights_only=True)
    assert state["input_blocks.0.0.weight"].shape[1] == state["out.2.weight"].shape[0] == 2 * channels
    np.savez(tmp_path / "base.npz", arr_0=np.zeros((2, 8, 8, channels), np.uint8))
    Path(path).with_suffix(".json").unlink()
    hidden = ["--small_size", 8, "--diffusion_steps", 100, "--num_heads", 4, "--large_size", 16]
    sampling = ["--model_path", path, "--num_samples", 2, "--timestep_respacing", 2, *hidden]
    run("super_res_sample", *sampling, "--base_samples", tmp_path / "base.npz", "--out_dir", tmp_path / "out")
    assert saved(tmp_path / "out", 2, 16, channels).shape == (2, 16, 16, channels)


@pytest.mark.parametrize(
    "command",
    [
        ["image_train", *NETWORK, "--data_dir", "base.npz"],
        [
            "super_res_sample",
            "--model_path",
            "sr.pt",
            "--large_size",
            "16",
            "--small_size",
            "8",
            "--base_samples",
            "base.npz",
        ],
        ["image_train", *NETWORK, "--image_channels", 2],
    ],
    ids=["data", "base", "flag"],
)
def test_images_of_other_channels_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    np.savez("base.npz", arr_0=np.zeros((2, 8, 8, 4), np.uint8))
    if command[0] == "super_res_sample":
        parsed = flags.parse(SUPER_RES, [*NETWORKS["super_res"].groups, DiffusionFlags], "")
        torch.save(NETWORKS["super_res"].create(parsed).state_dict(), "sr.pt")
    with pytest.raises(SystemExit) as caught:
        run(*command, "--out_dir", tmp_path / "out")
    assert caught.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ("--image_channels is 2; expected 1, 3 or 4" if 2 in command else "--image_channels says") in said


def test_networks_and_pictures_have_the_same_channels():
    assert tuple(images.MODES) == IMAGE_CHANNELS
