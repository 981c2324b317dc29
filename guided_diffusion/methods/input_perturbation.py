"""Input Perturbation (Ning et al. 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models").

Training sees x_t made of eps + gamma xi with a second noise xi, and still has to predict eps
(algorithm 1 of the paper). Sampling is untouched.
"""

import torch

from ..schedule import per_sample


class InputPerturbation:
    """The corruption `(noise, t) -> noise + gamma_t xi`, xi standard normal, one for each image.

    :param gamma: strength; 0 draws no xi and returns the very noise.
    :param num_timesteps: T of the training process.
    :param schedule_type: "constant", or how gamma_t grows from almost 0 at the data to gamma: "linear" from
        0.01 gamma over t (TS-DPM-ADM), "cosine" as gamma (1 - cos(pi t / T)) / 2.
    :param cutoff: gamma_t is 0 for so many of the noisiest timesteps.
    """

    def __init__(self, gamma, num_timesteps, schedule_type="constant", cutoff=0):
        self.gamma = gamma
        strengths = _STRENGTHS[schedule_type](torch.arange(num_timesteps, dtype=torch.float64), num_timesteps)
        strengths[max(num_timesteps - cutoff, 0) :] = 0
        self._gammas = gamma * strengths

    def __call__(self, noise, t):
        if self.gamma == 0:
            return noise
        return noise + per_sample(self._gammas.to(t.device)[t], noise) * torch.randn_like(noise)


_STRENGTHS = {
    "constant": lambda t, total: torch.ones_like(t),
    "linear": lambda t, total: 0.01 + 0.99 * t / max(total - 1, 1),
    "cosine": lambda t, total: (1 - torch.cos(torch.pi * t / total)) / 2,
}
SCHEDULE_TYPES = tuple(_STRENGTHS)
