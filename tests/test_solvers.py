"""Solvers: their orders against closed forms, their kinship, their calls, and how they live with the methods."""

import itertools
from dataclasses import replace

import gaussians
import numpy as np
import pytest
import sampled
import solver_orders
import torch
from goldens import closed_form, cond_fn
from recipe import tensor
from scipy.integrate import quad

from guided_diffusion.denoiser import Prediction
from guided_diffusion.errors import UserError
from guided_diffusion.generate import IndexedNoise
from guided_diffusion.methods import Thresholding
from guided_diffusion.methods.clipping import dynamic_threshold
from guided_diffusion.methods.time_shift import VARIANTS
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.sampling import sample
from guided_diffusion.scalars import bounded
from guided_diffusion.schedule import NoiseSchedule, get_named_beta_schedule, half_log_snr
from guided_diffusion.solvers import DDIM, DDPM, DEIS, PNDM, SOLVERS, DPMSolverPPMultistep, DPMSolverPPSDE, UniPC
from guided_diffusion.solvers.flags import READERS, SolverFlags

SHAPE = (3, 3, 8, 8)
STOCHASTIC = ("ddpm", "dpmpp_sde_2m", "consistency")
INTERPOLATING = ("deis", "dpmpp_2m", "dpmpp_3m", "dpmpp_3m_exact", "dpmpp_sde_2m", "unipc")
NEW = [name for name in SOLVERS if name not in ("ddpm", "ddim")]


def process(name, schedule="linear", steps="6", clip=True, guided=False, spacing="published", dynamic=False, **methods):
    """The Process of a solver; `guided` may be a factor."""
    return sampled.process(
        name,
        clip,
        (lambda x, t: guided * cond_fn(x, t)) if guided else None,
        spacing,
        "dynamic" if dynamic else "static",
        {"noise_schedule": schedule, "learn_sigma": True, "timestep_respacing": steps},
        methods,
    )


def network(schedule="linear"):
    return closed_form({"steps": 1000, "noise_schedule": schedule, "learn_sigma": True})


def images(made, schedule="linear", seed=1):
    return sampled.batch(made, network(schedule), IndexedNoise(seed, range(SHAPE[0])), SHAPE[1:])


def facts(name):
    """What stands on a solver, of which a Process is made."""
    return process(name).solver


def test_facts_stand_on_the_solvers():
    assert [name for name in SOLVERS if facts(name).stochastic] == list(STOCHASTIC)
    assert [name for name in SOLVERS if facts(name).interpolates] == list(INTERPOLATING)
    assert [name for name in SOLVERS if facts(name).fixed_ends] == ["bdia"]
    assert [name for name in SOLVERS if facts(name).guided_by_mean] == ["ddpm"]
    assert sampled.process("ddim", eta=0.5).solver.stochastic


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_made_of_a_schedule_alone(name):
    schedule = NoiseSchedule(get_named_beta_schedule("linear", 1000))
    assert SOLVERS[name](schedule).schedule is schedule


# -- orders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", solver_orders.CHOICES)
def test_deterministic_solvers_have_their_declared_order(name):
    solver = solver_orders.CHOICES[name](solver_orders.SCHEDULE)
    (coarse, _), (fine, _) = (solver_orders.error_and_calls(solver, steps) for steps in (40, 320))
    assert abs(np.log2(coarse / fine) / 3 - solver.order) < 0.25


def variance_error(terms, steps):
    """Of the last variance [4] of Gaussian data, by exact second moments: row k hears unit noise at draw k alone."""
    schedule = solver_orders.SCHEDULE
    lambdas = torch.linspace(*solver_orders.ENDS, steps + 1, dtype=torch.float64)
    times, levels = schedule.time(lambdas), torch.sigmoid(2 * lambdas[[0, -1]]).numpy()
    x = torch.zeros(steps + 2, 4, 1, 1, dtype=torch.float64)
    x[steps] = 1
    denoise, solver, state = gaussians.denoiser(schedule), DPMSolverPPSDE(schedule, terms), None
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        z = torch.zeros_like(x)
        z[i] = 1
        x, _, state = solver(denoise, x, t.expand(len(x)), s.expand(len(x)), state, lambda _, z=z: z)
    x = (x - x[-1])[:-1, :, 0, 0].numpy()
    start, end = (level * gaussians.VARIANCE + 1 - level for level in levels)
    variance = (x[:-1] ** 2).sum(axis=0) + x[-1] ** 2 * start
    return np.abs(variance - end).max()


@pytest.mark.parametrize("terms", [1, 2])
def test_the_stochastic_solver_has_its_declared_weak_order(terms):
    measured = np.log2(variance_error(terms, 40) / variance_error(terms, 160)) / 2
    assert abs(measured - DPMSolverPPSDE(solver_orders.SCHEDULE, terms).order) < 0.25


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_deis_integrates_its_polynomials(degree):
    """Its integrals of the Lagrange polynomials against adaptive quadrature of the same, and their sum."""
    schedule = NoiseSchedule(get_named_beta_schedule("linear", 1000))
    times = torch.tensor([400, 520, 600, 750], dtype=torch.float64)[: degree + 1, None]
    ends = [half_log_snr(schedule.alpha_bar(torch.tensor([t]))) for t in (400, 310)]
    integrals = DEIS(schedule, degree)._integrals(times, *ends)[:, 0].numpy()
    rho = [float(torch.exp(-end)) for end in ends]
    assert integrals.sum() == pytest.approx(rho[1] - rho[0], rel=1e-9)
    for node, found in zip(times[:, 0].tolist(), integrals):
        others = [t for t in times[:, 0].tolist() if t != node]

        def basis(r, node=node, others=others):
            t = schedule.time(torch.tensor([-np.log(r)])).item()
            return np.prod([(t - other) / (node - other) for other in others])

        assert found == pytest.approx(quad(basis, *rho, limit=200)[0], rel=1e-5)


# -- kinship ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("clip", [True, False])
def test_first_order_solvers_are_ddim(schedule, clip):
    ddim = process("ddim", schedule, clip=clip)
    expected = images(ddim, schedule)
    assert torch.equal(images(process("dpmpp_1", schedule, clip=clip), schedule), expected)
    plain = PNDM(ddim.schedule, terms=1, warm_up="")
    start = IndexedNoise(1, range(3)).normal(*SHAPE[1:])
    *_, last = ddim.sample_records(plain, ddim.denoiser(network(schedule)), start)
    assert torch.equal(last.x, expected)


def test_the_first_order_sde_is_ddpm_and_ddim_with_eta_one():
    process = DiffusionFlags(sigma_small=True, timestep_respacing="20").create()
    schedule, runs = process.schedule, []
    start = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for solver in (
        DPMSolverPPSDE(schedule, 1),
        DDPM(schedule, process.var_type, process.variance_floor),
        DDIM(schedule, eta=1.0),
    ):
        records = process.sample_records(solver, gaussians.denoiser(schedule), start, IndexedNoise(4, range(2)))
        runs.append(torch.stack([record.x for record in records]))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(runs[0], runs[2], rtol=1e-9, atol=1e-9)


def test_unipc_without_its_corrector_is_2m():
    """UniP-2 with bh2 and the coefficient 1/2."""
    schedule = solver_orders.SCHEDULE
    denoise, x = solver_orders.denoiser(schedule), solver_orders.STARTS
    times = schedule.time(torch.linspace(-3, 2, 4, dtype=torch.float64))[:, None]
    first = DPMSolverPPMultistep(schedule, 2)
    x1, _, state = first(denoise, x, times[0], times[1], None, None)
    x2 = first(denoise, x1, times[1], times[2], state, None).x
    _, _, memory = UniPC(schedule, 2)(denoise, x, times[0], times[1], None, None)
    here = denoise(x1, times[1])
    history = ((half_log_snr(here.alpha_bar), here.x0), *memory.history)
    torch.testing.assert_close(UniPC(schedule, 2)._step(here, history, schedule.alpha_bar(times[2])), x2)


@pytest.mark.parametrize("order, same", [(3, True), (2, False)])
def test_bh1_and_bh2_take_the_same_step_where_their_system_is_solved(order, same):
    """Their B(h) cancels there; the predictor of order 2 takes the shortcut 1/2 instead."""
    schedule = solver_orders.SCHEDULE
    denoise, x, state = solver_orders.denoiser(schedule), solver_orders.STARTS, None
    times = schedule.time(torch.linspace(-3, 2, 6, dtype=torch.float64))[:, None]
    for t, s in itertools.pairwise(times[:5]):
        x, _, state = UniPC(schedule, order, "bh2")(denoise, x, t, s, state, None)
    one, two = (UniPC(schedule, order, v)(denoise, x, times[4], times[5], state, None).x for v in ("bh1", "bh2"))
    assert torch.allclose(one, two, rtol=1e-10, atol=1e-10) == same


# -- calls and short runs --------------------------------------------------------------------------

CALLS = {
    "pndm_s": lambda n: n + min(1, n - 1),
    "pndm_f": lambda n: n + 3 * min(3, n - 1),
    "plms": lambda n: n + min(1, n - 1),
    "dpmpp_2s": lambda n: 2 * n - 1,
    "heun": lambda n: 2 * n - 1,
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_calls_are_as_declared_and_few_steps_work(name, steps):
    run = process(name, steps=str(steps))
    made = images(run)
    assert torch.isfinite(made).all()
    assert run.images_begun == 3
    assert run.network_calls == 3 * CALLS.get(name, lambda n: n)(steps)


# with the warm-ups after the noisiest cosine timestep, whose step is plain
COSINE_CALLS = {
    "pndm_s": lambda n: n + 1,
    "pndm_f": lambda n: n + 3 * min(3, n - 2),
    "plms": lambda n: n + 1,
    "dpmpp_2s": lambda n: 2 * n - 1,
    "heun": lambda n: 2 * n - 2,
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [3, 8])
def test_calls_from_the_noisiest_cosine_timestep(name, steps):
    run = process(name, "cosine", str(steps))
    assert run.grid[-1] == 999
    images(run, "cosine")
    assert run.network_calls == 3 * COSINE_CALLS.get(name, lambda n: n)(steps)


@pytest.mark.parametrize("name", ["pndm_s", "pndm_f", "plms", "ipndm"])
def test_averages_begin_after_a_plain_step(name):
    """From the second node on they are those of a run that begins there, at what DDIM makes of the first."""
    run = process(name, "cosine", "8")
    solver, denoise = run.solver, run.denoiser(network("cosine"))
    start = tensor("start", *SHAPE)
    records = run.sample_records(solver, denoise, start)
    by_ddim = next(run.sample_records(DDIM(run.schedule), denoise, start)).x
    assert torch.equal(next(records).x, by_ddim)
    *times, last = [*reversed(run.grid[:-1]), -1]
    x, state = by_ddim, None
    for record, t, s in zip(records, times, [*times[1:], last], strict=True):
        x, _, state = solver(denoise, x, torch.full(SHAPE[:1], t), torch.full(SHAPE[:1], s), state, None)
        assert torch.equal(record.x, x)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("spacing", ["published", "uniform", "quad", "logsnr", "karras"])
def test_the_noisiest_cosine_timesteps_do_no_harm(name, spacing):
    """Where alpha_bar is 2.4e-9, errors of the predicted noise count 20,000-fold."""
    run = process(name, "cosine", "12", spacing=spacing)
    assert images(run, "cosine").abs().max() < 2
    start = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    denoise = gaussians.denoiser(run.schedule)
    *_, last = run.sample_records(
        run.solver, lambda x, t: with_variance(denoise(x, t)), start, IndexedNoise(2, range(3))
    )
    assert last.x.abs().max() < 10  # the data's standard deviation is at most 1.4


def with_variance(prediction):
    """The prediction with a learned variance, which ddpm reads."""
    return replace(prediction, variance=torch.zeros_like(prediction.x0))


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "bdia"])
def test_the_last_step_is_the_last_prediction_or_near(name):
    """All but BDIA, whose last step has to leave a way back."""
    run = process(name, steps="5")
    *_, last = run.sample_records(
        run.solver, run.denoiser(network()), tensor("start", *SHAPE), IndexedNoise(0, range(3))
    )
    # a corrected or averaged state differs by what its prediction was not asked about
    torch.testing.assert_close(last.x, last.x0, rtol=0, atol=0.05)


X0_ALONE = ("ddim", "dpmpp_1", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "dpmpp_3m_exact", "unipc")


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "consistency"])  # which starts anew from x0
def test_a_correction_of_one_state_moves_the_next(name):
    """Where x0 is known, by what DDIM makes of the difference; where the noise is remembered, somehow."""
    states = {}
    for lift in (0.0, 1.0):
        run = process(name, steps="8")
        times, level = run.grid, run.schedule.alpha_bar

        def denoise(x, t, level=level):
            return Prediction.from_x0(x, level(t), torch.zeros_like(x), torch.zeros_like(x))

        def lifted(x, prediction, t, s, lift=lift, when=times[4]):
            return x + lift if int(s[0]) == when else x

        noise = IndexedNoise(0, range(3))
        records = sample(denoise, run.solver, times, tensor("start", *SHAPE), noise, correction=lifted)
        states[lift] = {record.i: record.x for record in records}
    moved = {i: states[1.0][i] - states[0.0][i] for i in states[0.0]}
    assert all(not moved[i].any() for i in (7, 6)) and torch.allclose(moved[5], torch.ones(()), atol=1e-5)
    if name in X0_ALONE:
        before, after = 1 - level(torch.tensor([times[4], times[3]]))
        expected = float((after / before) ** 0.5)
        torch.testing.assert_close(moved[4], torch.full(SHAPE, expected), rtol=0, atol=1e-5)
    assert (moved[4].abs() > 0.1).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_state_does_not_grow(name):
    def size(state):
        if isinstance(state, torch.Tensor):
            return state.numel()
        values = vars(state).values() if hasattr(state, "__dict__") else state
        return sum(map(size, values or ())) if isinstance(values, (tuple, list, type({}.values()))) else 0

    run = process(name, steps="12")
    solver, denoise = run.solver, run.denoiser(network())
    x, state, sizes = tensor("start", *SHAPE), None, []
    times = [*reversed(run.grid)]
    for t, s in itertools.pairwise(times):
        x, _, state = solver(denoise, x, torch.full((3,), t), torch.full((3,), s), state, IndexedNoise(0, range(3)))
        sizes.append(size(state))
    assert len(set(sizes[3:])) == 1
    assert sizes[-1] <= 8 * x.numel()


# -- with the methods ------------------------------------------------------------------------------

IDENTITIES = {
    "scaler 1": {"eps_scaler": 1.0},
    **{f"{v}, window 0": {"do_time_shift": True, "window": 0, "time_shift_variant": v} for v in VARIANTS},
    **{f"{v}, cutoff": {"do_time_shift": True, "window": 80, "cutoff": 998, "time_shift_variant": v} for v in VARIANTS},
}


@pytest.mark.parametrize("name", NEW)
def test_identity_settings_change_no_bit(name):
    """On a grid that ends at 800, which no cutoff of 998 lets move."""
    for guided in (False, True):
        plain = images(process(name, "cosine", "ddim5", guided=guided), "cosine")
        for settings in IDENTITIES.values():
            if name == "bdia" and settings.get("time_shift_variant", "net") != "net":
                continue  # refused, below
            assert torch.equal(images(process(name, "cosine", "ddim5", guided=guided, **settings), "cosine"), plain)


def test_a_cutoff_that_leaves_no_step_is_refused():
    with pytest.raises(UserError, match="--cutoff 999 leaves no step to shift; expected below 999"):
        process("ddim", do_time_shift=True, window=80, cutoff=999)


SHIFTS = [*itertools.product(VARIANTS, [0, 25, -25]), ("paper", 0)]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_every_method_works_with_every_solver(name, schedule):
    """Time shift by each variant, searched and constant, with guidance and epsilon scaling: finite, and not idle."""
    # BDIA hands on what guidance does at the noisiest cosine timestep, where it is divided by 5e-5
    guided = (name, schedule) != ("bdia", "cosine")
    plain = images(process(name, schedule, "10", guided=guided), schedule)
    for variant, constant in SHIFTS:
        if name == "bdia" and variant != "net":
            continue  # refused, below
        options = {"time_shift_variant": variant, "time_shift_constant": constant, "window": 60, "cutoff": 150}
        options |= {"do_time_shift": True, "time_shift_data_variance": 0.1}
        made = images(process(name, schedule, "10", guided=guided, **options), schedule)
        assert torch.isfinite(made).all() and made.abs().max() < 20
        assert not torch.equal(made, plain), (variant, constant)
    scaled = process(name, schedule, "10", guided=guided, eps_scaler=1.01)
    assert not torch.equal(images(scaled, schedule), plain)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "bdia"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shift", [{}, {"time_shift_constant": 9}], ids=["searched", "constant"])
def test_a_shift_costs_no_call(name, variant, shift):
    """Where times of samples differ, what is known of all decides what a step asks for: how far from noise they are."""
    options = {"do_time_shift": True, "time_shift_variant": variant, "window": 40, "cutoff": 250, **shift}
    made = [process(name, "cosine", "7"), process(name, "cosine", "7", **options)]
    for each in made:
        images(each, "cosine")
    assert made[0].network_calls == made[1].network_calls > 0


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "net"])
def test_bdia_refuses_shifts_of_its_nodes(variant):
    options = {"do_time_shift": True, "time_shift_variant": variant, "window": 60, "cutoff": 150}
    with pytest.raises(UserError, match=f"--time_shift_variant {variant} moves the ends of steps.* expected net"):
        process("bdia", "cosine", "10", **options)


# (schedule, times, targets), each [steps, samples]; a target is -1 as the coupling of TS-DPM-ADM may make it, which
# then goes on from the nominal time
PER_SAMPLE = {
    "different times": (
        "linear",
        [[900, 999, 800], [700, 640, 790], [450, 500, 450], [200, 130, 300], [20, 60, 100]],
        [[700, 640, 790], [450, 500, -1], [200, 130, 300], [20, 60, 100], [-1, 7, -1]],
    ),
    "nearly noise in some samples and steps": (
        "cosine",
        [[999, 999, 970], [997, 940, 950], [899, 998, 899], [700, 700, 700], [300, 310, 320]],
        [[949, 949, 940], [899, 899, 899], [700, 700, 700], [300, 310, 320], [-1, -1, -1]],
    ),
    "different times, and shared ones from a cutoff on": (
        "linear",
        [[900, 999, 800], [700, 640, 790], *([t] * 3 for t in (500, 400, 300, 200, 100))],
        [[700, 640, 790], *([t] * 3 for t in (500, 400, 300, 200, 100, -1))],
    ),
}


def said(values):
    """The tensor [N], which remembers its one number where that is so, as those of the loop do."""
    low, high = values.min().item(), values.max().item()
    return bounded(values.clone(), low, high) if low == high else values


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("schedule, times, targets", PER_SAMPLE.values(), ids=PER_SAMPLE)
def test_times_are_per_sample(name, schedule, times, targets, known):
    """One batch whose samples take different times gives each what it gets alone, the history included.

    Whether steps whose samples share a time know so, or not.
    """
    run = process(name, schedule, "10")
    solver, denoise = run.solver, run.denoiser(network(schedule))
    start, times, targets = tensor("start", *SHAPE), torch.tensor(times), torch.tensor(targets)

    def walk(x, times, targets, state=None):
        for t, s in zip(times, targets):
            x, _, state = solver(denoise, x, *map(said if known else torch.clone, (t, s)), state, torch.zeros_like)
        return x

    together = walk(start, times, targets)
    for i in range(len(start)):
        alone = walk(start[i : i + 1], times[:, i : i + 1], targets[:, i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "bdia"])
def test_nodes_that_may_meet_are_refused(name):
    options = {"do_time_shift": True, "window": 40, "cutoff": 300, "time_shift_variant": "paper"}
    if name in INTERPOLATING:
        with pytest.raises(UserError, match="paper may move a step by 20 .* is 20 away.* --window of at most 13"):
            process(name, steps="50", **options)
    else:
        assert torch.isfinite(images(process(name, steps="50", **options))).all()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solvers_draw_by_image(name):
    run = process(name, steps="5")

    def make(indices):
        return sampled.batch(run, network(), IndexedNoise(1, indices), SHAPE[1:])

    torch.testing.assert_close(torch.cat([make([0, 1]), make([2])]), make(range(3)), rtol=0, atol=1e-5)
    assert not torch.equal(make([0]), make([1]))


# -- flags and thresholding ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_options_that_a_solver_does_not_read_are_refused(name):
    for option, value in {"eta": 0.5, "order": 1, "variant": "bh1"}.items():
        if name in READERS[option]:
            SolverFlags(solver=name, **{option: value}).refuse_unread({option: value})
        else:
            with pytest.raises(UserError, match=f"--{option} {value} is read by --solver {READERS[option][0]}"):
                SolverFlags(solver=name, **{option: value}).refuse_unread({option: value})
            with pytest.raises(UserError, match=f"--{option} .* is read by"):
                SolverFlags(solver=name).refuse_unread({option: value})  # given as what it is anyway


def test_the_flags_reach_the_solver():
    unipc = sampled.process("unipc", order=3, variant="bh1").solver
    assert (unipc.terms, unipc.variant, unipc.order) == (3, "bh1", 4)
    assert sampled.process("deis").solver.order == 4
    assert sampled.process("deis", order=1).solver.order == 2
    assert sampled.process("ddim", eta=0.5).solver.eta == 0.5


def test_dynamic_thresholding_scales_each_image_by_its_percentile():
    x0 = torch.stack([torch.linspace(-3, 3, 300), torch.linspace(-0.5, 0.5, 300)]).reshape(2, 3, 10, 10)
    bounded = dynamic_threshold(x0, 90)
    limit = np.quantile(x0[0].abs().numpy(), 0.9)
    np.testing.assert_allclose(bounded[0], np.clip(x0[0], -limit, limit) / limit, rtol=1e-6)
    assert torch.equal(bounded[1], x0[1])


@pytest.mark.parametrize("name", SOLVERS)
def test_dynamic_thresholding_bounds_every_solver_even_under_guidance(name):
    run = process(name, steps="8", guided=50, dynamic=True)
    denoise, noise = run.denoiser(network()), IndexedNoise(0, range(3))
    for record in run.sample_records(run.solver, denoise, tensor("start", *SHAPE), noise):
        assert record.x0.abs().max() <= 1
    assert torch.isfinite(record.x).all()
    assert not torch.equal(images(process(name, dynamic=True)), images(process(name)))


def test_thresholding_flags_that_contradict_are_refused():
    with pytest.raises(UserError, match="--thresholding dynamic contradicts --clip_denoised False"):
        process("ddim", clip=False, dynamic=True)
    with pytest.raises(UserError, match="--threshold_percentile 90 is read by --thresholding dynamic alone"):
        Thresholding(threshold_percentile=90).refuse_unread({"threshold_percentile"})
    with pytest.raises(UserError, match="--threshold_percentile is 0"):
        Thresholding(thresholding="dynamic", threshold_percentile=0)
