"""Distill a diffusion network, in rounds that halve the steps of its sampler.

python scripts/image_distill.py --data_dir data/digits --teacher models/digits16.pt --prediction v --start_steps 16 \\
    --end_steps 1 --random_flip False --batch_size 32 --lr 3e-4 --lr_anneal_steps 300 --ema_rate 0.98
"""

from evaluations.features import FeatureFlags
from evaluations.training_score import EvalFlags, scorer
from guided_diffusion import checkpoints, conditioning, methods
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch
from guided_diffusion.networks import ConvFlags, UNetFlags
from guided_diffusion.objectives import ObjectiveFlags, ProgressiveDistillation
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.training.flags import TrainFlags
from guided_diffusion.training.rounds import RoundFlags, distill

GROUPS = [
    DataFlags,
    RoundFlags,
    TrainFlags,
    ObjectiveFlags,
    *ProgressiveDistillation.flags,
    UNetFlags,
    ConvFlags,
    DiffusionFlags,
    *methods.of_training(),
    *conditioning.training_groups(),
    EvalFlags,
    FeatureFlags,
]
OVERRIDES = {
    "objective": None,
    "student_steps": None,
    "init_from": None,
    "checkpoint_key": None,
    "resume_checkpoint": None,
    "prediction": "v",
}


def main(parsed):
    distill(parsed, checkpoints.DIFFUSION, after_step=scorer)


if __name__ == "__main__":
    launch.run("image_distill", __doc__, GROUPS, launch.alone(main), OVERRIDES)
