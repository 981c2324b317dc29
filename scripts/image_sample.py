"""Sample images from a diffusion network.

mpirun -n 2 python scripts/image_sample.py --model_path models/digits16.pt --num_samples 100 --timestep_respacing 50
python scripts/image_sample.py --model_path models/digits16.pt --classes 3,7 --per_class 50 --timestep_respacing 25
"""

from guided_diffusion import checkpoints, dist_util
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.errors import UserError
from guided_diffusion.generate import (
    ClassFlags,
    IndexedNoise,
    SampleFlags,
    as_arrays,
    chosen_classes,
    labels_of,
    make_images,
    with_classes_counted,
)
from guided_diffusion.jobs import launch
from guided_diffusion.jobs.sampling_job import ShardFlags, generate_images
from guided_diffusion.networks import UNetFlags
from guided_diffusion.script_util import SAMPLING_METHODS, DiffusionFlags
from guided_diffusion.solver_flags import SolverFlags

GROUPS = [
    CheckpointFlags,
    SampleFlags,
    ShardFlags,
    SolverFlags,
    ClassFlags,
    UNetFlags,
    DiffusionFlags,
    *SAMPLING_METHODS,
]


def main(parsed, name=None):
    """Sample and save; `name(parsed)` is the file name of the npz, by default samples_NxHxWxC.npz."""
    parsed, model, diffusion = checkpoints.load_diffusion(parsed)
    unet, wanted = parsed[UNetFlags], parsed[ClassFlags]
    if (wanted.classes or wanted.per_class) and not unet.class_cond:
        raise UserError(
            f"--{'classes' if wanted.classes else 'per_class'} has no meaning for --model_path "
            f"{parsed[CheckpointFlags].model_path}, which has no classes"
        )
    parsed = with_classes_counted(parsed, unet.num_classes)
    flags, classes = parsed[SampleFlags], chosen_classes(parsed[ClassFlags].classes, unet.num_classes)

    def make_batch(indices):
        noise, kwargs = IndexedNoise(flags.seed, indices), {}
        if unet.class_cond:
            kwargs["y"] = labels_of(noise, indices, classes, unet.num_classes).to(dist_util.dev())
        images = make_images(diffusion, model, parsed[SolverFlags], noise, model.shape, flags.clip_denoised, kwargs)
        return as_arrays(images, kwargs.get("y"))

    generate_images(parsed, diffusion, make_batch, name and name(parsed))


if __name__ == "__main__":
    launch.run("image_sample", __doc__, GROUPS, main)
