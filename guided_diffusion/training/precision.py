"""Training in lower precision: autocast, float32 weights, and a loss scale for float16."""

import contextlib
import math

import torch

INITIAL_LOG_LOSS_SCALE = 20.0

# So many steps in a row without a finite gradient end the run.
BAD_STEPS = 20


class Precision:
    """Backward passes and optimiser steps of a model whose weights stay float32.

    The network computes in float16 or bfloat16 under `autocast`. Under float16 the loss is multiplied by
    2 ** lg_loss_scale, which falls by 1 at a non-finite gradient and otherwise grows by
    `fp16_scale_growth` a step. A step with a non-finite loss, gradient or weight changes no weight.

    :param model: the network.
    :param dtype: torch.float32, torch.float16 or torch.bfloat16.
    :param grad_clip: the largest norm of all gradients together, to which a larger one is scaled down; 0 never does.
    :ivar bad_steps: how many steps in a row, up to the last one, were not finite.
    """

    def __init__(self, model, dtype=torch.float32, fp16_scale_growth=1e-3, grad_clip=0.0):
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.dtype = dtype
        self.fp16_scale_growth = fp16_scale_growth
        self.grad_clip = grad_clip
        self.bad_steps = 0
        self.lg_loss_scale = INITIAL_LOG_LOSS_SCALE if self.scales_loss else 0.0

    @property
    def scales_loss(self):
        """Whether the loss is scaled: under float16 alone."""
        return self.dtype is torch.float16

    def autocast(self):
        """The context of the forward pass."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.params[0].device.type, dtype=self.dtype)

    def backward(self, loss):
        """Accumulate gradients of a scalar loss; one that is not finite makes them NaN, on every rank."""
        poison = 1 + 0 * loss.detach()  # 1, or NaN
        (loss * poison * 2**self.lg_loss_scale).backward()

    def optimize(self, optimizer):
        """One optimiser step, unless a gradient or a weight is not finite; clears the gradients.

        :return: (stepped, the gradients' norm before clipping, the weights' norm), the norms as floats.
        """
        grads = [p.grad for p in self.params if p.grad is not None]
        if self.scales_loss:
            torch._foreach_mul_(grads, 2**-self.lg_loss_scale)
        grad_norm, param_norm = norm(grads), self.param_norm()
        stepped = math.isfinite(grad_norm) and math.isfinite(param_norm)
        if stepped:
            if 0 < self.grad_clip < grad_norm:
                torch._foreach_mul_(grads, self.grad_clip / grad_norm)
            optimizer.step()
        self.bad_steps = 0 if stepped else self.bad_steps + 1
        if self.scales_loss:
            self.lg_loss_scale += self.fp16_scale_growth if stepped else -1
        optimizer.zero_grad(set_to_none=True)
        return stepped, grad_norm, param_norm

    def param_norm(self):
        """The Euclidean norm of all weights, as a float; not finite once a single step has thrown them too far."""
        return norm(self.params)


def norm(tensors):
    """The Euclidean norm of all entries of all tensors, as a float."""
    if not tensors:
        return 0.0
    with torch.no_grad():
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))).item()
