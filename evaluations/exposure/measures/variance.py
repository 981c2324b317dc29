"""The variance of the states, image by image (Li et al. 2024, "Alleviating Exposure Bias in Diffusion Models through
Sampling with Shifted Time Steps").

A true state has on average the pixel variance 1 - alpha_bar_t (1 - v0), with v0 the mean variance of the images. The
search of Time Shift takes, for each state, the timestep whose variance is nearest; here it is free, over all timesteps,
once in 1 - alpha_bar as published and once in the variance above. What it finds on average is the shift; what it finds
at true states, where nothing is to be shifted, is its own error: images differ in variance.
"""

from typing import ClassVar

import torch

from guided_diffusion.methods.time_shift import Search, Variant, pixel_variance, state_variance

from .measure import Measure


class Variance(Measure):
    """Variance of the states, and the times that fit them."""

    name = "variance"
    walks = ("sampled", "true")
    curves: ClassVar = {
        "variance": "mean pixel variance of the states along sampling",
        "variance_excess": "the same less 1 - alpha_bar (1 - v0), that of true states",
        "shift": "mean timesteps from a state's own time to the one that fits, in 1 - alpha_bar (1 - v0)",
        "shift_published": "the same in 1 - alpha_bar",
        "shift_spread": "standard deviation over images of shift",
        "search_error": "root mean square of shift at true states, where it should be 0",
    }
    drawn = ("variance_excess",)
    label = "pixel variance of a state,\nless that of a true one"

    def of_images(self, image):
        return {"of_image": pixel_variance(image)}

    def read(self, moment, setup):
        center = torch.full((len(moment.x),), moment.time, device=moment.x.device)
        shift = self._search(setup, setup.data_variance)(moment.x, center) - center
        found = {"shift": shift, "square": shift.double().square()}
        if moment.walk == "true":
            return found
        published = self._search(setup, 0.0)(moment.x, center) - center
        return found | {"published": published, "variance": pixel_variance(moment.x)}

    @staticmethod
    def _search(setup, data_variance):
        variance = Variant.variance(setup.schedule, data_variance)
        return Search(setup.schedule, 2 * setup.schedule.num_timesteps, variance)

    def estimate(self, sums, count, setup):
        shift, variance = (sums["sampled", key] / count for key in ("shift", "variance"))
        spread = (sums["sampled", "square"] / count - shift**2).clip(min=0) * count / (count - 1)
        return {
            "variance": variance,
            "variance_excess": variance - state_variance(setup.levels, sums["of_image"] / count),
            "shift": shift,
            "shift_published": sums["sampled", "published"] / count,
            "shift_spread": spread**0.5,
            "search_error": (sums["true", "square"] / count) ** 0.5,
        }

    def theory(self, values, setup):
        nothing = 0 * setup.levels
        true = state_variance(setup.levels, setup.data_variance)
        return {"variance": true, "variance_excess": nothing, "shift": nothing}
