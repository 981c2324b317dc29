"""Time of a training step, against one in the published style on the same network.

    python benchmarks/training_step.py [--size tiny] [--batch 8] [--rounds 5] [--threads 1]
    python benchmarks/training_step.py --device cuda --published float16 --dtype bfloat16

Both train the same network; the baseline computes it as the published style of network_speed.py does, draws timesteps
and weights by numpy, spreads coefficients over all pixels, computes losses and bound step by step, reads each of them,
their quartiles and both norms at every step, and updates weights by AdamW and one moving average weight by weight. Here
it is a step of the training loop as scripts take it, with its fastest network. A baseline in float16 has the torso's
weights in it, those that are trained in float32 beside them, and a loss scale. Both take turns in one process, half of
the rounds in the other order; a round's ratio is baseline time / time here, of process CPU time, on a GPU of real time.
Peak memory is that of a process of its own, above its start.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import timing
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

    def __init__(self, size, device, dtype):
        self.model = published_style(network(size).to(device))
        self.trained, self.lg_scale = [p.detach().clone().requires_grad_() for p in self.model.parameters()], 20.0
        if dtype is torch.float32:
            self.trained, self.lg_scale = list(self.model.parameters()), 0.0
        self.model.convert_to(dtype)
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
        self.opt = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0)
        self.average = [p.detach().clone() for p in self.trained]
        self.total, self.logged = len(betas), {}

    def spread(self, name, t, x):
        values = torch.from_numpy(self.tables[name]).to(t.device)[t].float()
        while values.ndim < x.ndim:
            values = values[..., None]
        return values.expand(x.shape)

    def step(self, x):
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad.detach_().zero_()
        p = np.ones(self.total) / self.total
        drawn = np.random.choice(self.total, size=(len(x),), p=p)  # noqa: NPY002
        t = torch.from_numpy(drawn).long().to(x.device)
        weights = torch.from_numpy(1 / (self.total * p[drawn])).float().to(x.device)
        noise = torch.randn_like(x)
        x_t = self.spread("signal", t, x) * x + self.spread("noise", t, x) * noise
        output, learned = self.model(x_t, t).chunk(2, dim=1)
        terms = {"vb": self.bound(output.detach(), learned, x, x_t, t), "mse": ((noise - output) ** 2).mean((1, 2, 3))}
        terms["loss"] = terms["vb"] + terms["mse"]
        loss = (terms["loss"] * weights).mean()
        for name, values in terms.items():
            self.logged[name] = (values * weights).mean().item()
            for time_, value in zip(t.cpu().numpy(), (values * weights).detach().cpu().numpy()):
                self.logged[f"{name}_q{int(4 * time_ / self.total)}"] = float(value)
        (loss * 2**self.lg_scale).backward()
        with torch.no_grad():
            for master, p in zip(self.trained, self.model.parameters()):
                if master is not p:
                    master.grad = p.grad.float().mul_(2.0**-self.lg_scale)
            self.logged["grad_norm"] = sum(p.grad.norm().item() ** 2 for p in self.trained) ** 0.5
            self.logged["param_norm"] = sum(p.norm().item() ** 2 for p in self.trained) ** 0.5
            if not np.isfinite(self.logged["grad_norm"]):
                self.lg_scale -= 1
                return
        self.opt.step()
        self.lg_scale += 1e-3 * (self.lg_scale > 0)
        for average, master, p in zip(self.average, self.trained, self.model.parameters()):
            average.detach().mul_(0.9999).add_(master.detach(), alpha=1 - 0.9999)
            if master is not p:
                p.detach().copy_(master.detach())

    def bound(self, eps, learned, x, x_t, t):
        share, least, most = (learned + 1) / 2, self.spread("least", t, x), self.spread("most", t, x)
        log_variance = share * most + (1 - share) * least
        x0 = self.spread("recip", t, x) * x_t - self.spread("recipm1", t, x) * eps
        mean, true = (self.spread("of_x0", t, x) * y + self.spread("of_xt", t, x) * x_t for y in (x0, x))
        kl = normal_kl(true, least, mean, log_variance).mean((1, 2, 3)) / np.log(2)
        nll = -discretized_gaussian_log_likelihood(x, means=mean, log_scales=0.5 * log_variance)
        return torch.where(t == 0, nll.mean((1, 2, 3)) / np.log(2), kl)


def here(size, device, dtype, folder):
    """A step of the training loop of the scripts."""
    logger.configure(folder, "csv")
    flags = DiffusionFlags(noise_schedule="cosine", learn_sigma=True)
    diffusion = diffusion_of(flags, ())
    loop = Loop(
        model=network(size).to(device),
        dtype=dtype,
        objective=OBJECTIVES["diffusion"](diffusion, SamplerFlags().create(diffusion)),
        data=iter(()),
        flags=TrainFlags(log_interval=1000),
        resolved={},
    )
    return lambda x: loop.run_step(x, {})


def peak(which, arguments):
    """Peak memory in MB of a process of two steps; "none" only builds the network."""
    command = [sys.executable, __file__, "--which", which]
    for name in ("size", "batch", "threads", "device", "dtype", "published"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=NETWORKS, default="tiny")
    parser.add_argument("--batch", type=timing.at_least(1), default=8)
    parser.add_argument("--rounds", type=timing.at_least(1), default=5)
    parser.add_argument("--threads", type=timing.at_least(1), default=1)
    parser.add_argument("--device", type=timing.device, default=timing.CPU)
    parser.add_argument("--published", choices=("float32", "float16"), default="float32", help="what it computes in")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="the same here")
    parser.add_argument("--which", choices=("", "none", "published", "here"), default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size, device = arguments.size, arguments.device
    theirs, ours = (getattr(torch, name) for name in (arguments.published, arguments.dtype))
    with tempfile.TemporaryDirectory() as folder:
        x = torch.rand(arguments.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
        makes = {
            "none": lambda: network(size).to(device).to,
            "published": lambda: PublishedStyle(size, device, theirs).step,
            "here": lambda: here(size, device, ours, folder),
        }
        if arguments.which:
            step = makes[arguments.which]()
            step(x.to(device)), step(x.to(device))
            print(timing.high_water(device))
            return
        steps = {name: makes[name]() for name in ("published", "here")}
        calls = {name: lambda step=step: step(x.to(device)) for name, step in steps.items()}
        for call in calls.values():
            call()
        taken = timing.in_turn(calls, arguments.rounds, device)
    base, *grown = (peak(which, arguments) for which in makes)
    print(f"{timing.described(device)}; {size}, batch {arguments.batch}; {arguments.published} and {arguments.dtype}")
    print(f"{'':12}{'ms a step':>10}{'peak MB':>9}")
    for (name, column), memory in zip(taken.items(), grown):
        print(f"{name:12}{1e3 * statistics.median(column):10.1f}{memory - base:9.0f}")
    median, least, most = timing.ratio(*taken.values())
    print(f"ratio {median:.2f} [{least:.2f}, {most:.2f}] of {arguments.rounds} rounds")


if __name__ == "__main__":
    main()
