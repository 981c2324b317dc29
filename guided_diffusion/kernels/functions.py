"""The compiled kernels as functions that have gradients.

A gradient that is differentiated in its turn (a gradient penalty) is computed by torch's own operations.
"""

import torch
import torch.nn.functional as F
from torch.autograd import Function


def convolution(kernels, x, weight, bias=None, residual=None, filters=None):
    """The 3x3 convolution with padding 1 of x [N, C, H, W], plus bias [O], plus residual [N, O, H, W].

    :param kernels: Kernels.
    :param filters: the transform of the weight, where it is at hand; the weight is then a constant.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, residual)):
        return _Convolution.apply(kernels, filters, x, weight, bias, residual)
    filters = kernels.filters(weight, kept=False) if filters is None else filters
    return kernels.convolution(x, filters, len(weight), bias, residual)


def normalised(kernels, x, groups, weight, bias, eps, scale_shift=None, silu=True):
    """Group normalisation of x [N, C, ...], times 1 + scale, plus shift, then SiLU: as `Kernels.normalised`."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, scale_shift)):
        return _Normalised.apply(kernels, (groups, eps, silu), x, weight, bias, scale_shift)
    return kernels.normalised(x, groups, weight, bias, eps, scale_shift, silu)[0]


def normalised_by_torch(x, groups, weight, bias, eps, scale_shift=None, silu=True):
    """The same by torch's operations, in the dtype of x; the normalisation is in float32."""
    y = F.group_norm(x.float(), groups, weight.float(), bias.float(), eps).to(x.dtype)
    if scale_shift is not None:
        scale, shift = scale_shift.to(x.dtype).reshape(*scale_shift.shape, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        y = torch.addcmul(shift, y, 1 + scale)
    return F.silu(y) if silu else y


class _Convolution(Function):
    @staticmethod
    def forward(ctx, kernels, filters, x, weight, bias, residual):
        ctx.kernels = kernels
        ctx.save_for_backward(x, weight, bias)
        filters = kernels.filters(weight, kept=False) if filters is None else filters
        return kernels.convolution(x, filters, len(weight), bias, residual)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, bias = ctx.saved_tensors
        needed, of_residual = ctx.needs_input_grad[2:5], gradient if ctx.needs_input_grad[5] else None
        if _is_for_torch(gradient):
            found = _by_torch(lambda x, w, b: F.conv2d(x, w, b, padding=1), (x, weight, bias), needed, gradient)
            return None, None, *found, of_residual
        of_x = of_weight = of_bias = None
        if needed[0]:
            turned = ctx.kernels.filters(weight, turned=True, kept=False)
            of_x = ctx.kernels.convolution(gradient, turned, x.shape[1])
        if needed[1]:
            of_weight = ctx.kernels.filter_gradient(x, gradient)
        if needed[2]:
            of_bias = gradient.sum((0, 2, 3))
        return None, None, of_x, of_weight, of_bias, of_residual


class _Normalised(Function):
    @staticmethod
    def forward(ctx, kernels, settings, x, weight, bias, scale_shift):
        groups, eps, silu = settings
        y, statistics = kernels.normalised(x, groups, weight, bias, eps, scale_shift, silu)
        ctx.kernels, ctx.settings = kernels, settings
        ctx.save_for_backward(x, weight, bias, scale_shift, statistics)
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, weight, bias, scale_shift, statistics = ctx.saved_tensors
        groups, eps, silu = ctx.settings
        needed = ctx.needs_input_grad[2:]
        if _is_for_torch(gradient):

            def direct(x, weight, bias, scale_shift):
                return normalised_by_torch(x, groups, weight, bias, eps, scale_shift, silu)

            return None, None, *_by_torch(direct, (x, weight, bias, scale_shift), needed, gradient)
        of_x, sums = ctx.kernels.normalised_gradient(x, gradient, statistics, groups, weight, bias, scale_shift, silu)
        du, dux = sums.unbind(1)
        of_scale_shift = None
        if scale_shift is not None:
            of_scale_shift = torch.cat([weight * dux + bias * du, du], dim=1)
            factor = 1 + scale_shift.chunk(2, dim=1)[0]
            du, dux = du * factor, dux * factor
        return None, None, of_x, dux.sum(0), du.sum(0), of_scale_shift


def _is_for_torch(gradient):
    """Whether a gradient is differentiated in its turn, or is many at once (is_grads_batched)."""
    many = torch._C._functorch
    return (
        torch.is_grad_enabled() or many.is_functorch_wrapped_tensor(gradient) or many.is_legacy_batchedtensor(gradient)
    )


def _by_torch(function, inputs, needed, gradient):
    """The gradients of function(*inputs) that are needed, with a graph of their own if asked for; else None."""
    wanted, again = [tensor for tensor, need in zip(inputs, needed) if need], torch.is_grad_enabled()
    with torch.enable_grad():
        made = torch.autograd.grad(function(*inputs), wanted, gradient, create_graph=again) if wanted else ()
    found = iter(made)
    return [next(found) if need else None for need in needed]
