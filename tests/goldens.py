"""The published arrays of tests/golden, and the network and the guidance with which they were made."""

from pathlib import Path

import numpy as np
import torch

from guided_diffusion.gaussian_diffusion import get_named_beta_schedule

# the timesteps of the training losses under input perturbation
PERTURBED_T = torch.tensor([3, 400, 977])


def published(name):
    """The arrays of tests/golden/NAME.npz."""
    return np.load(Path(__file__).parent / "golden" / f"{name}.npz")


def closed_form(arguments):
    """The network of tests/golden: a function of x, t and the unspaced alpha_bar."""
    steps = arguments["steps"]
    alpha_bar = np.cumprod(1 - get_named_beta_schedule(arguments["noise_schedule"], steps))

    def model(x, t):
        u = (t.double() / 1000).view(-1, 1, 1, 1)
        index = t.double() * steps / 1000 if arguments.get("rescale_timesteps") else t
        ab = torch.from_numpy(alpha_bar)[index.round().long()].view(-1, 1, 1, 1)
        x = x.double()
        if arguments.get("predict_xstart"):
            out = torch.tanh(0.7 * x + 0.1 * torch.sin(5 * u))
        else:
            out = (1 - ab).sqrt() * x / (0.25 * ab + 1 - ab) + 0.05 * torch.tanh(2 * x + u)
        if arguments.get("learn_sigma"):
            out = torch.cat([out, torch.sin(2 * x + u)], dim=1)
        return out.float()

    return model


def cond_fn(x, t):
    return -0.3 * (x - 0.2) * (1 + t.float().view(-1, 1, 1, 1) / 1000)
