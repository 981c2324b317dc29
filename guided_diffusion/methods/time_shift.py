"""Time Shift (Li et al. 2024, "Alleviating Exposure Bias in Diffusion Models through Sampling with
Shifted Time Steps").

A state that a sampler reached fits some training timestep better than the one it is labelled with: the one
whose noise level is nearest to the variance of its pixels. The search is the same everywhere; what is done
with the time it finds differs between the paper (algorithm 3) and the released codebases, hence variants.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from ..devices import on_device
from ..errors import UserError
from ..flags import FRACTION, at_least, flag, flags_of
from ..sampling import no_coupling
from ..scalars import bounded, bounds, everywhere, real, shared
from .method import Method, Proposal, jackknife


class Search:
    """Finds the training timesteps whose noise level fits states. It remembers no state.

    :param schedule: the NoiseSchedule of training.
    :param window: width w of the search in training timesteps, w // 2 to each side.
    :param variance: `t [...] -> [...]`, the pixel variance expected at training timesteps.
    :param constant: shift by this many timesteps instead of a search; 0 searches.
    :param tally: counts by the center of the search, from -1 on: how many were used, the sum of their shifts, and how
        many of them ended at an end of the window; None counts nothing.
    """

    def __init__(self, schedule, window, variance, constant=0, tally=None):
        self.last = schedule.num_timesteps - 1
        self.half = min(window // 2, schedule.num_timesteps)  # which reach all
        self.variance = variance
        self._on_device = {}
        self.constant = constant
        self.tally = tally

    def __call__(self, x, center, used=True, at_least=0, at_most=None):
        """The training timesteps [N] nearest in variance to x [N, C, ...], within the window around `center` [N].

        :param used: whether the caller moves by what is found, a bool or [N] of them.
        :param at_least: bound of what is found, a number or [N] of them; so is `at_most`, by default T - 1.
        """
        low, high = bounds(center)
        if self.constant:
            found, at_edge = center + self.constant, torch.zeros_like(center, dtype=torch.bool)
            low, high = low + self.constant, high + self.constant
        else:
            found, at_edge = self._nearest(x, center)
            low, high = (max(end - self.half, 0) for end in (low, high))
            high += 2 * self.half
        at_most = self.last if at_most is None else at_most
        found = found.clamp(0, self.last).clamp(min=at_least).clamp(max=at_most)
        if self.tally is not None:
            seen = torch.stack([torch.ones_like(center), found - center, at_edge.long()])
            self.tally.add(center + 1, seen if used is True else seen * used)
        limits = zip((low, high), bounds(at_least), bounds(at_most))
        return bounded(found, *(min(max(end, 0, least), self.last, most) for end, least, most in limits))

    def _nearest(self, x, center):
        """(the timesteps [N] of the windows that are nearest, bool [N] whether they lie at an end of the window)."""
        table, variance = self._table(x.device), pixel_variance(x).unsqueeze(1)
        # the table goes on with its last entry, so that every window is a slice of it
        if (middle := shared(center)) is not center:
            first = max(middle - self.half, 0)
            nearest = (table.narrow(0, first, 2 * self.half + 1) - variance).abs_().argmin(dim=1)
        else:
            first = (center - self.half).clamp(min=0)
            window = first.unsqueeze(1) + torch.arange(2 * self.half + 1, device=x.device)
            nearest = (table.take(window) - variance).abs_().argmin(dim=1)
        found = (nearest + first).clamp(max=self.last)
        return found, (nearest == 0) | (nearest == 2 * self.half) | (found == self.last)

    def _table(self, device):
        """The expected variances of all timesteps, and of a window past the last, on a device."""
        if device not in self._on_device:
            times = torch.arange(self.last + 1 + 2 * self.half + 1, device=device).clamp(max=self.last)
            self._on_device[device] = self.variance(times)
        return self._on_device[device]


def state_variance(level, data_variance):
    """The mean pixel variance of true states at alpha_bar `level`, of images of that mean variance."""
    return 1 - level * (1 - data_variance)


def _expected_variance(schedule, data_variance, t):
    return state_variance(schedule.alpha_bar(t), data_variance)


def _flipped_level(schedule, t):
    return schedule.alpha_bar(schedule.num_timesteps - 1 - t)


def _of_the_flip(schedule):
    """The largest error of the flipped alpha_bar as the variance 1 - alpha_bar; 0.014 on the cosine schedule."""
    times = torch.arange(schedule.num_timesteps)
    return float((_flipped_level(schedule, times) + schedule.alpha_bar(times) - 1).abs().max())


def pixel_variance(x):
    """Unbiased variance [N], in `real(device)`, over channels and pixels of x [N, C, ...].

    From the sums of values and squares: precise for states, whose mean is no thousand deviations away from 0.
    """
    flat = x.flatten(1)
    count = flat.shape[1]
    lengths, total = (sums.to(real(x.device)) for sums in (torch.linalg.vector_norm(flat, dim=1), flat.sum(dim=1)))
    return (lengths.square() - total.square() / count) / (count - 1)


class Variant:
    """What is done with the search on a grid. The first step of a run is never moved.

    :param search: the Search.
    :param schedule: the NoiseSchedule of training.
    :param grid: the kept training timesteps, increasing.
    :param cutoff: a step moves if its deciding timestep lies above.
    :cvar decided_by: the kept step whose timestep decides, counted from the step itself.
    """

    decided_by = 0

    def __init__(self, search, schedule, grid, cutoff):
        self.search = search
        self.schedule = schedule
        self.grid = list(grid)
        self.cutoff = cutoff

    @staticmethod
    def variance(schedule, data_variance):
        """`t -> variance` expected at training timesteps, of states 1 - alpha_bar (1 - data_variance)."""
        return partial(_expected_variance, schedule, data_variance)

    def deciding(self, i):
        """The timestep by which kept step i, which is not the noisiest, is moved or not; -1 never moves it."""
        decisive = i + self.decided_by
        return self.grid[decisive] if decisive >= 0 else -1

    def moves(self, i):
        """Whether kept step i is moved."""
        return i < len(self.grid) - 1 and self.deciding(i) > self.cutoff

    @property
    def highest_cutoff(self):
        """The least cutoff at which no step of the grid is moved; 0 where none ever is."""
        return max([0, *map(self.deciding, range(len(self.grid) - 1))])


class Adm(Variant):
    """The step's target is moved as TS-DPM-ADM does: from a search around its start in the flipped alpha_bar table,
    with that release's stride.
    """

    @staticmethod
    def variance(schedule, data_variance):
        return partial(_flipped_level, schedule)

    def __call__(self, i, x, t, s):
        if not self.moves(i):
            return t, s
        stride = self.schedule.num_timesteps // (len(self.grid) - 1)
        found = self.search(x, t)
        (low, high), (_, most) = bounds(found), bounds(t)
        target = (found - stride - 1).clamp(min=-1).minimum(t - 1)
        return t, bounded(target, *(min(max(end - stride - 1, -1), most - 1) for end in (low, high)))


class Paper(Variant):
    """The step starts at the time that fits its state, which network and solver see (algorithm 3)."""

    decided_by = 1

    def __call__(self, i, x, t, s):
        return (self.search(x, t, at_least=shared(s) + 1), s) if self.moves(i) else (t, s)

    @property
    def smallest_gap(self):
        """The least distance, in timesteps, from a node that is moved to a neighbor of it; T where none is."""
        neighbors = zip(self.grid, self.grid[1:], [*self.grid[2:], *self.grid[-1:]])
        gaps = (node - below for below, node, above in neighbors if above > self.cutoff)
        return min(gaps, default=self.schedule.num_timesteps)


class Target(Variant):
    """The step goes to the time that fits its state, searched around its target (TS-DPM)."""

    decided_by = -1

    def __call__(self, i, x, t, s):
        return (t, self.search(x, s, at_most=shared(t) - 1)) if self.moves(i) else (t, s)


class Net(Variant):
    """The network alone is told the time that fits: a clock, which is no coupling."""

    decided_by = 1

    def __init__(self, search, schedule, grid, cutoff):
        super().__init__(search, schedule, grid, cutoff)
        # by timestep: whether the step that led there started above the cutoff
        above = [next((node for node in self.grid if node > t), -1) for t in range(schedule.num_timesteps)]
        self._moved = [node > cutoff for node in above]

    def clock(self, x, t):
        """The time [N] that the network is told for a state x [N, C, ...] at times t [N].

        The search is around the integer timestep nearest to t.
        """
        if (time := shared(t)) is not t:
            if not self._moved[math.ceil(time)]:
                return t
            return self.search(x, everywhere(round(time), t)).to(t.dtype)
        moved = on_device(self._moved, t.device).take(t.ceil().long())
        return torch.where(moved, self.search(x, t.round().long(), used=moved), t)


VARIANTS = {"adm": Adm, "paper": Paper, "net": Net, "target": Target}


@dataclass
class TimeShift(Method):
    """Time Shift (Li et al. 2024)."""

    corrects_bias = True
    columns: ClassVar = {"mean_shift": ("mean shift", "+.1f"), "edge": ("searches at an edge", ".0%")}
    words: ClassVar = {"shift": "mean_shift"}

    do_time_shift: bool = flag(
        False, "Move the times of sampling steps to where the images' variance fits.", released=True
    )
    window: int = flag(2, "Width of the search in training timesteps, from 2 on.", legal=at_least(0), released=True)
    cutoff: int = flag(
        300,
        "Steps move above this training timestep alone: their start for adm, their target for target, the start of the "
        "step before for paper and net.",
        legal=at_least(0),
        released=True,
    )
    time_shift_variant: str = flag(
        "adm",
        "What moves: as in the TS-DPM-ADM release, as in the paper, the network's time alone, or the target.",
        tuple(VARIANTS),
    )
    time_shift_data_variance: float = flag(
        0.0, "Pixel variance of clean images, 0 to 1, that the search takes off; 0 as published.", legal=FRACTION
    )
    time_shift_constant: int = flag(0, "Shift by so many timesteps instead of a search; 0 searches.")

    def refuse_unread(self, given):
        if self.do_time_shift and self.window < 2 and not self.time_shift_constant:
            raise UserError(f"--window {self.window} leaves nothing to search; expected at least 2")
        if self.time_shift_data_variance and self.time_shift_variant == "adm":
            others = ", ".join(variant for variant in VARIANTS if variant != "adm")
            raise UserError(
                f"--time_shift_data_variance has no meaning for --time_shift_variant adm; expected {others}"
            )
        if self.time_shift_constant:
            for name in ("window", "time_shift_data_variance"):
                if getattr(self, name) != getattr(type(self), name):
                    raise UserError(
                        f"--{name} {getattr(self, name)} does nothing with --time_shift_constant, which "
                        f"searches nothing; expected the default {getattr(type(self), name)}"
                    )
        if not self.do_time_shift:
            for field in flags_of(self):
                if getattr(self, field.name) != field.default:
                    raise UserError(f"--{field.name} does nothing without --do_time_shift True")

    @property
    def reach(self):
        """The farthest a time is moved, in timesteps; 0 where none is."""
        return (abs(self.time_shift_constant) or self.window // 2) if self.do_time_shift else 0

    def variant(self, process):
        """The Variant of these flags on the grid of a process."""
        kind, schedule = VARIANTS[self.time_shift_variant], process.schedule
        variance = kind.variance(schedule, self.time_shift_data_variance)
        tally = process.tally("time_shift", 3, schedule.num_timesteps + 1)
        search = Search(schedule, self.window, variance, self.time_shift_constant, tally)
        return kind(search, schedule, process.grid, self.cutoff)

    def couple(self, process):
        return self.variant(process) if self.reach and self.time_shift_variant != "net" else no_coupling

    def clock(self, process):
        return self.variant(process).clock if self.reach and self.time_shift_variant == "net" else None

    def check(self, process, solver):
        if not self.do_time_shift or solver is None:
            return
        last = process.schedule.num_timesteps - 1
        if self.cutoff >= last:
            raise UserError(f"--cutoff {self.cutoff} leaves no step to shift; expected below {last}")
        if solver.fixed_ends and self.time_shift_variant != "net":
            raise UserError(
                f"--time_shift_variant {self.time_shift_variant} moves the ends of steps, between which --solver "
                f"{process.solver_name} measures the error of the step before; expected net"
            )
        if not solver.interpolates or self.time_shift_variant != "paper":
            return
        gap = self.variant(process).smallest_gap
        if 3 * self.reach > gap:
            most = gap // 3
            expected = (
                f"--time_shift_constant of at most {most}"
                if self.time_shift_constant
                else f"--window of at most {2 * most + 1}"
            )
            raise UserError(
                f"--time_shift_variant paper may move a step by {self.reach} timesteps where the next is "
                f"{gap} away, and --solver {process.solver_name} divides by what remains; expected {expected}"
            )

    def advice(self, process, trained):
        if not self.do_time_shift:
            return
        highest, total = self.variant(process).highest_cutoff, process.schedule.num_timesteps
        if self.cutoff >= highest:
            reason = f"moves some below {highest}" if highest else "needs more steps"
            yield (
                f"--cutoff {self.cutoff} lets no step of this grid move: --time_shift_variant "
                f"{self.time_shift_variant} {reason}"
            )
        if 2 * (self.window // 2) > total and not self.time_shift_constant:
            yield f"--window {2 * (self.window // 2)} is wider than the {total} timesteps there are"
        searches_flipped = self.time_shift_variant == "adm" and not self.time_shift_constant
        if searches_flipped and (error := _of_the_flip(process.schedule)) > 0.1:
            yield (
                "--time_shift_variant adm searches in the reversed alpha_bar, which with this noise schedule is up to "
                f"{error:.2g} from the variance of true states; expected paper or target"
            )
        if abs(self.time_shift_constant) >= total:
            yield f"--time_shift_constant {self.time_shift_constant} is beyond the {total} timesteps there are"

    @property
    def measures(self):
        return bool(self.reach)

    def settled(self, measured):
        # the control of a search that moved nothing; the flag's 0 would search
        return type(self)() if "time_shift_constant" in measured and not self.time_shift_constant else self

    def findings(self, process):
        if not self.reach:
            return super().findings(process)
        searches, moved, at_edge = process.tallies["time_shift"].values.sum(dim=1).tolist()
        return {
            "mean_shift": moved / searches if searches else None,
            "edge": at_edge / searches if searches and not self.time_shift_constant else None,
        }

    def propose(self, probe):
        """A search that can find its way, in the variance of the data, and the constant shift that does the same.

        A search of one image's time errs also at true states, where nothing is to be found, since images differ in
        variance (`search_error`). The cutoff lets a step move from the last kept timestep on at which it errs by no
        more than a step of the grid or, where it does everywhere, by the least it can. The window holds the mean
        shift, and is at most as wide as a step of the grid: half of it to each side.
        """
        off = {field.name: field.default for field in flags_of(self)}
        base = probe(off, "variance")
        times, curves = base.times.tolist(), base.curves["variance"]
        if len(times) < 3:
            return
        gap, error = (times[-1] - times[0]) // (len(times) - 1), curves["search_error"].values
        lowest = int((error[:-1] <= max(gap, error[:-1].min())).argmax())
        moved = slice(lowest, len(times) - 1)
        shift = curves["shift"].values[moved]
        half = int(min(max(1, round(float(abs(shift).max()))), max(1, gap // 2)))
        data_variance = min(1.0, round(base.data_variance, 4))
        variant = "paper" if self.time_shift_variant == "adm" else self.time_shift_variant
        below = lowest - 1 + VARIANTS[variant].decided_by
        cutoff = times[below] if below >= 0 else 0
        common = off | {"do_time_shift": True, "time_shift_variant": variant, "cutoff": cutoff}
        mean, left_out = shift.mean(), curves["shift"].left_out[:, moved].mean(axis=1)
        numbers = {"mean shift of a free search": (mean, jackknife(left_out))}
        search = common | {"window": 2 * half, "time_shift_data_variance": data_variance}
        yield Proposal("search in the data's variance", search, numbers)
        found = probe(search, "lengths").findings["mean_shift"] or 0.0
        constant = round(found)
        for name, share in (("", 1.0), ("half of ", 0.5), ("twice ", 2.0), ("opposite of ", -1.0)):
            if held := round(share * constant):
                values = common | {"time_shift_constant": held}
                yield Proposal(
                    f"{name}the constant shift of that search", values, {"shift": (held, 0.0)}, near=bool(name)
                )

    def file_name(self):
        return f"_{self.window}win_{self.cutoff}cut" if self.do_time_shift else ""

    def report(self, process):
        if not self.reach:
            return
        count, shift, edge = process.tallies["time_shift"].values.cpu()
        for i in reversed(count.nonzero()[:, 0].tolist()):
            found = f"{int(count[i])} "
            found += "images" if self.time_shift_constant else f"searches, {100 * edge[i] / count[i]:.0f} % at an edge"
            yield f"time shift around {i - 1}: mean {shift[i] / count[i]:+.2f} of {found}"
