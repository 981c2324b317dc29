"""Time of a training step, against one in the published style on the same network.

    python benchmarks/training_step.py [--size tiny] [--batch 8] [--rounds 5] [--threads 1]

Both train the same network; the baseline computes it as the published style of network_speed.py does, draws timesteps
and weights by numpy, spreads coefficients over all pixels, computes losses and bound step by step, reads each of them,
their quartiles and both norms at every step, and updates weights by AdamW and one moving average weight by weight. Here
it is a step of the training loop as scripts take it, with its fastest network. Both take turns in one process, half of
the rounds in the other order; a round's ratio is baseline time / time here, of process CPU time. Peak memory is that of
a process of its own, above its start.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from network_speed import published_style

from guided_diffusion import logger
from guided_diffusion.losses import discretized_gaussian_log_likelihood, normal_kl
from guided_diffusion.networks import UNetFlags
from guided_diffusion.objectives import OBJECTIVES
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.resample import SamplerFlags
from guided_diffusion.script_util import diffusion_of
from guided_diffusion.training.flags import TrainFlags
from guided_diffusion.training.loop import Loop

# those of network_speed.py, by their flags
NETWORKS = {
    "tiny": {"image_size": 32, "num_channels": 32, "num_res_blocks": 2, "channel_mult": "1,2,2"}
    | {"num_head_channels": 32, "resblock_updown": True},
    "c10": {"image_size": 32, "num_channels": 128, "num_res_blocks": 3, "channel_mult": "1,2,2,2"}
    | {"num_head_channels": 32, "use_new_attention_order": True, "resblock_updown": True},
}


def network(size):
    torch.manual_seed(0)
    return UNetFlags(**NETWORKS[size], attention_resolutions="16,8").create(learn_sigma=True)


class PublishedStyle:
    """A step of training in the published style."""

    def __init__(self, size):
        self.model = published_style(network(size))
        betas = DiffusionFlags(noise_schedule="cosine").betas
        levels = np.cumprod(1 - betas)
        before = np.append(1.0, levels[:-1])
        variance = betas * (1 - before) / (1 - levels)
        self.tables = {
            "signal": np.sqrt(levels),
            "noise": np.sqrt(1 - levels),
            "recip": np.sqrt(1 / levels),
            "recipm1": np.sqrt(1 / levels - 1),
            "of_x0": betas * np.sqrt(before) / (1 - levels),
            "of_xt": (1 - before) * np.sqrt(1 - betas) / (1 - levels),
            "least": np.log(np.append(variance[1], variance[1:])),
            "most": np.log(betas),
        }
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.0)
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.total, self.logged = len(betas), {}

    def spread(self, name, t, x):
        values = torch.from_numpy(self.tables[name])[t].float()
        while values.ndim < x.ndim:
            values = values[..., None]
        return values.expand(x.shape)

    def step(self, x):
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad.detach_().zero_()
        p = np.ones(self.total) / self.total
        drawn = np.random.choice(self.total, size=(len(x),), p=p)  # noqa: NPY002
        t, weights = torch.from_numpy(drawn).long(), torch.from_numpy(1 / (self.total * p[drawn])).float()
        noise = torch.randn_like(x)
        x_t = self.spread("signal", t, x) * x + self.spread("noise", t, x) * noise
        output, learned = self.model(x_t, t).chunk(2, dim=1)
        terms = {"vb": self.bound(output.detach(), learned, x, x_t, t), "mse": ((noise - output) ** 2).mean((1, 2, 3))}
        terms["loss"] = terms["vb"] + terms["mse"]
        loss = (terms["loss"] * weights).mean()
        for name, values in terms.items():
            self.logged[name] = (values * weights).mean().item()
            for time_, value in zip(t.numpy(), (values * weights).detach().numpy()):
                self.logged[f"{name}_q{int(4 * time_ / self.total)}"] = float(value)
        loss.backward()
        with torch.no_grad():
            own = list(self.model.parameters())
            self.logged["grad_norm"] = sum(p.grad.norm().item() ** 2 for p in own) ** 0.5
            self.logged["param_norm"] = sum(p.norm().item() ** 2 for p in own) ** 0.5
        self.opt.step()
        for average, weight in zip(self.average, self.model.parameters()):
            average.detach().mul_(0.9999).add_(weight.detach(), alpha=1 - 0.9999)

    def bound(self, eps, learned, x, x_t, t):
        share, least, most = (learned + 1) / 2, self.spread("least", t, x), self.spread("most", t, x)
        log_variance = share * most + (1 - share) * least
        x0 = self.spread("recip", t, x) * x_t - self.spread("recipm1", t, x) * eps
        mean, true = (self.spread("of_x0", t, x) * y + self.spread("of_xt", t, x) * x_t for y in (x0, x))
        kl = normal_kl(true, least, mean, log_variance).mean((1, 2, 3)) / np.log(2)
        nll = -discretized_gaussian_log_likelihood(x, means=mean, log_scales=0.5 * log_variance)
        return torch.where(t == 0, nll.mean((1, 2, 3)) / np.log(2), kl)


def here(size, folder):
    """A step of the training loop of the scripts."""
    logger.configure(folder, "csv")
    flags = DiffusionFlags(noise_schedule="cosine", learn_sigma=True)
    diffusion = diffusion_of(flags, ())
    loop = Loop(
        model=network(size),
        objective=OBJECTIVES["diffusion"](diffusion, SamplerFlags().create(diffusion)),
        data=iter(()),
        flags=TrainFlags(log_interval=1000),
        resolved={},
    )
    return lambda x: loop.run_step(x, {})


def seconds(step, x):
    began = time.process_time()
    step(x)
    return time.process_time() - began


def high_water():
    """Peak resident memory of this process in MB (Linux); that of getrusage begins at its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def peak(which, arguments):
    """Peak resident memory in MB of a process of two steps; "none" only builds the network."""
    command = [sys.executable, __file__, "--which", which, "--size", arguments.size, "--batch", str(arguments.batch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=NETWORKS, default="tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--which", choices=("", "none", "published", "here"), default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        x = torch.rand(arguments.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
        if arguments.which:
            network(arguments.size)
            steps = {
                "published": lambda: PublishedStyle(arguments.size).step,
                "here": lambda: here(arguments.size, folder),
            }
            if arguments.which in steps:
                step = steps[arguments.which]()
                step(x), step(x)
            print(high_water())
            return
        published, ours = PublishedStyle(arguments.size).step, here(arguments.size, folder)
        published(x), ours(x)
        rounds = []
        for number in range(arguments.rounds):
            took = {step: seconds(step, x) for step in ([published, ours] if number % 2 else [ours, published])}
            rounds.append((took[published], took[ours]))
    ratios = [other / own for other, own in rounds]
    base, *grown = (peak(which, arguments) for which in ("none", "published", "here"))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread, cpu; {arguments.size}, batch {arguments.batch}"
    )
    print(f"{'':12}{'ms a step':>10}{'peak MB':>9}")
    for name, column, memory in zip(("published", "here"), zip(*rounds), grown):
        print(f"{name:12}{1e3 * statistics.median(column):10.1f}{memory - base:9.0f}")
    print(f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] of {arguments.rounds} rounds")


if __name__ == "__main__":
    main()
