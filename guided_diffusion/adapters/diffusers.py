"""Networks of Hugging Face diffusers, from folders that its `save_pretrained` writes.

A folder with model_index.json is a pipeline: UNet2DModel or DiTTransformer2DModel, a scheduler, and an autoencoder
(AutoencoderKL or VQModel) where the network denoises latents. A folder with config.json alone is the network.

| diffusers | here |
| --- | --- |
| beta_schedule linear 1e-4 to 0.02 at T = 1000; squaredcos_cap_v2 | --noise_schedule linear; cosine |
| other ends of linear, scaled_linear, trained_betas | the schedule of the file, which no flag names |
| rescale_betas_zero_snr | --rescale_zero_terminal_snr |
| prediction_type epsilon, sample, v_prediction | --prediction eps, x0, v |
| variance_type fixed_small, fixed_large; learned_range | --sigma_small; --learn_sigma |
| timestep_spacing leading, linspace, trailing, in N steps | --timestep_respacing ddimN, N; --spacing uniform |

Where a scheduler clips x0, eps follows here, as `use_clipped_model_output` has it there; a last step ends at the data,
as `set_alpha_to_one` has it there.
"""

import numpy as np
import torch
from torch import nn

from .. import files
from ..errors import UserError
from ..schedule import get_named_beta_schedule, rescale_zero_terminal_snr
from .family import PIXELS, Adapter, Family, Found, extra, pretrained

NETWORKS = ("UNet2DModel", "DiTTransformer2DModel")
# the class that facebook's DiT was saved as, before it was split
FORMERLY = {"Transformer2DModel": "DiTTransformer2DModel"}
AUTOENCODERS = ("AutoencoderKL", "VQModel")
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": {"sigma_small": True},
    "fixed_small_log": {"sigma_small": True},
    "fixed_large": {"sigma_small": False},
    "fixed_large_log": {"sigma_small": False},
    "learned_range": {},
}


def find(path, vae="", state=None):
    """The Found of a folder.

    :param vae: folder of the autoencoder of latents, for one that has none.
    :raises UserError: if something in it is not known here.
    """
    try:
        return _find(path, vae)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"--model_path {path} has a config that is not of diffusers: {error}") from error


def _find(path, vae):
    parts = _parts(path)
    own = next((parts[part] for part in AUTOENCODERS if part in parts), "")
    if own and vae:
        raise UserError(f"--vae {vae} is given, but --model_path {path} has an autoencoder of its own")
    kind = next(part for part in NETWORKS if part in parts)
    config = _config(parts[kind], "--model_path")
    shape, classes = _shape(path, kind, config), _classes(path, kind, config)
    pair, images = pixels_or_latents(path, shape, own or vae)
    scheduled, usual, betas = _scheduled(parts["scheduler"]) if "scheduler" in parts else ({}, {}, None)
    known = {
        **images,
        **scheduled,
        "learn_sigma": config.get("out_channels") == 2 * shape[0],
        "class_cond": classes is not None,
        "rescale_timesteps": False,
    }
    if classes is not None:
        known["num_classes"] = classes
    if known["learn_sigma"]:
        usual.pop("sigma_small", None)
    if pair is not None:
        usual["clip_denoised"] = False

    # a DiT has a class that stands for none
    needs = ("y",) if classes is not None and kind == "UNet2DModel" else ()

    def create(parsed, state):
        return Diffusers(_load(kind, parts[kind]), shape, classes, pair() if pair else PIXELS, needs)

    return Found(f"{kind} of diffusers", known, create, usual, betas=betas, latent=pair is not None, needs=needs)


FAMILY = Family("a model or pipeline of diffusers", find)


class Diffusers(Adapter):
    """A UNet2DModel or a DiTTransformer2DModel.

    :param model: of diffusers.
    """

    def __init__(self, model, shape, num_classes=None, pair=PIXELS, needs=()):
        super().__init__(shape, num_classes, pair, needs)
        self.model = model

    def answer(self, x, t, y):
        if y is not None and not self.needs:
            y = y.where(y >= 0, self.num_classes)  # the class that stands for none
        return self.model(x, t, class_labels=y).sample


class Autoencoder(nn.Module):
    """The pair of a network of latents: an AutoencoderKL or a VQModel.

    :param model: of diffusers.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.scale = model.config.scaling_factor
        self.shift = model.config.get("shift_factor") or 0.0

    @torch.no_grad()
    def encode(self, images):
        """Latents of images; of a posterior the mode."""
        encoded = self.model.encode(images)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, x):
        """Images of latents."""
        return self.model.decode(x / self.scale + self.shift).sample


def pixels_or_latents(path, shape, vae):
    """(function that makes the pair, None where it is that of pixels; {flag: value} of the images) of a network.

    :param path: of the network, for errors.
    :param shape: (C, H, W) of what it denoises.
    :param vae: folder of an autoencoder, or "".
    :raises UserError: if latents have none, or that of others.
    """
    if not vae:
        if shape[0] not in (1, 3):
            raise UserError(
                f"--model_path {path} denoises {shape[0]} channels, latents of an autoencoder; expected --vae, the "
                "folder of an AutoencoderKL or VQModel of diffusers"
            )
        return None, {"image_size": shape[1], "image_channels": shape[0]}
    config = _config(vae, "--vae")
    kind, factor = config.get("_class_name"), config.get("scaling_factor", 1.0)
    if kind not in AUTOENCODERS:
        raise UserError(f"--vae {vae} is {kind or 'no model of diffusers'}; expected {' or '.join(AUTOENCODERS)}")
    if config.get("latent_channels") != shape[0]:
        raise UserError(
            f"--vae {vae} has latents of {config.get('latent_channels')} channels; --model_path denoises {shape[0]}"
        )
    if not isinstance(factor, (int, float)) or not 0 < factor < float("inf"):
        raise UserError(f"--vae {vae}: scaling_factor is {factor}; expected a number above 0")
    scale = 2 ** (len(config.get("block_out_channels", [0])) - 1)
    images = {"image_size": shape[1] * scale, "image_channels": config.get("out_channels", 3)}
    return lambda: Autoencoder(_load(kind, vae)), images


def _parts(path):
    """{class or "scheduler": folder} of what a folder holds."""
    index = files.join(path, "model_index.json")
    if not files.exists(index):
        kind = _config(path, "--model_path").get("_class_name")
        kind = FORMERLY.get(kind, kind)
        if kind not in NETWORKS:
            raise UserError(f"--model_path {path} is {kind or 'no model'}; expected {' or '.join(NETWORKS)}")
        return {kind: path}
    parts, strange = {}, []
    for name, entry in _read(index, "--model_path").items():
        if name.startswith("_") or not isinstance(entry, list) or entry[-1] is None:
            continue
        folder = files.join(path, name)
        if not files.is_folder(folder):
            folder = path  # as google's first pipelines have it
        kind = FORMERLY.get(entry[-1], entry[-1])
        if name == "scheduler":
            parts[name] = folder
        elif kind in (*NETWORKS, *AUTOENCODERS):
            parts[kind] = folder
        else:
            strange.append(kind)
    if strange or not any(part in NETWORKS for part in parts):
        expected = " or ".join(NETWORKS)
        raise UserError(
            f"--model_path {path} is a pipeline with {', '.join(strange) or 'no network'}; expected {expected}"
        )
    return parts


def _config(folder, flag):
    path = files.join(folder, "config.json")
    if not files.exists(path):
        raise UserError(f"{flag} {folder} has no config.json; expected a folder that diffusers saved")
    return _read(path, flag)


def _read(path, flag):
    try:
        values = files.read_json(path, "what diffusers saved")
    except FileNotFoundError:
        raise UserError(f"{flag}: there is no {path}") from None
    except UserError as error:
        raise UserError(f"{flag}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{flag}: {path} holds a {type(values).__name__}; expected an object")
    return values


def _shape(path, kind, config):
    """(C, H, W) of what a network denoises."""
    size = config.get("sample_size")
    size = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    if not isinstance(size, int):
        raise UserError(f"--model_path {path}: sample_size of {kind} is {size}; expected one number")
    return config["in_channels"], size, size


def _classes(path, kind, config):
    if kind == "DiTTransformer2DModel":
        if config.get("norm_type", "ada_norm_zero") != "ada_norm_zero":
            raise UserError(f"--model_path {path}: norm_type is {config['norm_type']!r}; a DiT has 'ada_norm_zero'")
        return config["num_embeds_ada_norm"]
    if config.get("class_embed_type") is not None:
        raise UserError(f"--model_path {path}: class_embed_type {config['class_embed_type']} is told more than a class")
    return config.get("num_class_embeds")


def _scheduled(folder):
    """(known, usual, betas) of the Found of a network with this scheduler."""
    path = files.join(folder, "scheduler_config.json")
    config = _read(path, "--model_path")
    if "beta_schedule" not in config:
        raise UserError(f"{path} is {config.get('_class_name')}, which has no betas; expected such as DDIMScheduler")
    prediction, variance = config.get("prediction_type", "epsilon"), config.get("variance_type")
    if prediction not in PREDICTIONS:
        raise UserError(f"{path}: prediction_type is {prediction!r}; expected one of {', '.join(PREDICTIONS)}")
    if variance is not None and variance not in VARIANCES:
        raise UserError(f"{path}: variance_type is {variance!r}; expected one of {', '.join(VARIANCES)}")
    if any(value is True for name, value in config.items() if name.startswith("threshold")):
        raise UserError(f"{path} has dynamic thresholding of diffusers, which ends at sample_max_value; expected none")
    clips = bool(config.get("clip_sample"))
    if clips and config.get("clip_sample_range", 1.0) != 1:
        raise UserError(f"{path}: clip_sample_range is {config['clip_sample_range']}; expected 1, or no clip_sample")
    betas, zero_snr = betas_of(config, path), bool(config.get("rescale_betas_zero_snr"))
    known = {
        "diffusion_steps": len(betas),
        "prediction": PREDICTIONS[prediction],
        "rescale_zero_terminal_snr": zero_snr,
    }
    usual = {"clip_denoised": clips, **VARIANCES.get(variance, {})}
    named = next((name for name in ("linear", "cosine") if _is(betas, name)), None)
    if named:
        return {**known, "noise_schedule": named}, usual, None
    table = rescale_zero_terminal_snr(betas) if zero_snr else betas
    return known, usual, lambda values: table


def betas_of(config, path):
    """Betas [T] (float64) of a scheduler's config, before they are rescaled to zero terminal SNR."""
    steps, name = config["num_train_timesteps"], config["beta_schedule"]
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"{path}: num_train_timesteps is {steps}; expected a number of at least 1")
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], dtype=np.float64)
    if name == "linear":
        return np.linspace(config["beta_start"], config["beta_end"], steps, dtype=np.float64)
    if name == "scaled_linear":
        return np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, steps, dtype=np.float64) ** 2
    if name == "squaredcos_cap_v2":
        return get_named_beta_schedule("cosine", steps)
    raise UserError(f"{path}: beta_schedule is {name!r}; expected linear, scaled_linear or squaredcos_cap_v2")


def _is(betas, name):
    """Whether betas are those of --noise_schedule `name`."""
    if name == "linear" and len(betas) <= 20:
        return False
    return np.allclose(betas, get_named_beta_schedule(name, len(betas)), rtol=1e-7)


def _load(kind, folder):
    """A model of diffusers with its weights, in float32."""
    diffusers = extra("diffusers", f"--model_path, with its {kind},")
    options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    return pretrained(getattr(diffusers, kind), folder, folder, **options)
