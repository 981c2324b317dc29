"""Train a classifier of noisy images, which can guide sampling.

python scripts/classifier_train.py --data_dir data/digits --val_data_dir data/digits_heldout --image_size 16 \\
    --num_classes 10 --classifier_width 32 --classifier_attention_resolutions 8 --batch_size 64 --iterations 1500
"""

from dataclasses import dataclass, replace

import torch

from guided_diffusion import checkpoints, dist_util
from guided_diffusion.checkpoints import resume
from guided_diffusion.flags import FlagGroup, at_least, flag
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch
from guided_diffusion.networks import ClassifierFlags
from guided_diffusion.resample import SamplerFlags, UniformSampler
from guided_diffusion.script_util import DiffusionFlags
from guided_diffusion.train_util import (
    ClassifierObjective,
    TrainFlags,
    TrainLoop,
    log_loss_dict,
    seed_everything,
    training_data,
)

OVERRIDES = {"iterations": 150000, "lr": 3e-4, "batch_size": 4, "ema_rate": "", "sample_interval": None}


@dataclass
class ValidationFlags(FlagGroup):
    """Noise and validation."""

    noised: bool = flag(True, "Train on noisy images, as guidance needs; False trains on clean ones.")
    anneal_lr: bool = flag(False, "Let the learning rate fall linearly to 0 over --iterations.")
    val_data_dir: str = flag("", "Folder or npz of held-out images, to log val_ losses; empty for none.")
    eval_interval: int = flag(5, "Steps between held-out batches.", legal=at_least(1))


GROUPS = [DataFlags, TrainFlags, ValidationFlags, SamplerFlags, ClassifierFlags, DiffusionFlags]


def validator(model, data, objective):
    """A function that logs the objective on the next held-out batch."""

    def validate():
        batch, cond = next(data)
        model.eval()
        with torch.no_grad():
            _, terms, t = objective(model, batch.to(dist_util.dev()), {"y": cond["y"].to(dist_util.dev())})
        model.train()
        log_loss_dict(objective.num_timesteps, t, terms)

    return validate


def main(parsed):
    parsed = resume.starting_point(parsed, checkpoints.CLASSIFIER)
    classifier, checks, settings = parsed[ClassifierFlags], parsed[ValidationFlags], parsed[TrainFlags]
    if checks.anneal_lr:
        settings = replace(settings, lr_anneal_steps=settings.lr_anneal_steps or settings.iterations)
    seed_everything(settings)
    model, diffusion = classifier.create(), parsed[DiffusionFlags].create()
    open_data = {"image_size": classifier.image_size, "class_cond": True, "num_classes": classifier.num_classes}
    data = training_data(parsed[DataFlags], settings, **open_data)
    validate = None
    if checks.val_data_dir:
        held_out = replace(parsed[DataFlags], data_dir=checks.val_data_dir, random_flip=False, random_crop=False)
        objective = ClassifierObjective(diffusion, UniformSampler(diffusion), checks.noised, "val")
        seen = settings.first_step() // checks.eval_interval
        validate = validator(model, training_data(held_out, settings, start=seen, **open_data), objective)
    if not launch.announce(parsed):
        return
    TrainLoop(
        model=model.to(dist_util.dev()),
        objective=ClassifierObjective(diffusion, parsed[SamplerFlags].create(diffusion), checks.noised),
        data=data,
        flags=settings,
        resolved=parsed.values(),
        dtype=classifier.dtype,
        after_step=lambda step: validate() if validate and step % checks.eval_interval == 0 else None,
    ).run_loop()


if __name__ == "__main__":
    launch.run("classifier_train", __doc__, GROUPS, launch.alone(main), OVERRIDES)
