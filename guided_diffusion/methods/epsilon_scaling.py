"""Epsilon Scaling (Ning et al. 2024, "Elucidating the Exposure Bias in Diffusion Models").

On sampled states the network's noise prediction is longer than on true ones. Dividing it by lambda_i
shortens it: section 5 of the paper, with lambda_i = k i + b at kept step i (0 is nearest to the data).

The authors' releases for other families scale alike, but for this. EDM-ES divides (x - D) / sigma, which is this eps,
at both calls of a Heun step in one of its samplers, and at the first alone in the other; here at every call, for a
method knows no solver. LDM-ES divides the eps that x0 is made of and leaves the one in DDIM's direction to x_t; here
both are the same, so that x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps stays true and a solver may use either.

In nearly pure noise, which the linear schedule does not have, what an x0 or v network predicts stays. The state there
is the noise that was drawn, in which no bias has gathered, and x0 would move by (1 - 1 / lambda) eps / sqrt(alpha_bar):
at the last cosine timestep by 10 eps for a lambda of 1.0005. An eps network, as the paper has, is scaled at every step.
"""

import bisect
import math
from dataclasses import dataclass

import numpy as np
import torch

from ..denoiser import ModelMeanType
from ..devices import on_device
from ..errors import UserError
from ..flags import flag, number
from ..scalars import per_sample, real, shared
from ..schedule import NEARLY_NOISE, half_log_snr
from .method import Method, Proposal, jackknife


@dataclass
class EpsilonScaling(Method):
    """Epsilon Scaling (Ning et al. 2024)."""

    corrects_bias = True

    eps_scaler: str = flag(
        "1.0",
        "Divide the predicted noise by B, or at kept step i by K i + B when written K,B, except what x0 or v networks "
        "predict in nearly pure noise; 1.0 is off.",
        released=True,
    )

    def __post_init__(self):
        super().__post_init__()
        # the number 0 is the default of the release, and means none there; as text it is a mistake
        self.k, self.b = (0.0, 1.0) if self.eps_scaler == 0 else parse_eps_scaler(self.eps_scaler)

    def wrap(self, denoise, process):
        if (self.k, self.b) == (0.0, 1.0):
            return denoise
        return EpsilonScaledDenoiser(denoise, process.grid, self.k, self.b, _left_alone(process))

    def advice(self, process, trained):
        levels = process.schedule.alpha_bar(torch.tensor(process.grid)).tolist()
        if (self.k, self.b) != (0.0, 1.0) and all(map(_left_alone(process), levels)):
            yield f"--eps_scaler {self.eps_scaler} does nothing: every step is from nearly pure noise"

    def propose(self, probe):
        """Scalers by the ratio of lengths of the predicted noise, along sampling and at true states.

        The paper (section 5) lets lambda follow ||eps|| along sampling / ||eps|| at true states. A network may be
        wrong in scale at true states too, and that error is in both lengths: so the divisor here is the length of the
        true noise along the prediction, and the path is sampled with the scale of true states set right, since that
        error would lead it astray. What the solver alone does to the ratio is divided out, as far as a Gaussian tells
        it. Both forms are fitted by least squares, steps weighted by what an error of scale does in them, without those
        that the scaler leaves alone.

        Errors add up along a path, so late ratios tell too much of a scaler that acts in each step: its half is a
        neighbour, and so are the scale of true states alone, and the opposite.
        """
        base = probe({"eps_scaler": "1.0"}, "norms")
        norms, steps = base.curves["norms"], len(base.times)
        weights = moved_by_eps(base.levels)
        if not base.predicts_eps:
            weights *= [half_log_snr(level) >= NEARLY_NOISE for level in base.levels.tolist()]
            if not weights.any():
                return

        def divided(*curves):
            """[1 + shares, S]: the first of four lengths over the second, over the same of the Gaussian."""
            one, other, exact, exact_other = (np.vstack([curve.values, curve.left_out]) for curve in curves)
            return one / other / (exact / exact_other)

        along = norms["eps_along"], norms["gaussian_along"]
        scale = divided(norms["eps_true"], along[0], norms["gaussian_true"], along[1])

        def proposal(name, linear):
            at_true = fitted(scale, weights, linear)[0]
            path = probe({"eps_scaler": written(*at_true)}, "lengths").curves["lengths"]["eps_sampled"]
            ratio = divided(path, along[0], norms["gaussian_sampled"], along[1])
            return of(name, fitted(ratio, weights, linear))

        def of(name, found, near=False):
            (k, b), (k_error, b_error) = found[0], jackknife(found[1:])
            numbers = ({"K": (k, k_error)} if k else {}) | {"B": (b, math.hypot(b_error, base.gaussian_error))}
            return Proposal(name, {"eps_scaler": written(k, b)}, numbers, near)

        constant = proposal("constant scaler", False)
        yield constant
        if steps > 2 and "K" in (linear := proposal("linear scaler", True)).numbers:
            yield linear
        yield of("scale at true states", fitted(scale, weights, False), near=True)
        b, error = constant.numbers["B"]
        for name, share in (("half", 0.5), ("opposite", -1.0)):
            number = {"B": (1 + share * (b - 1), abs(share) * error)}
            yield Proposal(
                f"{name} of the constant scaler", {"eps_scaler": written(0.0, number["B"][0])}, number, near=True
            )


def _left_alone(process):
    """`alpha_bar -> bool or bool [N]`, whether levels are those whose predictions are not scaled."""
    if process.mean_type is ModelMeanType.EPSILON:
        return lambda alpha_bar: False
    return process.schedule.nearly_noise


def written(k, b):
    """The flag's text of lambda_i = k i + b."""
    return f"{k:.8g},{b:.8g}" if k else f"{b:.8g}"


def moved_by_eps(levels):
    """How far a step of DDIM moves a state for a change of eps [S], at most 1: what an error of its scale does.

    :param levels: float64 [S] alpha_bar of the kept steps, decreasing from the data on.
    """
    to = np.append(1.0, levels[:-1])
    return np.minimum(1.0, np.abs(np.sqrt(to * (1 - levels) / levels) - np.sqrt(1 - to)))


def fitted(ratios, weights, linear):
    """(k, b) [n, 2] of the weighted least squares fits k i + b to ratios [n, S]; k is 0 for a constant.

    The flag takes no k below 0: where it would be, it is 0 too.
    """
    steps = np.arange(ratios.shape[1])
    columns = np.stack([steps, np.ones_like(steps)] if linear else [np.ones_like(steps)], axis=1)
    found = np.linalg.lstsq(columns * weights[:, None], ratios.T * weights[:, None], rcond=None)[0].T
    if linear and found[0, 0] > 0:
        return found
    return np.insert(fitted(ratios, weights, False)[:, 1:] if linear else found, 0, 0.0, axis=1)


def parse_eps_scaler(value):
    """(k, b) of a number B or of the text "B" or "K,B".

    :raises UserError: if it is neither, or if lambda would not be positive at the first step.
    """
    try:
        *k, b = (number(part) for part in str(value).split(","))
        k = k[0] if k else 0.0
    except ValueError:
        raise UserError(f"--eps_scaler is {value!r}; expected B such as 1.005, or K,B such as 0.0004,1.0042") from None
    if str(value).count(",") > 1 or not (0 < b < math.inf and 0 <= k < math.inf):
        raise UserError(f"--eps_scaler is {value!r}; expected B above 0, or K,B with K from 0")
    return k, b


class EpsilonScaledDenoiser:
    """A denoiser whose eps is divided by lambda; x0 follows, the learned variance does not.

    :param denoise: the denoiser it scales.
    :param grid: the kept training timesteps, increasing; a time between two of them is scaled in between.
    :param k, b: lambda_i = k i + b, positive.
    :param left_alone: `alpha_bar -> bool or bool [N]`, where the prediction stays as it is.
    """

    def __init__(self, denoise, grid, k, b, left_alone=lambda alpha_bar: False):
        self.denoise = denoise
        self.grid = [*map(int, grid)]
        self.k = k
        self.b = b
        self.left_alone = left_alone

    def __call__(self, x, t, cond):
        prediction = self.denoise(x, t, cond)
        scaled = prediction.with_eps(prediction.eps / per_sample(self.scale(shared(t)), x))
        still = self.left_alone(prediction.alpha_bar)
        return scaled if still is False else prediction.where(still, scaled)

    def scale(self, t):
        """lambda (float64) at training timesteps t, a number or [N]."""
        if len(self.grid) == 1 or not self.k:
            return self.b
        return self.k * (self._step_indices(t) if isinstance(t, torch.Tensor) else self._step_index(t)) + self.b

    def _step_index(self, t):
        """Where t lies among the kept steps: their index, in between for a shifted time."""
        above = min(max(bisect.bisect_left(self.grid, t), 1), len(self.grid) - 1)
        low, high = self.grid[above - 1 : above + 1]
        return min(max(above - 1 + (t - low) / (high - low), 0.0), len(self.grid) - 1.0)

    def _step_indices(self, t):
        grid = on_device(self.grid, t.device).to(real(t.device))
        above = torch.searchsorted(grid, t.to(grid.dtype).contiguous()).clamp(1, len(grid) - 1)
        low, high = grid.take(above - 1), grid.take(above)
        return (above - 1 + (t - low) / (high - low)).clamp(0, len(grid) - 1)
