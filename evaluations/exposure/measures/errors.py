"""The error of what is predicted: of the noise by the network itself, of the clean image as the solver is given it.

At true states both are known. For the mean of all noise that fits a state, which is what training asks for, the error
is what the prediction's square lacks of the noise's: that is the theory of `eps_error`. A prediction that is too long
on average has an error above it, one that is too short an error below.

Along sampling a state has no true noise and no clean image of its own. Defined is the error against the real image that
its chain began with (the walk from_real, as for delta): equal to the error at true states as long as the chain has not
left its image, and in the end the distance of two images.
"""

from typing import ClassVar

from .measure import Measure


class Errors(Measure):
    """Mean squared errors per value of the predicted eps and x_0."""

    name = "errors"
    walks = ("true", "from_real")
    curves: ClassVar = {
        "eps_error": "mean squared error of the predicted noise at true states",
        "x0_error": "mean squared error of the predicted clean image at true states",
        "eps_lacking": "mean square of the noise less that of the predicted noise, at true states",
        "eps_error_sampled": "eps_error along sampling from noised real images",
        "x0_error_sampled": "x0_error along sampling from noised real images",
    }
    drawn = ("eps_error", "x0_error")
    label = "mean squared error\nat true states"
    scale = "log"

    def read(self, moment, setup):
        noise = moment.noise
        if noise is None:
            noise = (moment.x - moment.alpha_bar**0.5 * moment.image) / (1 - moment.alpha_bar) ** 0.5
        eps = moment.said.eps
        return {
            "eps": _mean_square(eps - noise),
            "x0": _mean_square(moment.x0 - moment.image),
            "lacking": _mean_square(noise) - _mean_square(eps),
        }

    def estimate(self, sums, count, setup):
        return {
            "eps_error": sums["true", "eps"] / count,
            "x0_error": sums["true", "x0"] / count,
            "eps_lacking": sums["true", "lacking"] / count,
            "eps_error_sampled": sums["from_real", "eps"] / count,
            "x0_error_sampled": sums["from_real", "x0"] / count,
        }

    def theory(self, values, setup):
        return {"eps_error": values["eps_lacking"]}


def _mean_square(x):
    return x.double().square().flatten(1).mean(dim=1)
