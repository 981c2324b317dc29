"""Files of DiT's weights: opened by their keys, guided as the release does it, decoded by an autoencoder on disk."""

import foreign
import numpy as np
import pytest
import tiny_models
import torch

from guided_diffusion import checkpoints, methods
from guided_diffusion.adapters import pair_of
from guided_diffusion.adapters.dit import DiT, DiTAdapter
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.denoiser import ModelVarType
from guided_diffusion.errors import UserError
from guided_diffusion.flags import parse
from guided_diffusion.methods.classifier_free_guidance import ClassifierFreeGuidance
from guided_diffusion.networks import UNetFlags
from guided_diffusion.process import DiffusionFlags, Process, SpacingFlags
from guided_diffusion.schedule import NoiseSchedule
from guided_diffusion.solvers.flags import SolverFlags

GROUPS = [CheckpointFlags, SolverFlags, UNetFlags, DiffusionFlags, SpacingFlags, *methods.of_sampling()]
CASE = foreign.cases("DiT")["dit.B"]


@pytest.fixture(params=["pt", "safetensors"])
def paths(request, tmp_path):
    """(path of the toy of the goldens, path of an autoencoder)."""
    state, path = foreign.state_dict(CASE), tmp_path / f"dit.{request.param}"
    if request.param == "pt":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    tiny_models.kl().save_pretrained(tmp_path / "vae")
    return str(path), str(tmp_path / "vae")


def opened(paths, *flags):
    words = ["--model_path", paths[0], "--vae", paths[1], "--num_heads", 4, *flags]
    return checkpoints.load_diffusion(parse(list(map(str, words)), GROUPS, ""))


def model_of_release():
    model = DiT(**CASE["args"])
    model.load_state_dict(foreign.state_dict(CASE))
    return model.eval()


@torch.no_grad()
def test_a_file_opens_by_its_keys(paths):
    parsed, network, process = opened(paths)
    values = parsed.values()
    known = {"learn_sigma": True, "class_cond": True, "num_classes": 5, "image_size": 16, "image_channels": 3}
    assert known.items() <= values.items() and values["clip_denoised"] is False and "num_channels" not in values
    x, t = foreign.unit(CASE["x_shape"]).float(), torch.tensor([0, 421, 999])
    expected = model_of_release()(x, t, torch.tensor([0, 4, 5]))
    torch.testing.assert_close(network(x, t, y=torch.tensor([0, 4, -1])), expected)
    prediction = process.denoiser(network, {"y": torch.tensor([0, 4, 1])})(x, t)
    torch.testing.assert_close(prediction.eps[:2], expected[:2, :4])
    torch.testing.assert_close(prediction.variance[:2], expected[:2, 4:])
    assert pair_of(network).decode(x).shape == (3, 3, 16, 16)


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
@torch.no_grad()
def test_the_release_guides_three_channels(paths, scale):
    """Its forward_with_cfg, held to goldens in test_published_networks; without the flag all channels are guided."""
    x, t, y = foreign.unit((2, 4, 8, 8)).float(), torch.tensor([250, 750]), torch.tensor([1, 3])
    model = model_of_release()
    both = model.forward_with_cfg(torch.cat([x, x]), t.repeat(2), torch.tensor([1, 3, 5, 5]), scale)
    _, network, process = opened(paths, "--guidance_scale", scale, "--guidance_channels", 3)
    found = process.denoiser(network, {"y": y})(x, t)
    torch.testing.assert_close(found.eps, both[:2, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.variance, both[:2, 4:])
    _, network, process = opened(paths, "--guidance_scale", scale)
    told, untold = model(x, t, y)[:, :4], model(x, t, torch.tensor([5, 5]))[:, :4]
    expected = untold + scale * (told - untold)
    torch.testing.assert_close(process.denoiser(network, {"y": y})(x, t).eps, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_guidance_needs_a_label_that_stands_for_none(dropout):
    model = DiT(8, 2, 4, 32, 1, 4, class_dropout_prob=dropout, num_classes=5)
    network, schedule = DiTAdapter(model, (4, 8, 8), 5), NoiseSchedule(np.full(10, 0.02))
    guidance = ClassifierFreeGuidance(guidance_scale=2.0)
    guided = Process(schedule, var_type=ModelVarType.LEARNED_RANGE, methods=[guidance])
    told = {"y": torch.tensor([0, 4])}
    if dropout:
        guided.denoiser(network, told)(torch.zeros(2, 4, 8, 8), torch.tensor([3, 9]))
    else:
        with pytest.raises(UserError, match="--guidance_scale 2.0 asks the network without a class"):
            guided.denoiser(network, told)


def test_what_a_file_leaves_open_is_refused_or_assumed(paths, tmp_path):
    with pytest.raises(UserError, match="denoises 4 channels, latents of an autoencoder; expected --vae"):
        checkpoints.load_diffusion(parse(["--model_path", paths[0]], GROUPS, ""))
    with pytest.raises(UserError, match="--num_heads 5 does not divide the 32 channels"):
        opened(paths, "--num_heads", 5)
    with pytest.raises(UserError, match="--learn_sigma is False"):
        opened(paths, "--learn_sigma", False)
    with pytest.raises(UserError, match="--clip_denoised True holds pixels in their range"):
        opened(paths, "--clip_denoised", True)
    with pytest.raises(UserError, match="--guidance_channels does nothing without --guidance_scale"):
        opened(paths, "--guidance_channels", 3)


def test_one_function_opens_a_path(paths):
    network, process, flags = checkpoints.open_network(paths[0], vae=paths[1], num_heads=4)
    assert network.shape == (4, 8, 8) and network.takes == ("y",) and not network.training
    assert process.schedule.num_timesteps == 1000 and process.var_type.is_learned
    assert flags["num_classes"] == 5
    with pytest.raises(UserError, match="expected a classifier"):
        checkpoints.open_network(paths[0], vae=paths[1], expected="classifier")
