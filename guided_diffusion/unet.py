"""The networks of ADM: the denoising UNet, its super-resolution variant, and the classifier's encoder.

Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021 (arXiv:2105.05233), section 3 and
appendix A. State-dict keys and shapes are those of the published checkpoints.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import InitVar, dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F

from .errors import RefusedByAssertion, UserError
from .nn import (
    SiLU,
    adaptive_avg_pool_nd,
    avg_pool_nd,
    checkpoint,
    conv_nd,
    convert_convolution,
    linear,
    normalization,
    timestep_embedding,
    zero_module,
)


class TimestepBlock(nn.Module, ABC):
    """A module whose forward also takes the time embedding."""

    @abstractmethod
    def forward(self, x, emb):
        """Transform x.

        :param x: [N, C, ...].
        :param emb: [N, E].
        :return: [N, C', ...].
        """


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """Layers in a row; those that are TimestepBlocks are handed the embedding too."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


def _strides(dims):
    """The factors by which one level rescales each axis: a volume keeps its depth."""
    return (1, 2, 2) if dims == 3 else (2,) * dims


class _Resampling(nn.Module):
    def __init__(self, channels, use_conv, dims, out_channels):
        super().__init__()
        self.use_conv, self.dims = use_conv, dims
        self.channels, self.out_channels = channels, out_channels or channels


class Upsample(_Resampling):
    """Doubles height and width by nearest neighbour: [N, channels, H, W] -> [N, out_channels, 2H, 2W].

    :param use_conv: convolve the result 3x3; without that the channels stay.
    :param dims: 1, 2 or 3 spatial axes; of three, the first is not resampled.
    :param out_channels: default `channels`.
    """

    def __init__(self, channels, use_conv, dims=2, out_channels=None):
        super().__init__(channels, use_conv, dims, out_channels)
        if use_conv:
            self.conv = conv_nd(dims, channels, self.out_channels, 3, padding=1)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=_strides(self.dims), mode="nearest")
        return self.conv(x) if self.use_conv else x


class Downsample(_Resampling):
    """Halves height and width: [N, channels, H, W] -> [N, out_channels, H/2, W/2].

    :param use_conv: by a 3x3 convolution; else by averaging, where the channels stay.
    :param dims: 1, 2 or 3 spatial axes; of three, the first is not resampled.
    :param out_channels: default `channels`.
    :raises UserError: for other `out_channels` without a convolution.
    """

    def __init__(self, channels, use_conv, dims=2, out_channels=None):
        super().__init__(channels, use_conv, dims, out_channels)
        stride = _strides(dims)
        if use_conv:
            self.op = conv_nd(dims, channels, self.out_channels, 3, stride=stride, padding=1)
        elif self.out_channels != channels:
            raise RefusedByAssertion(
                f"Down-sampling by averaging keeps its {channels} channels: out_channels {out_channels} needs use_conv"
            )
        else:
            self.op = avg_pool_nd(dims, stride, stride)

    def forward(self, x):
        return self.op(x)


class ResBlock(TimestepBlock):
    """Two normalised 3x3 convolutions around a skip connection (BigGAN's block, ADM section 3).

    x [N, channels, ...] and emb [N, emb_channels] -> [N, out_channels, ...].

    :param dropout: probability, before the second convolution.
    :param out_channels: default `channels`.
    :param use_conv: match channels that change on the skip by a 3x3 convolution, rather than by a 1x1 one.
    :param use_scale_shift_norm: the embedding scales and shifts the second normalisation ("AdaGN"), rather than being
        added before it.
    :param dims: 1, 2 or 3 spatial axes.
    :param use_checkpoint: recompute the activations in the backward pass.
    :param up: double the side.
    :param down: halve the side.
    :raises UserError: for channels that 32 groups do not divide.
    """

    def __init__(
        self,
        channels,
        emb_channels,
        dropout,
        out_channels=None,
        use_conv=False,
        use_scale_shift_norm=False,
        dims=2,
        use_checkpoint=False,
        up=False,
        down=False,
    ):
        super().__init__()
        out_channels = out_channels or channels
        self.channels = channels
        self.emb_channels = emb_channels
        self.dropout = dropout
        self.out_channels = out_channels
        self.use_conv = use_conv
        self.use_checkpoint = use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm

        self.in_layers = nn.Sequential(
            normalization(channels), SiLU(), conv_nd(dims, channels, out_channels, 3, padding=1)
        )
        self.updown = up or down
        # on the way of the convolutions and on the skip; neither has weights
        self.h_upd, self.x_upd = nn.Identity(), nn.Identity()
        if self.updown:
            resample = Upsample if up else Downsample
            self.h_upd, self.x_upd = resample(channels, False, dims), resample(channels, False, dims)
        emb_width = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(SiLU(), linear(emb_channels, emb_width))
        self.out_layers = nn.Sequential(
            normalization(out_channels),
            SiLU(),
            nn.Dropout(p=dropout),
            zero_module(conv_nd(dims, out_channels, out_channels, 3, padding=1)),
        )
        if out_channels == channels:
            self.skip_connection = nn.Identity()
        else:
            kernel = 3 if use_conv else 1
            self.skip_connection = conv_nd(dims, channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x, emb):
        return checkpoint(self._forward, (x, emb), self.parameters(), self.use_checkpoint)

    def _first_half(self, x):
        """(x, h): what the skip connection takes, and the first convolution's result; both of the block's side."""
        if not self.updown:
            return x, self.in_layers(x)
        return self.x_upd(x), self.in_layers[-1](self.h_upd(self.in_layers[:-1](x)))

    def _forward(self, x, emb):
        x, h = self._first_half(x)
        emb = self.emb_layers(emb).to(h.dtype)
        emb = emb.reshape(emb.shape + (1,) * (h.ndim - 2))
        if self.use_scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, self.out_layers[0](h), 1 + scale)
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(x) + h


def count_flops_attn(model, _x, y):
    """Adds the multiplications of one attention to `model.total_ops`, as a counter of the `thop` package.

    :param model: the attention module, to which thop has given `total_ops`, a tensor [1].
    :param _x: its inputs; they are not read.
    :param y: its output [N, C, T], or a tuple that begins with it.
    """
    n, channels, length = (y if isinstance(y, torch.Tensor) else y[0]).shape
    # queries times keys, and weights times values
    model.total_ops += 2 * n * channels * length**2


class _HeadAttention(nn.Module):
    """Attention of several heads; a subclass says how queries, keys and values share the channel axis."""

    count_flops = staticmethod(count_flops_attn)

    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def split(self, heads):
        """[N, 3 * H, T, D] -> queries, keys and values, each [N, H, T, D]."""
        raise NotImplementedError

    def forward(self, qkv):
        """Attend.

        :param qkv: queries, keys and values [N, 3 * H * D, T].
        :return: [N, H * D, T].
        """
        # made contiguous, for there is no fast kernel that takes queries with T as their last axis in memory
        heads = qkv.unflatten(1, (3 * self.n_heads, -1)).transpose(-1, -2).contiguous()
        return F.scaled_dot_product_attention(*self.split(heads)).transpose(-1, -2).flatten(1, 2)


class QKVAttentionLegacy(_HeadAttention):
    """Each head keeps its own query, key and value together: channels run [head, qkv, D]."""

    def split(self, heads):
        return heads.unflatten(1, (self.n_heads, 3)).unbind(2)


class QKVAttention(_HeadAttention):
    """All queries, then all keys, then all values: channels run [qkv, head, D]."""

    def split(self, heads):
        return heads.chunk(3, dim=1)


class PointwiseConv(nn.Conv1d):
    """A Conv1d of kernel 1, [N, C, T] -> [N, C', T], computed as a product of matrices: faster on a CPU."""

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def _conv_forward(self, x, weight, bias):
        return torch.baddbmm(bias[:, None], weight.squeeze(-1).expand(len(x), -1, -1), x)


def _head_count(channels, num_heads, num_head_channels):
    if num_head_channels == -1:
        if channels % num_heads:
            raise RefusedByAssertion(
                f"--num_heads {num_heads} does not divide the {channels} channels of an attention layer"
            )
        return num_heads
    if channels % num_head_channels:
        raise RefusedByAssertion(
            f"--num_head_channels {num_head_channels} does not divide the {channels} channels of an attention layer"
        )
    return channels // num_head_channels


class AttentionBlock(nn.Module):
    """Self-attention among all positions, added to its input: [N, channels, ...] -> the same shape.

    `qkv`, `attention` and `proj_out` are modules that map [N, C, T], T positions in a row: [N, channels, T] ->
    [N, 3 * channels, T] -> [N, channels, T] -> [N, channels, T]. Each may be hooked or replaced.

    :param num_heads: how many heads, where `num_head_channels` is -1.
    :param num_head_channels: channels of each head (ADM section 3 finds 64 best).
    :param use_checkpoint: recompute the activations in the backward pass.
    :param use_new_attention_order: `QKVAttention` rather than `QKVAttentionLegacy`.
    :raises UserError: if the heads, or 32 groups, do not divide `channels`.
    """

    def __init__(
        self, channels, num_heads=1, num_head_channels=-1, use_checkpoint=False, use_new_attention_order=False
    ):
        super().__init__()
        self.channels = channels
        self.num_heads = _head_count(channels, num_heads, num_head_channels)
        self.use_checkpoint = use_checkpoint
        self.norm = normalization(channels)
        self.qkv = PointwiseConv(channels, 3 * channels)
        self.attention = (QKVAttention if use_new_attention_order else QKVAttentionLegacy)(self.num_heads)
        self.proj_out = zero_module(PointwiseConv(channels, channels))

    def forward(self, x):
        return checkpoint(self._forward, (x,), self.parameters(), self.use_checkpoint)

    def _forward(self, x):
        qkv = self.qkv(self.norm(x).flatten(2))
        return x + self.proj_out(self.attention(qkv)).reshape(x.shape)


class AttentionPool2d(nn.Module):
    """Pools by attention of the mean over all positions, as CLIP does (Radford et al. 2021, section 2.4).

    [N, embed_dim, spacial_dim, spacial_dim] -> [N, output_dim].

    :param num_heads_channels: channels of each head.
    :param output_dim: default `embed_dim`.
    :raises UserError: if the heads do not divide `embed_dim`, and in `forward` for another number of positions.
    """

    def __init__(self, spacial_dim, embed_dim, num_heads_channels, output_dim=None):
        super().__init__()
        positions = spacial_dim**2 + 1
        self.positional_embedding = nn.Parameter(torch.randn(embed_dim, positions) / embed_dim**0.5)
        self.qkv_proj = PointwiseConv(embed_dim, 3 * embed_dim)
        self.c_proj = PointwiseConv(embed_dim, output_dim or embed_dim)
        self.num_heads = _head_count(embed_dim, 1, num_heads_channels)
        self.attention = QKVAttention(self.num_heads)

    def forward(self, x):
        expected = self.positional_embedding.shape[1] - 1
        if x.shape[2:].numel() != expected:
            raise UserError(
                f"Attention pooling was built for {expected} positions and got {x.shape[2:].numel()}: "
                "give images of --image_size"
            )
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1) + self.positional_embedding
        return self.c_proj(self.attention(self.qkv_proj(x))[:, :, :1])[:, :, 0]


@dataclass(eq=False, repr=False)
class _Torso(nn.Module):
    """What the UNet and the encoder have in common: embeddings, the way down, the middle, and the dtype.

    The fields are the arguments, in the published order; UNetModel says what each means.
    """

    image_size: int
    in_channels: int
    model_channels: int
    out_channels: int
    num_res_blocks: int
    attention_resolutions: Collection[int]
    dropout: float = 0
    channel_mult: Sequence[float] = (1, 2, 4, 8)
    conv_resample: bool = True
    dims: int = 2
    num_classes: int | None = None
    use_checkpoint: bool = False
    use_fp16: InitVar[bool] = False
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False

    def __post_init__(self, use_fp16):
        super().__init__()
        self.widths = [int(mult * self.model_channels) for mult in self.channel_mult]
        if self.num_heads_upsample == -1:
            self.num_heads_upsample = self.num_heads
        self.dtype = torch.float16 if use_fp16 else torch.float32

        self.emb_channels = 4 * self.model_channels
        self.time_embed = nn.Sequential(
            linear(self.model_channels, self.emb_channels), SiLU(), linear(self.emb_channels, self.emb_channels)
        )
        if self.num_classes is not None:
            self.label_emb = nn.Embedding(self.num_classes, self.emb_channels)
        skips = self._build_down()
        self._build_middle(skips[-1])
        self._feature_size = sum(skips) + skips[-1]
        self._build_head(skips)

    @property
    def shape(self):
        """(C, H, W) of the images it takes; with other `dims` as many sides."""
        return (self.in_channels, *[self.image_size] * self.dims)

    def _build_down(self):
        """Build `input_blocks`; returns the channels that each of them gives."""
        ch = self.widths[0]
        skips = [ch]
        first = conv_nd(self.dims, self.in_channels, ch, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(first)])
        for level, width in enumerate(self.widths):
            if level:
                self.input_blocks.append(TimestepEmbedSequential(self._resample(ch, down=True)))
                skips.append(ch)
            for _ in range(self.num_res_blocks):
                layers = [self._res_block(ch, width), *self._attention_at(level, width, self.num_heads)]
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                ch = width
                skips.append(ch)
        return skips

    def _build_middle(self, ch):
        self.middle_block = TimestepEmbedSequential(
            self._res_block(ch, ch), self._attention(ch, self.num_heads), self._res_block(ch, ch)
        )

    def _build_head(self, skips):
        """Build what follows the middle block; `skips` are the channels that each input block gives."""
        raise NotImplementedError

    def _torso(self):
        """The parts that a lower precision concerns."""
        return [self.input_blocks, self.middle_block]

    def _res_block(self, channels, out_channels, **resampling):
        return ResBlock(
            channels,
            self.emb_channels,
            self.dropout,
            out_channels=out_channels,
            use_scale_shift_norm=self.use_scale_shift_norm,
            dims=self.dims,
            use_checkpoint=self.use_checkpoint,
            **resampling,
        )

    def _attention(self, channels, num_heads):
        return AttentionBlock(
            channels, num_heads, self.num_head_channels, self.use_checkpoint, self.use_new_attention_order
        )

    def _attention_at(self, level, channels, num_heads):
        """The attention block of a level, as a list that is empty where the level has none."""
        return [self._attention(channels, num_heads)] if 2**level in self.attention_resolutions else []

    def _resample(self, channels, up=False, down=False):
        if self.resblock_updown:
            return self._res_block(channels, channels, up=up, down=down)
        return (Upsample if up else Downsample)(channels, self.conv_resample, self.dims, channels)

    def convert_to(self, dtype):
        """Run the torso in `dtype`: its convolutions, and the activations between them.

        Normalisations, embeddings and what is linear in them, and the layers after the torso stay in float32.
        """
        for part in self._torso():
            for layer in part.modules():
                convert_convolution(layer, dtype)
        self.dtype = dtype

    def convert_to_fp16(self):
        """Run the torso in float16."""
        self.convert_to(torch.float16)

    def convert_to_fp32(self):
        """Run the torso in float32."""
        self.convert_to(torch.float32)

    def _embed(self, timesteps, y=None):
        """The embedding of times [N] and, where there are classes, labels [N]: [N, emb_channels]."""
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        if y is not None:
            dropped = y == -1
            classes = self.label_emb(y.masked_fill(dropped, 0))
            emb = emb + classes.masked_fill(dropped[:, None], 0)
        return emb

    def _descend(self, x, emb):
        """Run `input_blocks` and the middle block: a list of all their outputs, in order."""
        self._check_sides(x)
        h = x.to(self.dtype)
        outputs = []
        for block in (*self.input_blocks, self.middle_block):
            h = block(h, emb)
            outputs.append(h)
        return outputs

    def _check_sides(self, x):
        levels = len(self.channel_mult)
        factor = 2 ** (levels - 1)
        for side in x.shape[2:][-2:]:
            if side % factor:
                below = side // factor * factor
                nearest = f"{below} and {below + factor}" if below else str(factor)
                raise UserError(
                    f"The input {'x'.join(map(str, x.shape[2:]))} does not fit {levels} levels, which need sides "
                    f"divisible by {factor}: instead of {side} the nearest that fit are {nearest}"
                )


class UNetModel(_Torso):
    """The denoising UNet with attention and time embedding.

    :param image_size: side of the images it is meant for; others that the levels divide work as well.
    :param in_channels: of the image.
    :param model_channels: channels that `channel_mult` multiplies.
    :param out_channels: of the prediction.
    :param num_res_blocks: residual blocks a level on the way down; the way up has one more.
    :param attention_resolutions: downsampling rates (1, 2, 4, ...) of the levels that have attention.
    :param dropout: probability, in the residual blocks.
    :param channel_mult: one factor a level.
    :param conv_resample: resample by convolution rather than by averaging and repeating.
    :param dims: 1, 2 or 3 spatial axes; of three, the first is not resampled.
    :param num_classes: if given, the network is conditioned on a class label.
    :param use_checkpoint: recompute the activations of residual and attention blocks in the backward pass.
    :param use_fp16: the torso's activations are float16; `convert_to_fp16` converts its weights.
    :param num_heads: heads of attention, where `num_head_channels` is -1.
    :param num_head_channels: channels of each head.
    :param num_heads_upsample: as `num_heads`, on the way up; -1 for the same.
    :param use_scale_shift_norm: the embedding scales and shifts the normalisations (AdaGN).
    :param resblock_updown: resample inside of residual blocks, as BigGAN does.
    :param use_new_attention_order: `QKVAttention` rather than `QKVAttentionLegacy`.
    :raises UserError: for channels that the heads, or 32 groups, do not divide.
    """

    def _build_head(self, skips):
        skips = list(skips)
        ch = skips[-1]
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.num_res_blocks + 1):
                layers = [self._res_block(ch + skips.pop(), width)]
                layers += self._attention_at(level, width, self.num_heads_upsample)
                ch = width
                if level and i == self.num_res_blocks:
                    layers.append(self._resample(ch, up=True))
                self.output_blocks.append(TimestepEmbedSequential(*layers))
                self._feature_size += ch
        self.out = nn.Sequential(
            normalization(ch), SiLU(), zero_module(conv_nd(self.dims, ch, self.out_channels, 3, padding=1))
        )

    def _torso(self):
        return [*super()._torso(), self.output_blocks]

    def forward(self, x, timesteps, y=None):
        """Predict from noisy images.

        :param x: [N, in_channels, ...].
        :param timesteps: [N] in 0..1000, fractions allowed.
        :param y: labels [N] in 0..num_classes-1, for a network with classes and for no other; -1 adds no class
            embedding, as is needed for classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).
        :return: [N, out_channels, ...] in x's dtype.
        :raises UserError: for sides that the levels do not divide, and for labels that are missing or too many.
        """
        self._check_labels(x, y)
        return self._predict(x, self._embed(timesteps, y))

    def _predict(self, x, emb):
        """What it says of inputs x [N, in_channels, ...], given embeddings [N, emb_channels] of all else."""
        *skips, h = self._descend(x, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h.float()).to(x.dtype)

    @property
    def takes(self):
        """Names of what it is told beside x and the timesteps."""
        return () if self.num_classes is None else ("y",)

    def _check_labels(self, x, y):
        if self.num_classes is None and y is not None:
            raise RefusedByAssertion("Class labels y were given to a network without classes (--class_cond False)")
        if self.num_classes is not None:
            if y is None:
                raise RefusedByAssertion("A class-conditional network (--class_cond True) needs class labels y")
            if y.shape != x.shape[:1]:
                raise RefusedByAssertion(
                    f"There must be one class label y per image: {list(x.shape[:1])}, not {list(y.shape)}"
                )


class SuperResModel(UNetModel):
    """A UNet that sees, beside the noisy image, the small image that it is to enlarge.

    The arguments are UNetModel's.

    :param in_channels: of one image.
    """

    def __init__(self, image_size, in_channels, *args, **kwargs):
        super().__init__(image_size, in_channels * 2, *args, **kwargs)

    @property
    def shape(self):
        """(C, H, W) of the images it makes."""
        return (self.in_channels // 2, *[self.image_size] * self.dims)

    @property
    def takes(self):
        """As UNetModel's, and `low_res`."""
        return ("low_res", *super().takes)

    def forward(self, x, timesteps, low_res=None, **kwargs):
        """As UNetModel.forward.

        :param low_res: [N, in_channels, h, w] of any size, enlarged bilinearly to x's.
        :raises UserError: without `low_res` too.
        """
        if low_res is None:
            raise UserError("A super-resolution network needs low_res, the images to enlarge")
        enlarged = F.interpolate(low_res, size=x.shape[2:], mode="bilinear")
        return super().forward(torch.cat([x, enlarged], dim=1), timesteps, **kwargs)


@dataclass(eq=False, repr=False)
class EncoderUNetModel(_Torso):
    """The way down of the UNet with a pooling head: the noisy classifier of ADM, section 4.

    The other arguments are UNetModel's; there are no classes to condition on.

    :param pool: "attention" (published classifiers; takes only images of `image_size`), "adaptive" (mean over
        positions), "spatial" and "spatial_v2" (an MLP on the means of all levels, the latter normalised).
    :raises UserError: as UNetModel, for an unknown `pool`, and for "attention" without `num_head_channels`.
    """

    num_classes: None = field(default=None, init=False)
    pool: str = "adaptive"

    def _build_head(self, skips):
        ch = skips[-1]
        if self.pool == "adaptive":
            last = zero_module(conv_nd(self.dims, ch, self.out_channels, 1))
            layers = [normalization(ch), SiLU(), adaptive_avg_pool_nd(self.dims, 1), last, nn.Flatten()]
        elif self.pool == "attention":
            if self.num_head_channels == -1:
                raise RefusedByAssertion("--classifier_pool attention needs --classifier_num_head_channels")
            side = self.image_size // 2 ** (len(self.channel_mult) - 1)
            layers = [normalization(ch), SiLU(), AttentionPool2d(side, ch, self.num_head_channels, self.out_channels)]
        elif self.pool == "spatial":
            layers = [linear(self._feature_size, 2048), nn.ReLU(), linear(2048, self.out_channels)]
        elif self.pool == "spatial_v2":
            layers = [linear(self._feature_size, 2048), normalization(2048), SiLU(), linear(2048, self.out_channels)]
        else:
            raise UserError(f"--classifier_pool must be adaptive, attention, spatial or spatial_v2, not {self.pool}")
        self.out = nn.Sequential(*layers)

    def forward(self, x, timesteps):
        """Classify noisy images.

        :param x: [N, in_channels, ...].
        :param timesteps: [N] in 0..1000, fractions allowed.
        :return: [N, out_channels] in x's dtype.
        :raises UserError: for sides that the levels do not divide.
        """
        outputs = self._descend(x, self._embed(timesteps))
        if self.pool.startswith("spatial"):
            h = torch.cat([h.float().flatten(2).mean(-1) for h in outputs], dim=1)
        else:
            h = outputs[-1].float()
        return self.out(h).to(x.dtype)
