"""Time Shift, Epsilon Scaling and Input Perturbation against what their definitions imply."""

import itertools

import numpy as np
import pytest
import sampled
import torch
from goldens import closed_form, cond_fn
from recipe import tensor
from sklearn.datasets import load_digits, load_sample_image

from guided_diffusion.errors import UserError
from guided_diffusion.methods import Clipping, of_values
from guided_diffusion.methods.epsilon_scaling import EpsilonScaledDenoiser, parse_eps_scaler
from guided_diffusion.methods.input_perturbation import InputPerturbation, Perturbation
from guided_diffusion.methods.time_shift import VARIANTS, TimeShift, pixel_variance
from guided_diffusion.process import DiffusionFlags, Process, Tally
from guided_diffusion.schedule import NoiseSchedule, get_named_beta_schedule
from guided_diffusion.script_util import create_gaussian_diffusion
from guided_diffusion.solvers import DDIM

SHAPE = (3, 3, 8, 8)
LOOPS = {"ddpm": ("p_sample_loop", {}), "ddim": ("ddim_sample_loop", {}), "eta": ("ddim_sample_loop", {"eta": 0.7})}
SCHEDULES = {name: NoiseSchedule(get_named_beta_schedule(name, 1000)) for name in ("linear", "cosine")}


def variant_of(schedule, grid, window, cutoff, variant="paper", data_variance=0.0, constant=0):
    """(the Variant of Time Shift on a grid, the Tally of its searches)."""
    process = Process(SCHEDULES[schedule], grid)
    flags = TimeShift(True, window, cutoff, variant, data_variance, constant)
    return flags.variant(process), process.tallies["time_shift"]


def counted(tally):
    """(center of the search, number, mean shift, share at an edge) of each row of a Tally, noisiest first."""
    count, shift, edge = tally.values
    return [
        (i - 1, int(count[i]), float(shift[i] / count[i]), float(edge[i] / count[i]))
        for i in reversed(count.nonzero()[:, 0].tolist())
    ]


def sample(methods, solver="ddim", guided=False, clip=True, schedule="cosine", learned=True, respacing="10"):
    process = {"steps": 1000, "noise_schedule": schedule, "learn_sigma": learned, "timestep_respacing": respacing}
    diffusion = create_gaussian_diffusion(**process, **methods)
    loop, kwargs = LOOPS[solver]
    torch.manual_seed(1)
    kwargs = {**kwargs, "clip_denoised": clip, "cond_fn": cond_fn if guided else None}
    return getattr(diffusion, loop)(closed_form(process), SHAPE, **kwargs)


IDENTITIES = {
    "scaler 1": {"eps_scaler": 1.0},
    "scaler 0,1": {"eps_scaler": "0,1"},
    **{f"{v}, window 0": {"do_time_shift": True, "window": 0, "time_shift_variant": v} for v in VARIANTS},
    **{f"{v}, cutoff": {"do_time_shift": True, "window": 80, "cutoff": 999, "time_shift_variant": v} for v in VARIANTS},
    "trained with perturbation": {"input_perturbation": 0.1},
}


@pytest.mark.parametrize("solver", LOOPS)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("identity", IDENTITIES)
def test_identity_settings_change_no_bit(identity, solver, guided):
    for clip, learned in ((True, True), (False, False)):
        settings = {"solver": solver, "guided": guided, "clip": clip, "learned": learned}
        assert torch.equal(sample(IDENTITIES[identity], **settings), sample({}, **settings))


# -- epsilon scaling -------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [False, True])
def test_the_scaler_divides_exactly_once(guided):
    x, t = tensor("x", *SHAPE), torch.tensor([10, 500, 900])
    model = closed_form({"steps": 1000, "noise_schedule": "linear"})
    process = sampled.process("ddim", clip=False, guide=cond_fn if guided else None, methods={"eps_scaler": "1.02"})
    prediction = process.denoiser(model)(x, t)
    expected = model(x, t).double() / 1.02
    if guided:
        levels = torch.from_numpy(np.cumprod(1 - get_named_beta_schedule("linear", 1000)))[t]
        expected -= (1 - levels).sqrt().reshape(-1, 1, 1, 1) * cond_fn(x, t)
    torch.testing.assert_close(prediction.eps.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_linear_scaler_counts_kept_steps():
    scaled = EpsilonScaledDenoiser(None, [0, 100, 300, 999], k=0.5, b=1.0)
    assert scaled.scale(torch.tensor([0, 100, 300, 999])).tolist() == [1.0, 1.5, 2.0, 2.5]
    assert scaled.scale(torch.tensor([200])).item() == 1.75


@pytest.mark.parametrize("text, expected", [("1.017", (0, 1.017)), ("0.0025,1.0", (0.0025, 1.0)), (1, (0, 1))])
def test_eps_scaler_is_read(text, expected):
    assert parse_eps_scaler(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "a", "1,2,3", "", "nan"])
def test_eps_scaler_that_scales_nothing_sensible_is_refused(text):
    with pytest.raises(UserError, match="--eps_scaler"):
        parse_eps_scaler(text)


# -- time shift ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("true, expected", [(520, 520), (560, 540), (400, 460)])
def test_the_search_finds_the_time_of_pure_noise(schedule, true, expected):
    shift, _ = variant_of(schedule, range(0, 1000, 100), window=80, cutoff=0)
    level = SCHEDULES[schedule].alpha_bar(torch.tensor([true]))
    z = torch.randn(1, 1, 1000, 1000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = (z - z.mean()) / z.std()
    x = ((1 - level).sqrt() * z).float()
    centre = 500
    found = shift.search(x, torch.tensor([centre])).item()
    assert abs(found - min(max(expected, centre - 40), centre + 40)) <= 0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [200, 500, 800])
def test_the_rules_for_images_follow_their_bias_law(schedule, t):
    """With the data's variance v0 the search returns t; without, the t_s with (1 - v0) ab(t) = ab(t_s)."""
    v0, pixels = 0.25, 512
    rng = np.random.default_rng(5)
    images = rng.standard_normal((1, 1, pixels, pixels))
    images = 0.5 * (images - images.mean()) / images.std(ddof=1)
    levels = np.cumprod(1 - get_named_beta_schedule(schedule, 1000))
    noise = rng.standard_normal(images.shape)
    x = torch.from_numpy(np.sqrt(levels[t]) * images + np.sqrt(1 - levels[t]) * noise).float()
    slope = abs(levels[t + 1] - levels[t - 1]) / 2 * (1 - v0)
    error = 4 * np.sqrt(2) / pixels * pixel_variance(x).item() / slope + 1
    options = {"grid": [0, t, 999], "window": 1998, "cutoff": 0}
    with_v0 = variant_of(schedule, data_variance=v0, **options)[0].search(x, torch.tensor([t])).item()
    assert abs(with_v0 - t) <= error
    without = variant_of(schedule, **options)[0].search(x, torch.tensor([t])).item()
    predicted = np.argmin(np.abs(levels - (1 - v0) * levels[t]))
    assert predicted > t and abs(without - predicted) <= error


def real_images():
    """Digits [3, 1, 16, 16] and photo patches [3, 3, 32, 32] in [-1, 1], by name."""
    digits = load_digits().images[:3].repeat(2, axis=1).repeat(2, axis=2)[:, None] / 8 - 1
    photos = np.stack([load_sample_image("china.jpg")[y : y + 32, 200:232] for y in (100, 200, 300)])
    return {"digits": digits, "photo patches": photos.transpose(0, 3, 1, 2) / 127.5 - 1}


@pytest.mark.parametrize("kind", ["digits", "photo patches"])
@pytest.mark.parametrize("t", [300, 600])
def test_the_bias_law_on_real_images(kind, t):
    """As above, the mean of 100 noisy states of an image, within 4 standard errors and a timestep."""
    levels, count = np.cumprod(1 - get_named_beta_schedule("cosine", 1000)), 100
    options = {"grid": [0, t, 999], "window": 1998, "cutoff": 0}
    for index, image in enumerate(real_images()[kind]):
        v0 = image.var(ddof=1)
        noise = np.random.default_rng(index).standard_normal((count, *image.shape))
        x = torch.from_numpy(np.sqrt(levels[t]) * image + np.sqrt(1 - levels[t]) * noise).float()
        predicted = np.argmin(np.abs(levels - (1 - v0) * levels[t]))
        for rule, expected in ((v0, t), (0.0, predicted)):
            shift, _ = variant_of("cosine", data_variance=rule, **options)
            found = shift.search(x, torch.full((count,), t)).double()
            assert abs(found.mean().item() - expected) <= 4 * found.std().item() / np.sqrt(count) + 1
        assert predicted > t + 4


def test_pixel_variance_is_the_unbiased_one():
    x = 3 + 2 * tensor("x", *SHAPE)
    np.testing.assert_allclose(pixel_variance(x), x.double().flatten(1).var(dim=1), rtol=1e-6)


def random_settings():
    rng = np.random.default_rng(11)
    for variant, schedule in itertools.product(VARIANTS, SCHEDULES):
        for _ in range(12):
            steps = int(rng.integers(1, 30))
            window, cutoff = int(rng.integers(0, 2500)), int(rng.integers(0, 1100))
            constant = int(rng.integers(-300, 300)) * int(rng.integers(0, 2))
            yield variant, schedule, str(steps), window, cutoff, constant


@pytest.mark.parametrize("variant, schedule, respacing, window, cutoff, constant", list(random_settings()))
def test_any_setting_stays_in_range_and_finite(variant, schedule, respacing, window, cutoff, constant):
    process = {"noise_schedule": schedule, "timestep_respacing": respacing}
    shift = {
        "do_time_shift": True,
        "window": window,
        "cutoff": cutoff,
        "time_shift_variant": variant,
        "time_shift_constant": constant,
    }
    model = closed_form({"steps": 1000, "noise_schedule": schedule})
    told = []

    def watched(x, t):
        told.append(t)
        return model(x, t)

    x = tensor("start", *SHAPE) * torch.tensor([0.01, 1, 30]).reshape(3, 1, 1, 1)
    by_the_class = create_gaussian_diffusion(**process, **shift).ddim_sample_loop_progressive(watched, x.shape, noise=x)
    process = DiffusionFlags(**process).create([Clipping(True), *of_values(shift)])
    for record in process.sample_records(DDIM(process.schedule), process.denoiser(watched), x):
        assert torch.isfinite(record.x).all()
        torch.testing.assert_close(next(by_the_class)["sample"], record.x, rtol=1e-3, atol=1e-3)
        assert ((record.s >= -1) & (record.s < record.t) & (record.t <= 999)).all()
    assert all(((t >= 0) & (t <= 999)).all() for t in told)


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_below_the_cutoff_are_the_plain_ones(variant):
    diffusion = create_gaussian_diffusion(
        noise_schedule="cosine",
        timestep_respacing="10",
        do_time_shift=True,
        window=80,
        cutoff=400,
        time_shift_variant=variant,
    )
    x, grid = tensor("x", *SHAPE), diffusion.timestep_map
    for i in range(len(grid) - 1):
        t = torch.full((3,), grid[i])
        nominal = t, torch.full((3,), grid[i - 1] if i else -1)
        governing = {"adm": grid[i], "target": grid[i - 1] if i else -1}.get(variant, grid[i + 1])
        if variant == "net":
            same = torch.equal(diffusion.process.clock(x, t), t)
        else:
            same = all(torch.equal(a, b) for a, b in zip(diffusion.process.coupling(i, x, *nominal), nominal))
        assert same or governing > 400


def test_net_tells_the_network_alone():
    process = {"steps": 1000, "noise_schedule": "cosine", "timestep_respacing": "10"}
    shift = {"do_time_shift": True, "time_shift_variant": "net", "cutoff": 0, "time_shift_constant": 30}
    diffusion = create_gaussian_diffusion(**process, **shift)
    x, t = tensor("x", *SHAPE), torch.full((3,), diffusion.timestep_map[4])
    model = closed_form(process)
    prediction = diffusion.process.denoiser(model)(x, t)
    torch.testing.assert_close(prediction.eps, model(x, t + 30))
    torch.testing.assert_close(prediction.alpha_bar, diffusion.schedule.alpha_bar(t))


def test_a_tally_counts_shifts_and_edges():
    tally = Tally(3, 1001)
    center = torch.tensor([500, 500, 300])
    shifts, edges = torch.tensor([40, 10, -3]), torch.tensor([1, 0, 0])
    tally.add(center + 1, torch.stack([torch.ones_like(center), shifts, edges]))
    assert counted(tally) == [(500, 2, 25.0, 0.5), (300, 1, -3.0, 0.0)]
    shift, tally = variant_of("linear", range(0, 1000, 100), 80, 0)
    shift.search(tensor("x", *SHAPE), center, used=torch.tensor([False, False, False]))
    assert counted(tally) == []


def test_statistics_hold_the_shift_that_is_taken():
    """Of a paper's search that would pass the step's target, here at 490, or of TS-DPM's past the step's start."""
    taken = {}
    for variant, x in (("paper", 1e-3 * tensor("x", *SHAPE)), ("target", 1e3 * tensor("x", *SHAPE))):
        shift, tally = variant_of("linear", range(0, 1000, 10), 40, 0, variant)
        times = shift(50, x, torch.full((3,), 500), torch.full((3,), 490))
        taken[variant] = [moved.tolist() for moved in times], counted(tally)
    assert taken["paper"] == ([[491] * 3, [490] * 3], [(500, 3, -9.0, 1.0)])
    assert taken["target"] == ([[500] * 3, [499] * 3], [(490, 3, 9.0, 1.0)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_statistics_count_what_moves_alone(variant):
    shift = {"do_time_shift": True, "time_shift_variant": variant, "cutoff": 400, "window": 20}
    diffusion = create_gaussian_diffusion(timestep_respacing="ddim10", **shift)
    diffusion.ddim_sample_loop(
        closed_form({"steps": 1000, "noise_schedule": "linear"}), SHAPE, noise=tensor("x", *SHAPE)
    )
    # the first step, from 900, never moves; the cutoff is asked of the start, of the target, of the start before
    last, first = {"adm": (500, 800), "target": (500, 700)}.get(variant, (400, 800))
    rows = counted(diffusion.process.tallies["time_shift"])
    assert [row[0] for row in rows] == list(range(first, last - 1, -100))
    (method,) = diffusion.process.methods
    found = method.findings(diffusion.process)
    total = sum(row[1] for row in rows)
    assert found["mean_shift"] == pytest.approx(sum(row[1] * row[2] for row in rows) / total)
    assert found["edge"] == pytest.approx(sum(row[1] * row[3] for row in rows) / total)
    lines = list(method.report(diffusion.process))
    assert lines[0].startswith(f"time shift around {first}: mean {rows[0][2]:+.2f} of 3 searches, ")
    assert len(lines) == len(rows)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("respacing", ["1", "2", "3", "10", "ddim5"])
def test_the_highest_cutoff_is_where_moves_end(variant, respacing):
    def moves(cutoff):
        shift = {"do_time_shift": True, "cutoff": cutoff, "window": 400, "time_shift_variant": variant}
        return not torch.equal(sample(shift, respacing=respacing), plain)

    plain = sample({}, respacing=respacing)
    grid = create_gaussian_diffusion(timestep_respacing=respacing).timestep_map
    highest = variant_of("cosine", grid, 2, 0, variant)[0].highest_cutoff
    assert not moves(highest)
    assert highest == 0 or moves(highest - 1)


@pytest.mark.parametrize("centre, deviation", [(990, 100), (5, 0.001)])
def test_an_end_of_the_range_is_an_edge(centre, deviation):
    shift, tally = variant_of("linear", [0, 5, 990, 999], 60, 0)
    found = shift.search(deviation * tensor("x", *SHAPE), torch.full((3,), centre))
    assert set(found.tolist()) <= {0, 999} and counted(tally)[0][3] == 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_variant_is_advised_against_where_it_looks_up_another_variance(variant, schedule):
    shift = TimeShift(True, 20, 100, variant)
    process = Process(SCHEDULES[schedule], range(0, 1000, 50))
    told = any("reversed alpha_bar" in sentence for sentence in shift.advice(process, {}))
    t = torch.arange(1000)
    error = shift.variant(process).search.variance(t) - (1 - SCHEDULES[schedule].alpha_bar(t))
    assert told == (error.abs().max() > 0.1) == ((variant, schedule) == ("adm", "linear"))


@pytest.mark.parametrize(
    "grid, cutoff, gap",
    [
        ([290, 300, 600, 900], 400, 10),  # 300 moves, as the step from 600 made its state
        ([290, 300, 600, 900], 600, 300),
        ([0, 400, 500, 999], 0, 100),
        ([0, 5, 10, 999], 999, 1000),  # nothing moves
    ],
)
def test_the_smallest_gap_is_beside_a_node_that_moves(grid, cutoff, gap):
    shift, _ = variant_of("linear", grid, window=2, cutoff=cutoff)
    assert shift.smallest_gap == gap
    x = torch.zeros(1, 3, 4, 4)
    at = lambda time: torch.tensor([time])  # noqa: E731
    moved = [shift(i, x, at(t), at(s))[0].item() != t for i, (s, t) in enumerate(zip([-1, *grid], grid))]
    assert any(moved) == (gap < 1000)


# -- input perturbation ----------------------------------------------------------------------------


def test_no_perturbation_draws_no_number():
    noise, t = tensor("n", *SHAPE), torch.tensor([0, 500, 999])
    state = torch.get_rng_state()
    process = Process(SCHEDULES["linear"], methods=[InputPerturbation()])
    corrupted = process.corruption(noise, t)
    assert corrupted[0] is noise and corrupted[1] is t
    diffusion = create_gaussian_diffusion(input_perturbation=0.0)
    assert diffusion.process.corruption(noise, t)[0] is noise
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "schedule_type, expected",
    [
        ("constant", [0.1, 0.1, 0.1]),
        ("linear", [0.001, 0.1 * (0.01 + 0.99 * 500 / 999), 0.1]),
        ("cosine", [0.0, 0.05, 0.05 * (1 - np.cos(np.pi * 0.999))]),
    ],
)
def test_the_strength_follows_its_schedule(schedule_type, expected):
    noise, t = torch.zeros(3, 4, 256, 256), torch.tensor([0, 500, 999])
    torch.manual_seed(0)
    added = Perturbation(0.1, 1000, schedule_type)(noise, t)[0].flatten(1).std(dim=1)
    np.testing.assert_allclose(added, expected, rtol=0.01, atol=1e-9)
    torch.manual_seed(0)
    cut = Perturbation(0.1, 1000, schedule_type, cutoff=1)(noise, t)[0]
    assert (cut[2] == 0).all() and (cut[1] != 0).any()
    for cutoff in (1000, 1500):
        assert (Perturbation(0.1, 1000, schedule_type, cutoff)(noise, t)[0] == 0).all()


def test_the_loss_equals_its_equivalent_form_in_expectation():
    """Noise eps' of strength sqrt(1 + gamma^2), target eps' / sqrt(1 + gamma^2), plus what no network can predict.

    E[eps | eps'] = eps' / (1 + gamma^2) for eps' = eps + gamma xi, and Var[eps | eps'] = gamma^2 / (1 + gamma^2).
    """
    gamma, t = 0.5, 600
    process = {"steps": 1000, "noise_schedule": "linear"}
    diffusion = create_gaussian_diffusion(**process, input_perturbation=gamma)
    model, n = closed_form(process), 400
    x0 = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ts = torch.full((n,), t)
    torch.manual_seed(2)
    losses = diffusion.training_losses(model, x0, ts)["loss"].double()
    combined = np.sqrt(1 + gamma**2) * torch.randn(x0.shape, generator=torch.Generator().manual_seed(4))
    level = diffusion.schedule.alpha_bar(ts[:1]).float()
    x_t = level.sqrt() * x0 + (1 - level).sqrt() * combined
    target = combined / (1 + gamma**2)
    other = ((model(x_t, ts) - target) ** 2).flatten(1).mean(dim=1).double() + gamma**2 / (1 + gamma**2)
    standard_error = ((losses.var() + other.var()) / n).sqrt().item()
    assert abs(losses.mean() - other.mean()).item() < 3 * standard_error
    plain = create_gaussian_diffusion(**process).training_losses(model, x0, ts)["loss"].double()
    assert abs(losses.mean() - plain.mean()).item() > 10 * standard_error
