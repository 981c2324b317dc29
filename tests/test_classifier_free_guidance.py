"""Classifier-free guidance against its combination by hand, and with everything it composes with."""

import numpy as np
import pytest
import sampled
import script_runs
import torch
from recipe import tensor

from guided_diffusion import checkpoints, conditioning
from guided_diffusion.conditioning import Classes
from guided_diffusion.conditioning.classes import ClassDropoutFlags
from guided_diffusion.errors import UserError
from guided_diffusion.flags import parse
from guided_diffusion.generate import IndexedNoise
from guided_diffusion.methods.classifier_free_guidance import ClassifierFreeGuidance
from guided_diffusion.solvers import SOLVERS

SHAPE = (3, 8, 8)
Y = torch.tensor([3, 0, 7])
PROCESS = {"noise_schedule": "cosine", "timestep_respacing": "8", "sigma_small": True}


def network(x, t, y):
    """A smooth eps, to which a class adds; -1 adds nothing."""
    shift = torch.where(y < 0, 0.0, y + 1.0).reshape(-1, 1, 1, 1) / 20
    return 0.8 * x + 0.1 * torch.sin(3 * x + t.float().reshape(-1, 1, 1, 1)) + shift


def by_hand(x, t, scale, lam=1.0):
    with_class, without = (network(x, t, y).double() / lam for y in (Y, torch.full_like(Y, -1)))
    return without + scale * (with_class - without)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 7.5])
@pytest.mark.parametrize("lam", [1.0, 1.02])
def test_eps_is_the_combination_by_hand(scale, lam):
    process = sampled.process(
        "ddim", clip=False, diffusion=PROCESS, methods={"guidance_scale": scale, "eps_scaler": lam}
    )
    x, t = tensor("x", 3, *SHAPE), torch.tensor([100, 400, 700])
    found = process.denoiser(network, {"y": Y})(x, t)
    torch.testing.assert_close(found.eps.double(), by_hand(x, t, scale, lam), rtol=1e-5, atol=1e-5)
    level = process.schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
    again = level.sqrt() * found.x0.double() + (1 - level).sqrt() * found.eps.double()
    torch.testing.assert_close(again, x.double(), rtol=1e-4, atol=1e-4)
    # scaled after the combination it is the same: the weights add up to 1
    torch.testing.assert_close(found.eps.double(), by_hand(x, t, scale) / lam, rtol=1e-5, atol=1e-5)


def test_the_interval_is_in_sigma_and_by_sample():
    flags = {"guidance_scale": 3.0, "guidance_interval": "0.3,5"}
    process = sampled.process("ddim", clip=False, diffusion=PROCESS, methods=flags)
    x, t = tensor("x", 3, *SHAPE), torch.tensor([20, 500, 990])
    sigma = (1 / process.schedule.alpha_bar(t) - 1).sqrt()
    assert sigma[0] < 0.3 < sigma[1] < 5 < sigma[2]
    found = process.denoiser(network, {"y": Y})(x, t).eps
    plain = sampled.process("ddim", clip=False, diffusion=PROCESS).denoiser(network, {"y": Y})(x, t).eps
    assert torch.equal(found[[0, 2]], plain[[0, 2]])
    torch.testing.assert_close(found[1].double(), by_hand(x, t, 3.0)[1], rtol=1e-5, atol=1e-5)


def test_one_call_has_both_halves_and_counts_twice():
    calls = []

    def watched(x, t, y):
        calls.append((len(x), y.tolist()))
        return network(x, t, y)

    process = sampled.process("ddim", diffusion=PROCESS, methods={"guidance_scale": 2.0})
    process.denoiser(watched, {"y": Y})(tensor("x", 3, *SHAPE), torch.full((3,), 500))
    assert calls == [(6, [3, 0, 7, -1, -1, -1])] and process.network_calls == 6


def images(solver, methods, **options):
    process = sampled.process(solver, diffusion=PROCESS, methods=methods, **options)
    return sampled.batch(process, network, IndexedNoise(0, range(3)), SHAPE, {"y": Y})


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_works_with_every_solver_and_method(solver):
    plain = images(solver, {})
    assert torch.equal(images(solver, {"guidance_scale": 1.0}), plain)
    variants = ("net",) if solver == "bdia" else ("net", "adm", "target")
    for methods in (
        {},
        {"eps_scaler": 1.01},
        *({"do_time_shift": True, "window": 40, "cutoff": 99, "time_shift_variant": v} for v in variants),
    ):
        guided = images(solver, {"guidance_scale": 2.0, **methods})
        assert guided.isfinite().all() and guided.abs().max() < 20
        assert not torch.equal(guided, images(solver, methods))
    assert images(solver, {"guidance_scale": 4.0}, thresholding="dynamic").isfinite().all()


def test_guidance_needs_classes():
    process = sampled.process("ddim", diffusion=PROCESS, methods={"guidance_scale": 2.0})
    without = Takes(())
    for model, cond in ((lambda *_: None, {}), (without, {}), (without, {"y": Y}), (Takes(("low_res",)), {"y": Y})):
        with pytest.raises(UserError, match="--guidance_scale 2.0 needs a network that is told a class or a reference"):
            process.denoiser(model, cond)


class Takes(torch.nn.Module):
    """A network that says what it takes."""

    def __init__(self, takes):
        super().__init__()
        self.takes = takes


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("times", [[20, 30, 40], [500, 500, 500], [20, 500, 990], [500, 990, 400]])
def test_only_answers_that_are_combined_are_asked_for(scale, learned, times):
    """Of each sample by hand; outside the interval that with classes alone, within it at scale 0 that without."""
    calls = []

    def watched(x, t, y):
        calls.extend(zip(t.tolist(), y.tolist()))
        answer = network(x, t, y)
        return torch.cat([answer, 0.1 * answer], dim=1) if learned else answer

    methods = {"guidance_scale": scale, "guidance_interval": "0.3,5"}
    flags = {"noise_schedule": "cosine", "learn_sigma": learned}
    process = sampled.process("ddim", clip=False, diffusion=flags, methods=methods)
    x, t = tensor("x", 3, *SHAPE), torch.tensor(times)
    found = process.denoiser(watched, {"y": Y})(x, t)
    guided = [100 < time < 900 for time in times]
    # first one answer for each sample, in their order, which is what a listener to the network counts on
    first = [(time, -1 if inside and scale == 0 else y) for time, y, inside in zip(times, Y.tolist(), guided)]
    assert calls == first + [(time, -1) for time, inside in zip(times, guided) if inside and scale]
    assert process.network_calls == len(calls)
    for i, inside in enumerate(guided):
        torch.testing.assert_close(
            found.eps[i].double(), by_hand(x, t, scale if inside else 1.0)[i], rtol=1e-5, atol=1e-5
        )
        if learned:
            y = Y if scale or not inside else torch.full_like(Y, -1)
            torch.testing.assert_close(found.variance[i], 0.1 * network(x, t, y)[i])
    assert torch.equal(found.x_t, x) and torch.equal(found.alpha_bar, process.schedule.alpha_bar(t))


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("interval", ["", "0.3,5"])
def test_what_methods_count_is_images_however_often_they_are_asked_about(scale, interval):
    """A shift that does not depend on the images is reported as without guidance."""
    shift = {"do_time_shift": True, "time_shift_variant": "net", "time_shift_constant": 3, "cutoff": 99}
    lines = []
    for guidance in ({}, {"guidance_scale": scale, "guidance_interval": interval}):
        process = sampled.process("heun", diffusion=PROCESS, methods={**shift, **guidance})
        sampled.batch(process, network, IndexedNoise(0, range(3)), SHAPE, {"y": Y})
        lines.append([line for method in process.methods for line in method.report(process)])
    assert lines[0] and lines[1] == lines[0]


@pytest.mark.parametrize("interval, warned", [("0.3,5", False), ("", False), ("200,300", True), ("0,0.001", True)])
def test_an_interval_that_no_step_meets_is_warned_of(interval, warned):
    method = ClassifierFreeGuidance(guidance_scale=2.0, guidance_interval=interval)
    process = sampled.process("ddim", diffusion=PROCESS)
    said = list(method.advice(process, {"class_dropout": 0.1}))
    assert bool(said) == warned and all("--guidance_interval" in sentence for sentence in said)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"guidance_interval": "1"}, "--guidance_interval is '1'; expected LO,HI"),
        ({"guidance_interval": "2,1"}, "--guidance_interval is '2,1'; expected LO,HI"),
        ({"guidance_interval": "a,b"}, "--guidance_interval is 'a,b'"),
        ({"guidance_interval": "nan,1"}, "--guidance_interval is 'nan,1'"),
        ({"guidance_scale": -1.0}, "--guidance_scale is -1.0"),
        ({"guidance_scale": float("inf")}, "--guidance_scale is inf; expected a finite number"),
        ({"guidance_interval": "1,2"}, "--guidance_interval does nothing without --guidance_scale"),
    ],
)
def test_bad_values_are_refused(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        ClassifierFreeGuidance(**flags)


def test_an_interval_without_a_scale_is_refused():
    with pytest.raises(UserError, match="--guidance_interval does nothing without --guidance_scale"):
        parse(["--guidance_interval", "1,2"], [ClassifierFreeGuidance], "")


@pytest.mark.parametrize("share", [1.0, 1.5, -0.1, float("nan")])
def test_dropping_all_classes_is_refused(share):
    with pytest.raises(UserError, match="--class_dropout is"):
        ClassDropoutFlags(class_dropout=share)


# -- training with dropped classes -----------------------------------------------------------------


def test_dropout_drops_its_share_and_0_draws_nothing():
    labels = torch.arange(10).repeat(400)
    state = torch.get_rng_state()
    assert Classes(10).of_data(None, labels)["y"] is labels
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    told = Classes(10, dropout=0.2).of_data(None, labels)["y"]
    kept = told >= 0
    assert torch.equal(told[kept], labels[kept]) and (told[~kept] == -1).all()
    assert abs((~kept).float().mean() - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5


def test_what_cannot_be_dropped_stays():
    low, y = torch.zeros(2, 3), torch.tensor([1, 2])
    left = conditioning.dropped({"low_res": low, "y": y})
    assert left["low_res"] is low and left["y"].tolist() == [-1, -1]


def test_a_network_of_the_scripts_is_guided_and_warned_of(tmp_path):
    """A dropped class adds no embedding; a checkpoint that was trained without dropout is warned of."""
    data = script_runs.draw_images(tmp_path / "data")
    for share in (0.5, 0):
        path = script_runs.train_class_conditional(
            data, tmp_path / f"run{share}", "--class_dropout", share, "--lr", 0.05
        )
        common = ["--model_path", path, "--num_samples", 2, "--timestep_respacing", 4, "--out_dir"]
        said = script_runs.run("image_sample", *common, tmp_path / f"guided{share}", "--guidance_scale", 3)
        assert ("trained without --class_dropout" in said) == (share == 0)
        network, _, flags = checkpoints.open_network(str(path))
        with torch.no_grad():
            x, t = torch.zeros(1, 3, 16, 16), torch.tensor([50])
            classes = [network(x, t, torch.tensor([y])) for y in (-1, 0, 1)]
        assert not torch.equal(classes[0], classes[1]) and flags["num_classes"] == 3
        script_runs.run("image_sample", *common, tmp_path / f"plain{share}")
        made = [next((tmp_path / f"{kind}{share}").glob("*.npz")) for kind in ("guided", "plain")]
        assert not np.array_equal(*(np.load(p)["arr_0"] for p in made))


def test_an_unconditional_network_is_refused_in_one_sentence(tmp_path, capsys):
    path = script_runs.train_diffusion(script_runs.draw_images(tmp_path / "data"), tmp_path / "run")
    flags = ["--model_path", path, "--num_samples", 1, "--timestep_respacing", 2, "--out_dir", tmp_path / "out"]
    with pytest.raises(SystemExit):
        script_runs.run("image_sample", *flags, "--guidance_scale", 2)
    said = capsys.readouterr().err
    assert (
        "--guidance_scale 2.0 needs a network that is told a class or a reference" in said and "Traceback" not in said
    )


def test_classifier_guidance_does_not_hide_that_the_network_has_no_classes(tmp_path, capsys):
    data = script_runs.draw_images(tmp_path / "data")
    path = script_runs.train_diffusion(data, tmp_path / "run")
    classifier = script_runs.train_classifier(data, tmp_path / "classifier")
    flags = ["--model_path", path, "--classifier_path", classifier, "--num_samples", 1, "--timestep_respacing", 2]
    script_runs.run("classifier_sample", *flags, "--out_dir", tmp_path / "plain")
    with pytest.raises(SystemExit):
        script_runs.run("classifier_sample", *flags, "--out_dir", tmp_path / "out", "--guidance_scale", 3)
    said = capsys.readouterr().err
    assert (
        "--guidance_scale 3.0 needs a network that is told a class or a reference" in said and "Traceback" not in said
    )
