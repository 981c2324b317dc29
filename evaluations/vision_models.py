"""Features of DINOv2 and CLIP, from folders that transformers' `save_pretrained` writes.

Stein et al. 2023 ("Exposing flaws of generative model evaluation metrics and their unfair treatment of diffusion
models") compare DINOv2's normalised first token of images of 224x224, Jayasumana et al. 2024 ("Rethinking FID: Towards
a Better Evaluation Metric for Image Generation") CLIP's embedding of images of its own size. Both are resized by
bicubic interpolation, on the whole square: DINOv2's with a filter against aliasing, as Pillow does, CLIP's without, as
the release of CMMD does; pixels that it throws beyond 0 and 1 are clamped. No code in the folders is run.
"""

import torch
import torch.nn.functional as F

from guided_diffusion.adapters.family import extra, pretrained
from guided_diffusion.errors import UserError

DINO_SIDE = 224
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def dinov2(path, device):
    """(function from uint8 images [N, H, W, 3] to (their features [N, D],), 3) of a folder."""
    model = _loaded("Dinov2Model", "dinov2", path).to(device)
    return lambda images: (model(_prepared(images, DINO_SIDE, IMAGENET, True)).pooler_output.float(),), 3


def clip(path, device):
    """As `dinov2`: embeddings in CLIP's common space, before they are normalised."""
    model = _loaded("CLIPVisionModelWithProjection", "clip", path).to(device)
    side = model.config.image_size
    return lambda images: (model(_prepared(images, side, CLIP, False)).image_embeds.float(),), 3


def _loaded(kind, name, path):
    """A model of transformers in eval mode, its weights in float32."""
    flag = f"--features {name}:{path}"
    transformers = extra("transformers", flag)
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of whatever stands in a config
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{flag} is no folder that transformers saved ({reason[0]})") from error
    if config.model_type not in (name, f"{name}_vision_model"):
        raise UserError(f"{flag} is a folder of {config.model_type}; expected one of {name}")
    said, logging = transformers.logging.get_verbosity(), transformers.logging
    logging.set_verbosity_error()  # a whole CLIP has weights for texts too, which it would list
    try:
        return pretrained(getattr(transformers, kind), path, flag, local_files_only=True, dtype=torch.float32).eval()
    finally:
        logging.set_verbosity(said)


def _prepared(images, side, moments, antialias):
    """float32 [N, 3, side, side], resized and normalised."""
    x = images.permute(0, 3, 1, 2).float() / 255
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=antialias).clamp(0, 1)
    mean, deviation = (torch.tensor(values, device=x.device)[:, None, None] for values in moments)
    return (x - mean) / deviation
