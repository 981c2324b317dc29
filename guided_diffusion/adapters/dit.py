"""DiT (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers"), with the keys of its published checkpoints.

It denoises latents of stabilityai's autoencoders in the linear schedule of 1000 timesteps, learns the variance, and is
told a class or none. Its number of heads is not in the tensors: for the published widths it is that of the paper's
table 1, for others --num_heads.

Trap: the release guides the first three of four latent channels, "for exact reproducibility" of its paper
(`DiT.forward_with_cfg`); `--guidance_channels 3` does that here, and without it all four are guided, as the pipeline of
diffusers does. A learned variance is that of the answer with classes, as there.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError
from ..nn import timestep_embedding
from .diffusers import pixels_or_latents
from .family import PIXELS, Adapter, Family, Found, load

# heads of the published widths: DiT-S, B, L and XL
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}


class DiT(nn.Module):
    """A transformer over the patches of x. The arguments are those of the release.

    :param input_size: height and width of x.
    :param patch_size: of a patch; it divides the input size.
    :param in_channels: C of x.
    :param hidden_size: width of a token; a multiple of 4 and of `num_heads`.
    :param class_dropout_prob: of training; above 0 there is a label num_classes, which stands for no class.
    :param learn_sigma: the output has 2 C channels.
    """

    def __init__(
        self,
        input_size=32,
        patch_size=2,
        in_channels=4,
        hidden_size=1152,
        depth=28,
        num_heads=16,
        mlp_ratio=4.0,
        class_dropout_prob=0.1,
        num_classes=1000,
        learn_sigma=True,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.num_classes = num_classes
        side = input_size // patch_size
        self.pos_embed = nn.Parameter(_positions(hidden_size, side)[None], requires_grad=False)
        self.x_embedder = _Patches(in_channels, hidden_size, patch_size)
        self.t_embedder = _Times(hidden_size)
        self.y_embedder = _Labels(num_classes + (class_dropout_prob > 0), hidden_size)
        self.blocks = nn.ModuleList(_Block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = _Final(hidden_size, patch_size**2 * self.out_channels)

    def forward(self, x, t, y):
        """The output [N, out_channels, H, W] for x [N, C, H, W] at times t [N] with labels y [N]."""
        side = x.shape[-1] // self.patch_size
        tokens = self.x_embedder(x) + self.pos_embed
        told = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            tokens = block(tokens, told)
        patches = self.final_layer(tokens, told)
        patches = patches.unflatten(2, (self.patch_size, self.patch_size, self.out_channels))
        rows = patches.unflatten(1, (side, side)).permute(0, 5, 1, 3, 2, 4)
        return rows.flatten(4, 5).flatten(2, 3)

    def forward_with_cfg(self, x, t, y, cfg_scale):
        """Classifier-free guidance as the release has it, of 2 N samples of which the second half is told no class.

        The second half of x counts for nothing. The first three channels are guided, and alike in both halves; the
        others are the answers of each half.
        """
        half = x[: len(x) // 2]
        answer = self.forward(torch.cat([half, half]), t, y)
        told, untold = answer[:, :3].chunk(2)
        guided = torch.lerp(untold, told, cfg_scale)
        return torch.cat([torch.cat([guided, guided]), answer[:, 3:]], dim=1)


class _Patches(nn.Module):
    def __init__(self, channels, width, size):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, size, stride=size)

    def forward(self, x):
        return self.proj(x).flatten(2).mT


class _Times(nn.Module):
    def __init__(self, width, sinusoids=256):
        super().__init__()
        self.sinusoids = sinusoids
        self.mlp = nn.Sequential(nn.Linear(sinusoids, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        return self.mlp(timestep_embedding(t, self.sinusoids))


class _Labels(nn.Module):
    def __init__(self, count, width):
        super().__init__()
        self.embedding_table = nn.Embedding(count, width)

    def forward(self, y):
        return self.embedding_table(y)


class _Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Modulated(nn.Module):
    """Layers whose normalisations what is told shifts, scales and weighs: adaLN of the paper."""

    def __init__(self, width, count):
        super().__init__()
        self.count = count
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))

    def moved_by(self, told):
        """`count` tensors [N, 1, width]."""
        return self.adaLN_modulation(told)[:, None].chunk(self.count, dim=2)


def _normed(x, shift, scale):
    return F.layer_norm(x, x.shape[2:], eps=1e-6) * (1 + scale) + shift


class _Block(_Modulated):
    def __init__(self, width, heads, ratio):
        super().__init__(width, 6)
        modulation = self._modules.pop("adaLN_modulation")
        self.attn = _Attention(width, heads)
        self.mlp = _Mlp(width, int(ratio * width))
        self.adaLN_modulation = modulation  # last, as the published order of keys has it

    def forward(self, x, told):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.moved_by(told)
        x = x + gate * self.attn(_normed(x, shift, scale))
        return x + mlp_gate * self.mlp(_normed(x, mlp_shift, mlp_scale))


class _Final(_Modulated):
    def __init__(self, width, outputs):
        super().__init__(width, 2)
        modulation = self._modules.pop("adaLN_modulation")
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = modulation

    def forward(self, x, told):
        return self.linear(_normed(x, *self.moved_by(told)))


def _positions(width, side):
    """Sinusoids [side * side, width] of places: the first half of the columns, the second of the rows."""
    half = width // 2
    exponents = torch.arange(half // 2, dtype=torch.float64) / (half // 2)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * 10000**-exponents
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    along = line[None].expand(side, side, half)
    return torch.cat([along, along.transpose(0, 1)], dim=2).flatten(0, 1).float()


class DiTAdapter(Adapter):
    """A DiT, told -1 for no class.

    :param model: the DiT.
    """

    def __init__(self, model, shape, num_classes, pair=PIXELS):
        labels = model.y_embedder.embedding_table.num_embeddings
        super().__init__(shape, num_classes, pair, needs=("y",) if labels == num_classes else ())
        self.model = model

    def answer(self, x, t, y):
        return self.model(x, t, y.where(y >= 0, self.num_classes))


def arguments(state, num_classes=None):
    """Arguments of the DiT of a state dict, but for `num_heads` of widths that are not published.

    :param num_classes: of which the table of labels has one more where there is a label for none; default takes that
        for granted.
    """
    width, patches = state["pos_embed"].shape[2], state["pos_embed"].shape[1]
    _, channels, patch, _ = state["x_embedder.proj.weight"].shape
    labels = len(state["y_embedder.embedding_table.weight"])
    num_classes = labels - 1 if num_classes is None else num_classes
    found = {
        "input_size": math.isqrt(patches) * patch,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": 1 + max(int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", key) for key in state) if m),
        "mlp_ratio": len(state["blocks.0.mlp.fc1.bias"]) / width,
        "class_dropout_prob": 0.1 * (labels > num_classes),
        "num_classes": num_classes,
        "learn_sigma": len(state["final_layer.linear.bias"]) == 2 * channels * patch**2,
    }
    return found | ({"num_heads": HEADS[width]} if width in HEADS else {})


def find(path, vae, state):
    """The Found of a state dict."""
    try:
        args = arguments(state)
    except (LookupError, ValueError) as error:
        raise UserError(f"--model_path {path} is no DiT, by its keys") from error
    shape = (args["in_channels"], args["input_size"], args["input_size"])
    pair, images = pixels_or_latents(path, shape, vae)
    known = {
        **images,
        "learn_sigma": args["learn_sigma"],
        "class_cond": True,
        "num_classes": args["num_classes"],
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "prediction": "eps",
        "rescale_zero_terminal_snr": False,
        "rescale_timesteps": False,
    }
    if "num_heads" in args:
        known["num_heads"] = args["num_heads"]

    def create(parsed, state):
        heads = parsed.values()["num_heads"]
        if args["hidden_size"] % heads:
            raise UserError(f"--num_heads {heads} does not divide the {args['hidden_size']} channels of {path}")
        with torch.device("meta"):
            model = DiT(**{**args, "num_heads": heads})
        load(model, {key: value.float() for key, value in state.items()}, path)
        return DiTAdapter(model, shape, args["num_classes"], pair() if pair else PIXELS)

    usual = {} if pair is None else {"clip_denoised": False}
    return Found("a DiT", known, create, usual, frozenset({"num_heads"}), latent=pair is not None)


FAMILY = Family("a DiT of facebookresearch", find, lambda state: "y_embedder.embedding_table.weight" in state)
