"""What images are compared by: the activations of a network."""

import contextlib
import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from guided_diffusion import checkpoints, dist_util, files, flags
from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, flag
from guided_diffusion.script_util import ClassifierFlags

from . import inception_weights


class Features(NamedTuple):
    """Features of N images.

    :ivar pool: float32 [N, D].
    :ivar spatial: float32 [N, 2023] of Inception (see inception.py), None of other networks.
    """

    pool: torch.Tensor
    spatial: torch.Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A network as a function from uint8 images [N, H, W, 3] to their Features, on its device.

    :ivar name: the flag that names it.
    :ivar hash: sha256 of its weights, in hexadecimal.
    :ivar compute: `uint8 tensor on the device -> Features`.
    :ivar device: of the network.
    :ivar bf16: whether it computes in bfloat16.
    :ivar probabilities: `pool -> float32 [N, classes]`, of Inception alone.
    """

    name: str
    hash: str
    compute: Callable
    device: torch.device
    bf16: bool = False
    probabilities: Callable | None = None

    @torch.no_grad()
    def __call__(self, images):
        images = torch.as_tensor(images, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            return self.compute(images)


@dataclass
class FeatureFlags(FlagGroup):
    """What images are compared by."""

    features: str = flag("inception", "Network: inception, classifier:PATH or torchscript:PATH.")
    inception: str = flag("", "Inception weights; else $INCEPTION_WEIGHTS, a usual folder, or a download.")
    feature_dtype: str = flag("fp32", "What the network computes in.", choices=("fp32", "bf16"))
    feature_cache: str = flag("", "Folder that keeps features for the next run; empty keeps none.")

    def extractor(self):
        """The Extractor of these flags, on this rank's device; every rank calls this."""
        kind, _, path = self.features.partition(":")
        makers = {"classifier": _classifier, "torchscript": _torchscript}
        if self.features == "inception":
            made = _inception(self.inception)
        elif kind in makers and path:
            if not files.exists(path):
                raise UserError(f"--features {self.features}: there is no file {path}")
            made = makers[kind](self.features, path)
        else:
            raise UserError(f"--features is {self.features!r}; expected inception, classifier:PATH or torchscript:PATH")
        made = replace(made, bf16=self.feature_dtype == "bf16")
        return replace(made, compute=_cached(made, self.feature_cache)) if self.feature_cache else made


def _inception(path):
    network, sha256 = inception_weights.load(path)
    network.to(dist_util.dev())
    return Extractor(
        "inception",
        sha256,
        lambda images: Features(*network(images)),
        dist_util.dev(),
        probabilities=network.probabilities,
    )


class ClassifierFeatures:
    """What a noisy classifier's last layer reads, at timestep 0, where images have no noise.

    :param classifier: an EncoderUNetModel in eval mode.
    :param device: of the classifier.
    """

    def __init__(self, classifier, device="cpu"):
        self.classifier = classifier
        self.device = device
        self.last = [m for m in classifier.out.modules() if next(m.parameters(recurse=False), None) is not None][-1]

    @torch.no_grad()
    def __call__(self, images):
        """float32 [N, D] of uint8 images [N, H, W, 3], of the size the classifier takes."""
        seen = []
        hook = self.last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            x = torch.as_tensor(images, device=self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            self.classifier(x, torch.zeros(len(x), dtype=torch.long, device=x.device))
        finally:
            hook.remove()
        return seen[0].float().flatten(1)


def _classifier(name, path):
    parsed = flags.Parsed({ClassifierFlags: ClassifierFlags()}, frozenset())
    parsed, classifier = checkpoints.load_classifier(parsed, path, flag="features")
    size = parsed[ClassifierFlags].image_size
    features = ClassifierFeatures(classifier, dist_util.dev())

    def compute(images):
        if images.shape[1:3] != (size, size):
            height, width = images.shape[1:3]
            raise UserError(f"--features {name} takes images of {size}x{size}; these are {height}x{width}")
        return Features(features(images))

    return Extractor(name, _file_hash(path), compute, dist_util.dev())


def _torchscript(name, path):
    """A network in TorchScript, which is given float32 images [N, 3, H, W] in 0..1 and returns features [N, ...].

    Resizing and normalising is its own affair.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(io.BytesIO(files.read_bytes(path)), map_location=dist_util.dev()).eval()
    except RuntimeError as error:
        raise UserError(f"--features {name} is not what torch.jit.save wrote ({_first_line(error)})") from error

    def compute(images):
        x = images.permute(0, 3, 1, 2).float() / 255
        try:
            made = network(x)
        except (RuntimeError, torch.jit.Error) as error:
            raise UserError(f"--features {name} fails on images {tuple(x.shape)}: {_first_line(error)}") from error
        if not isinstance(made, torch.Tensor) or made.ndim < 2 or len(made) != len(x):
            raise UserError(f"--features {name} returns no tensor [{len(x)}, D] of images {tuple(x.shape)}")
        return Features(made.float().flatten(1))

    return Extractor(name, _file_hash(path), compute, dist_util.dev())


def _first_line(error):
    return str(error).strip().splitlines()[-1]


def _file_hash(path):
    return hashlib.sha256(files.read_bytes(path)).hexdigest()


def _cached(extractor, folder):
    """The function of an Extractor that looks into a folder first.

    A file holds the features of one call, under the hash of the images, the weights and the precision: other ways to
    split images into calls make other files.
    """
    files.make_folder(folder)

    def compute(images):
        key = hashlib.sha256(f"{extractor.hash} {extractor.bf16} {tuple(images.shape)}".encode())
        key.update(images.cpu().contiguous().numpy())
        path = files.join(folder, f"{key.hexdigest()}.npz")
        if files.exists(path):
            with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), files.open_read(path) as file:
                kept = np.load(file, allow_pickle=False)
                return Features(**{name: torch.from_numpy(kept[name]).to(extractor.device) for name in kept})
        made = extractor.compute(images)
        arrays = {name: value.cpu().numpy() for name, value in made._asdict().items() if value is not None}
        files.write_npz(path, arrays)
        return made

    return compute
