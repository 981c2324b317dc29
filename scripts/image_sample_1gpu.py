"""Sample images as image_sample does, into a file named after the model, the data and the steps.

python scripts/image_sample_1gpu.py --model_path models/digits16.pt --timestep_respacing ddim5 --use_ddim True \\
    --model_type adm --data_type digits16 --out_dir runs/digits
"""

from dataclasses import dataclass

import image_sample

from guided_diffusion import methods
from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, flag
from guided_diffusion.jobs import launch
from guided_diffusion.process import DiffusionFlags


@dataclass
class NameFlags(FlagGroup):
    """The name of the file."""

    model_type: str = flag("adm", "First part of the file name.", idle=True)
    data_type: str = flag("cifar10", "Second part of the file name.", idle=True)

    def __post_init__(self):
        super().__post_init__()
        for name in ("model_type", "data_type"):
            if {"/", "\\"} & set(getattr(self, name)):
                raise UserError(f"--{name} is {getattr(self, name)!r}; expected a part of a file name, without slashes")


GROUPS = [*image_sample.GROUPS, NameFlags]


def file_name(parsed):
    """Such as adm_cifar10_ddim5step.npz, or with time shift adm_cifar10_ddim5step_80win_300cut.npz."""
    names, process = parsed[NameFlags], parsed[DiffusionFlags]
    steps = process.timestep_respacing or process.diffusion_steps
    moved = "".join(method.file_name() for method in methods.chosen(parsed))
    return f"{names.model_type}_{names.data_type}_{steps}step{moved}.npz"


if __name__ == "__main__":
    launch.run("image_sample_1gpu", __doc__, GROUPS, lambda parsed: image_sample.main(parsed, file_name))
