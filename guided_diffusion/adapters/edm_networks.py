"""The U-Nets of EDM (Karras et al. 2022), with the keys of its published checkpoints.

SongUNet is DDPM++ and NCSN++ of Song et al. 2021 ("Score-Based Generative Modeling through SDEs"), DhariwalUNet the
U-Net of ADM in another layout. Traps: SongUNet swaps the halves of its embedding of the noise and multiplies one-hot
labels by sqrt(label_dim), DhariwalUNet does neither; DhariwalUNet has channels // 64 heads, so a block of fewer than 64
channels has no attention; the first block of the bottom always asks for it, the blocks of SongUNet's way up only at the
end of a level.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Convolution(nn.Module):
    """A convolution, or a resampling by two, or both.

    :param kernel: its side; 0 only resamples.
    :param resample_filter: taps of the filter along one axis.
    :param whole: convolve before resampling, on an image that is padded for both.
    """

    def __init__(self, in_channels, out_channels, kernel, up=False, down=False, resample_filter=(1, 1), whole=False):
        super().__init__()
        self.up = up
        self.down = down
        self.whole = whole
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(out_channels)) if kernel else None
        if kernel:
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        filter = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
        self.register_buffer("resample_filter", filter if up or down else None)

    def forward(self, x):
        around = 0 if self.weight is None else self.weight.shape[-1] // 2
        if self.whole:
            beyond = (self.resample_filter.shape[-1] - 1) // 2
            return self._lower(F.conv2d(x, self.weight, padding=around + beyond), 0) + self.bias[:, None, None]
        if self.up:
            x = self._higher(x)
        if self.down:
            x = self._lower(x, (self.resample_filter.shape[-1] - 1) // 2)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=around)

    def _lower(self, x, padding):
        weight = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, weight, stride=2, padding=padding, groups=x.shape[1])

    def _higher(self, x):
        weight = 4 * self.resample_filter.expand(x.shape[1], -1, -1, -1)
        padding = (weight.shape[-1] - 1) // 2
        return F.conv_transpose2d(x, weight, stride=2, padding=padding, groups=x.shape[1])


def group_norm(channels, eps=1e-5):
    """Groups of at least 4 channels, at most 32."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class Block(nn.Module):
    """A residual block, which may resample and attend.

    :param scales: what is told scales and shifts the second normalisation; else it is added before that.
    :param heads: of its attention; 0 has none.
    :param skip_scale: the sums are multiplied by.
    :param projects: a resampled input is always convolved.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        emb_channels,
        *,
        up=False,
        down=False,
        heads=0,
        dropout=0.0,
        skip_scale=1.0,
        eps=1e-5,
        resample_filter=(1, 1),
        projects=False,
        scales=True,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.dropout = dropout
        self.skip_scale = skip_scale
        self.scales = scales
        resampling = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = group_norm(in_channels, eps)
        self.conv0 = Convolution(in_channels, out_channels, 3, **resampling)
        self.affine = nn.Linear(emb_channels, out_channels * (2 if scales else 1))
        self.norm1 = group_norm(out_channels, eps)
        self.conv1 = Convolution(out_channels, out_channels, 3)
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if projects or out_channels != in_channels else 0
            self.skip = Convolution(in_channels, out_channels, kernel, **resampling)
        if heads:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = Convolution(out_channels, 3 * out_channels, 1)
            self.proj = Convolution(out_channels, out_channels, 1)

    def forward(self, x, emb):
        told = self.affine(emb)[:, :, None, None]
        h = self.conv0(F.silu(self.norm0(x)))
        if self.scales:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + told)
        h = self.conv1(F.dropout(F.silu(h), self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        return (x + self.proj(self._attended(x))) * self.skip_scale if self.heads else x

    def _attended(self, x):
        n, channels, height, width = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(n, self.heads, channels // self.heads, 3, height * width)
        q, k, v = (part.mT for part in qkv.unbind(3))
        return F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)


class Sinusoids(nn.Module):
    """[N] -> [N, width]: cosines, then sines, at frequencies from 1 towards 1 / 10000, which `ends` reaches."""

    def __init__(self, width, ends=False):
        super().__init__()
        self.width = width
        self.ends = ends

    def forward(self, x):
        half = self.width // 2
        exponents = torch.arange(half, dtype=torch.float32, device=x.device) / (half - self.ends)
        angles = torch.outer(x.float(), (1 / 10000) ** exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Fourier(nn.Module):
    """[N] -> [N, width]: cosines and sines at random frequencies."""

    def __init__(self, width, scale=16):
        super().__init__()
        self.register_buffer("freqs", torch.randn(width // 2) * scale)

    def forward(self, x):
        angles = torch.outer(x.float(), 2 * math.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def _level(resolution):
    return f"{resolution}x{resolution}"


class SongUNet(nn.Module):
    """DDPM++ and NCSN++. The arguments are those of EDM's release.

    :param embedding_type: "positional" or "fourier".
    :param encoder_type: "standard", "skip" or "residual".
    :param decoder_type: "standard" or "skip".
    """

    def __init__(
        self,
        img_resolution,
        in_channels,
        out_channels,
        label_dim=0,
        augment_dim=0,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        channel_mult_emb=4,
        num_blocks=4,
        attn_resolutions=(16,),
        dropout=0.10,
        embedding_type="positional",
        channel_mult_noise=1,
        encoder_type="standard",
        decoder_type="standard",
        resample_filter=(1, 1),
    ):
        super().__init__()
        self.label_dim = label_dim
        emb_channels, noise_channels = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        fourier = embedding_type == "fourier"
        self.map_noise = Fourier(noise_channels) if fourier else Sinusoids(noise_channels, ends=True)
        self.map_label = nn.Linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        common = {
            "emb_channels": emb_channels,
            "dropout": dropout,
            "skip_scale": math.sqrt(0.5),
            "eps": 1e-6,
            "resample_filter": resample_filter,
            "projects": True,
            "scales": False,
        }
        levels = [(img_resolution >> i, model_channels * mult) for i, mult in enumerate(channel_mult)]
        self.enc = nn.ModuleDict()
        channels, aux, skips = model_channels, in_channels, [model_channels]
        for level, (resolution, width) in enumerate(levels):
            name = _level(resolution)
            if level == 0:
                self.enc[f"{name}_conv"] = Convolution(in_channels, channels, 3)
            else:
                self.enc[f"{name}_down"] = Block(channels, channels, down=True, **common)
                skips.append(channels)
                resampling = {"down": True, "resample_filter": resample_filter}
                if encoder_type == "skip":
                    self.enc[f"{name}_aux_down"] = Convolution(aux, aux, 0, **resampling)
                    self.enc[f"{name}_aux_skip"] = Convolution(aux, channels, 1)
                if encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = Convolution(aux, channels, 3, whole=True, **resampling)
                    aux = channels
            for i in range(num_blocks):
                heads = int(resolution in attn_resolutions)
                self.enc[f"{name}_block{i}"] = Block(channels, width, heads=heads, **common)
                channels = width
                skips.append(channels)
        self.dec = nn.ModuleDict()
        for level, (resolution, width) in reversed(list(enumerate(levels))):
            name = _level(resolution)
            if level == len(levels) - 1:
                self.dec[f"{name}_in0"] = Block(channels, channels, heads=1, **common)
                self.dec[f"{name}_in1"] = Block(channels, channels, **common)
            else:
                self.dec[f"{name}_up"] = Block(channels, channels, up=True, **common)
            for i in range(num_blocks + 1):
                heads = int(i == num_blocks and resolution in attn_resolutions)
                self.dec[f"{name}_block{i}"] = Block(channels + skips.pop(), width, heads=heads, **common)
                channels = width
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < len(levels) - 1:
                    resampling = {"up": True, "resample_filter": resample_filter}
                    self.dec[f"{name}_aux_up"] = Convolution(out_channels, out_channels, 0, **resampling)
                self.dec[f"{name}_aux_norm"] = group_norm(channels, 1e-6)
                self.dec[f"{name}_aux_conv"] = Convolution(channels, out_channels, 3)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        """The raw output [N, out_channels, H, W].

        :param noise_labels: [N], what a preconditioning calls c_noise.
        :param class_labels: [N, label_dim], one row hot, or zeros for no class.
        :param augment_labels: [N, augment_dim], or None for images as they are.
        """
        emb = self.map_noise(noise_labels)
        emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)
        if self.map_label is not None:
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        skips, aux = [], x
        for name, part in self.enc.items():
            if "aux_down" in name:
                aux = part(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + part(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + part(aux)) * math.sqrt(0.5)
            else:
                x = part(x, emb) if isinstance(part, Block) else part(x)
                skips.append(x)
        made = None
        for name, part in self.dec.items():
            if "aux_up" in name:
                made = part(made)
            elif "aux_norm" in name:
                head = F.silu(part(x))
            elif "aux_conv" in name:
                made = part(head) if made is None else part(head) + made
            else:
                x = part(x if x.shape[1] == part.in_channels else torch.cat([x, skips.pop()], dim=1), emb)
        return made


class DhariwalUNet(nn.Module):
    """ADM's network in EDM's layout. The arguments are those of EDM's release."""

    def __init__(
        self,
        img_resolution,
        in_channels,
        out_channels,
        label_dim=0,
        augment_dim=0,
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        channel_mult_emb=4,
        num_blocks=3,
        attn_resolutions=(32, 16, 8),
        dropout=0.10,
    ):
        super().__init__()
        self.label_dim = label_dim
        emb_channels = model_channels * channel_mult_emb
        self.map_noise = Sinusoids(model_channels)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label = nn.Linear(label_dim, emb_channels, bias=False) if label_dim else None
        common = {"emb_channels": emb_channels, "dropout": dropout}
        levels = [(img_resolution >> i, model_channels * mult) for i, mult in enumerate(channel_mult)]

        def heads(resolution, width):
            return width // 64 if resolution in attn_resolutions else 0

        self.enc = nn.ModuleDict()
        channels = levels[0][1]
        skips = [channels]
        for level, (resolution, width) in enumerate(levels):
            name = _level(resolution)
            if level == 0:
                self.enc[f"{name}_conv"] = Convolution(in_channels, channels, 3)
            else:
                self.enc[f"{name}_down"] = Block(channels, channels, down=True, **common)
                skips.append(channels)
            for i in range(num_blocks):
                self.enc[f"{name}_block{i}"] = Block(channels, width, heads=heads(resolution, width), **common)
                channels = width
                skips.append(channels)
        self.dec = nn.ModuleDict()
        for level, (resolution, width) in reversed(list(enumerate(levels))):
            name = _level(resolution)
            if level == len(levels) - 1:
                self.dec[f"{name}_in0"] = Block(channels, channels, heads=channels // 64, **common)
                self.dec[f"{name}_in1"] = Block(channels, channels, **common)
            else:
                self.dec[f"{name}_up"] = Block(channels, channels, up=True, **common)
            for i in range(num_blocks + 1):
                into, own = channels + skips.pop(), heads(resolution, width)
                self.dec[f"{name}_block{i}"] = Block(into, width, heads=own, **common)
                channels = width
        self.out_norm = group_norm(channels)
        self.out_conv = Convolution(channels, out_channels, 3)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        """As `SongUNet.forward`."""
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(class_labels)
        emb = F.silu(emb)
        skips = []
        for part in self.enc.values():
            x = part(x, emb) if isinstance(part, Block) else part(x)
            skips.append(x)
        for part in self.dec.values():
            x = part(x if x.shape[1] == part.in_channels else torch.cat([x, skips.pop()], dim=1), emb)
        return self.out_conv(F.silu(self.out_norm(x)))
