"""A denoising diffusion GAN in four steps on a mixture of eight Gaussians, beside the same network by squared error.

python benchmarks/diffusion_gan_mixture.py --seeds 0,1,2 --out benchmarks/diffusion_gan_mixture

writes OUT.txt, a table of distances and masses of the modes, and OUT.png, samples of the first seed. The distance is
the first Wasserstein distance of 10,000 samples from 10,000 of the mixture along lines, a mean over 64 directions; the
floor is that of two samples of the mixture. Generator and discriminator have four linear layers of 128; 9,000 steps of
256. Takes about four minutes a seed on one core. Needs matplotlib.
"""

import argparse
import itertools
import math
from pathlib import Path

import torch
from plotting import pyplot
from torch import nn

from guided_diffusion.methods import Latent
from guided_diffusion.objectives import AdversarialObjective, AuxiliaryNetwork
from guided_diffusion.objectives.diffusion import DiffusionObjective
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.resample import UniformSampler
from guided_diffusion.script_util import diffusion_of
from guided_diffusion.solvers.flags import SolverFlags

MODES, SPREAD, LATENT, BATCH, STEPS, LR = 8, 0.1, 4, 256, 9000, 2e-3
FEW = DiffusionFlags(diffusion_steps=4, noise_schedule="vp", prediction="x0", sigma_small=True)
RATES = (0.5, 0.9)


def centres():
    """[MODES, 2], on a circle of radius 1."""
    angles = torch.arange(MODES) * 2 * math.pi / MODES
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def mixture(n):
    """Points [n, 2]."""
    return centres()[torch.randint(MODES, (n,))] + SPREAD * torch.randn(n, 2)


class Layers(nn.Module):
    """Four linear layers on points, the time and perhaps a latent, of which the first are shaped as images."""

    def __init__(self, inputs, outputs):
        super().__init__()
        sizes = [inputs + 4, 128, 128, 128]
        layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(128, outputs))

    def say(self, t, *inputs):
        time = nn.functional.one_hot(t.long(), 4).float()
        return self.layers(torch.cat([*(part.flatten(1) for part in inputs), time], dim=1))


class Generator(Layers):
    """x_0 [N, 2, 1, 1] of x_t, the time, and z where there is one."""

    def forward(self, x, t, z=None):
        return self.say(t, x, *([] if z is None else [z])).view_as(x)


class Judge(Layers):
    """A number [N] of x_s, x_t and the time."""

    def forward(self, x_s, x_t, t, y=None):
        return self.say(t, x_s, x_t)[:, 0]


def objective(adversarial):
    """(the objective, its generator)."""
    diffusion = diffusion_of(FEW, ())
    if not adversarial:
        return DiffusionObjective(diffusion, UniformSampler(diffusion)), Generator(2, 2)
    judge = Judge(4, 1)
    auxiliary = AuxiliaryNetwork(judge, torch.optim.Adam(judge.parameters(), LR, betas=RATES))
    return AdversarialObjective(diffusion, auxiliary, LATENT), Generator(2 + LATENT, 2)


def train(adversarial, steps=STEPS):
    """A trained generator; learning rates fall linearly to 0."""
    loss, network = objective(adversarial)
    optimizer = torch.optim.Adam(network.parameters(), LR, betas=RATES)
    optimizers = [optimizer, *([loss.discriminator.optimizer] if adversarial else [])]
    for step in range(steps):
        for group in (group for one in optimizers for group in one.param_groups):
            group["lr"] = LR * (1 - step / steps)
        optimizer.zero_grad()
        loss(network, mixture(BATCH)[..., None, None], {}).value.mean().backward()
        optimizer.step()
        loss.stepped(network)
    return network


def sample(network, adversarial, n=10000):
    """Points [n, 2] in four steps."""
    latent = LATENT if adversarial else 0
    process = FEW.create([Latent(latent_dim=latent)], SolverFlags(solver="ddpm"))
    denoise = process.denoiser(network, {"z": torch.randn(n, 4, latent)} if adversarial else {})
    *_, last = process.sample_records(process.solver, denoise, torch.randn(n, 2, 1, 1))
    return last.x[..., 0, 0]


def distance(one, other, directions=64):
    """The first Wasserstein distance of as many points [N, 2] along lines, a mean over directions."""
    angles = torch.arange(directions) * math.pi / directions
    lines = torch.stack([angles.cos(), angles.sin()])
    return ((one @ lines).sort(dim=0).values - (other @ lines).sort(dim=0).values).abs().mean().item()


def masses(points):
    """[MODES] the share of points within three deviations of each mode, over that of the mixture."""
    nearest, mode = torch.cdist(points, centres()).min(dim=1)
    inside = 1 - math.exp(-(3**2) / 2)
    return torch.bincount(mode[nearest < 3 * SPREAD], minlength=MODES) / len(points) * MODES / inside


def draw(panels, path):
    """Points [N, 2] of {title: points}, side by side."""
    plot = pyplot()
    figure, axes = plot.subplots(1, len(panels), figsize=(2.6 * len(panels), 2.8), sharex=True, sharey=True)
    for axis, (title, points) in zip(axes, panels.items()):
        axis.scatter(*points[:3000].T, s=1, color="tab:blue", linewidths=0)
        axis.set(aspect="equal", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
        axis.set_title(title, fontsize="small")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", default="benchmarks/diffusion_gan_mixture")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines, panels = ["seed  objective    distance  floor   least mass of a mode"], {}
    for seed in map(int, arguments.seeds.split(",")):
        for name, adversarial in (("diffusion", False), ("adversarial", True)):
            torch.manual_seed(seed)
            points = sample(train(adversarial), adversarial)
            found, floor = distance(points, mixture(10000)), distance(mixture(10000), mixture(10000))
            lines.append(f"{seed:<4}  {name:<11}  {found:.3f}     {floor:.3f}   {masses(points).min():.2f}")
            panels.setdefault({"diffusion": "squared error", "adversarial": "denoising diffusion GAN"}[name], points)
    Path(f"{arguments.out}.txt").write_text("\n".join(lines) + "\n")
    draw({"the mixture": mixture(3000), **panels}, f"{arguments.out}.png")


if __name__ == "__main__":
    main()
