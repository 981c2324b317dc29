"""Networks of others: a family is one file here and one line of the table.

What its files say stands in a Found, and `resolve` puts that under a command line. The network is then asked as this
project's own are, so that solvers, methods and comparisons take it; its `pair` translates between images and what it
denoises. `checkpoints.open_network` does all of it for a path.
"""

import dataclasses
import itertools
import re
import weakref
from pathlib import Path

from .. import files, logger
from ..errors import UserError
from ..flags import flags_of, marked
from ..networks import UNetFlags
from ..process import DiffusionFlags
from . import diffusers, dit, edm
from .family import PIXELS, Adapter, Found, pair_of

__all__ = ["FAMILIES", "PIXELS", "Adapter", "Found", "find", "hold", "is_held", "on_disk", "pair_of"]
__all__ += ["refuse_likelihood", "resolve"]

# a file is of the first family whose keys it has; folders are those of diffusers
FAMILIES = {"diffusers": diffusers.FAMILY, "dit": dit.FAMILY, **edm.FAMILIES}
# the name of this project's own networks
OWN = "adm"

# of files of weights
ENDING = r"\.(pt|pth|ckpt|bin|safetensors)$"

# what a network of others may be asked for beside what is known of it
ALWAYS = {"use_fp16", "use_bf16", "timestep_respacing", "use_kl", "rescale_learned_sigmas", "sigma_small"}

# weights of other precisions, or before their average, of which diffusers reads none unasked
VARIANTS = ["*.fp16.*", "*.bf16.*", "*.non_ema.*"]

# {name in place of a path: Found} of networks that are objects of this program, as long as one uses them
_HELD = weakref.WeakValueDictionary()
_numbers = itertools.count(1)

CONVERTS = "import pickle, torch; torch.save(pickle.load(open({path!r}, 'rb'))['ema'].state_dict(), {to!r})"


def hold(found, name):
    """A name, numbered, that stands for a Found where a path is expected, as long as the caller keeps the Found."""
    name = f"<{name} {next(_numbers)}>"
    _HELD[name] = found
    return name


def is_held(path):
    """Whether a path is a name that `hold` gave."""
    return path in _HELD


def on_disk(path, flag="model_path"):
    """The path itself, or the folder that a name of the Hugging Face hub stands for, downloaded once.

    :param flag: that names it, for errors.
    :raises UserError: for such a name, where the hub has nothing of it or cannot be reached.
    """
    if not re.fullmatch(r"[\w-]+/[\w.-]+", str(path)) or re.search(ENDING, str(path)) or files.exists(path):
        return path
    try:
        return _downloaded(path)
    except ImportError:
        reason, advice = "no huggingface_hub", "pip install 'guided-diffusion[models]' adds that"
    except (OSError, ValueError) as error:
        reason = type(error).__name__
        advice = (
            f"where there is a network, `hf download {path} --local-dir {path}` makes it the folder that is expected"
        )
    raise UserError(
        f"--{flag} {path} does not exist; as a name of the Hugging Face hub it cannot be read here ({reason}): {advice}"
    )


def _downloaded(name):
    """The folder of a repository of the hub: configs and weights, as safetensors where it has them."""
    from huggingface_hub import snapshot_download

    def folder_with(weights):
        return snapshot_download(name, allow_patterns=["*.json", weights], ignore_patterns=VARIANTS)

    folder = folder_with("*.safetensors")
    parts = {config.parent for config in Path(folder).rglob("config.json")}
    if all(any(part.glob("*.safetensors")) for part in parts):
        return folder
    return folder_with("*.bin")  # which diffusers reads as weights alone


def find(path, peek, name="", vae=""):
    """The Found at a path; None for a network of this project.

    :param peek: `path -> state dict` of a file.
    :param name: of the family in FAMILIES, or "adm" for this project; "" tells by the file.
    :param vae: folder of the autoencoder of latents, for a network that brings none.
    :raises UserError: if there is none, or something in it is not known here.
    """
    if is_held(path):
        return _HELD[path]
    family = family_at(path, peek, name)
    if family is not None:
        folder = files.is_folder(path)
        if folder != (family is FAMILIES["diffusers"]):
            raise UserError(f"--model_path {path} is a {'folder' if folder else 'file'}, which {family.what} is not")
        return family.find(path, vae, None if folder else peek(path))
    if vae:
        raise UserError(f"--vae {vae} has no meaning for --model_path {path}, a network of pixels")
    return None


def family_at(path, peek, name=""):
    """The Family of what lies at a path, None for a network of this project; as `find`."""
    if not path or name == OWN:
        return None
    if path.endswith((".pkl", ".pickle")) and files.exists(path):
        to = path.rpartition(".")[0] + ".pt"
        raise UserError(
            f"--model_path {path} is a pickle, which runs code as it is read; where you trust it, this makes a file of "
            f'its weights, in a checkout of the code that wrote it: python -c "{CONVERTS.format(path=path, to=to)}"'
        )
    if name:
        return FAMILIES[name]
    if files.is_folder(path):
        return FAMILIES["diffusers"]
    state = peek(path)
    if "conv_in.weight" in state or "pos_embed.proj.weight" in state:
        raise UserError(f"--model_path {path} holds the weights of a model of diffusers; expected its folder")
    return next((family for family in FAMILIES.values() if family.fits(state)), None)


def resolve(parsed, found, path, log=True):
    """The Parsed flags of a run on a network of others: what was given, else what its files say.

    Flags that say nothing of it are no longer there.

    :param log: whether to say what it is, and warn of what is assumed.
    :raises UserError: for a given flag that contradicts its files, or says nothing of it.
    """
    values = parsed.values()
    known = dict(found.known)
    if "prediction" in known:
        known["predict_xstart"] = known["prediction"] == "x0"
    if values.get("override"):
        raise UserError(f"--override True has no meaning for --model_path {path}, {found.what}, whose files decide")
    names = {field.name for group in (UNetFlags, DiffusionFlags) for field in flags_of(group)}
    given = {k: values[k] for k in parsed.given if k in values}
    chosen = {**found.usual, **{k: v for k, v in given.items() if k not in known}}
    betas = None if found.betas is None else found.betas({**chosen, **known, **given})
    if betas is not None:
        known["diffusion_steps"] = len(betas)
    open_ = {field.name for field in flags_of(DiffusionFlags)} - ({"noise_schedule"} if betas is not None else set())
    unread = names - known.keys() - found.usual.keys() - found.reads - ALWAYS - open_
    if wrong := sorted(unread & given.keys()):
        raise UserError(f"--{wrong[0]} says nothing of --model_path {path}, {found.what}; leave it out")
    for name in sorted(given.keys() & known.keys()):
        if given[name] != known[name]:
            raise UserError(f"--{name} is {given[name]!r}; --model_path {path}, {found.what}, has {known[name]!r}")
    if found.latent and given.get("clip_denoised"):
        raise UserError("--clip_denoised True holds pixels in their range, and this network has latents; leave it out")
    if log:
        logger.log(f"{path}: {found.what}")
    hidden = marked([UNetFlags, DiffusionFlags], "hidden")
    assumed = [k for k in sorted(hidden) if k in values and k not in {*given, *known, *unread}]
    if log and assumed:
        shown = " ".join(f"--{k} {values[k]}" for k in assumed)
        logger.warn(f"its files do not show everything; assumed {shown}: give what its authors state")
    resolved = parsed.with_values({**chosen, **known})
    groups = {**resolved.groups}
    if betas is not None:
        groups[DiffusionFlags] = dataclasses.replace(groups[DiffusionFlags], table=betas)
    return dataclasses.replace(resolved, groups=groups, absent=resolved.absent | unread)


def refuse_likelihood(network, learned):
    """Validate that the variational bound of a network says bits per dimension of images.

    :param learned: whether it learns its variance.
    :raises UserError: for a network of others in latents, or one that was not trained for the bound.
    """
    if pair_of(network) is not PIXELS:
        raise UserError("--model_path denoises latents, of which a bound says no bits per dimension of images")
    if isinstance(network, Adapter) and not learned:
        raise UserError("--model_path learns no variance, without which its bound says nothing; expected one that does")
