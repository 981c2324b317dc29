"""Train a super-resolution network, which is given the small image beside the noisy large one.

mpirun -n 2 python scripts/super_res_train.py --data_dir data/photo_patches --large_size 32 --small_size 16 \\
    --batch_size 32 --iterations 5000
"""

import itertools

from guided_diffusion import checkpoints, dist_util
from guided_diffusion.checkpoints import resume
from guided_diffusion.generate import preview_sampler
from guided_diffusion.image_datasets import DataFlags, with_low_res
from guided_diffusion.jobs import launch
from guided_diffusion.networks import SuperResFlags, UNetFlags
from guided_diffusion.resample import SamplerFlags
from guided_diffusion.script_util import DiffusionFlags, InputPerturbationFlags
from guided_diffusion.train_util import DiffusionObjective, TrainFlags, TrainLoop, seed_everything, training_data

GROUPS = [DataFlags, TrainFlags, SamplerFlags, SuperResFlags, UNetFlags, DiffusionFlags, InputPerturbationFlags]
OVERRIDES = {"image_size": None}


def main(parsed):
    parsed = resume.starting_point(parsed, checkpoints.SUPER_RES)
    sizes, unet, process = parsed[SuperResFlags], parsed[UNetFlags], parsed[DiffusionFlags]
    settings = parsed[TrainFlags]
    seed_everything(settings)
    model, diffusion = sizes.create(unet, process.learn_sigma), process.create(parsed[InputPerturbationFlags])
    data = training_data(parsed[DataFlags], settings, sizes.large_size, unet.class_cond, unet.num_classes)
    data = with_low_res(data, sizes.small_size)
    if not launch.announce(parsed):
        return
    first, cond = next(data)
    TrainLoop(
        model=model.to(dist_util.dev()),
        objective=DiffusionObjective(diffusion, parsed[SamplerFlags].create(diffusion)),
        data=itertools.chain([(first, cond)], data),
        flags=settings,
        resolved=parsed.values(),
        dtype=unet.dtype,
        preview=preview_sampler(process, first[:16].shape, {k: v[:16] for k, v in cond.items()}),
    ).run_loop()


if __name__ == "__main__":
    launch.run("super_res_train", __doc__, GROUPS, launch.alone(main), OVERRIDES)
