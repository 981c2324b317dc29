"""Train a variational autoencoder, whose images image_train.py --vae_path refines.

python scripts/vae_train.py --data_dir data/digits --image_size 16 --image_channels 1 --random_flip False \\
    --batch_size 64 --lr 1e-3 --iterations 1500
"""

from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch
from guided_diffusion.networks import ConvFlags, VaeFlags
from guided_diffusion.objectives.vae import VaeObjectiveFlags
from guided_diffusion.training.flags import TrainFlags
from guided_diffusion.training.job import train_vae

GROUPS = [DataFlags, TrainFlags, VaeObjectiveFlags, VaeFlags, ConvFlags]
OVERRIDES = {"conv": None}  # which is of ADM's networks


if __name__ == "__main__":
    launch.run("vae_train", __doc__, GROUPS, launch.alone(train_vae), OVERRIDES)
