"""Time Shift (Li et al. 2024, "Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted Time Steps").

A state that a sampler reached fits some training timestep better than the one it is labelled with: the one
whose noise level is nearest to the variance of its pixels. The search is the same everywhere; what is done
with the time it finds differs between the paper (algorithm 3) and the released codebases, hence variants.
"""

import torch

VARIANTS = ("adm", "paper", "net", "target")


class TimeShift:
    """A coupling that searches the timestep which fits a state, and moves the step accordingly.

    No state is remembered, and the first step of a run is never moved.

    :param schedule: the NoiseSchedule of training.
    :param grid: the kept training timesteps, increasing.
    :param window: width w of the search in training timesteps, from 2 on: w // 2 to each side.
    :param cutoff: only steps at training timesteps above it are moved.
    :param variant: "paper": the step starts at the found time, which network and solver see. "target": the
        step's target is searched (TS-DPM). "adm": the step's target is moved as TS-DPM-ADM does, from a search
        round its start in the flipped alpha_bar table, with that release's stride. "net": the network alone
        is given the found time; then this object is the `clock` of the network adapter, not a coupling.
    :param data_variance: pixel variance V0 of clean images, 0 to 1. States have variance
        1 - alpha_bar (1 - V0); with 0, the published rule, they are taken for pure noise.
    :param constant: shift by this many timesteps instead of a search; None searches.
    """

    def __init__(self, schedule, grid, window, cutoff, variant="adm", data_variance=0.0, constant=None):
        self.schedule = schedule
        self.times = [-1, *grid]
        self.half = window // 2
        self.cutoff = cutoff
        self.variant = variant
        self.data_variance = data_variance
        self.constant = constant

    def __call__(self, i, x, t, s):
        """The (t, s) [N] of kept step i, moved."""
        if i + 2 == len(self.times):
            return t, s
        if self.variant == "paper" and self.times[i + 2] > self.cutoff:
            return self.find(x, t).maximum(s + 1), s
        if self.variant == "target" and self.times[i] > self.cutoff:
            return t, self.find(x, s).minimum(t - 1)
        if self.variant == "adm" and self.times[i + 1] > self.cutoff:
            stride = self.schedule.num_timesteps // (len(self.times) - 2)
            return t, (self.find(x, t) - stride - 1).clamp(min=-1).minimum(t - 1)
        return t, s

    def network_time(self, x, t):
        """The time [N] that the network is given for a state at kept timesteps t [N] ("net")."""
        i = self.times.index(int(t[0])) - 1
        if i + 2 == len(self.times) or self.times[i + 2] <= self.cutoff:
            return t
        return self.find(x, t)

    def find(self, x, centre):
        """The training timesteps [N] nearest in variance to x [N, C, ...], within the window round `centre` [N]."""
        last = self.schedule.num_timesteps - 1
        if self.constant is not None:
            return (centre + self.constant).clamp(0, last)
        first = (centre - self.half).clamp(min=0)
        candidates = (first[:, None] + torch.arange(2 * self.half + 1, device=x.device)).clamp(max=last)
        distance = (pixel_variance(x)[:, None] - self._expected_variance(candidates)).abs()
        return candidates.gather(1, distance.argmin(dim=1, keepdim=True))[:, 0]

    def _expected_variance(self, t):
        if self.variant == "adm":
            return self.schedule.alpha_bar(self.schedule.num_timesteps - 1 - t)
        return 1 - self.schedule.alpha_bar(t) * (1 - self.data_variance)


def pixel_variance(x):
    """Unbiased variance [N] (float64) over channels and pixels of x [N, C, ...]."""
    flat = x.flatten(1)
    count = flat.shape[1]
    mean = flat.mean(dim=1, keepdim=True)
    return (flat - mean).square().sum(dim=1).double() / (count - 1)
