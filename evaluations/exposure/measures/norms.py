"""The length of the predicted noise (Ning et al. 2024, "Elucidating the Exposure Bias in Diffusion Models", section 5).

The paper compares ||eps|| along sampling with ||eps|| at true states; where sampling loses its way, they part. A
network that is right on average at true states, <eps_said, eps> = ||eps_said||^2, has there the length of the true
noise along its prediction, <eps_said, eps> / ||eps_said||. `eps_along` is that length, which an error of scale leaves
as it is.

In few steps the ratio is not 1 for an exact denoiser either: its theory here is that of the Gaussian with the mean and
the covariance of the real images, by the same solver with the same noise, and at the same true states. For images,
which are no Gaussian, it shows the size of what the solver alone does.
"""

from typing import ClassVar

import torch

from .measure import Measure


class Lengths(Measure):
    """The sampled part of Norms, for those who have the rest: true states are as they are under every sampler."""

    name = "lengths"
    walks = ("sampled",)
    curves: ClassVar = {"eps_sampled": "mean L2 norm of the predicted noise along sampling"}

    def read(self, moment, setup):
        return {"length": moment.said.eps.flatten(1).double().norm(dim=1)}

    def estimate(self, sums, count, setup):
        return {"eps_sampled": sums["sampled", "length"] / count}


class Norms(Measure):
    """L2 norms of the network's own eps."""

    name = "norms"
    walks = ("sampled", "true", "gaussian")
    curves: ClassVar = {
        "eps_sampled": "mean L2 norm of the predicted noise along sampling",
        "eps_true": "the same at true states",
        "eps_along": "mean length of the true noise along the predicted, at true states",
        "eps_ratio": "eps_sampled / eps_true",
        "gaussian_sampled": "eps_sampled of a Gaussian's exact denoiser",
        "gaussian_true": "eps_true of a Gaussian's exact denoiser",
        "gaussian_along": "eps_along of a Gaussian's exact denoiser",
    }
    drawn = ("eps_ratio",)
    label = "length of predicted noise,\nsampled / true"

    def read(self, moment, setup):
        found = _lengths(moment.said.eps, moment.noise)
        if moment.walk != "true":
            return found
        level = torch.full((len(moment.x),), moment.alpha_bar, dtype=torch.float64, device=moment.x.device)
        exact = _lengths(setup.gaussian.predict(moment.x, level).eps, moment.noise)
        return found | {f"gaussian_{key}": values for key, values in exact.items()}

    def estimate(self, sums, count, setup):
        mean = {key: values / count for key, values in sums.items()}
        return {
            "eps_sampled": mean["sampled", "length"],
            "eps_true": mean["true", "length"],
            "eps_along": mean["true", "along"],
            "eps_ratio": mean["sampled", "length"] / mean["true", "length"],
            "gaussian_sampled": mean["gaussian", "length"],
            "gaussian_true": mean["true", "gaussian_length"],
            "gaussian_along": mean["true", "gaussian_along"],
        }

    def theory(self, values, setup):
        return {"eps_ratio": values["gaussian_sampled"] / values["gaussian_true"]}


def _lengths(eps, noise):
    eps = eps.flatten(1).double()
    length = eps.norm(dim=1)
    return {"length": length} | ({} if noise is None else {"along": (eps * noise.flatten(1)).sum(dim=1) / length})
