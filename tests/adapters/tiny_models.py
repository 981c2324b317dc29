"""Tiny models of diffusers with random weights, saved as their users have them."""

import json

import diffusers
import torch

SCHEDULES = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "narrow": {"beta_schedule": "linear", "beta_start": 3e-4, "beta_end": 0.012},
}


def stirred(model, seed=0):
    """The model in eval mode, with the weights that begin at zero, or at one, drawn too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def unet(channels=3, classes=None, learned=False, size=8):
    torch.manual_seed(1)
    return stirred(
        diffusers.UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels * (2 if learned else 1),
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            num_class_embeds=classes,
        )
    )


def dit(learned=True, classes=1000):
    torch.manual_seed(2)
    return stirred(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8 if learned else 4,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            norm_num_groups=8,
            num_embeds_ada_norm=classes,
        )
    )


def kl(channels=4):
    torch.manual_seed(3)
    return stirred(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            norm_num_groups=4,
        )
    )


def vq(channels=3):
    torch.manual_seed(4)
    return stirred(
        diffusers.VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            num_vq_embeddings=16,
            norm_num_groups=4,
        )
    )


def scheduler(kind="DDIMScheduler", schedule="linear", **config):
    return getattr(diffusers, kind)(**SCHEDULES[schedule], **config)


def save(folder, pipeline, **parts):
    """A folder as `pipeline.save_pretrained` writes it, of the parts of a pipeline; returns its path."""
    index = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)
