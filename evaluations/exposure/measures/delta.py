"""delta_t (Ning et al. 2024, "Elucidating the Exposure Bias in Diffusion Models"), as their release computes it.

One chain for each real image x_0 begins at q(x_T | x_0), T the noisiest kept timestep. At each state x_t

    r_t = x_t - sqrt(alpha_bar_t) x_0,    s_t = mean over pixels of std over images of r_t,
    delta_t = (s_t - sqrt(1 - alpha_bar_t))^2.

`delta` can show which of two samplers, of the same data, steps and number of images, strays farther. It cannot show
how far: where x_T holds next to nothing of x_0, the chain ends at some other image, and without any error at all the
variance of r_t is that of noise and of the difference of two independent images, 1 - alpha_bar_t + 2 alpha_bar_t v
with v the pixel's variance over the data. So delta grows towards the data for an exact sampler too.

`delta_independent` compares s_t with the square root of that, averaged over pixels: it is 0 where the chain has
forgotten x_0 and kept the spread of the data. It can show bias at low noise, and `spread` - `spread_independent` its
sign: below 0, the samples are too much alike. It cannot tell bias from memory: where the noisiest timestep still holds
some of x_0, as on ddimN grids, the difference is below 0 without any bias. Neither sees an error that all chains share,
such as a shifted mean, nor one between pixels.

The standard deviation of few images is too small, by a factor of about 1 - 1 / (4 N). The formula above, as published,
has no correction of it; `spread_independent` has the same factor, that of normal r_t.
"""

from math import lgamma
from typing import ClassVar

import numpy as np

from .measure import Measure


class Delta(Measure):
    """delta_t of the release, and against the spread of independent images."""

    name = "delta"
    walks = ("from_real",)
    curves: ClassVar = {
        "spread": "mean over pixels of the standard deviation over images of x_t - sqrt(alpha_bar) x_0",
        "spread_independent": "the same of an exact chain that has forgotten x_0",
        "delta": "(spread - sqrt(1 - alpha_bar))^2, as released",
        "delta_independent": "(spread - spread_independent)^2",
    }
    drawn = ("delta", "delta_independent")
    label = "delta"
    scale = "log"

    def of_images(self, image):
        return {"image": image, "square": image.double().square()}

    def read(self, moment, setup):
        rest = moment.x - moment.alpha_bar**0.5 * moment.image
        return {"rest": rest, "square": rest.double().square()}

    def estimate(self, sums, count, setup):
        deviations = np.sqrt(_variance(sums["from_real", "rest"], sums["from_real", "square"], count))
        spread = deviations.reshape(len(deviations), -1).mean(axis=1)
        data, levels = _variance(sums["image"], sums["square"], count).ravel(), setup.levels
        independent = normal_factor(count) * np.array([np.sqrt(1 - a + 2 * a * data).mean() for a in levels])
        return {
            "spread": spread,
            "spread_independent": independent,
            "delta": (spread - np.sqrt(1 - levels)) ** 2,
            "delta_independent": (spread - independent) ** 2,
        }

    def theory(self, values, setup):
        independent = values["spread_independent"]
        return {"spread": independent, "delta": (independent - np.sqrt(1 - setup.levels)) ** 2}


def _variance(total, square, count):
    """Unbiased, of sums of values and of their squares."""
    return np.maximum(square - total**2 / count, 0) / (count - 1)


def normal_factor(count):
    """What the standard deviation (divisor n - 1) of n normal numbers of variance 1 is on average."""
    return np.sqrt(2 / (count - 1)) * np.exp(lgamma(count / 2) - lgamma((count - 1) / 2))
