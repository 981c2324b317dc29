"""Train a diffusion network on images.

python scripts/image_train.py --data_dir data/digits --image_size 16 --class_cond True --num_classes 10 \\
    --random_flip False --iterations 5000
mpirun -n 2 python scripts/image_train.py --data_dir data/photo_patches --image_size 32 --batch_size 32 \\
    --iterations 5000
"""

import torch

from evaluations.features import FeatureFlags
from evaluations.training_score import EvalFlags, log_scores
from guided_diffusion import checkpoints, dist_util
from guided_diffusion.checkpoints import resume
from guided_diffusion.generate import preview_sampler
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch
from guided_diffusion.networks import UNetFlags
from guided_diffusion.resample import SamplerFlags
from guided_diffusion.script_util import DiffusionFlags, InputPerturbationFlags
from guided_diffusion.train_util import DiffusionObjective, TrainFlags, TrainLoop, seed_everything, training_data

GROUPS = [DataFlags, TrainFlags, SamplerFlags, UNetFlags, DiffusionFlags, InputPerturbationFlags]
GROUPS += [EvalFlags, FeatureFlags]


def main(parsed):
    parsed = resume.starting_point(parsed, checkpoints.DIFFUSION)
    unet, process, settings = parsed[UNetFlags], parsed[DiffusionFlags], parsed[TrainFlags]
    seed_everything(settings)
    model, diffusion = unet.create(process.learn_sigma), process.create(parsed[InputPerturbationFlags])
    data = training_data(parsed[DataFlags], settings, unet.image_size, unet.class_cond, unet.num_classes)
    if not launch.announce(parsed):
        return
    labels = {"y": torch.arange(16) % unet.num_classes} if unet.class_cond else {}
    loop = TrainLoop(
        model=model.to(dist_util.dev()),
        objective=DiffusionObjective(diffusion, parsed[SamplerFlags].create(diffusion)),
        data=data,
        flags=settings,
        resolved=parsed.values(),
        dtype=unet.dtype,
        preview=preview_sampler(process, (16, 3, unet.image_size, unet.image_size), labels),
    )
    if parsed[EvalFlags].eval_interval:
        log_scores(loop, parsed)
    loop.run_loop()


if __name__ == "__main__":
    launch.run("image_train", __doc__, GROUPS, launch.alone(main))
