"""The length of the predicted noise (Ning et al. 2024, "Elucidating the Exposure Bias in Diffusion Models", section 5).

The paper compares ||eps|| along sampling with ||eps|| at true states; where sampling loses its way, they part. A network
that is right on average at true states, <eps_said, eps> = ||eps_said||^2, has there the length of the true noise along
its prediction, <eps_said, eps> / ||eps_said||. `eps_along` is that length, which an error of scale does not change.
"""

from typing import ClassVar

import numpy as np

from .measure import Measure


class Norms(Measure):
    """L2 norms of the network's own eps."""

    name = "norms"
    walks = ("sampled", "true")
    curves: ClassVar = {
        "eps_sampled": "mean L2 norm of the predicted noise along sampling",
        "eps_true": "the same at true states",
        "eps_along": "mean length of the true noise along the predicted, at true states",
        "eps_ratio": "eps_sampled / eps_true",
    }
    drawn = ("eps_ratio",)
    label = "length of predicted noise,\nsampled / true"

    def read(self, moment, setup):
        eps = moment.said.eps.flatten(1).double()
        length = eps.norm(dim=1)
        if moment.walk == "sampled":
            return {"length": length}
        return {"length": length, "along": (eps * moment.noise.flatten(1)).sum(dim=1) / length}

    def estimate(self, sums, count, setup):
        sampled, true = (sums[walk, "length"] / count for walk in self.walks)
        return {
            "eps_sampled": sampled,
            "eps_true": true,
            "eps_along": sums["true", "along"] / count,
            "eps_ratio": sampled / true,
        }

    def theory(self, values, setup):
        return {"eps_ratio": np.ones_like(setup.levels)}
