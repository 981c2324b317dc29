"""What images are compared by: the activations of a network."""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from guided_diffusion import checkpoints, dist_util, files
from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, flag
from guided_diffusion.networks import for_inference
from guided_diffusion.networks.classifier import last_layer
from guided_diffusion.tensor_files import load_torchscript

from . import inception_weights, vision_models
from .metric import counted


class Features(NamedTuple):
    """Features of N images.

    :ivar pool: float32 [N, D].
    :ivar spatial: float32 [N, 2023] of Inception (see inception.py), None of other networks.
    """

    pool: torch.Tensor
    spatial: torch.Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A network as a function from uint8 images [N, H, W, C] to their Features, on its device.

    :ivar facts: what decides its numbers: name, sha256 of the weights, dtype it computes in (fp32 or bf16).
    :ivar compute: `uint8 tensor on the device -> (features, or features and spatial features)`.
    :ivar device: of the network.
    :ivar weights: float32 [2048, 1008] of Inception's logits, which scores use without bias; None of other networks.
    :ivar channels: C that `compute` takes; grey images are repeated to 3.
    :ivar cache: folder that keeps features for the next run, "" for none.
    """

    facts: dict
    compute: Callable
    device: torch.device
    weights: torch.Tensor | None = None
    channels: int = 3
    cache: str = ""

    @property
    def inception(self):
        """Whether it is the Inception network that published scores stand on."""
        return self.weights is not None

    @property
    def identity(self):
        """What decides its numbers, in one text; stored statistics bear it."""
        return f"{self.facts['sha256']} {self.facts['dtype']}"

    def stored(self, images):
        """{"features": Moments, "spatial": Moments} of this network as far as an ImageSet has them stored."""
        if self.inception:
            return {name: images.statistics[name] for name in ("features", "spatial") if name in images.statistics}
        return {"features": images.statistics[self.identity]} if self.identity in images.statistics else {}

    def repeats(self, channels):
        """Whether images of so many channels are repeated to three."""
        return channels == 1 and self.channels == 3

    def __call__(self, images):
        """The Features of images.

        :raises UserError: if they have more or fewer channels than the network takes.
        """
        return self._features(images, _cached(self.compute, self.facts, self.cache) if self.cache else self.compute)

    def dimensions(self, images):
        """(D, D of the spatial features or None) of images of this size, by one that is all black.

        :param images: an ImageSet.
        :raises UserError: if the network does not take its images.
        """
        found = self._features(np.zeros((1, *images.size, images.channels), np.uint8), self.compute)
        return tuple(None if each is None else each.shape[1] for each in found)

    @torch.no_grad()
    def _features(self, images, compute):
        images = torch.as_tensor(images, device=self.device)
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}; expected uint8")
        images = with_channels(images, self.channels, f"--features {self.facts['name']}")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.facts["dtype"] == "bf16"):
            return Features(*compute(images))


def with_channels(images, taken, taker):
    """Images [N, H, W, C] with the channels that a network takes: grey ones are repeated to 3.

    :param taken: the number of those channels.
    :param taker: the flag that names the network, and its value.
    :raises UserError: for any other difference.
    """
    channels = images.shape[3]
    if channels == taken:
        return images
    if channels == 1 and taken == 3:
        return images.repeat(1, 1, 1, 3)
    raise UserError(f"{taker} takes images of {counted(taken, 'channel')}; these have {channels}")


# of --features
KINDS = "inception, classifier:PATH, dinov2:PATH, clip:PATH or torchscript:PATH"
FOLDERS = ("dinov2", "clip")


@dataclass
class FeatureFlags(FlagGroup):
    """What images are compared by."""

    features: str = flag(
        "inception",
        "Network: inception; classifier:PATH, a noisy classifier's checkpoint; dinov2:PATH or clip:PATH, a folder of "
        "transformers; or torchscript:PATH, which is code, is given float32 [N, 3, H, W] in 0 to 1 and returns [N, D].",
    )
    trust_code: bool = flag(False, "Run the code that --features torchscript:PATH is.", idle=True)
    inception: str = flag("", "Inception weights; else $INCEPTION_WEIGHTS, a usual folder, or a download.")
    feature_dtype: str = flag("fp32", "What the network computes in.", choices=("fp32", "bf16"))
    feature_cache: str = flag("", "Folder that keeps features for the next run; empty keeps none.")

    def create(self):
        """The Extractor of these flags, on this rank's device; every rank calls this."""
        device = dist_util.dev()
        kind, _, path = self.features.partition(":")
        makers = {
            "classifier": _classifier,
            "dinov2": vision_models.dinov2,
            "clip": vision_models.clip,
            "torchscript": _torchscript,
        }
        weights, channels = None, 3
        if self.inception and not self.of_inception:
            raise UserError(f"--inception {self.inception} is given, but --features {self.features} does not use it")
        if self.of_inception:
            network, sha256 = inception_weights.load(self.inception)
            if self.feature_dtype == "fp32":
                network.fold()
            compute, weights = network.to(device), network.fc.weight.detach().T
        elif kind in makers and path:
            if not files.exists(path):
                what = "folder" if kind in FOLDERS else "file"
                raise UserError(f"--features {self.features}: there is no {what} {path}")
            if kind == "torchscript" and not self.trust_code:
                raise UserError(
                    f"--features {self.features} is code that would run here; expected --trust_code True, where you "
                    "know who made it"
                )
            (compute, channels), sha256 = makers[kind](path, device), files.sha256(path)
        else:
            raise UserError(f"--features is {self.features!r}; expected {KINDS}")
        facts = {"name": self.features, "sha256": sha256, "dtype": self.feature_dtype}
        if self.feature_cache:
            files.make_folder(self.feature_cache)
        return Extractor(facts, compute, device, weights, channels, self.feature_cache)

    @property
    def of_inception(self):
        """Whether they are those of the network that published scores stand on."""
        return self.features == "inception"


class ClassifierFeatures:
    """What a noisy classifier's last layer reads, at timestep 0, where images have no noise.

    :param classifier: an EncoderUNetModel in eval mode.
    :param device: of the classifier.
    """

    def __init__(self, classifier, device="cpu"):
        self.classifier = for_inference(classifier)
        self.device = device
        self.last = last_layer(self.classifier)

    @torch.no_grad()
    def __call__(self, images):
        """float32 [N, D] of uint8 images [N, H, W, C], of the size and the channels that the classifier takes."""
        seen = []
        hook = self.last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            x = torch.as_tensor(images, device=self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            self.classifier(x, torch.zeros(len(x), dtype=torch.long, device=x.device))
        finally:
            hook.remove()
        return seen[0].float().flatten(1)


def _classifier(path, device):
    """(the features of a noisy classifier as a function of images, the channels it takes)."""
    classifier, _, _ = checkpoints.open_network(path, flag="features", expected="classifier")
    channels, *size = classifier.shape
    features = ClassifierFeatures(classifier, device)

    def compute(images):
        if list(images.shape[1:3]) != size:
            taken, given = ("x".join(map(str, sides)) for sides in (size, images.shape[1:3]))
            raise UserError(f"--features classifier:{path} takes images of {taken}; these are {given}")
        return (features(images),)

    return compute, channels


def _torchscript(path, device):
    """As `_classifier`: a network in TorchScript, given float32 [N, 3, H, W] in 0..1, that returns features [N, ...].

    Resizing and normalising is its own affair.
    """
    name = f"--features torchscript:{path}"
    network = load_torchscript(path, device, name)

    def compute(images):
        x = images.permute(0, 3, 1, 2).float() / 255
        made = network(x)
        if not isinstance(made, torch.Tensor) or made.ndim < 2 or len(made) != len(x):
            raise UserError(f"{name} does not return one row of features for each of {len(x)} images")
        return (made.float().flatten(1),)

    return compute, 3


def _cached(compute, facts, folder):
    """`compute` that looks into a folder first.

    A file holds the features of one call, under the hash of the images and the facts of the network.
    """

    def look(images):
        key = hashlib.sha256(f"{facts['sha256']} {facts['dtype']} {tuple(images.shape)}".encode())
        key.update(images.cpu().contiguous().numpy())
        path = files.join(folder, f"{key.hexdigest()}.npz")
        if files.exists(path):
            # a damaged file is made anew
            with contextlib.suppress(OSError, *files.NPZ_DAMAGE), files.open_read(path) as file:
                kept = np.load(file, allow_pickle=False)
                return [torch.from_numpy(kept[name]).to(images.device) for name in kept]
        made = compute(images)
        files.write_npz(path, {name: value.cpu().numpy() for name, value in zip(Features._fields, made)})
        return made

    return look
