"""The networks as a CPU computes them fastest: what `for_inference` and `for_training` return.

Both copy the tree of modules, over the same parameters, with a faster forward of convolutions, normalisations, residual
and attention blocks. Whatever somebody hooked, replaced, subclassed or patched stands in that tree as it is, so it does
what it did, and the network itself stays the published one.
"""

import copy
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from .. import kernels
from ..errors import UserError
from ..flags import FlagGroup, flag
from ..kernels import functions, winograd
from ..nn import GroupNorm32, SiLU
from ..unet import (
    AttentionBlock,
    Downsample,
    EncoderUNetModel,
    PointwiseConv,
    QKVAttention,
    QKVAttentionLegacy,
    ResBlock,
    SuperResModel,
    TimestepEmbedSequential,
    UNetModel,
    Upsample,
)

# an algorithm is the fewest channels of a layer that takes Winograd; 0 is for no layer
DIRECT, ALL = 0, 1
# from so many on it was faster in every measured layer: compiled, and in plain torch
COMPILED, PLAIN = 32, 128
# with the transformed weights that are kept, those of a network take at most so many times the memory
GROWTH = 4


@dataclass
class ConvFlags(FlagGroup):
    """The computation."""

    conv: str = flag(
        "auto",
        "How a CPU computes 3x3 convolutions: winograd multiplies less and rounds more (about 1e-5 of the output), "
        "direct does not, auto takes winograd where it is faster.",
        choices=("auto", "direct", "winograd"),
        lasting=True,
        idle=True,
    )
    tf32: bool = flag(
        False,
        "A GPU rounds float32 products to TF32 (10 bits), several times as fast; False is as torch does by itself.",
        lasting=True,
    )
    compile: str = flag(
        "off",
        "Compile the network with torch.compile, for a minute or more at the start; it replaces the kernels of --conv.",
        choices=("off", "default", "max-autotune"),
        lasting=True,
    )

    def apply(self, training=False):
        """Let the networks of this process that are loaded from now on compute by these flags."""
        compute_by(DIRECT if self.compile != "off" else self.algorithm(training))
        _process["compile"] = self.compile
        _round_to_tf32(self.tf32)

    def algorithm(self, training=False):
        """The fewest channels of a layer that is computed by Winograd; 0 for none.

        It depends on whether there are compiled kernels, and neither on the batch nor on the processor's instructions.
        """
        if self.conv != "auto":
            return ALL if self.conv == "winograd" else DIRECT
        if kernels.current() is not None:
            return COMPILED
        return DIRECT if training else PLAIN


def described(algorithm):
    """An algorithm (see `ConvFlags.algorithm`) and the kernels there are, in words for a log."""
    if _process["compile"] != "off":
        return f"networks are compiled by torch ({_process['compile']})"
    found = kernels.current()
    by = f"compiled kernels ({found.instructions})" if found else "plain torch, for there are no compiled kernels"
    if algorithm == DIRECT:
        return f"3x3 convolutions: direct; {by}"
    layers = "all layers" if algorithm == ALL else f"layers of at least {algorithm} channels"
    return f"3x3 convolutions: Winograd in {layers}; {by}"


def slow_halves(*dtypes):
    """Those of some dtypes that are 16 bit wide and that this processor is known to have no instructions for."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("architecture") != "x86_64":
        return []
    units = {
        torch.float16: ("avx512_fp16", "amx_fp16"),
        torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx_ne_convert"),
    }
    return [kind for kind in units if kind in dtypes and not any(capabilities.get(unit) for unit in units[kind])]


# of the process, as its threads are: a run that goes on with a folder has to follow it after its networks are loaded
_process = {"algorithm": None, "compile": "off", "tf32": None}


def compute_by(algorithm):
    """Let the fast networks that were given no `conv` of their own compute by an algorithm from now on.

    :param algorithm: see `ConvFlags.algorithm`; None is that of --conv auto.
    """
    _process["algorithm"] = algorithm


def computing_by(training=False):
    """The algorithm of `compute_by`."""
    chosen = _process["algorithm"]
    return ConvFlags().algorithm(training) if chosen is None else chosen


def _round_to_tf32(asked):
    """Let a GPU round to TF32; where it is not asked for, as torch did before it was."""
    parts, before = (torch.backends.cuda.matmul, torch.backends.cudnn), _process["tf32"]
    if asked and before is None:
        _process["tf32"] = [part.allow_tf32 for part in parts]
        for part in parts:
            part.allow_tf32 = True
    elif not asked and before is not None:
        _process["tf32"] = None
        for part, value in zip(parts, before):
            part.allow_tf32 = value


def compiled(model):
    """A network as --compile says: a module like `model`, over the same weights, whose forward is compiled.

    What it returns is a copy, for a CUDA graph writes its next result over the last one.

    :raises UserError: where torch.compile lacks a compiler.
    """
    if _process["compile"] == "off":
        return model
    if next(model.parameters()).device.type == "cpu":
        if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            raise UserError(f"--compile {_process['compile']} needs a C++ compiler on a CPU; expected g++, or $CXX")
    elif importlib.util.find_spec("triton") is None:
        raise UserError(f"--compile {_process['compile']} needs the package triton on a GPU; expected it installed")
    mode = None if _process["compile"] == "default" else _process["compile"]
    made = copy.copy(model)
    made.forward = _Compiled(model.forward, mode)
    return made


class _Compiled:
    """A forward that is compiled; a copy compiles that of the network's copy.

    A batch of fewer samples than one before, as the last one often is, repeats its last sample: for another shape torch
    would compile anew, and record another CUDA graph.
    """

    def __init__(self, forward, mode):
        self.forward, self.mode, self.most = forward, mode, 0
        self.compiled = torch.compile(forward, mode=mode)

    def __call__(self, x, *args, **told):
        count = len(x)
        self.most = max(self.most, count)

        def whole(value):
            if count == self.most or not isinstance(value, torch.Tensor) or len(value) != count:
                return value
            return torch.cat([value, value[-1:].expand(self.most - count, *value.shape[1:])])

        told = {name: whole(value) for name, value in told.items()}
        return self.compiled(*map(whole, (x, *args)), **told)[:count].clone()

    def __reduce__(self):
        return _Compiled, (self.forward, self.mode)


class Plan:
    """How the layers of one fast network compute; they share it.

    :param algorithm: see `ConvFlags.algorithm`; None is what `compute_by` said last.
    :param spare: how many floats of transformed weights may be kept.
    :param training: whether weights change and have gradients.
    """

    def __init__(self, algorithm, spare, training):
        self.own, self.spare, self.training = algorithm, spare, training
        self.taken = 0

    def __getstate__(self):
        """What a copy begins with, for its layers have kept nothing."""
        return {**vars(self), "taken": 0}

    @property
    def algorithm(self):
        """The algorithm, now."""
        return computing_by(self.training) if self.own is None else self.own

    def takes_winograd(self, layer, x):
        """Whether a convolution of x [N, C, H, W] is computed by Winograd: by channels and sides, never by N."""
        algorithm = self.algorithm
        if not algorithm or x.ndim != 4 or x.shape[1] != layer.in_channels or x.shape[2] % 4 or x.shape[3] % 4:
            return False
        # few outputs cost compiled kernels less than they cost torch
        fewest = layer.in_channels if algorithm == COMPILED else min(layer.in_channels, layer.out_channels)
        return fewest >= algorithm


def for_inference(model, conv=None):
    """The network as it samples and scores fastest: a module like `model`, of the same class, over the same weights.

    On a CPU its images lie channels last, its normalisations are fused with what follows them, and its 3x3
    convolutions keep their transformed weights where there is room (see GROWTH). It recomputes nothing in a backward
    pass, and has gradients of its inputs, but none of the weights of its convolutions, linear and attention layers: a
    network is trained by `for_training`, or as it is. On another device it is `model` itself.

    What is hooked, replaced or patched in it afterwards may be passed over, for several layers are computed as one; a
    network that is converted to another dtype afterwards has to be made fast anew. Weights that change are followed,
    but a write through `.data` or numpy into a part of a weight may go unseen: write
    `with torch.no_grad(): weight[...] = value` instead.

    :param model: a network of unet.py; anything else is returned as it is. Modules in it that are hooked, replaced,
        subclassed or patched stay what they are, and so do all where hooks of all modules are set.
    :param conv: "auto", "direct" or "winograd"; None is what `compute_by` said last.
    """
    if not isinstance(model, nn.Module):
        return model
    weights = sum(p.numel() for p in model.parameters())
    return _fast(model, _plan(conv, (GROWTH - 1) * weights, False))


def for_training(model, conv=None):
    """The network as it trains fastest, like `for_inference`: gradients of all weights, checkpoints and dropout stay.

    The parameters are `model`'s own: optimisers, averages and checkpoints may go on with `model`. Where --compile asks
    for it, it is `compiled`.
    """
    return compiled(model) if conv is None and _process["compile"] != "off" else _fast(model, _plan(conv, 0, True))


def _plan(conv, spare, training):
    return Plan(None if conv is None else ConvFlags(conv=conv).algorithm(training), spare, training)


# -- the fast layers ---------------------------------------------------------------------------------------


def _usable(*tensors):
    """The Kernels, if they can compute with these tensors (or None); None where torch has to."""
    return kernels.current() if _plain(*tensors) else None


def _plain(*tensors):
    """Whether all are ordinary float32 tensors in main memory, or None, and nobody follows what is computed.

    Neither forward differentiation, nor a tracer or a mode that is shown torch's operations, would see kernels.
    """
    return (
        not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and all(
            t is None
            or (
                type(t) in (torch.Tensor, nn.Parameter)
                and t.dtype is torch.float32
                and t.device.type == "cpu"
                and not torch._C._functorch.is_functorch_wrapped_tensor(t)
            )
            for t in tensors
        )
    )


def _lies_last(x, *weights):
    """Whether x [N, C, H, W] is computed with its channels last: by kernels always, by torch where it lies so."""
    if not _plain(x, *weights):
        return False
    return kernels.current() is not None or x.is_contiguous(memory_format=torch.channels_last)


class _Layer:
    """What fast layers with weights have in common; `plan` is theirs, `kept` their transformed weights.

    :cvar reserved: whether Plan.spare is without their transformed weights, so that there is room for them.
    """

    plan, kept, reserved = None, None, False

    def __getstate__(self):
        """What is copied and pickled of it: what it keeps can be made again."""
        return {**vars(self), "kept": None}

    def constants(self):
        """(weight, bias); where they are not trained they have no gradients."""
        if self.plan.training:
            return self.weight, self.bias
        return self.weight.detach(), None if self.bias is None else self.bias.detach()

    def transformed(self, transform):
        """transform(weight), kept from call to call where there is room to; None where there is none for its like."""
        weight, kept = self.weight.detach(), self.kept
        if kept is not None and kept.is_of(transform, weight):
            return kept.made
        if kept is not None:
            self.plan.taken -= 0 if self.reserved else kept.made.numel()
            self.kept = None
        # a tensor of inference mode does not count what is written to it
        if weight.is_inference() or not (self.reserved or self._fits(4 * weight.numel())):
            return None
        with torch.inference_mode(False), torch.no_grad():  # what is kept outlives the mode of this call
            made = transform(weight)
        if self.reserved or self._fits(made.numel()):  # what kernels make is padded to the width of their vectors
            self.plan.taken += 0 if self.reserved else made.numel()
            some = _some_of(weight)
            self.kept = _Kept(transform, weight, weight._version, some, some.clone(), made)
        return made

    def _fits(self, floats):
        return self.plan.taken + floats <= self.plan.spare


def _some_of(weight):
    """A view of some of the values of a weight [O, C, ...], about as many as its diagonal has, from all of it."""
    if not weight.is_contiguous():
        return weight.diagonal()
    return weight.view(-1)[:: max(weight.shape[:2]) + 2]


class _Kept(NamedTuple):
    """A transformed weight, and what it was made of: while that is held, no other tensor has its memory."""

    transform: Callable
    weight: torch.Tensor
    version: int
    some: torch.Tensor
    sample: torch.Tensor
    made: torch.Tensor

    def is_of(self, transform, weight):
        """Whether it is transform(weight); of writes through `.data`, which nothing counts, some values tell."""
        return (
            self.transform == transform
            and self.weight.is_set_to(weight)
            and not weight.is_inference()
            and self.version == weight._version
            and torch.equal(self.sample, self.some)
        )


class FastConvolution(_Layer, nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1, by Winograd or directly."""

    def forward(self, x, residual=None):
        """The convolution of x [N, C, H, W], plus residual [N, O, H, W] where it is given."""
        found = _usable(x, self.weight, self.bias, residual)
        weight, bias = self.constants()
        if not self.plan.takes_winograd(self, x) or not _plain(x, self.weight, self.bias):
            y = F.conv2d(x if found is None or x.ndim < 4 else _channels_last(x), weight, bias, padding=1)
            return y if residual is None else y + residual
        if found is not None:
            filters = None if self.plan.training else self.transformed(found.filters)
            return functions.convolution(found, x, weight, bias, residual, filters)
        filters = None if self.plan.training else self.transformed(winograd.filters)
        y = winograd.convolution(x, winograd.filters(weight) if filters is None else filters, bias)
        return y if residual is None else y + residual


class _Linear(_Layer):
    reserved = True

    @staticmethod
    def differentiated(*inputs):
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)

    def rows(self, x, residual=None):
        """The layer on rows x [..., C], plus residual [..., O]: [..., O]."""
        weight, bias = self.constants()
        found = None if self.plan.training else _usable(x, weight, bias, residual)
        fits = x.shape[-1] == weight[0].numel()
        if found is not None and fits and not self.differentiated(x, residual):
            packed = self.transformed(found.linear_weights)
            packed = found.linear_weights(weight) if packed is None else packed
            return found.linear(x, packed, len(weight), bias, residual)
        y = F.linear(x, weight.flatten(1), bias)
        return y if residual is None else y + residual


class FastStrided(_Linear, nn.Conv2d):
    """A 3x3 convolution of stride 2 and padding 1, by patches; torch rounds those of a single image otherwise."""

    def forward(self, x):
        if x.ndim != 4 or self.plan.training or self.differentiated(x) or _usable(x, self.weight, self.bias) is None:
            return self._conv_forward(x, *self.constants())
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        patches = padded.unfold(1, 3, 2).unfold(2, 3, 2).permute(0, 1, 2, 4, 5, 3)
        return self.rows(patches.flatten(3)).permute(0, 3, 1, 2)


class FastLinear(_Linear, nn.Linear):
    """A linear layer."""

    def forward(self, x):
        return self.rows(x)


class FastPointwise(_Linear, nn.Conv2d):
    """A 1x1 convolution as a linear layer, where that needs no copy."""

    def forward(self, x):
        if x.ndim != 4 or not _lies_last(x, self.weight, self.bias):
            return self._conv_forward(x, *self.constants())
        return self.rows(_channels_last(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FastProjection(_Linear, PointwiseConv):
    """A projection of attention; `rows` takes its input [N, T, C]."""

    def forward(self, x):
        return self._conv_forward(x, *self.constants())


class FastNorm(GroupNorm32):
    """A group normalisation and what follows it.

    :ivar silu: whether a SiLU does.
    """

    silu = False

    def forward(self, x, scale_shift=None):
        """The normalisation of x [N, C, ...], times 1 + scale, plus shift, which are [N, 2 C]; then SiLU."""
        fits = x.ndim == 4 and not x.shape[1] % 16 and x.shape[1] == self.num_channels
        found = _usable(x, self.weight, self.bias, scale_shift) if fits else None
        settings = (self.num_groups, self.weight, self.bias, self.eps, scale_shift, self.silu)
        if found is None:
            return functions.normalised_by_torch(x, *settings)
        return functions.normalised(found, x, *settings)


class FastEmbedding(nn.Sequential):
    """The layers after the sinusoids [N, C] of the times; where all are the same, on one row, which is expanded."""

    def forward(self, x):
        # a gradient or a tangent is each time's own
        if len(x) < 2 or x.requires_grad or not _plain(x) or not (x == x[:1]).all():
            return super().forward(x)
        return super().forward(x[:1]).expand(len(x), -1)


class FastResBlock(ResBlock):
    """A residual block whose second half is a FastNorm with SiLU, dropout, and a FastConvolution."""

    def _forward(self, x, emb):
        x, h = self._first_half(x)
        norm, _, dropout, conv = self.out_layers
        emb = self.emb_layers(emb if emb.stride(0) else emb[:1]).expand(len(h), -1)  # one row, as FastEmbedding's
        if self.use_scale_shift_norm:
            h = norm(h, emb)
        else:
            h = norm(h + emb.to(h.dtype)[:, :, None, None])
        return conv(dropout(h), self.skip_connection(x))


class FastAttention(AttentionBlock):
    """An attention block on images whose channels lie last, where SDPA takes the heads as they lie."""

    def _forward(self, x):
        if not _lies_last(x, self.qkv.weight, self.proj_out.weight):
            return super()._forward(x)
        n, channels, height, width = x.shape
        h = _channels_last(self.norm(x)).permute(0, 2, 3, 1).reshape(n, height * width, channels)
        heads = self.qkv.rows(h).unflatten(-1, (3 * self.attention.n_heads, -1)).transpose(1, 2)
        h = F.scaled_dot_product_attention(*self.attention.split(heads)).transpose(1, 2).flatten(2)
        x = _channels_last(x).permute(0, 2, 3, 1).view(n, height * width, channels)
        return self.proj_out.rows(h, x).view(n, height, width, channels).permute(0, 3, 1, 2)


class ChannelsFirst(nn.Module):
    """Images [N, C, H, W] as they usually lie in memory, for what is computed with them outside of the network."""

    def forward(self, x):
        return x.contiguous()


def _channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


# -- from a tree of modules to a fast one --------------------------------------------------------------------

NETWORKS = (UNetModel, SuperResModel, EncoderUNetModel)
CONTAINERS = (nn.Sequential, nn.ModuleList, TimestepEmbedSequential, Upsample, Downsample)
LAYERS = (nn.Conv2d, nn.Linear, PointwiseConv, GroupNorm32, ResBlock, AttentionBlock)
PARTS = (SiLU, nn.Dropout, QKVAttention, QKVAttentionLegacy)
KNOWN = {*NETWORKS, *CONTAINERS, *LAYERS, *PARTS}
METHODS = ("forward", "_forward", "_conv_forward", "__call__")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def enrolled(kind):
    """The class, from now on known here: a network whose own forward uses the parts of one of NETWORKS as that does."""
    KNOWN.add(kind)
    return kind


def _untouched(*modules):
    """Whether modules are of kinds that are known here, and nobody hooked or patched them or all modules."""
    return not nn.modules.module._has_any_global_hook() and all(
        type(module) in KNOWN
        and _is_as_defined(type(module))
        and not any(vars(module)[hooks] for hooks in HOOKS)
        and not any(callable(getattr(type(module), name, None)) for name in vars(module))
        for module in modules
    )


def _is_as_defined(kind):
    """Whether a class has the methods of the files that it and its bases stand in, whoever is imported first."""
    owners = ((name, next((base for base in kind.__mro__ if name in vars(base)), None)) for name in METHODS)
    return all(
        owner is None or getattr(vars(owner)[name], "__globals__", None) is vars(sys.modules[owner.__module__])
        for name, owner in owners
    )


def _is_by_rows(layers):
    """Whether layers give a row for each row, which depends on no other."""
    return type(layers) is nn.Sequential and _untouched(layers, *layers) and {*map(type, layers)} <= {nn.Linear, SiLU}


def _fast(module, plan):
    """The fast counterpart of a module, or the module itself where it has none."""
    if not _untouched(module):
        return module
    if isinstance(module, NETWORKS):
        if module.dims != 2 or any(p.device.type != "cpu" for p in module.parameters()):
            return module
        made = _with_parts(module, plan)
        made.out = _fused(made.out)
        if not plan.training and _is_by_rows(module.time_embed):
            made.time_embed = _with_parts(module.time_embed, plan, FastEmbedding)
        if not isinstance(module, EncoderUNetModel) and type(made.out) is nn.Sequential and _untouched(module.out):
            made.out.append(ChannelsFirst())
        return made
    if type(module) in CONTAINERS:
        return _with_parts(module, plan)
    if type(module) in MAKERS:
        return MAKERS[type(module)](module, plan)
    return module


def _with_parts(module, plan, kind=None):
    """A copy of a module, over the same parameters, with fast parts.

    :param kind: its class; default that of the module.
    """
    made = copy.copy(module)
    made.__dict__["_modules"] = {name: part and _fast(part, plan) for name, part in module._modules.items()}
    made.__class__ = kind or type(module)
    return made


def _fused(layers):
    """A Sequential in which FastNorms do the SiLU that follows them, on a copy."""
    if type(layers) is not nn.Sequential:
        return layers
    made = copy.copy(layers)
    made.__dict__["_modules"] = dict(layers._modules)
    for i, (norm, after) in enumerate(pairwise(layers)):
        if isinstance(norm, FastNorm) and type(after) is SiLU and _untouched(after):
            made[i] = copy.copy(norm)
            made[i].silu = True
            made[i + 1] = nn.Identity()
    return made


def _fast_convolution(layer, plan):
    settings = (layer.dilation, layer.groups, layer.padding_mode)
    kind = FAST_CONVOLUTIONS.get((layer.kernel_size, layer.stride, layer.padding))
    return layer if kind is None or settings != ((1, 1), 1, "zeros") else _with_weights(layer, plan, kind)


def _with_weights(layer, plan, kind):
    made = _with_parts(layer, plan, kind)
    made.plan = plan
    if issubclass(kind, _Linear):  # are always kept: to pack them takes about as long as to multiply by them
        found = kernels.current()
        plan.spare -= layer.weight.numel() if found is None else found.linear_floats(layer.weight)
    return made


def _fast_norm(layer, plan):
    return _with_parts(layer, plan, FastNorm) if layer.affine else layer


def _fast_residual(block, plan):
    made = _with_parts(block, plan)
    made.use_checkpoint = block.use_checkpoint and plan.training
    made.in_layers = _fused(made.in_layers)
    if _is_by_rows(block.emb_layers) and _untouched(block.out_layers) and _is_second_half(*made.out_layers):
        made.out_layers = _fused(made.out_layers)
        made.__class__ = FastResBlock
    return made


def _is_second_half(norm, act=None, dropout=None, conv=None, *more):
    parts = (type(norm), type(act), type(dropout), type(conv))
    return parts == (FastNorm, SiLU, nn.Dropout, FastConvolution) and _untouched(act) and not more


def _fast_attention(block, plan):
    made = _with_parts(block, plan)
    made.use_checkpoint = block.use_checkpoint and plan.training
    if (
        _untouched(block.attention)
        and isinstance(block.attention, (QKVAttention, QKVAttentionLegacy))
        and type(made.qkv) is type(made.proj_out) is FastProjection
    ):
        made.__class__ = FastAttention
    return made


# by kernel size, stride and padding
FAST_CONVOLUTIONS = {
    ((1, 1), (1, 1), (0, 0)): FastPointwise,
    ((3, 3), (1, 1), (1, 1)): FastConvolution,
    ((3, 3), (2, 2), (1, 1)): FastStrided,
}
MAKERS = {
    nn.Conv2d: _fast_convolution,
    nn.Linear: partial(_with_weights, kind=FastLinear),
    PointwiseConv: partial(_with_weights, kind=FastProjection),
    GroupNorm32: _fast_norm,
    ResBlock: _fast_residual,
    AttentionBlock: _fast_attention,
}
