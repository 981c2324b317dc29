"""Draw what exposure bias is: a sketch of where the three methods act, and a measurement on the digits model.

python datasets/digits.py --out_dir data/digits --image_size 16 --split train
python benchmarks/draw_idea.py --data data/digits.npz --out docs/idea.png

Measured is the length of the network's noise prediction along DDIM's path in 20 steps, over its length at noised
training digits of the same classes and timesteps: the ratio of the means over the digits, with a band of two standard
errors. Needs matplotlib; takes about a minute on one core.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from guided_diffusion import checkpoints
from guided_diffusion.image_files import read_npz
from guided_diffusion.script_util import create_gaussian_diffusion

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits16.pt"
STEPS = "20"
PROCESS = ("learn_sigma", "noise_schedule", "predict_xstart", "rescale_timesteps", "rescale_learned_sigmas")
SHIFT = {"do_time_shift": True, "time_shift_variant": "paper", "window": 30, "cutoff": 300}
# name: (colour, flags of the process), as in benchmarks/exposure_bias_digits.txt at 20 steps
SAMPLERS = {
    "Epsilon Scaling 1.01": ("tab:red", {"eps_scaler": 1.01}),
    "plain DDIM": ("black", {}),
    "Epsilon Scaling 0.98": ("tab:orange", {"eps_scaler": 0.98}),
    "Time Shift, paper": ("tab:blue", SHIFT),
}


def some_images(path, count):
    """`count` images of an npz at random: (float32 [count, C, H, W] in [-1, 1], classes [count])."""
    images, labels = read_npz(path, "data")
    chosen = np.random.default_rng(0).choice(len(images), count, replace=False)
    return torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(labels[chosen])


def length_of_noise(output):
    """The norm [N] of the noise in a network's output [N, 2 C, H, W], before the learned variance."""
    return output.chunk(2, dim=1)[0].flatten(1).norm(dim=1)


def lengths_on_path(network, diffusion, labels, start):
    """The length [S, N] of the noise that the network predicts in one DDIM run from `start` [N, C, H, W]."""
    lengths = []

    def watched(x, t, y):
        output = network(x, t, y)
        lengths.append(length_of_noise(output))
        return output

    diffusion.ddim_sample_loop(watched, start.shape, noise=start, model_kwargs={"y": labels}, device=start.device)
    return torch.stack(lengths)


def lengths_at_data(network, diffusion, labels, images, noise):
    """The same [S, N] at the images [N, C, H, W] with `noise`, at the kept timesteps, noisiest first."""
    lengths = []
    for index, time in reversed(list(enumerate(diffusion.timestep_map))):
        noised = diffusion.q_sample(images, torch.full_like(labels, index), noise)
        lengths.append(length_of_noise(network(noised, torch.full_like(labels, time), labels)))
    return torch.stack(lengths)


@torch.no_grad()
def measure(path, count):
    """(timesteps [S], {sampler: (ratio [S], its standard error [S])}), noisiest first."""
    network, _, flags = checkpoints.open_network(str(MODEL))
    images, labels = some_images(path, count)
    torch.manual_seed(0)
    start, noise = torch.randn_like(images), torch.randn_like(images)
    base = {name: flags[name] for name in PROCESS} | {"steps": flags["diffusion_steps"], "timestep_respacing": STEPS}
    plain = create_gaussian_diffusion(**base)
    at_data = lengths_at_data(network, plain, labels, images, noise)
    ratios = {}
    for name, (_, method) in SAMPLERS.items():
        on_path = lengths_on_path(network, create_gaussian_diffusion(**base, **method), labels, start)
        ratio = on_path.mean(dim=1) / at_data.mean(dim=1)
        relative = [lengths.std(dim=1) / lengths.mean(dim=1) / count**0.5 for lengths in (on_path, at_data)]
        ratios[name] = ratio, ratio * torch.hypot(*relative)
    return plain.timestep_map[::-1], ratios


def draw(times, ratios):
    """The figure: the sketch, and beside it what `measure` returns."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5.2), width_ratios=(1.15, 1))
    draw_sketch(left)
    for name, (ratio, error) in ratios.items():
        colour = SAMPLERS[name][0]
        right.plot(times, ratio, color=colour, lw=2.5, label=name)
        right.fill_between(times, ratio - 2 * error, ratio + 2 * error, color=colour, alpha=0.15, lw=0)
    right.axhline(1, color="tab:green", lw=2.5, ls="--")
    right.text(990, 1.045, "as at noised images: no exposure bias", color="darkgreen")
    right.set(
        xlim=(1010, -10), xlabel="timestep (noise → image)", ylabel="length of predicted noise,\nsampled / noised"
    )
    right.set_title("Measured: digits16.pt, 20 steps", loc="left")
    right.legend(frameon=False, loc="upper left")
    figure.tight_layout(w_pad=3)
    return figure


def meant(u):
    """The sketch's level of noise at a share u of the way from noise to image."""
    return 1 - 0.9 * u**1.3


def reached(u):
    """The level that sampling has there."""
    return meant(u) + 0.3 * u**1.2


def draw_sketch(axes):
    """The idea, with the timestep to the right and the noise in a state upwards."""
    u = np.linspace(0, 1, 200)
    for width, alpha in ((0.13, 0.12), (0.055, 0.35)):
        axes.fill_between(u, meant(u) - width, meant(u) + width, color="tab:green", alpha=alpha, lw=0)
    steps = np.linspace(0, 1, 9)
    axes.plot(u, reached(u), color="black", lw=2.5)
    axes.plot(steps, reached(steps), "o", color="black", ms=6)
    style = {"arrowstyle": "-|>", "lw": 2.5, "mutation_scale": 18}
    at, level = steps[5], reached(steps[5])
    fits = u[np.abs(meant(u) - level).argmin()]
    axes.annotate("", (fits, level), (at, level), arrowprops={**style, "color": "tab:blue"})
    axes.text(
        fits - 0.03, level - 0.02, "Time Shift: the time\nthat the state fits", color="tab:blue", ha="right", va="top"
    )
    at = steps[6]
    axes.annotate("", (at, meant(at)), (at, reached(at)), arrowprops={**style, "color": "tab:red"})
    axes.text(at + 0.03, reached(at) + 0.03, "Epsilon Scaling: the\nnoise, made to fit", color="tab:red")
    dark = {"color": "darkgreen"}
    axes.annotate(
        "Input Perturbation:\ntrains on a wider band",
        xy=(0.81, meant(0.81) - 0.1),
        xytext=(0.3, 0.02),
        arrowprops={**style, "lw": 1.5, **dark},
        **dark,
    )
    axes.text(0, 1.16, "training sees noised images", **dark)
    axes.text(0.4, 0.98, "sampling starts each step\nwhere the last one ended")
    axes.set(xlim=(-0.02, 1.15), ylim=(-0.05, 1.24), xticks=[], yticks=[])
    axes.set(xlabel="timestep (noise → image)", ylabel="noise in the state")
    axes.set_title("Exposure bias, and where three methods act", loc="left")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="npz of the training digits, as datasets/digits.py writes it")
    parser.add_argument("--out", required=True, help="the PNG to write")
    parser.add_argument("--count", type=int, default=100, help="digits to measure on")
    args = parser.parse_args()
    times, ratios = measure(args.data, args.count)
    for name, (ratio, error) in ratios.items():
        shown = (f"{t}: {r:.3f} ± {e:.3f}" for t, r, e in zip(times, ratio.tolist(), error.tolist()))
        print(f"{name}: {', '.join(shown)}")
    draw(times, ratios).savefig(args.out, dpi=90)
    print(f"wrote {Path(args.out).resolve()}")


if __name__ == "__main__":
    main()
