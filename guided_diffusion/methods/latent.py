"""Sampling from a denoising diffusion GAN (Xiao et al. 2022, "Tackling the Generative Learning Trilemma with Denoising
Diffusion GANs"; Zhou et al. 2024, "EMDM"), whose training is objectives/adversarial.py.

Each step draws x0 = G(x_t, z, t) with a z of its own, and then x_s from q(x_s | x_t, x0): equation 5 of the paper,
which is the step of --solver ddpm with the posterior's variance. DDIM's step keeps the marginals too. Solvers that
combine the predictions of several calls would combine draws of different images, and what corrects the bias of a mean
has none to correct: both are refused.

| paper | here |
| --- | --- |
| t, 1 to T, whose denoised state is x_{t-1} | t, 0 to T - 1, whose denoised state is x_s, s = t - 1; -1 is the data |
| z | `cond["z"]`, [N, T, latent_dim], of which time t takes its own |
"""

from dataclasses import dataclass

import torch

from ..errors import UserError
from ..flags import flags_of
from ..networks.latent import latent_dim_flag
from .method import Method


@dataclass
class Latent(Method):
    """Latents (Xiao et al. 2022)."""

    latent_dim: int = latent_dim_flag()

    def wrap(self, denoise, process):
        if not self.latent_dim:
            return denoise

        def drawing(x, t, cond):
            z = cond["z"]
            own = torch.arange(len(x), device=x.device) * z.shape[1] + t.long()
            return denoise(x, t, {**cond, "z": z.flatten(0, 1).index_select(0, own)})

        return drawing

    def check(self, process, solver):
        if not self.latent_dim or solver is None:
            return
        if not solver.published:
            raise UserError(
                f"--solver {process.solver_name} combines predictions, and a network with --latent_dim draws each from "
                "another z; expected ddpm or ddim"
            )
        for method in process.methods:
            first = flags_of(method)[0]
            if method.corrects_bias and getattr(method, first.name) != first.default:
                raise UserError(
                    f"--{first.name} corrects the bias of predicted means, and a network with --latent_dim draws its "
                    f"predictions; expected --{first.name} {first.default}"
                )

    def check_told(self, told, needs):
        if self.latent_dim and "z" not in told:
            raise UserError(
                f"--latent_dim {self.latent_dim}: the network needs a random vector z for each image, which is not "
                "given; expected a script that samples, such as image_sample.py"
            )

    def advice(self, process, trained):
        steps, total = len(process.grid), trained.get("diffusion_steps")
        if self.latent_dim and total and not trained.get("timestep_respacing") and steps != total:
            yield f"{steps} steps are not the {total} that the network was trained to take, and knows no others"
