"""The learned variance and its interval (Nichol & Dhariwal 2021, equation 15).

log variance = v log beta + (1 - v) log beta tilde, with the network's v = (output + 1) / 2. As published, nothing keeps
v in [0, 1]: within 1,000 steps the interval is narrow, and respaced to few steps a v of 20 is an exponent.
"""

import torch


def hold(output):
    """The output [N, C, ...] within [-1, 1]; gradients pass where a step against them leads back inside."""
    return _Held.apply(output)


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output):
        ctx.save_for_backward(output)
        return output.clamp(-1, 1)

    @staticmethod
    def backward(ctx, gradient):
        (output,) = ctx.saved_tensors
        leaves = ((output > 1) & (gradient < 0)) | ((output < -1) & (gradient > 0))
        return gradient.masked_fill(leaves, 0)


def outside(output):
    """The share [N] (float32) of each image's values whose v is outside [0, 1] by more than 1, its width."""
    return output.abs().float().gt_(3).flatten(1).mean(1)


class Range:
    """Least and largest v of all outputs added since it was last taken, on their device."""

    def __init__(self):
        self._ends = None

    def add(self, output):
        """Look at an output [N, C, ...]."""
        v = (output.detach().float() + 1) / 2
        ends = torch.stack([-v.amin(), v.amax()])
        self._ends = ends if self._ends is None else torch.maximum(self._ends, ends)

    def take(self):
        """The tensor (-least, largest), which begins anew; None where nothing was added."""
        ends, self._ends = self._ends, None
        return ends
