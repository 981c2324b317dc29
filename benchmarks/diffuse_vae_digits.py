"""What DiffuseVAE adds to its autoencoder, and the autoencoder to a diffusion network, in few steps.

python benchmarks/diffuse_vae_digits.py --data data/digits.npz --refined runs/refined_0/ema_0.995_001000.pt \\
    --plain runs/plain_0/ema_0.995_001000.pt --out benchmarks/diffuse_vae_digits

Both networks are trained alike, --refined with --vae_path. Each samples --count images by DDIM; the log has

- Frechet distances (features of models/digits16_classifier.pt) of refined, of plain and of the autoencoder's images;
- the correlation of means of 4x4 pixels between a refined image and its own draft, and a draft of another image;
- the variance of those means between images of one draft, over that between drafts.

OUT.png has drafts above what became of them. Takes about two minutes on one core.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

import guided_diffusion as gd
from guided_diffusion import checkpoints
from guided_diffusion.flags import flags_of
from guided_diffusion.image_files import read_npz
from guided_diffusion.images import save_grid, to_uint8
from guided_diffusion.methods import Clipping
from guided_diffusion.process import DiffusionFlags, SpacingFlags
from guided_diffusion.solvers.flags import SolverFlags

CLASSIFIER = "models/digits16_classifier.pt"


class Sampler:
    """A network with DDIM in some steps; `draw(drafts, seed)` are float images [N, C, H, W]."""

    def __init__(self, path, steps):
        self.network, _, self.flags = checkpoints.open_network(path)
        own = {field.name: self.flags[field.name] for field in flags_of(DiffusionFlags) if field.name in self.flags}
        flags = DiffusionFlags(**{**own, "timestep_respacing": str(steps)})
        self.process = flags.create([Clipping()], SolverFlags(solver="ddim"), SpacingFlags("uniform"))

    def draw(self, count, drafts=None, seed=0, batch=100):
        generator, made = torch.Generator().manual_seed(seed), []
        for first in range(0, count, batch):
            x = torch.randn(min(batch, count - first), *self.network.shape, generator=generator)
            cond = {} if drafts is None else {"draft": drafts[first : first + batch]}
            denoise = self.process.denoiser(self.network, cond)
            *_, last = self.process.sample_records(self.process.solver, denoise, x)
            made.append(last.x)
        return torch.cat(made)


def low_pass(images):
    """Means [N, ...] of squares of 4x4 pixels, without those of all images together."""
    means = F.avg_pool2d(images, 4).flatten(1)
    return means - means.mean(dim=0)


def correlation(one, other):
    """Of images [N, C, H, W], a mean over them."""
    return F.cosine_similarity(low_pass(one), low_pass(other)).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="npz of the digits")
    parser.add_argument("--refined", required=True, help="checkpoint that was trained with --vae_path")
    parser.add_argument("--plain", required=True, help="one that was trained without")
    parser.add_argument("--out", required=True, help="picture to write, without .png")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    refining, plain = Sampler(arguments.refined, arguments.steps), Sampler(arguments.plain, arguments.steps)
    vae = checkpoints.open_network(refining.flags["vae_path"], "vae_path", expected="autoencoder")[0]
    with torch.no_grad():
        drafts = vae.decode(torch.randn(arguments.count, vae.latent_dim, generator=torch.Generator().manual_seed(1)))
    refined = refining.draw(arguments.count, drafts)
    real = read_npz(arguments.data, "data")[0]
    for name, images in (("refined", refined), ("plain", plain.draw(arguments.count)), ("autoencoder", drafts)):
        asked = {"features": f"classifier:{CLASSIFIER}", "metrics": "frechet_distance"}
        distance = gd.evaluate(real, np.asarray(to_uint8(images)), **asked)["frechet_distance"]
        print(f"{name:<12} Frechet distance {distance:.2f}", flush=True)
    print(f"correlation with its draft {correlation(refined, drafts):.3f}", end=", ")
    print(f"with another draft {correlation(refined, drafts.roll(1, dims=0)):.3f}")
    some = drafts[:32].repeat_interleave(8, dim=0)
    means = low_pass(refining.draw(len(some), some, seed=2)).unflatten(0, (32, 8))
    within, between = means.var(dim=1).mean(), means.mean(dim=1).var(dim=0).mean()
    print(f"variance of one draft's images over that between drafts {within / between:.3f}")
    save_grid(f"{arguments.out}.png", to_uint8(torch.stack([drafts[:8], refined[:8]]).flatten(0, 1)))


if __name__ == "__main__":
    main()
