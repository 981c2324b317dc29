"""Denoisers D(x; sigma, labels) of EDM (Karras et al. 2022), in the variables of this project.

| EDM | here |
| --- | --- |
| x | x_t / sqrt(alpha_bar) |
| sigma | sqrt(1 / alpha_bar - 1) |
| D(x; sigma) | `prediction.x0` |
| (x - D(x; sigma)) / sigma | `prediction.eps` |
| t_i of N steps, equation 5 with rho = 7 | --timestep_respacing N |
| Heun, Euler; S_churn and the rest of algorithm 2 | --solver heun, ddim; --S_churn |

So every solver and method applies to them. Epsilon Scaling divides `prediction.eps`, which is (x - D) / sigma: what
EDM-ES divides. Its sampler of the second order scales both calls of a step, as wrapping the denoiser does here; its
sampler of ablations leaves the correction unscaled, which is not done here, where a method knows no solver.

Such a network knows all levels between its largest and its smallest sigma, so the schedule is a choice: T levels spaced
by rho = 7, where T is the least from 1000 on with EDM's own grid of N steps among them. The preconditionings are those
of table 1: EDM's own, which every published edm-*.pkl has, and those of VP and VE.
"""

import copy
import inspect
import math
import operator
import re
from functools import partial

import numpy as np
import torch
from torch import nn

from ..errors import UserError
from ..networks import UNetFlags
from ..networks.unet import flags_of_shapes
from ..process import DiffusionFlags
from ..scalars import real
from ..schedule import NoiseSchedule, per_sample
from .edm_networks import DhariwalUNet, SongUNet
from .family import Adapter, Family, Found, load

RHO = 7
# of each of these networks
IN_SIGMA = {
    "learn_sigma": False,
    "prediction": "x0",
    "rescale_timesteps": False,
    "rescale_zero_terminal_snr": False,
}
# levels where neither steps nor --diffusion_steps ask for others
LEVELS = 1000


class Preconditioning:
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), table 1 of the paper.

    :ivar ends: the largest and the smallest sigma that EDM's sampler takes with it.
    """

    ends = (80.0, 0.002)

    def coefficients(self, sigma):
        """(c_skip, c_out, c_in, c_noise), each as sigma [N]."""
        raise NotImplementedError


class EDMPreconditioning(Preconditioning):
    """EDM's own.

    :param sigma_data: standard deviation of the data.
    """

    def __init__(self, sigma_data=0.5):
        self.sigma_data = sigma_data

    def coefficients(self, sigma):
        data = self.sigma_data
        total = (sigma**2 + data**2).sqrt()
        return (data / total) ** 2, sigma * data / total, 1 / total, sigma.log() / 4


class ConsistencyPreconditioning(EDMPreconditioning):
    """The same, with the noise told as consistency_models has it."""

    def coefficients(self, sigma):
        *scales, noise = super().coefficients(sigma)
        return *scales, 1000 * noise


class VPPreconditioning(Preconditioning):
    """That of the variance-preserving process of Song et al. 2021, told continuous time in 0..M - 1.

    :param beta_d, beta_min: extent of its betas, and the least.
    :param steps: M.
    """

    def __init__(self, beta_d=19.9, beta_min=0.1, steps=1000):
        self.beta_d = beta_d
        self.beta_min = beta_min
        self.steps = steps

    def coefficients(self, sigma):
        spread = self.beta_min**2 + 2 * self.beta_d * torch.log1p(sigma**2)
        time = (spread.sqrt() - self.beta_min) / self.beta_d
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), (self.steps - 1) * time


class VEPreconditioning(Preconditioning):
    """That of the variance-exploding process of Song et al. 2021, which sampling takes down to 0.02."""

    ends = (80.0, 0.02)

    def coefficients(self, sigma):
        return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()


class Denoiser(nn.Module):
    """`D(x [N, C, H, W], sigma [N], labels) -> [N, C, H, W]`: a network with its preconditioning.

    :param model: `F(x, c_noise [N], labels)`.
    """

    def __init__(self, model, preconditioning):
        super().__init__()
        self.model = model
        self.preconditioning = preconditioning

    def forward(self, x, sigma, labels=None):
        skip, out, into, noise = self.preconditioning.coefficients(sigma)
        answer = self.model(per_sample(into, x) * x, noise, labels).float()
        return per_sample(skip, x) * x + per_sample(out, x) * answer


class Labelled(nn.Module):
    """A denoiser that is told rows [N, label_dim], as those of EDM's pickles, as one that is told labels [N]."""

    def __init__(self, denoise):
        super().__init__()
        self.denoise = denoise

    def forward(self, x, sigma, labels):
        return self.denoise(x, sigma, _rows(labels, self.denoise.label_dim, x))


class OneHot(nn.Module):
    """A network that is told rows [N, label_dim] as one that is told labels [N], where -1 is a row of zeros.

    :param model: `F(x, c_noise, class_labels)`, a SongUNet or a DhariwalUNet.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, noise, labels=None):
        count = self.model.label_dim
        if not count:
            return self.model(x, noise)
        if labels is None:
            return self.model(x, noise, x.new_zeros(len(x), count))
        return self.model(x, noise, _rows(labels, count, x))


def _rows(labels, count, x):
    """[N, count] as x is: a 1 at each label, or nothing where it is -1."""
    return (labels[:, None] == torch.arange(count, device=x.device)).to(x.dtype)


class InVariables(Adapter):
    """A denoiser D(x; sigma, labels) as a network of x_t and t that predicts x0.

    :param denoise: `D(x [N, C, H, W], sigma [N])`, and with classes `D(x, sigma, labels [N])`; any callable.
    :param schedule: the NoiseSchedule that gives t its sigma.
    :param shape: (C, H, W).
    """

    def __init__(self, denoise, schedule, shape, num_classes=None):
        super().__init__(shape, num_classes)
        self.denoise = denoise
        self.schedule = schedule

    def answer(self, x, t, y):
        alpha_bar = self.schedule.alpha_bar(t)
        sigma = (1 / alpha_bar - 1).sqrt().to(x.dtype)
        x0 = self.denoise(per_sample(alpha_bar.rsqrt(), x) * x, sigma, *(() if y is None else (y,)))
        real = isinstance(x0, torch.Tensor) and x0.is_floating_point()
        if not real or (x0.shape, x0.device) != (x.shape, x.device):
            said = f"{x0.dtype} {list(x0.shape)} on {x0.device}" if isinstance(x0, torch.Tensor) else type(x0).__name__
            expected = f"a tensor of real numbers {list(x.shape)} on {x.device}"
            raise UserError(f"a denoiser D(x, sigma) returns {said}; expected {expected}, as its x is")
        return x0.to(x.dtype)

    def timed(self, schedule):
        """The same network, to be asked at the timesteps of another NoiseSchedule."""
        made = copy.copy(self)
        made.schedule = schedule
        made.__dict__.pop("forward", None)  # which torch.compile made of this one
        return made


def of_sigma(denoise, schedule):
    """The other way: a denoiser `(x_t, t) -> Prediction` as `D(x [N, C, ...], sigma [N]) -> [N, C, ...]`.

    :param schedule: its NoiseSchedule; a sigma beyond its noisiest is taken for that.
    """

    def denoiser(x, sigma):
        t = schedule.time(-sigma.to(real(sigma.device)).log())
        return denoise(per_sample(schedule.alpha_bar(t).sqrt(), x) * x, t).x0

    return denoiser


def betas_of_grid(levels, largest=80.0, smallest=0.002):
    """Betas [T] of the levels of equation 5, rho = 7, between two sigmas."""
    ends = np.array([smallest, largest]) ** (1 / RHO)
    sigmas = np.linspace(*ends, levels) ** RHO
    alpha_bar = np.concatenate([[1.0], 1 / (1 + sigmas**2)])
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


def levels_for(values):
    """T for {flag: value} of a command line: --diffusion_steps, or what holds the grid of --timestep_respacing."""
    if "diffusion_steps" in values:
        return values["diffusion_steps"]
    text = values.get("timestep_respacing", "")
    between = int(text) - 1 if re.fullmatch("[0-9]{1,4}", text) else 0
    return 1 + between * math.ceil((LEVELS - 1) / between) if between > 0 else LEVELS


def arguments(state):
    """(class, arguments) of the SongUNet or DhariwalUNet of a state dict, its keys without a prefix."""
    first = next(key for key in state if re.fullmatch(r"enc\.(\d+)x\1_conv\.weight", key))
    resolution = int(re.match(r"enc\.(\d+)x", first)[1])
    kind = DhariwalUNet if "out_conv.weight" in state else SongUNet
    blocks = {}  # {resolution: output channels of its blocks on the way down}
    for key in sorted(state, key=_largest_first):  # files of safetensors have other orders
        if match := re.fullmatch(r"enc\.(\d+)x\d+_block\d+\.conv1\.weight", key):
            blocks.setdefault(int(match[1]), []).append(len(state[key]))
    noise, fourier = state["map_layer0.weight"].shape[1], "map_noise.freqs" in state
    width = len(state[first]) if kind is SongUNet else noise
    found = {
        "img_resolution": resolution,
        "in_channels": state[first].shape[1],
        "model_channels": width,
        "channel_mult": [channels[0] // width for channels in blocks.values()],
        "channel_mult_emb": len(state["map_layer0.weight"]) // width,
        "num_blocks": len(next(iter(blocks.values()))),
        "attn_resolutions": [size for size in blocks if f"enc.{size}x{size}_block0.qkv.weight" in state],
        "label_dim": state["map_label.weight"].shape[1] if "map_label.weight" in state else 0,
        "augment_dim": state["map_augment.weight"].shape[1] if "map_augment.weight" in state else 0,
    }
    if kind is DhariwalUNet:
        return kind, {**found, "out_channels": len(state["out_conv.weight"])}
    filters = [value for key, value in state.items() if key.endswith("resample_filter")]
    taps = filters[0][0, 0].sum(0).tolist() if filters else [1, 1]
    return kind, {
        **found,
        "out_channels": len(state[f"dec.{resolution}x{resolution}_aux_conv.weight"]),
        "embedding_type": "fourier" if fourier else "positional",
        "channel_mult_noise": noise // width,
        "encoder_type": next((t for t in ("skip", "residual") if any(f"aux_{t}" in key for key in state)), "standard"),
        "decoder_type": "skip" if any("aux_up" in key for key in state) else "standard",
        "resample_filter": taps,
    }


def _largest_first(key):
    """Orders names of tensors of the way down as it goes, by resolution and block."""
    found = re.match(r"enc\.(\d+)x\d+_block(\d+)", key)
    return (-int(found[1]), int(found[2])) if found else (0, 0)


def find(path, vae, state, preconditioning=EDMPreconditioning):
    """The Found of a state dict of EDM's networks, whose keys may begin with model. as those of its pickles do.

    :param preconditioning: the class of its Preconditioning.
    """
    try:
        kind, args = arguments(_bare(state))
    except (LookupError, StopIteration, ValueError, ZeroDivisionError) as error:
        raise UserError(f"--model_path {path} is no SongUNet or DhariwalUNet of EDM, by its keys") from error

    def make(parsed, state):
        model = kind(**args)
        load(model, _bare(state), path)
        return OneHot(model)

    known = {
        "image_size": args["img_resolution"],
        "image_channels": args["in_channels"],
        "class_cond": args["label_dim"] > 0,
        **({"num_classes": args["label_dim"]} if args["label_dim"] else {}),
    }
    return _found(f"a {kind.__name__} of EDM", path, vae, known, {}, preconditioning, make)


def of_object(denoise, given):
    """The Found of a denoiser that is an object of the program: `D(x [N, C, H, W], sigma [N])`, and with classes
    `D(x, sigma, labels [N])`, where -1 is no class.

    Of EDM's networks it is read what they say of themselves: `img_resolution`, `img_channels`, `label_dim` (which are
    told rows [N, label_dim], and rows of zeros for no class), `sigma_min` and `sigma_max`.

    :param given: {flag: value}: image_size, and image_channels and num_classes, of one that does not say so.
    :raises UserError: if nothing says image_size, and for an object that is none or says what cannot be.
    """
    if isinstance(denoise, type):
        raise UserError(f"the denoiser is the class {denoise.__name__}; expected an object of it")
    theirs = {"image_size": "img_resolution", "image_channels": "img_channels", "num_classes": "label_dim"}
    shown = {name: _whole(denoise, says) for name, says in theirs.items() if hasattr(denoise, says)}
    told = Labelled(denoise) if shown.get("num_classes") else denoise
    known = {"image_channels": 3, **{name: given[name] for name in theirs if name in given}, **shown}
    if "image_size" not in known:
        raise UserError("--image_size is not given, and the denoiser has no img_resolution; expected one of them")
    known["class_cond"] = known.get("num_classes", 0) > 0
    if not known["class_cond"]:
        known.pop("num_classes", None)
    _expect_callable(denoise, known["class_cond"])
    ends = _ends_of(denoise)

    def make(parsed, state):
        return told

    return _in_variables("a denoiser of this program", known, {}, ends, make)


def _whole(denoise, says):
    """A number that a denoiser says of itself."""
    value, least = getattr(denoise, says), 0 if says == "label_dim" else 1
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if found < least:
        raise UserError(f"the denoiser's {says} is {value!r}; expected a whole number of at least {least}")
    return found


def _ends_of(denoise):
    """The largest and the smallest sigma that a denoiser is asked for."""
    largest, smallest = EDMPreconditioning.ends
    most, least = getattr(denoise, "sigma_max", largest), getattr(denoise, "sigma_min", smallest)
    try:
        ends = min(largest, float(most)), max(smallest, float(least))
    except (TypeError, ValueError):
        ends = (0.0, 0.0)
    if not (ends[0] > ends[1] and most > least >= 0):
        raise UserError(
            f"the denoiser's sigma_min and sigma_max are {least!r} and {most!r}; expected numbers, the first below the "
            f"second and below {largest:g}, the second above {smallest:g}"
        )
    return ends


def _expect_callable(denoise, classes):
    """Validate that a denoiser can be asked."""
    asked, expected = (3, "D(x, sigma, labels)") if classes else (2, "D(x, sigma)")
    try:
        signature = inspect.signature(denoise.forward if isinstance(denoise, nn.Module) else denoise)
    except ValueError:  # of a builtin
        signature = None
    if signature is not None:
        try:
            signature.bind(*[None] * asked)
        except TypeError:
            raise UserError(f"the denoiser takes {signature}; expected {expected}") from None
    weights = denoise.parameters() if isinstance(denoise, nn.Module) else ()
    if wrong := next((p.dtype for p in weights if p.is_floating_point() and p.dtype != torch.float32), None):
        raise UserError(f"the denoiser has weights in {wrong}; expected torch.float32, as denoise.float() makes them")


def find_consistency(path, vae, state):
    """The Found of a diffusion network of consistency_models (Song et al. 2023): ADM's, in EDM's variables.

    Its keys are ADM's, and the convolutions of its attention have two axes. Its tensors do not show its heads: by
    default they have 64 channels, in the order of the fast attention that it was published with.
    """
    try:
        known = flags_of_shapes(state)
    except (LookupError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"--model_path {path} is no network of consistency_models, by its keys") from error
    if "image_size" not in known:
        raise UserError(f"--model_path {path} has channel multipliers of its own, which do not tell its image size")

    def make(parsed, state):
        model = parsed[UNetFlags].create(learn_sigma=False)
        load(model, {key: value.float().reshape(_ends(key, value)) for key, value in state.items()}, path)
        return model

    usual = {"num_head_channels": 64, "use_new_attention_order": True}
    what = "a diffusion network of consistency_models"
    return _found(what, path, vae, known, usual, ConsistencyPreconditioning, make)


def _ends(key, value):
    """The shape that a tensor has in UNetModel."""
    return value.shape[: 3 if re.search(r"\.(qkv|proj_out)\.weight$", key) else None]


def _found(what, path, vae, known, usual, preconditioning, make):
    """The Found of a network in EDM's variables.

    :param make: `(Parsed, state dict) -> F(x, c_noise, labels)`.
    """
    if vae:
        raise UserError(f"--vae {vae} has no meaning for --model_path {path}, a network of pixels")

    def denoiser(parsed, state):
        return Denoiser(make(parsed, state), preconditioning())

    return _in_variables(what, known, usual, preconditioning.ends, denoiser)


def _in_variables(what, known, usual, ends, make):
    """The Found of a denoiser D(x; sigma, labels).

    :param ends: the largest and the smallest sigma that it is asked for.
    :param make: `(Parsed, state dict) -> D`.
    """
    size, channels, classes = known["image_size"], known["image_channels"], known.get("num_classes")

    def create(parsed, state):
        schedule = NoiseSchedule(parsed[DiffusionFlags].betas)
        return InVariables(make(parsed, state), schedule, (channels, size, size), classes)

    return Found(
        what,
        known | IN_SIGMA,
        create,
        {"clip_denoised": False, **usual},
        betas=lambda values: betas_of_grid(levels_for(values), *ends),
    )


def _bare(state):
    """The state dict without the prefix of a preconditioned network, in float32."""
    inner = {key.removeprefix("model."): value.float() for key, value in state.items() if key.startswith("model.")}
    return inner or {key: value.float() for key, value in state.items()}


def _is_edm(state):
    return "map_layer0.weight" in state or "model.map_layer0.weight" in state


def _is_consistency(state):
    weight = state.get("middle_block.1.qkv.weight")
    return weight is not None and weight.ndim == 4


FAMILIES = {
    "edm": Family("a SongUNet or DhariwalUNet of EDM, in its own preconditioning", find, _is_edm),
    "edm_vp": Family(
        "a SongUNet or DhariwalUNet of EDM, preconditioned as VP", partial(find, preconditioning=VPPreconditioning)
    ),
    "edm_ve": Family(
        "a SongUNet or DhariwalUNet of EDM, preconditioned as VE", partial(find, preconditioning=VEPreconditioning)
    ),
    "consistency": Family("a diffusion network of consistency_models", find_consistency, _is_consistency),
}
