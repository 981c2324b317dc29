"""Time of a sampling step outside of the network, against a loop in the published style.

    python benchmarks/loop_overhead.py [--batch 512] [--size 32] [--rounds 7] [--steps 6] [--threads 1]

The network is a constant. The baseline has the structure of published loops: coefficients are looked up in tables for
each sample and spread over all pixels, noise is drawn at every step, thresholds are taken image by image, and Time
Shift searches a list of variances. Both take turns in one process, half of the rounds in the other order; a round's
ratio is baseline time / time here, of process CPU time, on a GPU of real time. A line has the median of both times per
network call, the median ratio with its range, and with --memory how far the peak of a process that does nothing else
lies above that of one that only starts.
"""

import argparse
import statistics
import subprocess
import sys

import numpy as np
import timing
import torch

from guided_diffusion.methods import Clipping, of_values
from guided_diffusion.methods.clipping import Thresholding
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.scalars import everywhere
from guided_diffusion.solvers import SOLVERS
from guided_diffusion.solvers.flags import SolverFlags

WINDOW = 80
# rows that are no whole step
SEARCH, DRAW = "the search of a time shift", "a draw of noise"


class PublishedStyle:
    """DDIM and ancestral sampling with learned variance, clipped, by tables of all kept steps.

    :param process: the Process, which decides the levels.
    """

    def __init__(self, process):
        levels = np.array([process.schedule.alpha_bar(t) for t in process.grid])
        before = np.append(1.0, levels[:-1])
        betas = 1 - levels / before
        self.levels, self.before = levels, before
        self.recip, self.recipm1 = np.sqrt(1 / levels), np.sqrt(1 / levels - 1)
        self.of_x0, self.of_xt = (
            betas * np.sqrt(before) / (1 - levels),
            (1 - before) * np.sqrt(1 - betas) / (1 - levels),
        )
        variance = betas * (1 - before) / (1 - levels)
        self.least, self.most = np.log(np.append(variance[1], variance[1:])), np.log(betas)
        self.all_levels = [process.schedule.alpha_bar(t) for t in range(process.schedule.num_timesteps)]
        self.grid = process.grid

    @staticmethod
    def spread(table, t, x):
        """Entries of a numpy table at t [N], for each pixel of x."""
        values = torch.from_numpy(table).to(t.device)[t].float()
        while values.ndim < x.ndim:
            values = values[..., None]
        return values.expand(x.shape)

    def moments(self, output, x, t, dynamic=False):
        """Mean, log variance and clipped x0."""
        eps, learned = output.chunk(2, dim=1)
        least, most = self.spread(self.least, t, x), self.spread(self.most, t, x)
        share = (learned + 1) / 2
        log_variance = share * most + (1 - share) * least
        variance = torch.exp(log_variance)
        x0 = self.spread(self.recip, t, x) * x - self.spread(self.recipm1, t, x) * eps
        if dynamic:
            limits = torch.stack([image.abs().quantile(0.995) for image in x0.flatten(1)]).clamp(min=1)
            limits = limits.reshape(-1, 1, 1, 1)
            x0 = x0.clamp(-limits, limits) / limits
        else:
            x0 = x0.clamp(-1, 1)
        mean = self.spread(self.of_x0, t, x) * x0 + self.spread(self.of_xt, t, x) * x
        return mean, variance, log_variance, x0

    def ddpm(self, network, x, i):
        t = torch.tensor([i] * len(x), device=x.device)
        mean, _, log_variance, _ = self.moments(network(x, t), x, t)
        noise = torch.randn_like(x)
        return mean + (t != 0).float().reshape(-1, 1, 1, 1) * torch.exp(0.5 * log_variance) * noise

    def ddim(self, network, x, i, dynamic=False):
        t = torch.tensor([i] * len(x), device=x.device)
        *_, x0 = self.moments(network(x, t), x, t, dynamic)
        eps = (self.spread(self.recip, t, x) * x - x0) / self.spread(self.recipm1, t, x)
        level, before = self.spread(self.levels, t, x), self.spread(self.before, t, x)
        sigma = 0.0 * torch.sqrt((1 - before) / (1 - level)) * torch.sqrt(1 - level / before)
        noise = torch.randn_like(x)
        mean = x0 * torch.sqrt(before) + torch.sqrt(1 - before - sigma**2) * eps
        return mean + (t != 0).float().reshape(-1, 1, 1, 1) * sigma * noise

    def searched(self, x, t):
        """The timesteps whose expected variance is nearest, within the window around t [N]: lists, made anew."""
        centre = int(torch.tensor(self.grid)[t[0]])
        first = max(centre - WINDOW // 2, 0)
        window = [min(first + j, len(self.all_levels) - 1) for j in range(WINDOW + 1)]
        expected = torch.tensor([[np.float64(1 - self.all_levels[j]) for j in window]] * len(x), device=x.device)
        return first + (torch.var(x.flatten(1), dim=-1)[:, None] - expected).abs().argmin(dim=1)

    def shifted(self, network, x, i):
        if i < len(self.grid) - 1:
            self.searched(x, torch.tensor([i] * len(x), device=x.device))
        return self.ddim(network, x, i)


def cases():
    """{case: (baseline step name or "", solver, methods, arguments of the baseline)}."""
    shift = {"do_time_shift": True, "window": WINDOW, "cutoff": 0}
    found = {
        "ddim": ("ddim", "ddim", {}),
        "ddpm": ("ddpm", "ddpm", {}),
        "ddim, dynamic threshold": ("dynamic", "ddim", {"thresholding": "dynamic"}),
    }
    for variant in ("adm", "paper", "net", "target"):
        found[f"ddim, time shift {variant}"] = ("shifted", "ddim", {**shift, "time_shift_variant": variant})
    found[SEARCH] = ("searched", "ddim", shift)
    found[DRAW] = ("", "ddpm", {})
    return found | {name: ("", name, {}) for name in SOLVERS if name not in ("ddim", "ddpm")}


def runs(case, batch, size, steps, device):
    """(a whole run in the published style or None, one here, `() -> calls of the network in the first of those`)."""
    baseline, solver, given = cases()[case]
    given = dict(given)
    dynamic = Thresholding(given.pop("thresholding", "static"))
    flags = DiffusionFlags(learn_sigma=True, noise_schedule="cosine", timestep_respacing=f"{steps}")
    process = flags.create([Clipping(), dynamic, *of_values(given)], SolverFlags(solver=solver))
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(batch, 3, size, size, generator=generator).to(device)
    output = torch.randn(batch, 6, size, size, generator=generator).to(device) / 2

    def network(x, t):
        return output

    def here():
        for _ in process.sample_records(process.solver, process.denoiser(network), start):
            pass

    style = PublishedStyle(process)

    def published():
        x = start
        with torch.no_grad():
            for i in reversed(range(steps)):
                if baseline == "dynamic":
                    x = style.ddim(network, x, i, dynamic=True)
                else:
                    x = getattr(style, baseline)(network, x, i)

    if case == SEARCH:
        times = [everywhere(time, start) for time in process.grid]

        def published():
            for i in range(steps - 1):
                style.searched(start, torch.tensor([i] * batch, device=device))

        def here():
            for i in range(steps - 1):
                process.coupling(i, start, times[i], times[i])

        return published, here, lambda: steps - 1
    if case == DRAW:
        return None, lambda: torch.randn_like(start), lambda: 1
    return published if baseline else None, here, lambda: process.network_calls / batch


def peak(case, which, arguments):
    """Peak resident memory in MB of a process that runs a case once; "none" only starts it."""
    command = [sys.executable, __file__, "--peak_of", case, "--which", which]
    for name in ("batch", "size", "steps", "threads", "device"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def of(ours, of_ddim):
    """How many times as long as DDIM, in words; nothing where that was not run."""
    return f"{ours / of_ddim:8.2f}" if of_ddim else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=timing.at_least(1), default=512)
    parser.add_argument("--size", type=timing.at_least(1), default=32)
    parser.add_argument("--steps", type=timing.at_least(2), default=6)
    parser.add_argument("--rounds", type=timing.at_least(1), default=7)
    parser.add_argument("--threads", type=timing.at_least(1), default=1)
    parser.add_argument("--device", type=timing.device, default=timing.CPU)
    parser.add_argument("--only", default="", help="ddim, and the cases whose names begin with this")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too, in processes of their own")
    parser.add_argument("--peak_of", default="", help=argparse.SUPPRESS)
    parser.add_argument("--which", default="none", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not any(case.startswith(arguments.only) for case in cases()):
        parser.error(f"--only {arguments.only} begins none of {', '.join(cases())}")
    torch.set_num_threads(arguments.threads)
    shape = arguments.batch, arguments.size, arguments.steps, arguments.device
    if arguments.peak_of:
        published, here, _ = runs(arguments.peak_of, 1, 8, *shape[2:])
        if arguments.which != "none":
            published, here, _ = runs(arguments.peak_of, *shape)
            (published if arguments.which == "published" else here)()
        print(timing.high_water(arguments.device))
        return
    print(f"{timing.described(arguments.device)}; batch {arguments.batch} of ", end="")
    print(f"3x{arguments.size}x{arguments.size}, {arguments.steps} steps, {arguments.rounds} rounds; ms a network call")
    heading = f"{'case':28}{'published':>10}{'here':>8}{'ratio':>8}{'range':>16}{'x ddim':>8}"
    print(heading + (f"{'peak MB published':>18}{'here':>7}" if arguments.memory else ""))
    of_ddim = None
    for case in cases():
        if not case.startswith(arguments.only) and case != "ddim":  # to which all are compared
            continue
        published, here, counted = runs(case, *shape)
        here()
        calls, pair = counted(), {"here": here} if published is None else {"published": published, "here": here}
        taken = timing.in_turn(pair, arguments.rounds, arguments.device)
        ours = statistics.median(taken["here"]) * 1e3 / calls
        of_ddim = ours if case == "ddim" else of_ddim
        line = f"{case:28}"
        if published is None:
            line += f"{'':10}{ours:8.2f}{'':24}{of(ours, of_ddim)}"
        else:
            median, least, most = timing.ratio(taken["published"], taken["here"])
            theirs = statistics.median(taken["published"]) * 1e3 / (calls if case == SEARCH else arguments.steps)
            spread = f"[{least:.1f}, {most:.1f}]"
            line += f"{theirs:10.2f}{ours:8.2f}{median:8.1f}{spread:>16}{of(ours, of_ddim)}"
        if arguments.memory:
            base = peak(case, "none", arguments)
            kinds = ["here"] if published is None else ["published", "here"]
            grown = {kind: peak(case, kind, arguments) - base for kind in kinds}
            line += f"{grown.get('published', float('nan')):18.0f}{grown['here']:7.0f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
