"""Train a network that fills holes of images as a reference says.

python scripts/inpaint_train.py --data_dir data/digits --image_size 16 --image_channels 1 --random_flip False \\
    --masks center,column --noise_schedule cosine --prediction v --batch_size 32 --iterations 5000
python scripts/inpaint_train.py --data_dir data/digits --init_from runs/inpaint_train/ema_0.9999_005000.pt \\
    --random_flip False --objective unrolled --identity_path models/digits16_classifier.pt --batch_size 32 \\
    --iterations 500 --out_dir runs/unrolled
"""

from guided_diffusion import conditioning, methods, objectives
from guided_diffusion.conditioning.masked import MaskFlags, ReferenceFlags
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch
from guided_diffusion.networks import NETWORKS, ConvFlags, InpaintFlags, UNetFlags
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.training.flags import TrainFlags
from guided_diffusion.training.job import train_diffusion

GROUPS = [
    DataFlags,
    TrainFlags,
    *objectives.groups(),
    InpaintFlags,
    MaskFlags,
    ReferenceFlags,
    UNetFlags,
    ConvFlags,
    DiffusionFlags,
    *methods.of_training(),
    *conditioning.training_groups(),
]


def main(parsed):
    train_diffusion(parsed, NETWORKS["inpaint"])


if __name__ == "__main__":
    launch.run("inpaint_train", __doc__, GROUPS, launch.alone(main))
