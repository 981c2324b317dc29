"""Training through several DDIM steps, whose images are compared with the true ones by a frozen network.

REFace (Baliah et al. 2024, "Realistic and Efficient Face Swapping: A Unified Approach with Diffusion Models"): the loss
of one step at a drawn time, L_eps, says little of what sampling ends in, and identities are lost. So in training
sampling is run, in K steps of DDIM from an image noised to the last timestep, with gradients through all of them, and
each image that a step predicts is held to who was there (L_ID) and to what is seen (L_LPIPS):

    L = L_eps + identity_weight L_ID + perceptual_weight L_LPIPS
    L_ID = mean_k 1 - cos(f(x0_k), f(x0)),    L_LPIPS = mean_k mean_l mean_positions |u_l(x0_k) - u_l(x0)|^2

| paper | here |
| --- | --- |
| L_eps, or what the network predicts | `DiffusionObjective` |
| DDIM steps in training, 4 | `--unroll_steps`, K |
| predicted x_0 of each step | `unrolled`, x0_k |
| lambda_ID 0.3, lambda_LPIPS 0.1 | `--identity_weight`, `--perceptual_weight` |
| ArcFace, f | what the last layer of the classifier `--identity_path` reads, at timestep 0 |
| VGG of LPIPS, u_l | its blocks' activations, of length 1 over the channels (Zhang et al. 2018, equation 1, w_l = 1) |
| the swapped face, cut out | the image filled in the hole, where the conditioning tells a mask |

Departures from the paper: the frozen network is a classifier of this project, which sees the whole image; perceptual
distances are of that network, at its scales. Nothing but `mask` and `masked` is known of the conditioning, and without
them (an upsampler) whole images are compared.
Departures from the release: the noised image lies at the level of the first step's time (there 999 and 748), so that
times told and levels agree; every prediction counts, once (there the first and the last, and x_T itself as a constant
third); distances are means (there a sum of nine). Predictions are not clipped on the way. Its batch of 1 or 2 comes
from the memory of K networks, which --use_checkpoint True saves here.

Networks that predict eps from nearly pure noise say nothing of the image in the first step, so that the cosine schedule
needs --prediction v or x0. Every network precision works; the comparison is computed in float32. Input perturbation
reaches L_eps alone; time shift, epsilon scaling and guidance act on what is so trained, in sampling alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import checkpoints
from ..conditioning.masked import filled
from ..denoiser import ModelMeanType, bound
from ..errors import UserError
from ..flags import FlagGroup, at_least, flag
from ..networks import InpaintFlags, SuperResFlags
from ..networks.classifier import last_layer
from ..resample import SamplerFlags
from ..sampling import sample
from ..schedule import NEARLY_NOISE
from ..solvers import DDIM
from ..spacing import SPACINGS
from .diffusion import DiffusionObjective
from .objective import Loss, OpenedNetwork, refuse_respacing


@dataclass
class UnrollFlags(FlagGroup):
    """Training through sampling (REFace)."""

    identity_path: str = flag(
        "", "Classifier (a checkpoint) that --objective unrolled compares images by.", lasting=True
    )
    unroll_steps: int = flag(4, "DDIM steps that training takes.", legal=at_least(1), lasting=True)
    identity_weight: float = flag(
        0.3, "Weight of the identity's loss of their images.", legal=at_least(0), lasting=True
    )
    perceptual_weight: float = flag(
        0.1, "Weight of the perceptual distance of their images.", legal=at_least(0), lasting=True
    )


class Unrolled(DiffusionObjective):
    """The loss of a GaussianDiffusion, and that of the images of K DDIM steps.

    :param diffusion: a GaussianDiffusion.
    :param sampler: a ScheduleSampler, of the first part.
    :param identity: a classifier of noisy images (EncoderUNetModel), which stays as it is.
    :param flags: UnrollFlags.
    :raises UserError: for a network and a schedule that do not fit, and more steps than there are timesteps.
    """

    flags = (SamplerFlags, UnrollFlags)

    def __init__(self, diffusion, sampler, identity, flags):
        super().__init__(diffusion, sampler)
        schedule = diffusion.schedule
        if diffusion.model_mean_type is ModelMeanType.EPSILON and schedule.noisiest < NEARLY_NOISE:
            raise UserError(
                "--objective unrolled begins at nearly pure noise, where --prediction eps says nothing of the image; "
                "expected --prediction v or x0, or --noise_schedule linear"
            )
        if flags.unroll_steps > schedule.num_timesteps:
            raise UserError(
                f"--unroll_steps is {flags.unroll_steps}; expected at most {schedule.num_timesteps}, the timesteps"
            )
        self.process = diffusion.process.bare()
        self.grid = SPACINGS["uniform"](schedule, flags.unroll_steps)
        self.weights = {"identity": flags.identity_weight, "perceptual": flags.perceptual_weight}
        self.identity = OpenedNetwork(identity, "identity_path")

    @classmethod
    def create(cls, parsed, diffusion):
        flags, values = parsed[UnrollFlags], parsed.values()
        if not flags.identity_weight and not flags.perceptual_weight:
            raise UserError(
                "--identity_weight 0 --perceptual_weight 0 leave nothing to learn from the unrolled images; expected "
                "one above 0, or --objective diffusion"
            )
        if not parsed.groups.keys() & {InpaintFlags, SuperResFlags}:
            raise UserError(
                "--objective unrolled holds images drawn from noise to the true ones, of which a network has to be "
                "told; expected scripts/inpaint_train.py or super_res_train.py"
            )
        refuse_respacing(parsed, "unrolled")
        identity, _, _ = checkpoints.open_network(flags.identity_path, flag="identity_path", expected="classifier")
        side = values.get("large_size", values.get("image_size"))
        if identity.shape != (shape := (values["image_channels"], side, side)):
            taken, made = ("x".join(map(str, sides)) for sides in (identity.shape, shape))
            raise UserError(f"--identity_path {flags.identity_path} takes images of {taken}; the network makes {made}")
        return cls(diffusion, parsed[SamplerFlags].create(diffusion), identity, flags)

    def __call__(self, model, x, cond):
        loss = super().__call__(model, x, cond)
        signal = self.process.schedule.alpha_bar(self.grid[-1])
        start = signal**0.5 * x + (1 - signal) ** 0.5 * torch.randn_like(x)
        denoise = bound(self.process.adapter(model), cond)
        images = unrolled(denoise, self.process.schedule, self.grid, start)
        distances = self.distances(images, x, cond)
        value = loss.value + sum(self.weights[name] * distance for name, distance in distances.items())
        return Loss(value, {**loss.terms, "loss": value, **distances}, loss.t)

    def distances(self, images, x, cond):
        """{"identity": [N], "perceptual": [N]} of predicted images from the true ones x [N, C, H, W].

        :param images: K tensors like x.
        :param cond: {name: tensor [N, ...]}, perhaps with the hole outside of which they do not count.
        """
        with torch.autocast(x.device.type, enabled=False):
            with torch.no_grad():
                true = features(self.identity, x)
            whole = [filled(image, cond) if "mask" in cond else image for image in images]
            found = [features(self.identity, image.float()) for image in whole]
            return {
                "identity": torch.stack([1 - F.cosine_similarity(told, true[0]) for told, _ in found]).mean(dim=0),
                "perceptual": torch.stack([_perceptual(blocks, true[1]) for _, blocks in found]).mean(dim=0),
            }


def unrolled(denoise, schedule, grid, x):
    """The images [N, C, H, W] that each step of DDIM predicts, from the noisiest on, with gradients through them all.

    :param denoise: `(x, t) -> Prediction`.
    :param schedule: the NoiseSchedule.
    :param grid: [K] increasing training timesteps.
    :param x: [N, C, H, W] at the level of grid[-1].
    """
    return [record.x0 for record in sample(denoise, DDIM(schedule), grid, x)]


def features(classifier, x):
    """(what its last layer reads [N, D], the activations [N, C, h, w] of its blocks) of images x [N, C, H, W].

    :param classifier: an AuxiliaryNetwork of an EncoderUNetModel, which is told that they have no noise.
    """
    network, told, blocks = classifier.network, [], []
    seen = (*network.input_blocks, network.middle_block)
    hooks = [block.register_forward_hook(lambda module, inputs, output: blocks.append(output)) for block in seen]
    hooks.append(last_layer(network).register_forward_pre_hook(lambda module, inputs: told.append(inputs[0])))
    try:
        classifier(x, torch.zeros(len(x), dtype=torch.long, device=x.device))
    finally:
        for hook in hooks:
            hook.remove()
    return told[0].flatten(1), blocks


def _perceptual(blocks, true):
    """[N], the mean over blocks of the mean squared distance of their activations at each place, of length 1."""
    pairs = zip(blocks, true)
    each = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).flatten(1).mean(1) for a, b in pairs]
    return torch.stack(each).mean(dim=0)
