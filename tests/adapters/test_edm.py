"""EDM here: its grid and samplers as released, the change of variables, churn, and files of its networks."""

import gc
import math

import foreign
import numpy as np
import pytest
import script_runs
import torch

import guided_diffusion as gd
from guided_diffusion import adapters, checkpoints, methods
from guided_diffusion.adapters import edm
from guided_diffusion.adapters.edm_networks import DhariwalUNet, SongUNet
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.denoiser import ModelMeanType, Prediction
from guided_diffusion.errors import UserError
from guided_diffusion.flags import parse
from guided_diffusion.methods import STACK
from guided_diffusion.networks import UNetFlags
from guided_diffusion.process import DiffusionFlags, Process, SpacingFlags
from guided_diffusion.schedule import NoiseSchedule
from guided_diffusion.solvers.flags import SolverFlags

GROUPS = [CheckpointFlags, SolverFlags, UNetFlags, DiffusionFlags, SpacingFlags, *methods.of_sampling()]
EPSILON_SCALING = next(method for method in STACK if method.__name__ == "EpsilonScaling")
LATENTS = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)[None, :, None, None]
TINY = {"label_dim": 3, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


def gaussian(x, sigma, labels=None):
    """The exact D of Gaussian data of variance 0.25."""
    return x * (0.25 / (0.25 + sigma.double() ** 2)).reshape(-1, 1, 1, 1).to(x.dtype)


def process_of(levels, solver, scale="1.0", **options):
    """The Process over all of EDM's levels."""
    schedule = NoiseSchedule(edm.betas_of_grid(levels))
    chosen = SolverFlags(solver=solver, **options)
    method = EPSILON_SCALING(scale)
    return Process(schedule, mean_type=ModelMeanType.START_X, methods=[method], solver=chosen)


def walked(process, x=None, noise=None):
    """States x / sqrt(alpha_bar) of a run on `gaussian`, from EDM's start, in float64."""
    network = edm.InVariables(gaussian, process.schedule, (3, 1, 1))
    start = process.schedule.alpha_bar(torch.tensor([process.grid[-1]]))
    x = (1 / start - 1).sqrt() * LATENTS if x is None else x
    records = process.sample_records(process.solver, denoiser_in_double(network, process), x * start.sqrt(), noise)
    states = [(record.x / process.schedule.alpha_bar(record.s).sqrt()).flatten() for record in records]
    return torch.stack([x.flatten(), *states])


def denoiser_in_double(network, process):
    """The stack of a process without the cast of a network's output to float32."""

    def denoise(x, t, cond):
        return Prediction.from_x0(x, process.schedule.alpha_bar(t), network(x, t))

    wrapped = process.wrapped(denoise)
    return lambda x, t: wrapped(x, t, {})


@pytest.mark.parametrize("steps", [7, 11, 18, 35])
@pytest.mark.parametrize("levels", [None, "steps"])
def test_the_grid_is_edms(steps, levels):
    """As all its levels, and among the 1000 and more of a sampling run, at --timestep_respacing N."""
    samplers = foreign.samplers()
    sigmas = samplers["edm_heun_18"]["sigmas"] if steps == 18 else samplers["edm_grid_other_steps"][str(steps)]
    count = steps if levels else edm.levels_for({"timestep_respacing": str(steps)})
    assert count == steps or 1000 <= count < 1000 + steps
    schedule = NoiseSchedule(edm.betas_of_grid(count))
    grid = SpacingFlags().grid(schedule, str(steps))
    found = (1 / schedule.alpha_bar(torch.tensor(grid[::-1])) - 1).sqrt()
    np.testing.assert_allclose(found.numpy(), sigmas[:-1], rtol=1e-9)


def released():
    for name, case in foreign.samplers().items():
        if name in ("edm_heun_18", "ablation_euler_edm_18"):
            yield case, "heun" if "heun" in name else "ddim", "1.0"
    scaled = foreign.samplers()["epsilon_scaling_EDM-ES"]
    yield scaled["edm_sampler_heun_18_eps_scaler_1.0005"], "heun", "1.0005"
    yield scaled["edm_sampler_heun_7_eps_scaler_1.006"], "heun", "1.006"
    yield scaled["ablation_sampler_euler_13_eps_scaler_1.0048"], "ddim", "1.0048"


@pytest.mark.parametrize("case, solver, scale", list(released()))
def test_states_of_the_released_samplers(case, solver, scale):
    """EDM's, and EDM-ES's with Epsilon Scaling: the same quantity is divided."""
    process = process_of(len(case["sigmas"]) - 1, solver, scale)
    found = walked(process, noise=torch.zeros_like)
    np.testing.assert_allclose(found.numpy(), case["states"], rtol=1e-6, atol=1e-9)


def test_epsilon_scaling_divides_what_edm_es_divides():
    """By hand: eps = (x - D) / sigma, D' = x - sigma eps / b."""
    process = process_of(18, "heun", "1.25")
    x, t = LATENTS * 3, torch.tensor([9])
    level = process.schedule.alpha_bar(t)
    sigma = float((1 / level - 1).sqrt())
    eps = (x - gaussian(x, torch.tensor([sigma]))) / sigma
    network = edm.InVariables(gaussian, process.schedule, (3, 1, 1))
    found = denoiser_in_double(network, process)(x * level.sqrt(), t)
    torch.testing.assert_close(found.eps, eps / 1.25, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.x0, x - sigma * eps / 1.25, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", ["heun", "ddim", "dpmpp_2m", "unipc", "deis", "pndm_f"])
def test_a_gaussian_goes_the_same_way_in_either_variable(solver):
    """D(x; sigma) asked in x_t, and the exact denoiser of x_t asked back through D: the same states to 1e-6."""
    process = process_of(40, solver)
    schedule = process.schedule

    def own(x, t):
        level = schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
        return Prediction.from_x0(x, level.flatten(), x * level.sqrt() * 0.25 / (level * 0.25 + 1 - level))

    back = edm.InVariables(edm.of_sigma(own, schedule), schedule, (3, 1, 1))
    ends = []
    for denoise in (own, denoiser_in_double(edm.InVariables(gaussian, schedule, (3, 1, 1)), process), None):
        denoise = denoise or denoiser_in_double(back, process)
        *_, last = process.sample_records(process.solver, denoise, LATENTS, torch.zeros_like)
        ends.append(last.x)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-6, atol=1e-6)


def test_heun_is_of_order_two():
    """Against the exact solution of the ODE, down to the smallest sigma."""
    errors = []
    for steps in (20, 40, 80, 160):
        found = walked(process_of(steps, "heun"))[-2, 0]
        exact = 80 * math.sqrt((0.25 + 0.002**2) / (0.25 + 80**2))
        errors.append(abs(float(found) - exact))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert abs(orders[-1] - 2) < 0.25, orders


def churned_by_hand(sigmas, x, draws, S_churn, S_min, S_max, S_noise):
    """Algorithm 2 of the paper in its own variables, but for levels beyond the first."""
    steps, states = len(sigmas) - 1, []
    for i in range(steps):
        now, then = sigmas[i], sigmas[i + 1]
        gamma = min(S_churn / steps, math.sqrt(2) - 1) if S_min <= now <= S_max else 0
        raised = min(now * (1 + gamma), sigmas[0])
        x = x + math.sqrt(raised**2 - now**2) * S_noise * draws[i]
        slope = (x - gaussian(x, torch.tensor([raised]))) / raised
        ahead = x + (then - raised) * slope
        if then > 0:
            other = (ahead - gaussian(ahead, torch.tensor([then], dtype=torch.float64))) / then
            ahead = x + (then - raised) * (slope + other) / 2
        x = ahead
        states.append(x.flatten())
    return torch.stack(states)


@pytest.mark.parametrize("bounds", [(0.0, 0.0), (0.05, 50.0)])
@pytest.mark.parametrize("churn, deviation", [(4.0, 1.0), (40.0, 1.003)])
def test_churn_is_that_of_the_paper(churn, deviation, bounds):
    process = process_of(18, "heun", S_churn=churn, S_min=bounds[0], S_max=bounds[1], S_noise=deviation)
    assert process.solver.stochastic
    draws = torch.randn(18, *LATENTS.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    waiting = iter(draws)
    found = walked(process, noise=lambda x: next(waiting))
    sigmas = [*((1 / process.schedule.alpha_bar(torch.arange(17, -1, -1)) - 1).sqrt().tolist()), 0.0]
    expected = churned_by_hand(sigmas, LATENTS * sigmas[0], draws, churn, bounds[0], bounds[1] or math.inf, deviation)
    torch.testing.assert_close(found[1:], expected, rtol=1e-6, atol=1e-8)


def test_without_churn_heun_draws_nothing_and_stays():
    process = process_of(18, "heun", S_min=0.05, S_max=50.0, S_noise=1.003)
    assert not process.solver.stochastic
    case = foreign.samplers()["edm_heun_18_S_churn_0_other_S_set"]
    np.testing.assert_allclose(walked(process).numpy(), case["states"], rtol=1e-6, atol=1e-9)


# -- objects ------------------------------------------------------------------------------------------


class Pickled(torch.nn.Module):
    """What the networks of EDM's pickles say of themselves and how they are called."""

    def __init__(self, model, **says):
        super().__init__()
        self.inner = edm.Denoiser(model, edm.EDMPreconditioning())
        self.img_resolution, self.img_channels, self.label_dim = 8, 3, model.label_dim
        self.sigma_min, self.sigma_max = 0, math.inf
        for name, value in says.items():
            setattr(self, name, value)

    def forward(self, x, sigma, class_labels=None, **more):
        if class_labels is not None:
            assert class_labels.shape == (len(x), self.label_dim) and class_labels.dtype == x.dtype
        return self.inner(x, sigma, class_labels)


@pytest.mark.parametrize("label_dim", [0, 3])
def test_an_object_samples_as_the_file_of_its_weights(tmp_path, label_dim):
    model = random_unet(SongUNet, label_dim=label_dim)
    by_file = gd.load(saved(tmp_path / "net.pt", model))
    rows = Pickled(model)

    def labels(x, sigma, y):
        return rows(x, sigma, torch.nn.functional.one_hot(y, 3).to(x.dtype))

    told = {"num_classes": 3} if label_dim else {}
    objects = [gd.load(rows), gd.load(labels if label_dim else rows.inner, image_size=8, **told)]
    chosen = {"steps": 5, "solver": "heun", "seed": 3, "eps_scaler": 1.01, "progress": False}
    chosen |= {"classes": [2, 0]} if label_dim else {}
    expected = by_file.sample(3, **chosen)
    for found in objects:
        assert found.num_classes == (label_dim or None) and found.flags["image_size"] == 8
        assert np.array_equal(found.sample(3, **chosen), expected)


def test_an_object_is_asked_for_no_sigma_beyond_its_own():
    asked = []

    def denoise(x, sigma):
        asked.append(float(sigma[0]))
        return gaussian(x, sigma)

    denoise.sigma_min, denoise.sigma_max = 0.1, 20.0
    gd.load(denoise, image_size=4).sample(1, steps=7, use_ddim=True, progress=False)
    np.testing.assert_allclose([asked[0], asked[-1]], [20, 0.1], rtol=1e-4)


def test_an_object_is_measured_tuned_and_inverted(tmp_path):
    model = gd.load(gaussian, image_size=4, image_channels=1)
    images = model.sample(12, steps=9, solver="heun", progress=False)
    np.savez(tmp_path / "real.npz", images)
    measured = gd.exposure_bias(model, tmp_path / "real.npz", steps=3, num_samples=8, use_ddim=True)
    assert np.isfinite(measured.curves["norms"]["eps_ratio"].values).all()
    assert gd.tune(model, tmp_path / "real.npz", steps=3, num_samples=8, use_ddim=True).candidates
    assert np.array_equal(model.decode(model.encode(images, steps=5)), images)
    with pytest.raises(UserError, match="out_dir keeps what is measured of a network's files"):
        gd.exposure_bias(model, tmp_path / "real.npz", steps=3, num_samples=8, out_dir=tmp_path / "out")


def saying(**says):
    """The Gaussian's denoiser, which says this of itself."""

    def denoise(x, sigma, labels=None):
        return gaussian(x, sigma)

    for name, value in says.items():
        setattr(denoise, name, value)
    return denoise


@pytest.mark.parametrize(
    "denoise, given, sentence",
    [
        (gaussian, {}, "--image_size is not given, and the denoiser has no img_resolution"),
        (gaussian, {"image_size": 4, "vae": "x"}, "--vae says something of files"),
        (gaussian, {"image_size": 4, "network": "edm_vp"}, "--network says something of files"),
        (gaussian, {"image_size": 4, "learn_sigma": True}, "--learn_sigma is True.*has False"),
        (gaussian, {"image_size": 4, "num_classes": 0}, "--num_classes is 0"),
        (gaussian, {"image_size": 4, "num_channels": 32}, "--num_channels says nothing of"),
        (
            lambda x, sigma: x[:, :1],
            {"image_size": 4},
            r"float32 \[2, 1, 4, 4\] on cpu; expected a tensor of real numbers \[2, 3, 4, 4\] on cpu",
        ),
        (lambda x, sigma: None, {"image_size": 4}, "returns NoneType; expected a tensor"),
        (lambda x, sigma: x.long(), {"image_size": 4}, "returns torch.int64 .*; expected a tensor of real numbers"),
        (lambda x, sigma: x + 1j, {"image_size": 4}, "returns torch.complex64 .*; expected a tensor of real numbers"),
        (lambda x, sigma: x.to("meta"), {"image_size": 4}, "on meta; expected a tensor .* on cpu"),
        (lambda x: x, {"image_size": 4}, r"takes \(x\); expected D\(x, sigma\)"),
        (lambda x, sigma: x, {"image_size": 4, "num_classes": 3}, r"expected D\(x, sigma, labels\)"),
        (torch.nn.Bilinear(4, 4, 4).double(), {"image_size": 4}, "weights in torch.float64; expected torch.float32"),
        (torch.nn.Identity, {"image_size": 4}, "is the class Identity; expected an object of it"),
        (saying(img_resolution=(8, 8)), {}, r"img_resolution is \(8, 8\); expected a whole number of at least 1"),
        (saying(label_dim=-3), {"image_size": 4}, "label_dim is -3; expected a whole number of at least 0"),
        (saying(label_dim=2.5), {"image_size": 4}, "label_dim is 2.5; expected a whole number"),
        (saying(img_channels=None), {"image_size": 4}, "img_channels is None; expected a whole number"),
        (saying(img_resolution=8), {"image_size": 4}, "--image_size is 4; .* has 8"),
        (saying(sigma_min="x"), {"image_size": 4}, "sigma_min and sigma_max are 'x' and 80.0; expected numbers"),
        (saying(sigma_max=math.nan), {"image_size": 4}, "sigma_min and sigma_max are 0.002 and nan; expected numbers"),
        (saying(sigma_min=3, sigma_max=2), {"image_size": 4}, "sigma_min and sigma_max are 3 and 2; expected numbers"),
        (lambda x, sigma: x * math.nan, {"image_size": 4}, "image 0 is not of finite numbers"),
    ],
)
def test_an_object_that_cannot_be_asked_is_refused(denoise, given, sentence):
    with pytest.raises(UserError, match=sentence):
        gd.load(denoise, **given).sample(2, steps=2, progress=False)


@pytest.mark.parametrize("of_file", [False, True])
def test_a_denoiser_stays_what_it_was(tmp_path, of_file):
    """Other numbers of steps have other schedules, which change neither it nor the model."""
    model = (
        gd.load(saved(tmp_path / "net.pt", random_unet(SongUNet, label_dim=0)))
        if of_file
        else gd.load(gaussian, image_size=8)
    )
    network, flags, denoise = model.network, model.flags, model.denoiser(steps=18)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([700])
    with torch.no_grad():
        before = denoise(x, t)
        model.sample(1, steps=30, progress=False)
        assert model.network is network and model.flags == flags
        assert torch.equal(denoise(x, t).x0, before.x0)
        level = 1 / (1 + model.denoiser(steps=30)(x, t).alpha_bar)
    assert not torch.equal(level, 1 / (1 + before.alpha_bar))


def test_objects_are_held_as_long_as_their_models():
    model = gd.load(gaussian, image_size=4)
    name = model._given["model_path"]
    assert adapters.is_held(name) and "gaussian" in repr(model)
    del model
    gc.collect()
    assert not adapters.is_held(name)


# -- files --------------------------------------------------------------------------------------------


def saved(path, model, prefix=""):
    torch.save({prefix + key: value for key, value in model.state_dict().items()}, path)
    return str(path)


def random_unet(kind, **args):
    torch.manual_seed(0)
    model = kind(**{"img_resolution": 8, "in_channels": 3, "out_channels": 3, **TINY, **args})
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return model.eval()


def opened(path, *flags):
    return checkpoints.load_diffusion(parse(["--model_path", str(path), *map(str, flags)], GROUPS, ""))


NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}


@pytest.mark.parametrize("network", ["", "edm", "edm_vp", "edm_ve"])
@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    "kind, args",
    [
        (SongUNet, {}),
        (SongUNet, {**NCSNPP, "channel_mult_noise": 2, "augment_dim": 9}),
        (SongUNet, {"encoder_type": "skip", "decoder_type": "skip", "label_dim": 0}),
        (DhariwalUNet, {"model_channels": 32, "channel_mult": [1, 2]}),
    ],
)
def test_a_file_of_its_weights_opens_by_its_keys(tmp_path, kind, args, prefix, network):
    model = random_unet(kind, **args)
    path = saved(tmp_path / "net.pt", model, prefix)
    flags = [] if not network else ["--network", network]
    parsed, adapter, process = opened(path, "--timestep_respacing", 18, *flags)
    assert parsed[DiffusionFlags].diffusion_steps == len(process.schedule.alpha_bar(torch.arange(1004))) == 1004
    assert parsed.values()["class_cond"] == (model.label_dim > 0) and "num_channels" not in parsed.values()
    preconditioning = {"edm_vp": edm.VPPreconditioning, "edm_ve": edm.VEPreconditioning}
    expected = edm.Denoiser(edm.OneHot(model), preconditioning.get(network, edm.EDMPreconditioning)())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0, 700])
    y = torch.tensor([2, -1]) if model.label_dim else None
    level = process.schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
    sigma = (1 / level - 1).sqrt().flatten().float()
    with torch.no_grad():
        found = adapter(x, t, y=y) if model.label_dim else adapter(x, t)
        torch.testing.assert_close(found, expected((x.double() / level.sqrt()).float(), sigma, y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind, args",
    [
        (SongUNet, {"img_resolution": 16, "channel_mult": [1, 2, 2], "num_blocks": 2}),
        (SongUNet, {**NCSNPP, "channel_mult_noise": 2, "num_blocks": 11, "channel_mult": [2, 1]}),
        (SongUNet, {"encoder_type": "skip", "decoder_type": "skip"}),
        (DhariwalUNet, {"img_resolution": 16, "model_channels": 32, "channel_mult": [1, 2, 3]}),
    ],
)
def test_safetensors_open_whatever_the_order_of_their_keys(tmp_path, kind, args):
    model = random_unet(kind, **args)
    path = saved(tmp_path / "net.pt", model)
    script_runs.run("convert", "--model_path", path, "--to", "safetensors", "--out_dir", tmp_path / "there")
    safe = tmp_path / "there" / "model.safetensors"
    state = checkpoints.take(str(safe))
    assert list(state) != list(model.state_dict())
    one, other = opened(path)[1], opened(safe)[1]
    x, t, y = torch.randn(2, 3, *one.shape[1:]), torch.tensor([0, 700]), torch.tensor([2, -1])
    with torch.no_grad():
        assert torch.equal(one(x, t, y=y), other(x, t, y=y))


def test_steps_and_levels_of_a_command_line(tmp_path):
    path = saved(tmp_path / "net.pt", random_unet(SongUNet))
    for flags, levels in ((["--timestep_respacing", "ddim10"], 1000), (["--diffusion_steps", 50], 50), ([], 1000)):
        assert opened(path, *flags)[2].schedule.num_timesteps == levels
    grid = opened(path, "--timestep_respacing", 18, "--spacing", "karras")[2].grid
    assert grid == opened(path, "--timestep_respacing", 18)[2].grid
    with pytest.raises(UserError, match="--noise_schedule says nothing of .*SongUNet of EDM"):
        opened(path, "--noise_schedule", "cosine")
    with pytest.raises(UserError, match="no SongUNet or DhariwalUNet of EDM, by its keys"):
        torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
        opened(tmp_path / "other.pt", "--network", "edm")
    with pytest.raises(UserError, match="--vae x has no meaning"):
        opened(path, "--vae", "x")


@pytest.mark.parametrize("classes", [None, 3])
def test_a_network_of_consistency_models(tmp_path, classes):
    """ADM's network with two axes in its attention's convolutions, in EDM's variables."""
    flags = UNetFlags(
        image_size=16,
        num_channels=32,
        num_res_blocks=1,
        channel_mult="1,2,2",
        attention_resolutions="8",
        num_head_channels=32,
        use_new_attention_order=True,
        class_cond=classes is not None,
        num_classes=classes or 1000,
    )
    torch.manual_seed(0)
    model = flags.create(learn_sigma=False).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    state = {k: v[..., None] if ".qkv.w" in k or ".proj_out.w" in k else v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "edm.pt")
    _, adapter, process = opened(tmp_path / "edm.pt", "--num_head_channels", 32)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0, 700])
    level = process.schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
    sigma = (1 / level - 1).sqrt()
    inner = (x / level.sqrt()) / (sigma**2 + 0.25).sqrt()
    told = {} if classes is None else {"y": torch.tensor([2, 0])}
    with torch.no_grad():
        raw = model(inner.float(), 250 * sigma.flatten().log().float(), **told)
        expected = 0.25 / (sigma**2 + 0.25) * x / level.sqrt() + sigma * 0.5 / (sigma**2 + 0.25).sqrt() * raw
        torch.testing.assert_close(adapter(x, t, **told), expected.float(), rtol=1e-4, atol=1e-4)


def test_multipliers_that_tell_no_image_size_are_refused(tmp_path):
    flags = UNetFlags(image_size=16, num_channels=32, num_res_blocks=1, channel_mult="1,1", attention_resolutions="8")
    state = flags.create(learn_sigma=False).state_dict()
    torch.save({k: v[..., None] if v.ndim == 3 else v for k, v in state.items()}, tmp_path / "edm.pt")
    with pytest.raises(UserError, match="do not tell its image size"):
        opened(tmp_path / "edm.pt")


@pytest.mark.parametrize("network", ["edm", "edm_vp", "dit", "consistency"])
def test_a_file_of_another_family_is_refused(tmp_path, network):
    torch.save({"weight": torch.zeros(2, 3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="by its keys"):
        opened(tmp_path / "other.pt", "--network", network)
    with pytest.raises(UserError, match="is a folder, which"):
        opened(tmp_path, "--network", network)
    with pytest.raises(UserError, match="is a file, which a model or pipeline of diffusers is not"):
        opened(tmp_path / "other.pt", "--network", "diffusers")


def test_weights_that_lack_some_are_refused(tmp_path):
    state = random_unet(SongUNet).state_dict()
    del state["dec.8x8_block1.norm0.bias"]
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match='not what its keys promise.*"dec.8x8_block1.norm0.bias"'):
        opened(tmp_path / "net.pt")
    with pytest.raises(UserError, match="--model_path .* is no network that is known|another network|other names"):
        opened(saved(tmp_path / "adm.pt", torch.nn.Linear(2, 2)))
