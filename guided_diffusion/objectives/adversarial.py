"""Denoising diffusion GAN: few steps, each of which draws (Xiao et al. 2022, "Tackling the Generative Learning Trilemma
with Denoising Diffusion GANs", arXiv:2112.07804), and its form with a reconstruction term (Zhou et al. 2024, "EMDM:
Efficient Motion Diffusion Model", arXiv:2312.02256).

Where steps are few, the reverse step is no Gaussian, so a network that predicts the mean of x0 loses modes. Here the
network is a generator x0 = G(x_t, z, t); with x_s' drawn from q(x_s | x_t, x0), equation 5, it has to make pairs
(x_s', x_t) that a discriminator D cannot tell from true ones (equations 3 and 4, with the penalty R1):

    D: softplus(-D(x_s, x_t, t)) + softplus(D(x_s', x_t, t)) + gamma / 2 |grad_{x_s} D(x_s, x_t, t)|^2
    G: softplus(-D(x_s', x_t, t)) + w |G(x_t, z, t) - x_0|^2, of which EMDM adds the second term

| paper | here |
| --- | --- |
| t, 1 to T, whose denoised state is x_{t-1} | t, 0 to T - 1, whose denoised state is x_s, s = t - 1; -1 is the data |
| T, 4 | --diffusion_steps 4 --noise_schedule vp, or any process |
| sigma_t^2 of q(x_{t-1} given x_t, x_0) | --sigma_small True; in sampling --solver ddpm |
| z, N(0, I), 100 numbers | `z`, --latent_dim |
| gamma of R1, and every 15th step | --r1_gamma and --r1_interval |
| lambda of EMDM's mean squared error | --rec_weight |

Departures from the papers and their releases:
- G and D step at the same weights of each other (simultaneous, not alternating descent), so that one pair (t, z) and
  one call of G serve both, and EMDM's second term too, for which its release draws t and z once more: the
  expectations are theirs, and a step costs half.
- G is ADM's UNet with z in the embedding of the time (AdaGN), where the releases have NCSN++ with a tanh at its end, in
  place of which sampling clips. D is built as the release's (convolutions without normalisation, time added, deviation
  over groups of 4 as a channel), halves sides by means instead of a filter, sums positions over the root of their
  number, begins at zero and is told labels where G is.
- Both learn by Adam with --beta1 and --beta2 (0.5 and 0.9 in the papers). The learning rates of both rise and fall
  together, as in the release, but linearly if at all, not as a cosine.
- EMDM's geometric losses are those of motion, and have no counterpart in images.

D computes in float32 whatever G computes in, since R1 differentiates twice.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from .. import logger
from ..denoiser import ModelMeanType, ModelVarType
from ..devices import on_device
from ..errors import UserError
from ..flags import POSITIVE, WIDTH, FlagGroup, at_least, flag
from ..networks import InpaintFlags, UNetFlags
from ..networks.latent import LatentFlags
from ..networks.levels import channel_multipliers, widths_of
from ..nn import mean_flat, timestep_embedding
from ..schedule import per_sample
from .objective import AuxiliaryNetwork, Loss, Objective

# of the discriminator's activations below 0, and what keeps the variance of what passes them
SLOPE = 0.2
GAIN = nn.init.calculate_gain("leaky_relu", SLOPE)


@dataclass
class AdversarialFlags(FlagGroup):
    """The adversarial objective."""

    rec_weight: float = flag(
        0.0, "Weight of the mean squared error of x0 beside the adversarial loss.", legal=at_least(0), lasting=True
    )
    discriminator_lr: float = flag(
        1.25e-4, "Learning rate of the discriminator, which rises and falls as --lr does.", legal=POSITIVE, lasting=True
    )
    discriminator_channels: int = flag(
        0,
        "Channels of the discriminator's first level; 0 takes --num_channels.",
        legal=at_least(0, WIDTH),
        lasting=True,
    )
    r1_gamma: float = flag(
        0.02, "Weight of the discriminator's squared gradient at true images.", legal=at_least(0), lasting=True
    )
    r1_interval: int = flag(15, "Steps from one such penalty to the next.", legal=at_least(1), lasting=True)


class Discriminator(nn.Module):
    """One number for each pair (x_s, x_t): convolutions without normalisation, each level with half the side.

    :param image_channels: of one image.
    :param widths: channels of the levels.
    :param num_classes: if given, it is told labels.
    """

    def __init__(self, image_channels, widths, num_classes=None):
        super().__init__()
        self.width = widths[0]
        self.embed = nn.Sequential(nn.Linear(self.width, 4 * self.width), nn.SiLU())
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, 4 * self.width)
        self.start = nn.Conv2d(2 * image_channels, self.width, 1)
        pairs = zip([self.width, *widths], widths)
        self.blocks = nn.ModuleList(_Block(*pair, 4 * self.width, down=i > 0) for i, pair in enumerate(pairs))
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.out = nn.Linear(widths[-1], 1)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(layer.weight, gain=GAIN)
        nn.init.zeros_(self.out.weight)

    def forward(self, x_s, x_t, timesteps, y=None):
        """[N], high for pairs that look true.

        :param x_s, x_t: [N, C, H, W].
        :param timesteps: [N], of x_t.
        :param y: labels [N], where there are classes; -1 is none.
        """
        emb = self.embed(timestep_embedding(timesteps, self.width))
        if self.label_emb is not None:
            emb = emb + self.label_emb(y.clamp(min=0)) * (y >= 0)[:, None]
        h = self.start(torch.cat([x_s, x_t], dim=1))
        for block in self.blocks:
            h = block(h, emb)
        h = _activated(self.last(torch.cat([h, _deviation(h)], dim=1)))
        return self.out(h.sum(dim=(2, 3)) / h[0, 0].numel() ** 0.5)[:, 0]


class _Block(nn.Module):
    """Two convolutions beside a skip connection; `down` halves the sides."""

    def __init__(self, channels, out_channels, emb_channels, down):
        super().__init__()
        self.first = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.of_emb = nn.Linear(emb_channels, out_channels)
        self.skip = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.down = down

    def forward(self, x, emb):
        h = self.first(_activated(x)) + self.of_emb(emb)[:, :, None, None]
        h, x = self.second(_activated(h)), self.skip(x)
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return (h + x) / 2**0.5


def _activated(x):
    return F.leaky_relu(x, SLOPE)


def _deviation(h):
    """The mean deviation within groups of 4 of h [N, C, H, W], as a channel (Karras et al. 2018, section 3).

    Of a microbatch that is no multiple of 4, within all of it.
    """
    groups = h.unflatten(0, (-1, 4)) if len(h) % 4 == 0 else h[None]
    spread = (groups.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return spread.repeat_interleave(groups.shape[1]).view(-1, 1, 1, 1).expand(-1, 1, *h.shape[2:])


class AdversarialObjective(Objective):
    """Trains a generator against a discriminator, which it owns.

    :param diffusion: a GaussianDiffusion whose network predicts x0, with the posterior's variance.
    :param discriminator: AuxiliaryNetwork of `(x_s, x_t, time [N], y=labels [N] or None) -> [N]`.
    :param latent_dim: length of the z that the network is told; 0 tells it none.
    :param rec_weight, r1_gamma, r1_interval: see AdversarialFlags.
    :raises UserError: for a network that predicts something else, or another variance.
    """

    flags = (AdversarialFlags, LatentFlags)
    sampled_by: ClassVar = {"solver": "ddpm"}

    def __init__(self, diffusion, discriminator, latent_dim=0, rec_weight=0.0, r1_gamma=0.02, r1_interval=15):
        if diffusion.model_mean_type is not ModelMeanType.START_X:
            raise UserError("--objective adversarial trains a network that draws images; expected --prediction x0")
        if diffusion.model_var_type is not ModelVarType.FIXED_SMALL:
            raise UserError(
                "--objective adversarial draws x_s with the posterior's variance; expected --sigma_small True and "
                "--learn_sigma False"
            )
        self.diffusion = diffusion
        self.num_timesteps = diffusion.num_timesteps
        self.timesteps = [int(t) for t in diffusion.process.grid]
        self.discriminator = discriminator
        self.latent_dim = latent_dim
        self.rec_weight = rec_weight
        self.r1_gamma = r1_gamma
        self.r1_interval = r1_interval
        self.steps = 0
        self.rates = [group["lr"] for group in discriminator.optimizer.param_groups]

    @classmethod
    def create(cls, parsed, diffusion):
        own, values = parsed[AdversarialFlags], parsed.values()
        if "large_size" in values:
            raise UserError("--objective adversarial has no enlarged images to judge; expected scripts/image_train.py")
        if InpaintFlags in parsed.groups:
            raise UserError("--objective adversarial has no filled holes to judge; expected scripts/image_train.py")
        unet, size = parsed[UNetFlags], values["image_size"]
        mult = channel_multipliers(unet.channel_mult, size)
        name = "discriminator_channels" if own.discriminator_channels else "num_channels"
        widths = widths_of(mult, own.discriminator_channels or unet.num_channels, name)
        network = Discriminator(unet.image_channels, widths, unet.num_classes if unet.class_cond else None)
        if not values["latent_dim"]:
            logger.warn("--latent_dim 0 tells the generator no z, so that its steps draw from one Gaussian each")
        rates = {"lr": own.discriminator_lr, "betas": (values["beta1"], values["beta2"])}
        discriminator = AuxiliaryNetwork(network, torch.optim.Adam(network.parameters(), **rates))
        return cls(diffusion, discriminator, values["latent_dim"], own.rec_weight, own.r1_gamma, own.r1_interval)

    def pairs(self, x):
        """(step indices [N], x_s, x_t) of images x [N, C, ...], at the ends of steps that are drawn uniformly.

        Methods that corrupt training act on the noise between x_s and x_t.
        """
        process = self.diffusion.process
        nodes = on_device([-1, *process.grid], x.device)
        index = torch.randint(self.num_timesteps, (len(x),), device=x.device)
        s, t = nodes[index], nodes[index + 1]
        before = process.schedule.alpha_bar(s)
        x_s = _mixed(before, x, torch.randn_like(x))
        noise, level = process.corruption(torch.randn_like(x), t)
        return index, x_s, _mixed(process.schedule.alpha_bar(level) / before, x_s, noise)

    def __call__(self, model, x, cond):
        index, x_s, x_t = self.pairs(x)
        time, labels = self.diffusion.network_time(index), cond.get("y")
        told = {**cond, "z": torch.randn(len(x), self.latent_dim, device=x.device)} if self.latent_dim else cond
        x0 = model(x_t, time, **told).float()
        mean, variance, _ = self.diffusion.q_posterior_mean_variance(x0, x_t, index)
        drawn = mean + variance.sqrt() * torch.randn_like(x)
        with torch.autocast(x.device.type, enabled=False):
            real, fake = self._discriminator_losses(x_s, drawn.detach(), x_t, time, labels)
            judged = F.softplus(-self.discriminator.fixed(drawn, x_t, time, labels))
        mse = mean_flat((x0 - x) ** 2)
        value = judged + self.rec_weight * mse
        terms = {"loss": value, "mse": mse, "discriminator": F.softplus(-real) + F.softplus(fake)}
        terms |= {"said_of_real": real, "said_of_drawn": fake}
        return Loss(value, {name: term.detach() for name, term in terms.items()}, index)

    def _discriminator_losses(self, x_s, drawn, x_t, time, labels):
        """Tell the discriminator its loss; returns what it says [N] of true and of drawn x_s."""
        penalised = self.r1_gamma > 0 and self.steps % self.r1_interval == 0
        real = self.discriminator(x_s.requires_grad_(penalised), x_t, time, labels)
        fake = self.discriminator(drawn, x_t, time, labels)
        losses = F.softplus(-real) + F.softplus(fake)
        if penalised:
            (slope,) = torch.autograd.grad(real.sum(), x_s, create_graph=True)
            losses = losses + self.r1_gamma / 2 * slope.flatten(1).square().sum(dim=1)
        self.discriminator.backward(losses)
        return real, fake

    def set_rate(self, share):
        for group, rate in zip(self.discriminator.optimizer.param_groups, self.rates):
            group["lr"] = share * rate

    def stepped(self, model):
        super().stepped(model)
        self.steps += 1

    def skipped(self):
        super().skipped()
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps, **super().state_dict()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.steps = state.get("steps", 0)


def _mixed(level, x, noise):
    """sqrt(level) x + sqrt(1 - level) noise, for levels [N]."""
    signal, spread = (per_sample(share.sqrt(), x).to(x) for share in (level, 1 - level))
    return signal * x + spread * noise
