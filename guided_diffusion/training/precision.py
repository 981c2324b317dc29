"""Training in lower precision: autocast, float32 weights, and a loss scale for float16."""

import contextlib
from typing import NamedTuple

import torch

from ..scalars import real

INITIAL_LOG_LOSS_SCALE = 20.0

# So many steps in a row without a finite gradient end the run.
BAD_STEPS = 20


class Precision:
    """Backward passes and optimiser steps of a model whose weights stay float32.

    The network computes in float16 or bfloat16 under `autocast`. Under float16 the loss is multiplied by
    2 ** lg_loss_scale, which falls by 1 at a non-finite gradient and otherwise grows by
    `fp16_scale_growth` a step. A step with a non-finite loss, gradient or weight changes no weight. What depends on
    whether a step was finite is decided on the device, so that no step waits for it; the properties `lg_loss_scale` and
    `bad_steps` do.

    :param model: the network.
    :param dtype: torch.float32, torch.float16 or torch.bfloat16.
    :param grad_clip: the largest norm of all gradients together, to which a larger one is scaled down; 0 never does.
    """

    def __init__(self, model, dtype=torch.float32, fp16_scale_growth=1e-3, grad_clip=0.0):
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.dtype = dtype
        self.fp16_scale_growth = fp16_scale_growth
        self.grad_clip = grad_clip
        device = self.params[0].device if self.params else torch.device("cpu")
        self._bad_steps = torch.zeros((), dtype=real(device), device=device)
        self._lg_loss_scale = torch.full_like(self._bad_steps, INITIAL_LOG_LOSS_SCALE if self.scales_loss else 0.0)

    @property
    def bad_steps(self):
        """How many steps in a row, up to the last one, were not finite."""
        return int(self._bad_steps)

    @property
    def lg_loss_scale(self):
        """The base 2 logarithm of the loss scale."""
        return float(self._lg_loss_scale)

    @lg_loss_scale.setter
    def lg_loss_scale(self, value):
        self._lg_loss_scale.fill_(value)

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
        loss = loss * (1 + 0 * loss.detach())  # times 1, or NaN
        (loss * torch.exp2(self._lg_loss_scale) if self.scales_loss else loss).backward()

    def optimize(self, optimizer):
        """One optimiser step, unless a gradient or a weight is not finite; clears the gradients.

        On a GPU an optimiser that knows `found_inf` is told to do nothing; any other waits for the answer.

        :return: the fields of an Outcome as one tensor, on the device.
        """
        grads = [p.grad for p in self.params if p.grad is not None]
        if self.scales_loss and grads:
            torch._foreach_mul_(grads, torch.exp2(-self._lg_loss_scale).float())
        grad_norm, param_norm = norm(grads), norm(self.params)
        finite = grad_norm.isfinite() & param_norm.isfinite()
        if self.grad_clip and grads:
            factor = (self.grad_clip / grad_norm.to(self._bad_steps)).clamp(max=1)
            torch._foreach_mul_(grads, factor.float())
        if finite.device.type == "cuda" and getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = finite.logical_not().float()
            optimizer.step()
            del optimizer.found_inf
        elif finite:
            optimizer.step()
        self._bad_steps = torch.where(finite, 0, self._bad_steps + 1)
        if self.scales_loss:
            grown, halved = self._lg_loss_scale + self.fp16_scale_growth, self._lg_loss_scale - 1
            self._lg_loss_scale = torch.where(finite, grown, halved)
        optimizer.zero_grad(set_to_none=True)
        fields = finite, grad_norm, param_norm, self._lg_loss_scale, self._bad_steps
        return torch.stack([field.to(self._bad_steps) for field in fields])

    def param_norm(self):
        """The Euclidean norm of all weights, as a float; not finite once a single step has thrown them too far."""
        return norm(self.params).item()


class Outcome(NamedTuple):
    """What came of a step, as floats.

    :ivar stepped: whether the weights changed.
    :ivar grad_norm: of all gradients, before clipping.
    :ivar param_norm: of all weights, before the step.
    :ivar lg_loss_scale: of the next step.
    :ivar bad_steps: how many steps in a row, up to this one, were not finite.
    """

    stepped: float
    grad_norm: float
    param_norm: float
    lg_loss_scale: float
    bad_steps: float


@torch.no_grad()
def norm(tensors):
    """The Euclidean norm [] of all entries of all tensors."""
    if not tensors:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
