"""exposure_bias: closed forms, a second computation in numpy, ranks, killed runs, measures of one's own, refusals."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import ClassVar

import exposure
import gaussians
import numpy as np
import pytest
import script_runs
import torch
from PIL import Image
from processes import HANGS, MPIRUN, Job, clean_env, needs_mpirun, slow

import guided_diffusion as gd
from evaluations.exposure import measures, sums
from evaluations.exposure.measures import Delta, Errors, Measure, Norms, Setup, Variance
from evaluations.exposure.measures.delta import normal_factor
from evaluations.exposure.walks import Gaussian, walk
from guided_diffusion.methods import of_values
from guided_diffusion.methods.method import jackknife
from guided_diffusion.solvers import SOLVERS

SHAPE = (4, 4, 4)


def gaussian_images(count, seed=1):
    """Images of gaussians.MEAN and VARIANCE by channel."""
    normal = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return gaussians.column(gaussians.MEAN, normal) + gaussians.column(gaussians.VARIANCE, normal).sqrt() * normal


def largest(values, errors):
    """The largest number of standard errors that values are away from 0."""
    return np.max(np.abs(values) / np.maximum(errors, 1e-12))


# -- closed forms ----------------------------------------------------------------------------------


class Spread:
    """The exact spread of x_t - sqrt(alpha_bar) x_0, by a recursion of second moments, for one pixel of N(0, v).

    A state is a x_0 + c xi + (independent noise of variance n), with x_0 and xi the image and the noise it began with.

    :param levels: alpha_bar of the kept steps, decreasing from the data on.
    :param factor: that the exact noise prediction is multiplied by.
    """

    def __init__(self, levels, v, factor):
        self.levels, self.v, self.factor = levels, v, factor

    def along(self, solver):
        """Standard deviations [S], by increasing timestep."""
        a, c, n = np.sqrt(self.levels[-1]), np.sqrt(1 - self.levels[-1]), 0.0
        found, before = [], None
        for i in reversed(range(len(self.levels))):
            here, there = self.levels[i], self.levels[i - 1] if i else 1.0
            found.append(np.sqrt((a - np.sqrt(here)) ** 2 * self.v + c**2 + n))
            gain = self.factor * np.sqrt(1 - here) / (here * self.v + 1 - here)  # of the prediction of the noise
            to_x0 = (1 - np.sqrt(1 - here) * gain) / np.sqrt(here)
            state, x0 = np.array([a, c]), to_x0 * np.array([a, c])
            if solver == "ddim":
                step = np.sqrt(there) * to_x0 + np.sqrt(1 - there) * gain
                (a, c), n = step * state, step**2 * n
            elif solver == "ddpm":
                beta = 1 - here / there
                step = beta * np.sqrt(there) / (1 - here) * to_x0
                step += np.sqrt(here / there) * (1 - there) / (1 - here)
                (a, c), n = step * state, step**2 * n + beta * (1 - there) / (1 - here) * (i > 0)
            else:  # Lu et al. 2022b, algorithm 2; order 1 at both ends
                lam = [0.5 * np.log(level / (1 - level)) if level < 1 else np.inf for level in (here, there)]
                h = lam[1] - lam[0]
                d = x0 if before is None or not i else x0 + (x0 - before[1]) * h / (2 * (lam[0] - before[0]))
                shrunk = np.sqrt((1 - there) / (1 - here))
                a, c = shrunk * state + (np.sqrt(there) - shrunk * np.sqrt(here)) * d
                before = lam[0], x0
        return np.array(found[::-1])


@pytest.mark.parametrize("factor", [1.0, 1.03])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m"])
def test_delta_is_that_of_the_exact_second_moments(solver, factor):
    made = exposure.process(12, solver)
    network = exposure.Exact(gaussians.exact_eps, made, SHAPE, lambda i: factor + 0 * i)
    # a biased network pulls towards a point beside the mean, which a spread does not see
    found = exposure.measured(made, network, exposure.Real(gaussian_images(256)), [Delta()], seed=3)
    spreads = np.mean([Spread(found.levels, v, factor).along(solver) for v in gaussians.VARIANCE], axis=0)
    spread, delta = (found.curves["delta"][name] for name in ("spread", "delta"))
    expected = normal_factor(256) * spreads
    assert largest(spread.values - expected, spread.errors) < 3
    apart = np.abs(delta.values - (expected - np.sqrt(1 - found.levels)) ** 2)
    assert (apart <= 3 * (delta.errors + spread.errors**2)).all()
    # that of independent images fits the exact denoiser in the limit of many steps alone, and a biased one at none
    independent = found.curves["delta"]["spread_independent"].values
    by_hand = normal_factor(256) * np.mean(
        [np.sqrt(1 - found.levels + 2 * found.levels * v) for v in gaussians.VARIANCE], axis=0
    )
    assert independent == pytest.approx(by_hand, rel=0.02)


def mixture_eps(x, alpha_bar):
    """E[eps | x_t] of pixels that are -0.6 or 0.6, plus N(0, 0.01)."""
    ab = alpha_bar.to(x)[:, None, None, None]
    variance = ab * 0.01 + 1 - ab
    mean = 0.6 * torch.tanh(ab.sqrt() * 0.6 * x / variance)
    return (1 - ab).sqrt() * (x - ab.sqrt() * mean) / variance


def mixture_images(count):
    generator = torch.Generator().manual_seed(2)
    sign = torch.randint(2, (count, *SHAPE), generator=generator) * 2.0 - 1
    return 0.6 * sign + 0.1 * torch.randn(count, *SHAPE, generator=generator)


EXACT = {"gaussian": (gaussians.exact_eps, gaussian_images), "mixture": (mixture_eps, mixture_images)}


@pytest.mark.parametrize("solver", ["ddim", *slow("ddpm", "dpmpp_2m")])
@pytest.mark.parametrize("data", EXACT)
def test_an_exact_denoiser_has_no_exposure_bias(data, solver):
    """In many steps: lengths as at true states, variances and spreads as they should be, errors that add up."""
    eps, images = EXACT[data]
    made = exposure.process(1000 if solver == "ddpm" else 200, solver)
    found = exposure.measured(made, exposure.Exact(eps, made, SHAPE), exposure.Real(images(96)), seed=0, batch=96)
    norms, variance, errors = (found.curves[name] for name in ("norms", "variance", "errors"))
    away = np.abs(norms["eps_ratio"].values - 1) / norms["eps_ratio"].errors
    # of so many times chance puts some beyond three standard errors of 32 shares
    assert away[:: len(away) // 40].max() < 3 and np.mean(away > 3) < 0.01
    along = norms["eps_along"].values - norms["eps_true"].values
    assert np.mean(np.abs(along) > 3 * norms["eps_along"].errors) < 0.01
    assert np.mean(variance["variance_excess"].values) == pytest.approx(0, abs=0.03)
    error, lacking = errors["eps_error"], errors["eps_lacking"]
    assert (error.theory == lacking.values).all()
    off = (error.left_out - lacking.left_out).mean(axis=1)
    assert abs((error.values - lacking.values).mean()) < 3 * jackknife(off)


def test_in_few_steps_the_ratio_is_what_the_solver_alone_does():
    made = exposure.process(10)
    images = gaussian_images(2000)
    real = exposure.Real(images[:128])
    real.gaussian = Gaussian(images)
    found = exposure.measured(made, exposure.Exact(gaussians.exact_eps, made, SHAPE), real, [Norms()], batch=128)
    ratio = found.curves["norms"]["eps_ratio"]
    assert np.abs(ratio.values - 1).max() > 0.02
    # to the covariance's own error, which is largest next to the data
    apart = np.abs(ratio.values - ratio.theory)
    assert apart[2:].max() < 5e-4 and apart.max() < 0.02


def test_a_bias_of_known_size_moves_the_lengths_as_the_recursion_says():
    """At true states the length is multiplied; along sampling the path goes astray as well."""
    made, real = exposure.process(12), exposure.Real(gaussian_images(256))
    found = [
        exposure.measured(
            made, exposure.Exact(gaussians.exact_eps, made, SHAPE, lambda i, f=f: f + 0 * i), real, [Norms()]
        )
        for f in (1.0, 1.03)
    ]
    plain, biased = (each.curves["norms"] for each in found)
    assert biased["eps_true"].values == pytest.approx(1.03 * plain["eps_true"].values, rel=1e-5)
    assert biased["eps_along"].values == pytest.approx(plain["eps_along"].values, rel=1e-5)
    squares = []
    for factor in (1.0, 1.03):
        state, found_squares = (np.zeros(4), np.ones(4)), []
        for i in reversed(range(12)):
            mean, variance = state
            here, there = found[0].levels[i], found[0].levels[i - 1] if i else 1.0
            gain = factor * np.sqrt(1 - here) / (here * gaussians.VARIANCE + 1 - here)
            off = mean - np.sqrt(here) * gaussians.MEAN
            found_squares.append((gain**2 * (variance + off**2)).sum())
            step = np.sqrt(there) * (1 - np.sqrt(1 - here) * gain) / np.sqrt(here) + np.sqrt(1 - there) * gain
            # x0 = (x - sqrt(1 - ab) gain (x - sqrt(ab) m)) / sqrt(ab), eps = gain (x - sqrt(ab) m)
            shift = (np.sqrt(there) * np.sqrt(1 - here) - np.sqrt(1 - there) * np.sqrt(here)) * gain * gaussians.MEAN
            state = step * mean + shift, step**2 * variance
        squares.append(np.array(found_squares[::-1]))
    expected = np.sqrt(squares[1] / squares[0])
    moved = biased["eps_sampled"].values / plain["eps_sampled"].values
    assert moved == pytest.approx(expected, rel=0.01) and np.abs(expected - 1).max() > 0.02


def test_the_gaussian_is_the_exact_denoiser():
    images = gaussian_images(4000)
    x, level = (
        torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.1, 0.3, 0.5, 0.9, 0.99]),
    )
    level = level.double()
    said, exact = Gaussian(images).predict(x, level), gaussians.exact_eps(x.double(), level).float()
    assert said.eps == pytest.approx(exact.numpy(), abs=0.15)
    assert (said.eps - exact).square().mean() < 0.003
    # few images, in closed form by hand
    few, flat = Gaussian(images[:80]), images[:80].flatten(1).double().numpy()
    inverse = np.linalg.inv(0.5 * np.cov(flat, rowvar=False) + 0.5 * np.eye(flat.shape[1]))
    eps = np.sqrt(0.5) * (x.flatten(1).numpy() - np.sqrt(0.5) * flat.mean(axis=0)) @ inverse
    half = few.predict(x, torch.full((5,), 0.5, dtype=torch.float64)).eps.flatten(1)
    assert half.numpy() == pytest.approx(eps, abs=1e-5)


# -- a second computation --------------------------------------------------------------------------


class Crooked:
    """A network without any meaning, whose answer depends on all it is given, and on the order of its calls alone in
    nothing."""

    takes = ("y",)
    shape = SHAPE

    def __call__(self, x, t, y):
        return torch.sin(x.roll(1, 2) * 1.3 + y[:, None, None, None]) + 0.2 * x + 0.001 * t[:, None, None, None]


class Labelled(exposure.Real):
    def batch(self, indices):
        return self.images[list(indices)], {"y": torch.tensor([i % 3 for i in indices])}


@pytest.mark.parametrize(
    "solver, values",
    [
        ("ddim", {}),
        ("ddpm", {"eps_scaler": "1.02"}),
        ("heun", {}),
        ("ddim", {"do_time_shift": True, "time_shift_variant": "paper", "window": 40, "cutoff": 10}),
    ],
)
def test_curves_are_those_of_numpy_on_recorded_states(solver, values):
    made, real = exposure.process(6, solver, of_values(values)), Labelled(gaussian_images(13).clamp(-1, 1))
    found = exposure.measured(made, Crooked(), real, seed=5, batch=5)
    times, images = found.times, real.images.numpy().astype(np.float64)
    ab = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    network = Crooked()

    def said(x, t):
        return network(torch.from_numpy(x).float(), torch.as_tensor(t), torch.arange(13) % 3).double().numpy()

    def shaped(values):
        return np.asarray(values)[:, None, None, None]

    states = {}
    for name in ("sampled", "from_real", "true"):
        with torch.no_grad():
            moments = list(
                walk(name, made, network, real.batch(range(13))[1], real.images, 5, range(13), real.gaussian)
            )
        states[name] = {
            m.i: (m.x.double().numpy(), m.said.eps.double().numpy(), m.x0.double().numpy(), m) for m in moments
        }
        assert sorted(states[name]) == list(range(6))
    for i, t in enumerate(times):
        level = ab[t]
        x, eps, _, _ = states["sampled"][i]
        if "do_time_shift" not in values:  # which asks the network at other times
            assert eps == pytest.approx(said(x, [t] * 13), abs=1e-5)
        true_x, true_eps, true_x0, moment = states["true"][i]
        noise = moment.noise.double().numpy()
        assert true_x == pytest.approx(np.sqrt(level) * images + np.sqrt(1 - level) * noise, abs=1e-5)
        assert true_eps == pytest.approx(said(true_x, [t] * 13), abs=1e-5)
        flat = [part.reshape(13, -1) for part in (eps, true_eps, noise)]
        lengths = [np.sqrt(np.square(part).sum(axis=1)) for part in flat]
        expected = {
            ("norms", "eps_sampled"): lengths[0].mean(),
            ("norms", "eps_true"): lengths[1].mean(),
            ("norms", "eps_along"): ((flat[1] * flat[2]).sum(axis=1) / lengths[1]).mean(),
            ("norms", "eps_ratio"): lengths[0].mean() / lengths[1].mean(),
            ("variance", "variance"): x.reshape(13, -1).var(axis=1, ddof=1).mean(),
            ("errors", "eps_error"): np.square(true_eps - noise).mean(),
            ("errors", "x0_error"): np.square(true_x0 - images).mean(),
        }
        # delta_t as the release computes it
        chain = states["from_real"][i][0]
        rest = chain - np.sqrt(level) * images
        spread = rest.std(axis=0, ddof=1).mean()
        expected |= {
            ("delta", "spread"): spread,
            ("delta", "delta"): (spread - np.sqrt(1 - level)) ** 2,
            ("errors", "x0_error_sampled"): np.square(states["from_real"][i][2] - images).mean(),
        }
        variances = x.reshape(13, -1).var(axis=1, ddof=1)
        for name, v0 in (("shift", images.reshape(13, -1).var(axis=1, ddof=1).mean()), ("shift_published", 0.0)):
            nearest = np.abs(variances[:, None] - (1 - ab * (1 - v0))).argmin(axis=1)
            expected["variance", name] = (nearest - t).mean()
        for (measure, name), value in expected.items():
            assert found.curves[measure][name].values[i] == pytest.approx(value, rel=1e-5, abs=1e-7), (measure, name, i)


@pytest.mark.parametrize("count", [3, 13, 32, 45])
def test_standard_errors_leave_out_a_share_of_the_images(count):
    made, real = exposure.process(3), Labelled(gaussian_images(count).clamp(-1, 1))
    found = exposure.measured(made, Crooked(), real, [Norms(), Delta()], batch=7)
    shares = sums.share_of(range(count), count)
    assert len(set(shares)) == min(32, count) and sums.share_sizes(count).max() <= 2
    with torch.no_grad():
        cond = real.batch(range(count))[1]
        moments = list(walk("from_real", made, Crooked(), cond, real.images, 0, range(count)))
    x, image, level = moments[-1].x.double(), real.images.double(), moments[-1].alpha_bar
    rest = (x - level**0.5 * image).numpy()
    left_out = [rest[shares != share].std(axis=0, ddof=1).mean() for share in range(shares[-1] + 1)]
    curve = found.curves["delta"]["spread"]
    assert curve.left_out[:, 0] == pytest.approx(left_out, rel=1e-6)
    n = len(left_out)
    assert curve.errors[0] == pytest.approx(np.sqrt((n - 1) / n * np.square(left_out - np.mean(left_out)).sum()))


def test_sampled_states_are_those_of_image_sample():
    """From the same noise, so that what is measured is what that script makes."""
    from guided_diffusion.generate import IndexedNoise, images

    made, real = exposure.process(5, "ddpm"), Labelled(gaussian_images(4).clamp(-1, 1))
    cond = real.batch(range(4))[1]
    with torch.no_grad():
        expected = images(made, Crooked(), IndexedNoise(9, range(4)), cond)
        moments = list(walk("sampled", made, Crooked(), cond, real.images, 9, range(4)))
        last = moments[-1]
    assert [m.i for m in moments] == [4, 3, 2, 1, 0] and torch.equal(last.x0, expected)


# -- the script ------------------------------------------------------------------------------------

SHIFT = "--use_ddim True --do_time_shift True --time_shift_variant paper --cutoff 10"
SETTINGS = f"""plain: --use_ddim True
scaled: --use_ddim True --eps_scaler 1.02
shifted: {SHIFT} --window 20
control: {SHIFT} --time_shift_constant {{shift shifted}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exposure")
    data = script_runs.draw_images(folder / "data", count=24)
    script_runs.train_class_conditional(data, folder / "run")
    (folder / "settings.txt").write_text(SETTINGS)
    return folder


def command(place, out_dir, *more):
    return [
        *("--model_path", place / "run" / "model000002.pt", "--data_dir", place / "data", "--settings"),
        *(place / "settings.txt", "--steps", 4, "--num_samples", 9, "--batch_size", 2, "--out_dir", out_dir, *more),
    ]


@pytest.fixture(scope="module")
def measured(place, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("measured")
    return out_dir, script_runs.run("exposure_bias", *command(place, out_dir))


def table_of(folder):
    with open(folder / "exposure_bias.csv", newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def outputs(folder):
    return {name: (folder / name).read_bytes() for name in ("exposure_bias.csv", "exposure_bias.json")}


def test_what_is_written(measured):
    out_dir, _ = measured
    rows = table_of(out_dir)
    assert [row["setting"] for row in rows] == [
        name for name in ("plain", "scaled", "shifted", "control") for _ in range(4)
    ]
    assert [int(row["timestep"]) for row in rows[:4]] == [99, 66, 33, 0] and [row["step"] for row in rows[:4]] == list(
        "1234"
    )
    saved = json.loads((out_dir / "exposure_bias.json").read_text())
    for measure in measures.MEASURES:
        for name, description in measure.curves.items():
            assert description
            values = [float(row[name]) for row in rows]
            assert np.isfinite(values).all() and all(float(row[f"{name}_se"]) >= 0 for row in rows)
            curve = saved[1]["measures"][measure.name][name]
            assert curve["value"] == pytest.approx(values[4:8], rel=1e-6)
    assert saved[0]["images"] == 9 and saved[0]["solver"] == "ddim" and 0 < saved[0]["data_variance"] < 1
    with Image.open(out_dir / "exposure_bias.png") as picture:
        assert picture.width > 1000


def test_the_log_says_what_acts(measured):
    _, printed = measured
    assert "plain, 4 steps: ddim, active: Clipping (--clip_denoised True)\n" in printed
    assert "scaled, 4 steps: ddim, active: EpsilonScaling (--eps_scaler 1.02); Clipping" in printed
    assert "shifted, 4 steps: ddim, active: TimeShift (--do_time_shift True --window 20 --cutoff 10" in printed


def test_true_states_are_those_of_every_sampler_and_sampled_ones_are_not(measured):
    rows = table_of(measured[0])
    plain, scaled = rows[:4], rows[4:8]
    assert [row["eps_true"] for row in plain] == [row["eps_true"] for row in scaled]
    assert [row["x0_error"] for row in plain] != [row["x0_error"] for row in scaled]  # the solver is given another
    assert plain[0]["eps_sampled"] == scaled[0]["eps_sampled"] and plain[-1]["eps_sampled"] != scaled[-1]["eps_sampled"]


@needs_mpirun
def test_two_ranks_write_the_same_bytes(place, measured, tmp_path):
    words = [MPIRUN, "-n", 2, sys.executable, script_runs.FOLDER / "exposure_bias.py", *command(place, tmp_path)]
    subprocess.run(list(map(str, words)), check=True, env=clean_env(OMP_NUM_THREADS="1"), timeout=HANGS)
    assert outputs(tmp_path) == outputs(measured[0])


@pytest.mark.parametrize("ranks", [*slow(1), pytest.param(2, marks=needs_mpirun)])
def test_a_killed_run_goes_on_to_the_same_bytes(place, measured, tmp_path, ranks):
    launcher = [] if ranks == 1 else [MPIRUN, "-n", ranks]
    words = [*launcher, sys.executable, script_runs.FOLDER / "exposure_bias.py", *command(place, tmp_path)]
    (tmp_path / "said").mkdir()
    job, until = Job(list(map(str, words)), tmp_path / "said"), time.monotonic() + HANGS
    while not list(tmp_path.glob("measured/*.chunks/*.chunk")) and time.monotonic() < until:
        time.sleep(0.002)
    for rank in job.ranks():
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)
    job.ended()
    kept = list(tmp_path.glob("measured/*.chunks/*.chunk"))
    assert kept and not (tmp_path / "exposure_bias.json").exists()
    printed = script_runs.run("exposure_bias", *command(place, tmp_path))
    assert "of 9 images are there already" in printed and outputs(tmp_path) == outputs(measured[0])


def test_a_finished_run_measures_nothing_and_a_damaged_part_is_made_again(place, measured, tmp_path):
    script_runs.run("exposure_bias", *command(place, tmp_path))
    one, other, *_ = sorted(tmp_path.glob("measured/*.npz"))
    one.write_bytes(one.read_bytes()[:-50])
    printed = script_runs.run("exposure_bias", *command(place, tmp_path))
    assert printed.count("taken from") == 3 and one.name not in printed and other.name in printed
    assert outputs(tmp_path) == outputs(measured[0])


def test_one_sampler_from_the_flags(place, measured, tmp_path):
    given = ["--use_ddim", True, "--timestep_respacing", 4, "--settings", "", "--steps", 4]
    script_runs.run("exposure_bias", *command(place, tmp_path, *given))
    alone = table_of(tmp_path)
    assert [row | {"setting": "plain"} for row in alone] == table_of(measured[0])[:4]
    words = command(place, tmp_path / "own", *given)
    at = words.index("--steps")
    del words[at : at + 2], words[-2:]
    script_runs.run("exposure_bias", *words)
    assert table_of(tmp_path / "own") == alone


GUIDED = """free: --use_ddim True --guidance_scale 2
classifier: --use_ddim True --classifier_path {classifier} --classifier_scale 20
ancestral: --classifier_path {classifier} --classifier_scale 20
"""


@pytest.fixture(scope="module")
def guiding(place):
    return script_runs.train_classifier(place / "data", place / "classifier")


@pytest.mark.parametrize("conditional", [True, *slow(False)])
def test_guided_samplers_are_told_the_classes_of_the_real_images(place, guiding, tmp_path, conditional):
    """Lengths are those of the network's eps at the states of Model.sample with these classes."""
    path = place / "run" / "model000002.pt" if conditional else script_runs.train_diffusion(place / "data", tmp_path)
    (tmp_path / "settings.txt").write_text(
        "\n".join(GUIDED.format(classifier=guiding).splitlines()[0 if conditional else 1 :])
    )
    given = ["--settings", tmp_path / "settings.txt", "--model_path", path]
    printed = script_runs.run("exposure_bias", *command(place, tmp_path / "out", *given))
    assert "active: ClassifierGuidance" in printed or "; ClassifierGuidance" in printed
    names = sorted(path.name for path in (place / "data").iterdir())
    labels = [("ant", "bee", "cat").index(names[i].partition("_")[0]) for i in np.random.default_rng(0).permutation(24)]
    model, rows = gd.load(path), table_of(tmp_path / "out")
    flags = {"classifier_path": guiding, "classifier_scale": 20.0}
    ways = {"free": {"use_ddim": True, "guidance_scale": 2.0}, "classifier": {"use_ddim": True, **flags}}
    for name, way in {**ways, "ancestral": flags}.items():
        found = [float(row["eps_sampled"]) for row in rows if row["setting"] == name]
        if name == "free" and not conditional:
            assert not found
            continue
        records = []
        told = {"classes": labels[:9]}
        model.sample(9, steps=4, batch_size=9, progress=False, callback=records.append, **told, **way)
        cond = {"y": torch.tensor(labels[:9])} if conditional else {}
        ask = model.process.denoiser(model.network, cond)
        with torch.no_grad():
            lengths = [float(ask(r.x, r.s).eps.flatten(1).norm(dim=1).mean()) for r in records[:-1]]
        assert found[1:] == pytest.approx(lengths, rel=1e-4)
    result = gd.exposure_bias(model, place / "data", steps=4, num_samples=9, batch_size=2, **flags)
    assert result.curves["norms"]["eps_sampled"].values[::-1].tolist() == pytest.approx(found, rel=1e-6)
    assert any("ClassifierGuidance" in method for method in result.active)


def test_another_classifier_under_the_same_name_is_measured_anew(place, guiding, tmp_path):
    classifier = tmp_path / "classifier.pt"
    (tmp_path / "settings.txt").write_text(f"guided: --classifier_path {classifier} --classifier_scale 20\n")
    (tmp_path / "classifier.json").write_bytes(guiding.with_suffix(".json").read_bytes())
    state, made = torch.load(guiding, weights_only=True), []
    for factor in (1, 3):
        torch.save({key: value * factor for key, value in state.items()}, classifier)
        script_runs.run("exposure_bias", *command(place, tmp_path / "out", "--settings", tmp_path / "settings.txt"))
        made.append([row["eps_sampled"] for row in table_of(tmp_path / "out")])
    assert made[0][0] == made[1][0] and made[0][1:] != made[1][1:]


def test_calls_in_place_of_steps(place, tmp_path):
    (tmp_path / "settings.txt").write_text("heun: --solver heun\nddim: --use_ddim True\n")
    words = [*command(place, tmp_path / "out"), "--settings", tmp_path / "settings.txt", "--calls", "5"]
    at = words.index("--steps")
    del words[at : at + 2]
    script_runs.run("exposure_bias", *words)
    steps = [row["setting"] for row in table_of(tmp_path / "out")]
    assert (steps.count("heun"), steps.count("ddim")) == (3, 5)


class Peak(Measure):
    """The largest value of a state: a measure as its file would be."""

    name = "peak"
    walks = ("sampled",)
    curves: ClassVar = {"peak_mean": "mean over images of the largest absolute value of a state"}
    drawn = ("peak_mean",)
    label = "largest value"

    def read(self, moment, setup):
        return {"peak": moment.x.flatten(1).abs().amax(dim=1)}

    def estimate(self, sums, count, setup):
        return {"peak_mean": sums["sampled", "peak"] / count}


def test_a_measure_is_a_class_and_a_line(place, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "MEASURES", [*measures.MEASURES, Peak()])
    script_runs.run("exposure_bias", *command(place, tmp_path))
    for row, old in zip(table_of(tmp_path), table_of(measured[0]), strict=True):
        assert 1 < float(row.pop("peak_mean")) < 10 and float(row.pop("peak_mean_se")) > 0
        assert row == old


def test_the_network_is_heard_at_the_level_of_the_state():
    """Whatever time a method tells it: the answer to another time, read as noise of this one."""
    values = {"do_time_shift": True, "time_shift_variant": "net", "time_shift_constant": 30, "cutoff": 10}
    made, real = exposure.process(5, methods=of_values(values)), exposure.Real(gaussian_images(4))
    network = exposure.Exact(gaussians.exact_eps, made, SHAPE)
    with torch.no_grad():
        moments = list(walk("sampled", made, network, {}, real.images, 0, range(4)))
    for moment in moments:
        told = moment.time + 30 * (moment.i < 4)
        expected = network(moment.x, torch.full((4,), told))
        assert torch.allclose(moment.said.eps, expected, atol=1e-6), moment.i
        assert moment.alpha_bar == float(made.schedule.alpha_bar(torch.tensor(moment.time)))


def test_what_a_variance_lacks_has_the_error_of_that_of_the_images_too():
    """States of one variance all: what is left of the error is that of v0, times alpha_bar."""
    rng, made, count = np.random.default_rng(0), exposure.process(3), 32
    v0, still = rng.uniform(0.1, 0.5, count), np.ones((count, 3))
    levels = made.schedule.alpha_bar(torch.tensor(made.grid)).numpy()
    setup = Setup(made.schedule, np.array(made.grid), levels, v0.mean(), None)
    states = {("sampled", key): still for key in ("variance", "shift", "square", "published")} | {
        ("true", "square"): still
    }
    arrays = {
        "variance of_image": v0,
        **{f"variance {walk_of} {key}": value for (walk_of, key), value in states.items()},
    }
    curve = sums.curves_of(arrays, count, setup, [Variance()])["variance"]["variance_excess"]
    np.testing.assert_allclose(curve.values, 1 - (1 - levels * (1 - v0.mean())))
    np.testing.assert_allclose(curve.errors, levels * v0.std(ddof=1) / count**0.5)


EVERY = [*({"solver": name} for name in SOLVERS if name != "consistency"), {"solver": "heun", "S_churn": 4.0}]


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("options", EVERY, ids=lambda options: "-".join(map(str, options.values())))
def test_the_exact_network_says_what_the_gaussian_says(options, prediction):
    """Whatever a solver does to a state before it asks of it."""
    made, real = exposure.process(6, prediction=prediction, **options), exposure.Real(gaussian_images(30))
    network = exposure.Exact(lambda x, level: real.gaussian.predict(x, level).eps, made, SHAPE)
    walks = [
        walk(name, made, network, {}, real.images, 0, range(30), real.gaussian) for name in ("sampled", "gaussian")
    ]
    with torch.no_grad():
        for one, other in zip(*walks, strict=True):
            assert torch.allclose(one.said.eps, other.said.eps, atol=5e-3), one.i


# -- refusals --------------------------------------------------------------------------------------


def test_colours_behind_a_grey_file_are_not_lost(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(6):
        red = Image.fromarray(np.full((16, 16, 3), [200, 0, 10 * i], np.uint8))
        (red if i else red.convert("L")).save(folder / f"{i}_0.png")
    model = script_runs.FOLDER.parent / "models" / "digits16.pt"
    words = ["--model_path", model, "--data_dir", folder, "--num_samples", 4, "--out_dir", tmp_path / "out"]
    with pytest.raises(SystemExit):
        script_runs.run("exposure_bias", *words)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"[1-5]_0.png is 16x16 RGB; --model_path makes images of 16x16 L$", said), said


def grey(folder):
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 16), 60 * i, np.uint8)).save(folder / f"ant_{i}.png")


def other_size(folder):
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(folder / f"ant_{i}.png")


def mixed_sizes(folder):
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.zeros((16, 16 + (i > 0), 3), np.uint8)).save(folder / f"ant_{i}.png")


def last_is_larger(folder):
    folder.mkdir()
    for i in range(40):
        Image.fromarray(np.full((16 + 8 * (i == 39),) * 2 + (3,), 5 * i, np.uint8)).save(folder / f"ant_{i:02}.png")


def npz_of(*shape):
    def write(path):
        np.savez(path, arr_0=np.zeros(shape, np.uint8), arr_1=np.zeros(shape[0], int))

    return write


@pytest.mark.parametrize(
    "make, name, sentence",
    [
        (grey, "grey", "has images of 16x16 L; --model_path makes images of 16x16 RGB"),
        (other_size, "other", "has images of 12x20 RGB; --model_path makes images of 16x16 RGB"),
        (mixed_sizes, "mixed", "is 16x17 RGB; --model_path makes images of 16x16"),
        (last_is_larger, "last", "ant_39.png is 24x24 RGB; --model_path makes images of 16x16 RGB"),
        (npz_of(4, 8, 8, 3), "small.npz", "has images of 8x8 RGB; --model_path makes images of 16x16 RGB"),
        (npz_of(4, 16, 16, 1), "grey.npz", "grey.npz"),
        (npz_of(2, 16, 16, 3), "few.npz", "few.npz has 2 images; a standard error needs at least 3"),
    ],
)
def test_data_that_do_not_fit_get_one_sentence(place, tmp_path, capsys, make, name, sentence):
    make(tmp_path / name)
    with pytest.raises(SystemExit) as stop:
        script_runs.run("exposure_bias", *command(place, tmp_path / "out", "--data_dir", tmp_path / name))
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and sentence in said[-1] and not list(tmp_path.rglob("exposure_bias.csv"))


@pytest.mark.parametrize(
    "settings, more, sentence",
    [
        ("a:", ["--num_samples", "2"], "--num_samples is 2; a standard error needs at least 3 images"),
        (
            "a:",
            ["--steps", "101"],
            "setting 'a': --timestep_respacing asks for 101 steps of a section of 100 timesteps",
        ),
        ("a: --timestep_respacing ddim{N}", ["--steps", "60"], "setting 'a'"),
        ("a: --classes 3", [], "setting 'a': --classes is not a flag of this script"),
        ("a: --eps_scaler 0", [], "setting 'a': --eps_scaler is '0'"),
        ("a: --classifier_scale 2", [], "setting 'a': --classifier_scale is for guidance; expected --classifier_path"),
        ("a:", ["--data_dir", ""], "--data_dir is not given"),
        ("a:", ["--data_dir", "nowhere"], "--data_dir nowhere is not there"),
        ("a:", ["--calls", "5"], "--calls 5 contradicts --steps 4"),
        ("a: --settings x", [], "setting 'a': --settings is not a flag of this script"),
    ],
)
def test_mistakes_get_one_sentence(place, tmp_path, capsys, settings, more, sentence):
    (tmp_path / "settings.txt").write_text(settings + "\n")
    given = ["--settings", tmp_path / "settings.txt", *more]
    with pytest.raises(SystemExit) as stop:
        script_runs.run("exposure_bias", *command(place, tmp_path / "out", *given))
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and sentence in said[-1]


def test_states_beyond_all_numbers_are_refused(place, tmp_path, capsys):
    state = torch.load(place / "run" / "model000002.pt", weights_only=True)
    state["out.2.bias"].fill_(3e38)
    torch.save(state, tmp_path / "model000002.pt")
    (tmp_path / "model000002.json").write_bytes((place / "run" / "model000002.json").read_bytes())
    with pytest.raises(SystemExit):
        words = command(place, tmp_path / "out", "--model_path", tmp_path / "model000002.pt")
        script_runs.run("exposure_bias", *words, "--clip_denoised", False)
    assert "plain, 4 steps: eps_sampled is not a finite number from timestep 66 on" in capsys.readouterr().err


def test_without_matplotlib_the_tables_are_written(place, measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    printed = script_runs.run("exposure_bias", *command(place, tmp_path))
    assert "no figure is drawn without matplotlib" in printed + capsys.readouterr().err
    assert outputs(tmp_path) == outputs(measured[0]) and not (tmp_path / "exposure_bias.png").exists()


def test_every_measure_says_what_it_draws():
    for measure in (Norms(), Delta(), Variance(), Errors()):
        assert set(measure.drawn) <= set(measure.curves) and measure.label and measure.scale in ("linear", "log")
        assert type(measure).__doc__ and sys.modules[type(measure).__module__].__doc__
