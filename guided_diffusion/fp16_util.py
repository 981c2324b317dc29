"""Training in float16 by the published recipe: a network of halves, and float32 master copies of its weights.

The master weights are two flat tensors, of the weights with at most one axis [n] and of all others [1, m]. The scripts'
own training keeps float32 weights under autocast instead: training/precision.py.
"""

import math

import torch

from . import logger
from .nn import convert_convolution
from .training.precision import INITIAL_LOG_LOSS_SCALE, norm


def convert_module_to_f16(l):  # noqa: E741
    """Convert the weight and bias of a convolution to float16 in place; any other layer is left alone."""
    convert_convolution(l, torch.float16)


def convert_module_to_f32(l):  # noqa: E741
    """As `convert_module_to_f16`, to float32."""
    convert_convolution(l, torch.float32)


def get_param_groups_and_shapes(named_model_params):
    """[(names and weights with at most one axis, their master shape), (all other names and weights, theirs)].

    :param named_model_params: iterable of (name, tensor).
    """
    named = list(named_model_params)
    few = [(name, param) for name, param in named if param.ndim <= 1]
    many = [(name, param) for name, param in named if param.ndim > 1]
    return [(few, (-1,)), (many, (1, -1))]


def make_master_params(param_groups_and_shapes):
    """A float32 Parameter for each group, flat in its shape."""
    flat = (_flat([param.detach() for _, param in group], shape) for group, shape in param_groups_and_shapes)
    return [torch.nn.Parameter(values) for values in flat]


def model_grads_to_master_grads(param_groups_and_shapes, master_params):
    """Copy the gradients of the network to its master weights, in float32."""
    for master, (group, shape) in zip(master_params, param_groups_and_shapes):
        master.grad = _flat([param_grad_or_zeros(param) for _, param in group], shape)


def master_params_to_model_params(param_groups_and_shapes, master_params):
    """Copy the master weights to the network, rounded to its dtypes."""
    with torch.no_grad():
        for master, (group, _) in zip(master_params, param_groups_and_shapes):
            for (_, param), values in zip(group, unflatten_master_params(group, master)):
                param.copy_(values)


def unflatten_master_params(param_group, master_param):
    """A master weight as tensors of the shapes of its group of (name, weight)."""
    params = [param for _, param in param_group]
    parts = master_param.flatten().split([param.numel() for param in params])
    return [part.view(param.shape) for part, param in zip(parts, params)]


def master_params_to_state_dict(model, param_groups_and_shapes, master_params, use_fp16):
    """The state dict of a network with the master weights in place of its own.

    :param master_params: those of `make_master_params` with use_fp16, else a tensor for each parameter.
    """
    if use_fp16:
        groups = [group for group, _ in param_groups_and_shapes]
        named = {
            name: values
            for group, master in zip(groups, master_params)
            for (name, _), values in zip(group, unflatten_master_params(group, master.detach()))
        }
    else:
        named = dict(zip((name for name, _ in model.named_parameters()), master_params))
    return {**model.state_dict(), **named}


def state_dict_to_master_params(model, state_dict, use_fp16):
    """The master weights of a state dict: the other way round than `master_params_to_state_dict`."""
    named = [(name, state_dict[name]) for name, _ in model.named_parameters()]
    return make_master_params(get_param_groups_and_shapes(named)) if use_fp16 else [value for _, value in named]


def zero_master_grads(master_params):
    """Drop the gradients of the master weights."""
    for param in master_params:
        param.grad = None


def zero_grad(model_params):
    """Set the gradients that there are to zero."""
    for param in model_params:
        if param.grad is not None:
            param.grad.detach_().zero_()


def param_grad_or_zeros(param):
    """The gradient of a weight, zeros where it has none."""
    return torch.zeros_like(param) if param.grad is None else param.grad.detach()


def check_overflow(value):
    """Whether a number is infinite or NaN."""
    return not math.isfinite(value)


def _flat(tensors, shape):
    return torch.cat([tensor.flatten().float() for tensor in tensors]).view(shape)


class MixedPrecisionTrainer:
    """Backward passes and optimiser steps of a network, in float32 or with master weights and a loss scale.

    With use_fp16 the network is converted by its `convert_to_fp16()`, the loss is multiplied by 2 ** lg_loss_scale, and
    that falls by 1 at a gradient that is not finite, which changes no weight, and else grows a little at each step.
    Norms and the loss scale go into the next row of the log.

    :param model: the network.
    :param fp16_scale_growth: what a good step adds to lg_loss_scale.
    :ivar model_params: the network's weights.
    :ivar master_params: what the optimiser has to be of: those weights, or the master copies with use_fp16.
    :ivar param_groups_and_shapes: see `get_param_groups_and_shapes`; None without use_fp16.
    """

    def __init__(self, *, model, use_fp16=False, fp16_scale_growth=1e-3, initial_lg_loss_scale=INITIAL_LOG_LOSS_SCALE):
        self.model = model
        self.use_fp16 = use_fp16
        self.fp16_scale_growth = fp16_scale_growth
        self.lg_loss_scale = initial_lg_loss_scale
        self.model_params = self.master_params = list(model.parameters())
        self.param_groups_and_shapes = None
        if use_fp16:
            self.param_groups_and_shapes = get_param_groups_and_shapes(model.named_parameters())
            self.master_params = make_master_params(self.param_groups_and_shapes)
            model.convert_to_fp16()

    def zero_grad(self):
        """Set the gradients of the network to zero, which `optimize` leaves as they are."""
        zero_grad(self.model_params)

    def backward(self, loss):
        """Add the gradients of a scalar loss to those of the network."""
        (loss * 2**self.lg_loss_scale if self.use_fp16 else loss).backward()

    def optimize(self, opt):
        """Take a step by the gradients of the network.

        :param opt: a torch.optim.Optimizer of `master_params`.
        :return: whether it was taken.
        """
        return self._optimize_fp16(opt) if self.use_fp16 else self._optimize_normal(opt)

    def _optimize_fp16(self, opt):
        logger.logkv_mean("lg_loss_scale", self.lg_loss_scale)
        model_grads_to_master_grads(self.param_groups_and_shapes, self.master_params)
        grad_norm, param_norm = self._compute_norms(grad_scale=2**self.lg_loss_scale)
        stepped = not check_overflow(grad_norm)
        if stepped:
            self._log_norms(grad_norm, param_norm)
            for param in self.master_params:
                param.grad.mul_(2**-self.lg_loss_scale)
            opt.step()
            master_params_to_model_params(self.param_groups_and_shapes, self.master_params)
            self.lg_loss_scale += self.fp16_scale_growth
        else:
            self.lg_loss_scale -= 1
            logger.log(f"a gradient is not finite: lg_loss_scale falls to {self.lg_loss_scale:g}")
        zero_master_grads(self.master_params)
        return stepped

    def _optimize_normal(self, opt):
        self._log_norms(*self._compute_norms())
        opt.step()
        return True

    def _log_norms(self, grad_norm, param_norm):
        logger.logkv_mean("grad_norm", grad_norm)
        logger.logkv_mean("param_norm", param_norm)

    def _compute_norms(self, grad_scale=1.0):
        """(the norm of all gradients together divided by `grad_scale`, that of all weights), as floats."""
        grads = [param.grad for param in self.master_params if param.grad is not None]
        of_weights = norm(self.master_params)
        of_grads, of_weights = torch.stack([norm(grads).to(of_weights), of_weights]).tolist()
        return of_grads / grad_scale, of_weights

    def master_params_to_state_dict(self, master_params):
        """The state dict of the network with these weights, or averages of them, in place of its own."""
        return master_params_to_state_dict(self.model, self.param_groups_and_shapes, master_params, self.use_fp16)

    def state_dict_to_master_params(self, state_dict):
        """The weights of a state dict, shaped as `master_params`."""
        return state_dict_to_master_params(self.model, state_dict, self.use_fp16)
