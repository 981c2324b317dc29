"""Held-out losses of a classifier in training."""

import torch

from .. import dist_util
from ..objectives import ClassifierObjective, ValidationFlags
from .data import held_out_data
from .flags import TrainFlags
from .log import log_loss_dict


def held_out_losses(parsed, diffusion):
    """An `after_step` of a Loop that logs the losses of the next held-out batch each --eval_interval steps.

    :param parsed: the resolved Parsed flags.
    :param diffusion: the GaussianDiffusion of the ClassifierObjective.
    :return: None where --val_data_dir is empty.
    """
    checks, flags = parsed[ValidationFlags], parsed[TrainFlags]
    if not checks.val_data_dir:
        return None
    batches = held_out_data(parsed, checks.val_data_dir, flags.first_step() // checks.eval_interval)
    objective = ClassifierObjective.held_out(parsed, diffusion)

    def after_step(loop):
        if loop.step % checks.eval_interval:
            return
        with loop.aside():
            batch, cond = next(batches)
            loop.model.eval()
            with torch.no_grad():
                loss = objective(loop.model, batch.to(dist_util.dev()), {"y": cond["y"].to(dist_util.dev())})
            loop.model.train()
            log_loss_dict(objective, loss.t, loss.terms)

    return after_step
