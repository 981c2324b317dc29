"""Epsilon Scaling (Ning et al. 2024, "Elucidating the Exposure Bias in Diffusion Models").

On sampled states the network's noise prediction is longer than on true ones. Dividing it by lambda_i
shortens it: section 5 of the paper, with lambda_i = k i + b at kept step i (0 is nearest to the data).
"""

import torch

from ..schedule import per_sample


class EpsilonScaledDenoiser:
    """A denoiser whose eps is divided by lambda; x0 follows, the learned variance does not.

    :param denoise: the denoiser it scales.
    :param grid: the kept training timesteps, increasing; a time between two of them is scaled in between.
    :param k, b: lambda_i = k i + b, positive.
    """

    def __init__(self, denoise, grid, k, b):
        self.denoise = denoise
        self.grid = torch.as_tensor(list(grid), dtype=torch.float64)
        self.k = k
        self.b = b

    def __call__(self, x, t):
        prediction = self.denoise(x, t)
        return prediction.with_eps(prediction.eps / per_sample(self.scale(t), x))

    def scale(self, t):
        """lambda [N] (float64) at training timesteps t [N]."""
        return self.k * self._step_index(t) + self.b

    def _step_index(self, t):
        """Where t [N] lies among the kept steps: their index, in between for a shifted time."""
        self.grid = grid = self.grid.to(t.device)
        if len(grid) == 1:
            return torch.zeros_like(t, dtype=grid.dtype)
        above = torch.searchsorted(grid, t.to(grid.dtype).contiguous()).clamp(1, len(grid) - 1)
        low, high = grid[above - 1], grid[above]
        return (above - 1 + (t - low) / (high - low)).clamp(0, len(grid) - 1)
