"""Input Perturbation (Ning et al. 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models").

Training sees x_t made of eps + gamma xi with a second noise xi, and still has to predict eps
(algorithm 1 of the paper). Sampling is untouched.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from ..devices import on_device
from ..errors import UserError
from ..flags import at_least, flag, may_be_known
from ..schedule import per_sample
from .method import Method, no_corruption

# the default of TS-DPM-ADM
_MISSPELT = "linaer"
# gamma_t / gamma at timesteps t [T] of `total`
_STRENGTHS = {
    "constant": lambda t, total: np.ones_like(t),
    "linear": lambda t, total: 0.01 + 0.99 * t / max(total - 1, 1),
    "cosine": lambda t, total: (1 - np.cos(np.pi * t / total)) / 2,
}


@dataclass
class InputPerturbation(Method):
    """Input Perturbation (Ning et al. 2023)."""

    input_perturbation: float = flag(
        0.0,
        "Strength of a second noise that training adds to the first, without predicting it; 0 is off.",
        aliases=("input_pertub",),
        legal=at_least(0),
        lasting=True,
        released=True,
    )
    perturb_schedule_type: str = flag(
        "constant", "How that strength grows over the timesteps.", tuple(_STRENGTHS), lasting=True, released=True
    )
    perturb_cutoff: int = flag(
        0, "So many of the noisiest timesteps are trained without it.", legal=at_least(0), lasting=True, released=True
    )

    def __post_init__(self):
        if self.perturb_schedule_type == _MISSPELT:
            warnings.warn(f"perturb_schedule_type {_MISSPELT!r} is taken as 'linear'", stacklevel=3)
            self.perturb_schedule_type = "linear"
        super().__post_init__()

    def refuse_unread(self, given):
        told = self.perturb_cutoff or self.perturb_schedule_type != "constant"
        if told and not self.input_perturbation and not may_be_known("input_perturbation", given):
            raise UserError("--perturb_schedule_type and --perturb_cutoff do nothing without --input_perturbation")

    def check(self, process, solver):
        total = process.schedule.num_timesteps
        if self.perturb_cutoff >= total:
            raise UserError(
                f"--perturb_cutoff {self.perturb_cutoff} leaves no timestep to perturb; expected below {total}"
            )

    def corrupt(self, process):
        if self.input_perturbation == 0:
            return no_corruption
        total = process.schedule.num_timesteps
        return Perturbation(self.input_perturbation, total, self.perturb_schedule_type, self.perturb_cutoff)

    @classmethod
    def remarks(cls, trained):
        if trained.get("input_perturbation"):
            yield f"trained with --input_perturbation {trained['input_perturbation']}"


class Perturbation:
    """The corruption `(noise, t) -> (noise + gamma_t xi, t)`, xi standard normal, one for each image.

    :param gamma: strength, above 0.
    :param num_timesteps: T of the training process.
    :param schedule_type: "constant", or how gamma_t grows from almost 0 at the data to gamma: "linear" from
        0.01 gamma over t (TS-DPM-ADM), "cosine" as gamma (1 - cos(pi t / T)) / 2.
    :param cutoff: gamma_t is 0 for so many of the noisiest timesteps.
    """

    def __init__(self, gamma, num_timesteps, schedule_type="constant", cutoff=0):
        strengths = _STRENGTHS[schedule_type](np.arange(num_timesteps, dtype=np.float64), num_timesteps)
        strengths[max(num_timesteps - cutoff, 0) :] = 0
        self._gammas = gamma * strengths

    def __call__(self, noise, t):
        gammas = on_device(self._gammas, t.device).index_select(0, t)
        return noise + per_sample(gammas, noise) * torch.randn_like(noise), t
