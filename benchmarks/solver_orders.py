"""Error against network calls of every deterministic solver, on data whose noise prediction is known exactly.

python benchmarks/solver_orders.py --out benchmarks/solver_orders.png

The data are one-dimensional, a mixture of three normal distributions; the schedule is the linear one in 20,000
timesteps, of which 17,999 to 399 are crossed; the grids are uniform in lambda = log(signal / noise). The error is
the root mean square over 24 starts of the distance to the exact solution of the probability-flow ODE. Needs
matplotlib.
"""

import argparse
import itertools
import math
import re
import sys
from functools import cache, partial

import numpy as np
import torch
from plotting import BACKGROUND, label_ends, pyplot
from scipy.integrate import solve_ivp

from guided_diffusion.denoiser import Prediction
from guided_diffusion.schedule import NoiseSchedule, get_named_beta_schedule, half_log_snr, per_sample
from guided_diffusion.solvers import SOLVERS

WEIGHTS, MEANS, SPREADS = torch.tensor([[0.5, 0.3, 0.2], [-1.0, 0.4, 1.2], [0.15, 0.25, 0.1]], dtype=torch.float64)
STARTS = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64)[None]
SCHEDULE = NoiseSchedule(get_named_beta_schedule("linear", 20000))
ENDS = half_log_snr(SCHEDULE.alpha_bar(torch.tensor([17999, 399]))).tolist()
STEPS = (5, 7, 10, 14, 20, 28, 40, 57, 80, 113, 160, 226, 320)

# every deterministic solver at each of its orders; bdia alone is that of gamma 0.5
# stochastic, or with orders of their own
SPECIAL = ("ddpm", "dpmpp_sde_2m", "consistency", "deis", "unipc")
CHOICES = {name: make for name, make in SOLVERS.items() if name not in SPECIAL}
CHOICES["bdia 1"] = partial(SOLVERS["bdia"], gamma=1.0)
CHOICES |= {f"deis tAB{k}": partial(SOLVERS["deis"], order=k) for k in (1, 2, 3)}
CHOICES |= {f"unipc {k} {b}": partial(SOLVERS["unipc"], order=k, variant=b) for k in (1, 2, 3) for b in ("bh1", "bh2")}


def exact_eps(x, alpha_bar):
    """E[eps | x_t] (float64) of the mixture at each entry of x; alpha_bar is broadcast with x."""
    level = alpha_bar[..., None]
    variance = level * SPREADS**2 + 1 - level
    away = x[..., None] - level.sqrt() * MEANS
    share = (WEIGHTS.log() - 0.5 * variance.log() - 0.5 * away**2 / variance).softmax(dim=-1)
    return (1 - alpha_bar).sqrt() * (share * away / variance).sum(dim=-1)


def denoiser(schedule):
    """The exact denoiser of the mixture, in float64."""

    def denoise(x, t):
        alpha_bar = schedule.alpha_bar(t)
        return Prediction.from_eps(x, alpha_bar, exact_eps(x, per_sample(alpha_bar, x)))

    return denoise


@cache
def exact_end():
    """Where the ODE d(x / signal) / d lambda = -exp(-lambda) eps takes STARTS, numpy [1, 24]."""

    def slope(lam, y):
        alpha_bar = torch.sigmoid(torch.tensor(2 * lam, dtype=torch.float64))
        return -np.exp(-lam) * exact_eps(torch.from_numpy(y) * alpha_bar.sqrt(), alpha_bar).numpy()

    signal = [np.sqrt(1 / (1 + np.exp(-2 * lam))) for lam in ENDS]
    start = STARTS[0].numpy() / signal[0]
    end = solve_ivp(slope, ENDS, start, method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    return end[None] * signal[1]


def error_and_calls(solver, steps):
    """(error, calls of the denoiser) of a solver in so many steps."""
    exact, calls = denoiser(SCHEDULE), 0

    def counted(x, t):
        nonlocal calls
        calls += 1
        return exact(x, t)

    times = SCHEDULE.time(torch.linspace(*ENDS, steps + 1, dtype=torch.float64))[:, None]
    x, state = STARTS, None
    for t, s in itertools.pairwise(times):
        x, _, state = solver(counted, x, t, s, state, torch.zeros_like)
    return np.sqrt(((x.numpy() - exact_end()) ** 2).mean()), calls


def family_of(solver):
    """The name of a solver's family, by which its file begins."""
    return re.split(r" \(|,", sys.modules[type(solver).__module__].__doc__)[0]


def panels_of(families):
    """{title: names of solvers}: families of one or two share the first panel.

    :param families: {name of a solver: its family}.
    """
    members = {family: [name for name in families if families[name] == family] for family in families.values()}
    small = [family for family, names in members.items() if len(names) < 3]
    shared = {", ".join(small): [name for family in small for name in members[family]]} if small else {}
    return shared | {family: names for family, names in members.items() if family not in small}


def draw_triangles(panel, orders, corner, run=2.2):
    """Right-angled triangles, one for each order, whose long side has its slope.

    :param corner: (calls, error) of the lower left one.
    :param run: how many times as many calls a triangle spans.
    """
    x, y = corner
    for order in orders:
        panel.fill([x, x * run, x], [y, y, y * run**order], facecolor="0.93", edgecolor="0.45", linewidth=1.2)
        panel.text(x * 1.45, y * 0.8, order, color="0.25", horizontalalignment="center", verticalalignment="top")
        x *= 1.25 * run


def draw(results):
    """The figure: a panel for each family of solvers, and faintly the other solvers too.

    :param results: {name: (solver, errors, calls)}.
    """
    plt = pyplot()
    panels = panels_of({name: family_of(solver) for name, (solver, *_) in results.items()})
    rows = math.ceil((len(panels) + 1) / 3)
    figure, grid = plt.subplots(rows, 3, figsize=(15, 4.6 * rows), sharex=True, sharey=True, squeeze=False)
    for panel, (family, names) in zip(grid.flat, panels.items()):
        panel.set(title=family, xscale="log", yscale="log", ylim=(1e-9, 0.5), xlim=(4, 700))
        panel.set_xticks([10, 100], [10, 100])
        panel.xaxis.set_tick_params(labelbottom=True)
        for name, (_, errors, calls) in results.items():
            if name not in names:
                panel.plot(calls, errors, **BACKGROUND)
        label_ends(panel, [panel.plot(results[name][2], results[name][1], label=name)[0] for name in names])
        draw_triangles(panel, sorted({results[name][0].order for name in names}), (5, 1e-8))
    for panel in grid.flat[len(panels) :]:
        panel.set_axis_off()
    legend = "grey: the solvers\nof the other panels\n\ntriangles: slopes\nof the orders"
    last = grid.flat[-1]
    last.text(0, 0.9, legend, transform=last.transAxes, verticalalignment="top", color="0.25", in_layout=False)
    figure.supxlabel("network calls")
    figure.supylabel("root mean square error")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/solver_orders.png")
    args = parser.parse_args()
    results = {}
    for name, make in CHOICES.items():
        solver = make(SCHEDULE)
        errors, calls = zip(*[error_and_calls(solver, steps) for steps in STEPS])
        order = np.log2(errors[STEPS.index(40)] / errors[STEPS.index(320)]) / 3
        print(f"{name:16} order {solver.order}, measured {order:.2f}; errors " + " ".join(f"{e:.1e}" for e in errors))
        results[name] = solver, errors, calls
    print(f"steps {STEPS}; orders measured from 40 to 320")
    draw(results).savefig(args.out)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
