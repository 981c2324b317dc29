"""Time Shift (Li et al. 2024, "Alleviating Exposure Bias in Diffusion Models through Sampling with
Shifted Time Steps").

A state that a sampler reached fits some training timestep better than the one it is labelled with: the one
whose noise level is nearest to the variance of its pixels. The search is the same everywhere; what is done
with the time it finds differs between the paper (algorithm 3) and the released codebases, hence variants.
"""

import torch

VARIANTS = ("adm", "paper", "net", "target")


class TimeShift:
    """A coupling that searches the timestep which fits a state, and moves the step accordingly.

    No state is remembered, and the first step of a run is never moved. `observe(centre, found, at_edge, used)` may
    be set to see each search, on the device: times [N], whether they lie at an end of the window, and whether
    they are used.

    :param schedule: the NoiseSchedule of training.
    :param grid: the kept training timesteps, increasing.
    :param window: width w of the search in training timesteps, w // 2 to each side; below 2 nothing moves.
    :param cutoff: only steps at training timesteps above it are moved.
    :param variant: "paper": the step starts at the found time, which network and solver see. "target": the
        step's target is searched (TS-DPM). "adm": the step's target is moved as TS-DPM-ADM does, from a search
        round its start in the flipped alpha_bar table, with that release's stride. "net": the network alone
        is given the found time; then this object is the `clock` of the network adapter, not a coupling.
    :param data_variance: pixel variance V0 of clean images, 0 to 1. States have variance
        1 - alpha_bar (1 - V0); with 0, the published rule, they are taken for pure noise.
    :param constant: shift by this many timesteps instead of a search; 0 searches.
    """

    def __init__(self, schedule, grid, window, cutoff, variant="adm", data_variance=0.0, constant=0):
        self.schedule = schedule
        self.times = [-1, *grid]
        self.half = window // 2
        self.cutoff = cutoff
        self.variant = variant
        self.data_variance = data_variance
        self.constant = constant
        self.observe = lambda centre, found, at_edge, used: None
        self._moves = torch.tensor([self._above_is_past_cutoff(t) for t in range(schedule.num_timesteps)])

    @property
    def reach(self):
        """The farthest a time is moved, in timesteps."""
        return abs(self.constant) or self.half

    @property
    def highest_cutoff(self):
        """The least cutoff at which no step of the grid is moved; 0 where none ever is."""
        deciding = {"adm": -2, "target": -3}.get(self.variant, -1)
        return max(self.times[deciding], 0) if len(self.times) > 2 else 0

    @property
    def smallest_gap(self):
        """The least distance, in timesteps, from a node that the paper's variant moves to a neighbour of it."""
        kept = self.times[1:]
        # a node moves if the one above it is past the cutoff; the noisiest stays
        triples = zip(kept, kept[1:], [*kept[2:], *kept[-1:]])
        gaps = (node - below for below, node, above in triples if above > self.cutoff)
        return min(gaps, default=self.schedule.num_timesteps)

    def _above_is_past_cutoff(self, t):
        """Whether the state at time t came from a step above the cutoff."""
        above = [time for time in self.times if time > t]
        return bool(above) and above[0] > self.cutoff

    def __call__(self, i, x, t, s):
        """The (t, s) [N] of kept step i, moved."""
        if i + 2 == len(self.times) or not (self.half or self.constant):
            return t, s
        if self.variant == "paper" and self.times[i + 2] > self.cutoff:
            return self.find(x, t, at_least=s + 1), s
        if self.variant == "target" and self.times[i] > self.cutoff:
            return t, self.find(x, s, at_most=t - 1)
        if self.variant == "adm" and self.times[i + 1] > self.cutoff:
            stride = self.schedule.num_timesteps // (len(self.times) - 2)
            return t, (self.find(x, t) - stride - 1).clamp(min=-1).minimum(t - 1)
        return t, s

    def network_time(self, x, t):
        """The time [N] that the network is given for a state x [N, C, ...] at times t [N] ("net").

        The search is round the whole timestep nearest to t.
        """
        if not (self.half or self.constant):
            return t
        self._moves = self._moves.to(t.device)
        moves = self._moves[t.ceil().long()]
        return torch.where(moves, self.find(x, t.round().long(), used=moves), t)

    def find(self, x, centre, used=True, at_least=0, at_most=None):
        """The training timesteps [N] nearest in variance to x [N, C, ...], within the window round `centre` [N].

        :param used: for `observe`: whether the caller moves by what is found, a bool or [N] of them.
        :param at_least: bound of what is found, a number or [N] of them; so is `at_most`, by default T - 1.
        """
        last = self.schedule.num_timesteps - 1
        if self.constant:
            found, at_edge = (centre + self.constant).clamp(0, last), torch.zeros_like(centre, dtype=torch.bool)
        else:
            first = (centre - self.half).clamp(min=0)
            candidates = (first[:, None] + torch.arange(2 * self.half + 1, device=x.device)).clamp(max=last)
            distance = (pixel_variance(x)[:, None] - self._expected_variance(candidates)).abs()
            nearest = distance.argmin(dim=1)
            found = candidates.gather(1, nearest[:, None])[:, 0]
            at_edge = (nearest == 0) | (nearest == 2 * self.half) | (found == last)
        found = found.clamp(min=at_least).clamp(max=last if at_most is None else at_most)
        self.observe(centre, found, at_edge, used)
        return found

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


class ShiftStatistics:
    """What the searches of a run that were used found, summed on the device: a TimeShift's `observe`.

    :param num_timesteps: T.
    :param device: of the searches.
    """

    def __init__(self, num_timesteps, device="cpu"):
        self.totals = torch.zeros(3, num_timesteps + 1, device=device)

    def __call__(self, centre, found, at_edge, used):
        seen = torch.stack([torch.ones_like(centre), found - centre, at_edge.long()]).to(self.totals) * used
        self.totals.index_add_(1, centre + 1, seen)

    def rows(self):
        """(centre of the search, number of searches, mean shift, fraction that ended at an edge), noisiest first."""
        count, shift, edge = self.totals.cpu()
        for i in reversed(count.nonzero()[:, 0].tolist()):
            yield i - 1, int(count[i]), float(shift[i] / count[i]), float(edge[i] / count[i])
