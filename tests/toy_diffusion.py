"""A diffusion and a network of a few weights, as a program hands them to the published training classes."""

import torch

from guided_diffusion.script_util import create_gaussian_diffusion

STEPS = 40


def diffusion():
    """A GaussianDiffusion of STEPS steps that predicts the noise."""
    return create_gaussian_diffusion(steps=STEPS)


class Network(torch.nn.Module):
    """A convolution, half of which is float16 after `convert_to_fp16`, and a scale and bias that stay float32."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.time = torch.nn.Linear(1, 3)
        self.dtype = torch.float32

    def convert_to_fp16(self):
        self.conv.half()
        self.dtype = torch.float16

    def forward(self, x, t, y=None):
        shift = self.time(t.float()[:, None] / STEPS)[:, :, None, None]
        if y is not None:
            shift = shift + 0.1 * y.float()[:, None, None, None]
        return self.conv(x.to(self.dtype)).float() + shift


def data(batch_size, seed=0, classes=False):
    """An endless iterator of random batches [N, 3, 4, 4], with labels for `classes`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        batch = torch.rand(batch_size, 3, 4, 4, generator=generator) * 2 - 1
        yield batch, {"y": torch.randint(5, (batch_size,), generator=generator)} if classes else {}
