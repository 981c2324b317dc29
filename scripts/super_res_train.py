"""Train a super-resolution network, which is given the small image beside the noisy large one.

mpirun -n 2 python scripts/super_res_train.py --data_dir data/photo_patches --large_size 32 --small_size 16 \\
    --batch_size 32 --iterations 5000
"""

from guided_diffusion import checkpoints, conditioning, methods, objectives
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch
from guided_diffusion.networks import ConvFlags, SuperResFlags, UNetFlags
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.training.flags import TrainFlags
from guided_diffusion.training.job import train_diffusion

GROUPS = [
    DataFlags,
    TrainFlags,
    *objectives.groups(),
    SuperResFlags,
    UNetFlags,
    ConvFlags,
    DiffusionFlags,
    *methods.of_training(),
    *conditioning.training_groups(),
]
OVERRIDES = {"image_size": None}


def main(parsed):
    train_diffusion(parsed, checkpoints.SUPER_RES)


if __name__ == "__main__":
    launch.run("super_res_train", __doc__, GROUPS, launch.alone(main), OVERRIDES)
