"""Run a script written for improved-diffusion, the package before this one, as it is.

python -m guided_diffusion.as_improved SCRIPT ...

For that process the name `improved_diffusion` means this package. Its `script_util` has the defaults and signatures of
improved-diffusion, which differ: times are rescaled to 0..1000 and learned variances weighed by T / 1000 unless a flag
says otherwise, `sigma_small` is a flag, and networks have no more choices than its own had. The networks themselves are
those of guided-diffusion; with those flags they compute the same and their checkpoints have the same keys.
"""

import importlib
import inspect
import os
import runpy
import sys
from types import ModuleType

from . import script_util

NAME = "improved_diffusion"
SAME = (
    *("dist_util", "fp16_util", "gaussian_diffusion", "image_datasets", "logger", "losses", "nn", "resample"),
    *("respace", "train_util", "unet"),
)


def model_and_diffusion_defaults():
    """Defaults of the network's and the diffusion's flags, as in improved-diffusion."""
    names = inspect.getfullargspec(create_model_and_diffusion).args
    own = {"rescale_timesteps": True, "rescale_learned_sigmas": True, "sigma_small": False}
    return {k: v for k, v in (script_util.model_and_diffusion_defaults() | own).items() if k in names}


def sr_model_and_diffusion_defaults():
    """Defaults of the super-resolution network's and the diffusion's flags, as in improved-diffusion."""
    names = inspect.getfullargspec(sr_create_model_and_diffusion).args
    values = script_util.sr_model_and_diffusion_defaults() | model_and_diffusion_defaults()
    return {k: v for k, v in values.items() if k in names}


def create_model_and_diffusion(
    image_size,
    class_cond,
    learn_sigma,
    sigma_small,
    num_channels,
    num_res_blocks,
    num_heads,
    num_heads_upsample,
    attention_resolutions,
    dropout,
    diffusion_steps,
    noise_schedule,
    timestep_respacing,
    use_kl,
    predict_xstart,
    rescale_timesteps,
    rescale_learned_sigmas,
    use_checkpoint,
    use_scale_shift_norm,
    **further,
):
    """(UNetModel, SpacedDiffusion) of improved-diffusion's flags; `further` as of script_util's."""
    return _by(script_util.create_model_and_diffusion, script_util.model_and_diffusion_defaults(), **locals())


def sr_create_model_and_diffusion(
    large_size,
    small_size,
    class_cond,
    learn_sigma,
    num_channels,
    num_res_blocks,
    num_heads,
    num_heads_upsample,
    attention_resolutions,
    dropout,
    diffusion_steps,
    noise_schedule,
    timestep_respacing,
    use_kl,
    predict_xstart,
    rescale_timesteps,
    rescale_learned_sigmas,
    use_checkpoint,
    use_scale_shift_norm,
    **further,
):
    """(SuperResModel, SpacedDiffusion) of improved-diffusion's flags; `further` as of script_util's."""
    return _by(script_util.sr_create_model_and_diffusion, script_util.sr_model_and_diffusion_defaults(), **locals())


def _by(create, defaults, *, further, **values):
    return create(**{**defaults, **values, **further})


def register():
    """Let `improved_diffusion` and its modules be names of this package's, in this process."""
    package = ModuleType(NAME, __doc__)
    package.__path__ = []
    modules = {name: importlib.import_module(f"{__package__}.{name}") for name in SAME}
    modules["script_util"] = ModuleType(f"{NAME}.script_util", script_util.__doc__)
    own = (
        *(model_and_diffusion_defaults, sr_model_and_diffusion_defaults),
        *(create_model_and_diffusion, sr_create_model_and_diffusion),
    )
    published = {name: value for name, value in vars(script_util).items() if not name.startswith("__")}
    vars(modules["script_util"]).update(published | {function.__name__: function for function in own})
    sys.modules[NAME] = package
    for name, module in modules.items():
        sys.modules[f"{NAME}.{name}"] = module
        setattr(package, name, module)


def main(argv):
    """Run the script argv[0] with the arguments after it, as Python would."""
    if not argv or not os.path.isfile(argv[0]):
        found = f"{argv[0]!r} is no file" if argv else "no script is given"
        sys.exit(f"as_improved: {found}; expected python -m guided_diffusion.as_improved SCRIPT ...")
    register()
    sys.argv = argv
    sys.path[0] = os.path.dirname(os.path.abspath(argv[0]))
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
