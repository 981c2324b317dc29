"""Networks that predict eps, x0 or v are one denoiser, and schedules may end in pure noise."""

from dataclasses import replace

import gaussians
import numpy as np
import pytest
import sampled
import torch

from guided_diffusion import checkpoints
from guided_diffusion.denoiser import Prediction, velocity
from guided_diffusion.errors import UserError
from guided_diffusion.flags import parse
from guided_diffusion.generate import IndexedNoise
from guided_diffusion.networks import UNetFlags
from guided_diffusion.process import DiffusionFlags, SpacingFlags
from guided_diffusion.schedule import (
    NoiseSchedule,
    get_named_beta_schedule,
    per_sample,
    rescale_zero_terminal_snr,
)
from guided_diffusion.script_util import create_gaussian_diffusion, diffusion_of
from guided_diffusion.solvers import SOLVERS
from guided_diffusion.spacing import SPACINGS

SHAPE = (4, 6, 6)
ZERO = {"rescale_zero_terminal_snr": True}


def network(prediction, schedule):
    """The exact network of Gaussian data [N, 4, H, W], whatever it predicts."""

    def exact(x, t, **_):
        ab = schedule.alpha_bar(t)
        level, x = per_sample(ab, x.double()), x.double()
        mean, variance = gaussians.column(gaussians.MEAN, x), gaussians.column(gaussians.VARIANCE, x)
        x0 = mean + level.sqrt() * variance * (x - level.sqrt() * mean) / (level * variance + 1 - level)
        eps = gaussians.exact_eps(x, ab)
        return {"x0": x0, "eps": eps, "v": velocity(x0, eps, ab)}[prediction].float()

    return exact


def images(prediction, solver, methods=None, **flags):
    flags = {"noise_schedule": "cosine", "timestep_respacing": "10", "sigma_small": True, **flags}
    process = sampled.process(solver, clip=False, diffusion={"prediction": prediction, **flags}, methods=methods)
    return sampled.batch(process, network(prediction, process.schedule), IndexedNoise(0, range(3)), SHAPE)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("methods", [{}, {"eps_scaler": 1.01}], ids=["plain", "scaled"])
def test_what_the_network_predicts_changes_no_image(solver, methods):
    expected = images("x0", solver, methods, noise_schedule="linear")
    for prediction in ("eps", "v"):
        found = images(prediction, solver, methods, noise_schedule="linear")
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("methods", [{}, {"eps_scaler": "0.001,1.01"}], ids=["plain", "scaled"])
def test_zero_terminal_snr_works_with_every_solver(solver, methods):
    """From pure noise at t = T - 1: v and x0 give the same, and no image is far from the data."""
    by_v, by_x0 = (images(prediction, solver, methods, **ZERO) for prediction in ("v", "x0"))
    assert by_v.isfinite().all() and by_v.abs().max() < 10  # the data's standard deviation is at most 1.4
    torch.testing.assert_close(by_v, by_x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("terminal", [{}, ZERO], ids=["cosine", "zero"])
def test_a_scaler_near_one_hardly_changes_images(prediction, solver, terminal):
    """Though the last cosine timestep has an alpha_bar of 2e-9, where x0 by a scaled eps is off by thousands."""
    plain, scaled = (images(prediction, solver, {"eps_scaler": scaler}, **terminal) for scaler in ("1.0", "1.0005"))
    assert (scaled - plain).abs().max() < 0.01


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("t", [[999, 400, 996, 995], [999] * 4, [995] * 4], ids=["mixed", "noise", "above"])
def test_in_nearly_pure_noise_what_was_predicted_beside_eps_stays(prediction, t):
    t = torch.tensor(t)
    made = [
        sampled.process(clip=False, diffusion={"noise_schedule": "cosine", "prediction": prediction}, methods=methods)
        for methods in ({}, {"eps_scaler": 1.02})
    ]
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    plain, scaled = (process.denoiser(network(prediction, process.schedule))(x, t) for process in made)
    noise = np.log(np.cumprod(1 - get_named_beta_schedule("cosine", 1000))[t]) / 2 < -5.1  # what DPM-Solver leaves out
    kept = torch.from_numpy(noise) & (prediction != "eps")
    expected = plain.eps / torch.where(kept, 1.0, 1.02).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(scaled.eps, expected.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scaled.x0[kept], plain.x0[kept], rtol=0, atol=0)


@pytest.mark.parametrize("steps, scaler", [("1", "1.02"), ("1", "1.0"), ("2", "1.02")])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_a_scaler_that_acts_in_no_step_is_warned_of(prediction, steps, scaler):
    flags = {"noise_schedule": "cosine", "prediction": prediction, "timestep_respacing": steps}
    process = sampled.process("ddim", spacing="uniform", diffusion=flags, methods={"eps_scaler": scaler})
    said = [sentence for method in process.methods for sentence in method.advice(process, {})]
    idle = prediction != "eps" and steps == "1" and scaler != "1.0"
    assert any("--eps_scaler 1.02 does nothing" in sentence for sentence in said) == idle


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_zero_terminal_snr_works_with_a_shift(prediction, solver):
    """Of the network's time, so that what it predicts makes a difference."""
    shift = {"do_time_shift": True, "time_shift_variant": "net", "window": 20, "cutoff": 99}
    made = images(prediction, solver, shift, **ZERO)
    assert made.isfinite().all() and made.abs().max() < 10


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_many_steps_from_pure_noise_reach_the_data(prediction):
    """DDIM in all steps is the ODE, whose map from pure noise to Gaussian data is known."""
    flags = {"noise_schedule": "linear", "diffusion_steps": 1000, "prediction": prediction, **ZERO}
    process = sampled.process("ddim", clip=False, diffusion=flags)
    assert process.schedule.alpha_bar(torch.tensor([999])).item() == 0
    start = gaussians.zeros_then_ones(torch.float32)
    denoise = process.denoiser(network(prediction, process.schedule))
    *_, last = process.sample_records(process.solver, denoise, start)
    gain, offset = gaussians.affine(last.x)
    np.testing.assert_allclose(gain, np.sqrt(gaussians.VARIANCE), rtol=0.02, atol=0.01)
    np.testing.assert_allclose(offset, gaussians.MEAN, atol=0.02)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_schedule_is_shifted_and_scaled(name):
    """Lin et al. 2024, algorithm 1, by its two conditions: the square roots are an affine map of the old ones."""
    before, after = (np.sqrt(np.cumprod(1 - betas)) for betas in _both(name))
    assert after[-1] == 0 and after[0] == pytest.approx(before[0], rel=1e-12)
    slopes = np.diff(after) / np.diff(before)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)
    assert NoiseSchedule(_both(name)[1]).ends_in_noise and not NoiseSchedule(_both(name)[0]).ends_in_noise


def _both(name):
    betas = get_named_beta_schedule(name, 1000)
    return betas, rescale_zero_terminal_snr(betas)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("zero", [False, True])
def test_a_network_without_error_has_no_loss_and_the_exact_bound(prediction, zero):
    """Training's target is what the network predicts; the bound of the exact network does not depend on which."""
    if zero and prediction == "eps":
        return
    flags = DiffusionFlags(noise_schedule="linear", prediction=prediction, rescale_zero_terminal_snr=zero)
    diffusion = diffusion_of(flags)
    x0 = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 10, 500, 900, 999])
    ab = diffusion.schedule.alpha_bar(t)
    target = {"eps": noise, "x0": x0, "v": velocity(x0, noise, ab)}[prediction]
    losses = diffusion.training_losses(lambda x, t: target, x0, t, noise=noise)
    assert losses["mse"].abs().max() < 1e-8
    respaced = create_gaussian_diffusion(
        noise_schedule="linear", prediction=prediction, rescale_zero_terminal_snr=zero, timestep_respacing="20"
    )
    exact = network(prediction, respaced.schedule)
    terms = respaced.calc_bpd_loop(exact, x0.clamp(-1, 1), clip_denoised=False)
    assert all(value.isfinite().all() for value in (terms["vb"], terms["xstart_mse"], terms["total_bpd"]))


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"rescale_zero_terminal_snr": True}, "--rescale_zero_terminal_snr True .* --prediction eps"),
        ({"prediction": "v", "predict_xstart": True}, "--predict_xstart True contradicts --prediction v"),
    ],
)
def test_contradictions_are_refused(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        DiffusionFlags(**flags)


@pytest.mark.parametrize(
    "words, contradicts",
    [
        ("--predict_xstart True --prediction eps", True),
        ("--predict_xstart True --prediction v", True),
        ("--predict_xstart False --prediction x0", True),
        ("--predict_xstart True --prediction x0", False),
        ("--predict_xstart False --prediction v", False),
    ],
)
def test_two_spellings_say_the_same_or_contradict(words, contradicts):
    if contradicts:
        with pytest.raises(UserError, match="--predict_xstart .* contradicts --prediction"):
            parse(words.split(), [DiffusionFlags], "")
    else:
        assert parse(words.split(), [DiffusionFlags], "")[DiffusionFlags].prediction == words.split()[-1]


@pytest.mark.parametrize(
    "told, begins",
    [({"timestep_respacing": "10"}, 999), ({"timestep_respacing": "ddim10"}, 900), ({}, 999)]
    + [({"spacing": name, "timestep_respacing": "10"}, None) for name in SPACINGS],
)
def test_a_grid_that_misses_pure_noise_is_warned_of(told, begins, tmp_path, capsys):
    network = UNetFlags(image_size=8, num_channels=32, num_res_blocks=1, channel_mult="1", attention_resolutions="")
    flags = {**vars(network), "prediction": "v", **ZERO, "noise_schedule": "linear"}
    checkpoints.write(str(tmp_path / "model.pt"), network.create(False).state_dict(), flags)
    groups = [checkpoints.CheckpointFlags, UNetFlags, DiffusionFlags, SpacingFlags]
    words = [f"--{name}={value}" for name, value in {"model_path": tmp_path / "model.pt", **told}.items()]
    *_, process = checkpoints.load_diffusion(parse(words, groups, ""))
    said, begins = capsys.readouterr().out, begins or process.grid[-1]
    assert process.grid[-1] == begins
    assert (f"sampling begins at timestep {begins}, and" in said) == (begins < 999)


def test_classifier_guidance_is_refused_from_pure_noise():
    with pytest.raises(UserError, match="--classifier_scale .* --rescale_zero_terminal_snr"):
        sampled.process("ddim", guide=lambda x, t: -x, diffusion={"prediction": "v", **ZERO})


def test_the_published_spelling_is_x0():
    for flags in (DiffusionFlags(predict_xstart=True), DiffusionFlags(prediction="x0")):
        assert flags.predict_xstart and flags.prediction == "x0"


@pytest.mark.parametrize("kind", [Prediction.from_eps, Prediction.from_x0, Prediction.from_v])
def test_a_choice_of_predictions_takes_all_of_each_sample(kind):
    x, level = torch.randn(3, *SHAPE), torch.tensor([0.3, 0.3, 0.3], dtype=torch.float64)
    answers = []
    for _ in range(2):
        made = kind(x, level, torch.randn(3, *SHAPE), torch.randn(3, *SHAPE))
        answers.append(replace(made, gradient=torch.randn(3, *SHAPE)))
    mask = torch.tensor([True, False, True])
    mixed = answers[0].where(mask, answers[1])
    for name in ("x0", "eps", "variance", "gradient"):
        for i, first in enumerate(mask):
            assert torch.equal(getattr(mixed, name)[i], getattr(answers[0 if first else 1], name)[i]), name
