"""Objectives: what training minimises, one paper a file; the table decides what --objective offers."""

from dataclasses import dataclass

from .. import logger
from ..flags import FlagGroup, flag
from .adversarial import AdversarialObjective
from .classifier import ClassifierObjective, ValidationFlags
from .consistency_distillation import ConsistencyDistillation
from .diffusion import DiffusionObjective
from .objective import AuxiliaryNetwork, Loss, Objective
from .progressive_distillation import ProgressiveDistillation
from .scale_distillation import ScaleDistillation
from .unrolled import Unrolled

__all__ = [
    "OBJECTIVES",
    "AuxiliaryNetwork",
    "ClassifierObjective",
    "Loss",
    "Objective",
    "ObjectiveFlags",
    "ValidationFlags",
]

# Those of diffusion networks. A classifier has but one.
OBJECTIVES = {
    "diffusion": DiffusionObjective,
    "progressive_distillation": ProgressiveDistillation,
    "consistency_distillation": ConsistencyDistillation,
    "scale_distillation": ScaleDistillation,
    "unrolled": Unrolled,
    "adversarial": AdversarialObjective,
}


@dataclass
class ObjectiveFlags(FlagGroup):
    """The objective."""

    objective: str = flag("diffusion", "What training minimises.", choices=OBJECTIVES, lasting=True)


def groups():
    """Flag groups of scripts that offer --objective: its own, and those of all that it may name."""
    return list(dict.fromkeys([ObjectiveFlags, *(group for kind in OBJECTIVES.values() for group in kind.flags)]))


def create(parsed, diffusion):
    """The Objective that --objective names.

    :param parsed: the resolved Parsed flags.
    :param diffusion: a GaussianDiffusion.
    """
    chosen = parsed[ObjectiveFlags].objective
    read = {field for group in OBJECTIVES[chosen].flags for field in group.__dataclass_fields__}
    for group in groups()[1:]:
        for name in sorted(parsed.given & set(group.__dataclass_fields__) - read):
            logger.warn(f"--{name} does nothing with --objective {chosen}")
    if not issubclass(OBJECTIVES[chosen], DiffusionObjective):
        for name in sorted(parsed.given & {"use_kl", "rescale_learned_sigmas"}):
            logger.warn(f"--{name} does nothing with --objective {chosen}")
    made = OBJECTIVES[chosen].create(parsed, diffusion)
    if made.timesteps is None and diffusion.num_timesteps < diffusion.schedule.num_timesteps:
        made.timesteps = list(diffusion.process.grid)
        made.sampled_by = {"timestep_respacing": parsed.values()["timestep_respacing"], **made.sampled_by}
    if diffusion.model_var_type.is_learned and not made.trains_variance:
        logger.warn(
            f"--objective {chosen} does not train the variance of --learn_sigma True: the last layer's weights of it "
            "stay as they began, and --solver ddpm and likelihoods read them"
        )
    return made
