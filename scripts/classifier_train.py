"""Train a classifier of noisy images, which can guide sampling.

python scripts/classifier_train.py --data_dir data/digits --val_data_dir data/digits_heldout --image_size 16 \\
    --image_channels 1 --num_classes 10 --classifier_width 32 --classifier_attention_resolutions 8 --batch_size 64 \\
    --iterations 1500
"""

from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch
from guided_diffusion.networks import ClassifierFlags, ConvFlags
from guided_diffusion.objectives import ValidationFlags
from guided_diffusion.process import NoisingFlags
from guided_diffusion.resample import SamplerFlags
from guided_diffusion.training.flags import TrainFlags
from guided_diffusion.training.job import train_classifier

GROUPS = [DataFlags, TrainFlags, ValidationFlags, SamplerFlags, ClassifierFlags, ConvFlags, NoisingFlags]
OVERRIDES = {
    "iterations": 150000,
    "lr": 3e-4,
    "batch_size": 4,
    "ema_rate": "",
    "sample_interval": None,
    "prediction": None,
}


if __name__ == "__main__":
    launch.run("classifier_train", __doc__, GROUPS, launch.alone(train_classifier), OVERRIDES)
