"""Train a diffusion network on images.

python scripts/image_train.py --data_dir data/digits --image_size 16 --image_channels 1 \\
    --class_cond True --num_classes 10 --random_flip False --iterations 5000
mpirun -n 2 python scripts/image_train.py --data_dir data/photo_patches --image_size 32 --batch_size 32 \\
    --iterations 5000
"""

from evaluations.features import FeatureFlags
from evaluations.training_score import EvalFlags, scorer
from guided_diffusion import checkpoints, conditioning, methods, objectives
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch
from guided_diffusion.networks import ConvFlags, UNetFlags
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.training.flags import TrainFlags
from guided_diffusion.training.job import train_diffusion

GROUPS = [
    DataFlags,
    TrainFlags,
    *objectives.groups(),
    UNetFlags,
    ConvFlags,
    DiffusionFlags,
    *methods.of_training(),
    *conditioning.training_groups(),
]
GROUPS += [EvalFlags, FeatureFlags]


def main(parsed):
    train_diffusion(parsed, checkpoints.DIFFUSION, after_step=scorer)


if __name__ == "__main__":
    launch.run("image_train", __doc__, GROUPS, launch.alone(main))
