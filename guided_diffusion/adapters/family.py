"""What a family of networks of others is, and how one of its networks is asked."""

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import UserError


class Pixels:
    """The pair of a network of pixels: images are what it denoises."""

    def encode(self, images):
        return images

    def decode(self, x):
        return x


PIXELS = Pixels()


def pair_of(network):
    """What translates between images [N, C, H, W] in [-1, 1] and the x of a network: `encode(images)`, `decode(x)`."""
    return getattr(network, "pair", PIXELS)


@dataclass(frozen=True)
class Found:
    """A network of others that lies at a path, or is held, by what can be read without making it.

    :ivar what: in words.
    :ivar known: {flag: value} that the files say of it; a command line may not contradict it.
    :ivar create: `(Parsed, state dict of a file, else None) -> Adapter` with the weights, in float32.
    :ivar usual: {flag: value} where the command line says nothing.
    :ivar reads: other flags of networks and processes that say something of it.
    :ivar betas: `{flag: value of the command line, where given, or usual} -> [T]`, for a schedule without a name here.
    :ivar latent: it denoises latents of an autoencoder.
    :ivar needs: names of what it is told that it has no answer without.
    """

    what: str
    known: dict
    create: Callable
    usual: dict = field(default_factory=dict)
    reads: frozenset = frozenset()
    betas: Callable | None = None
    latent: bool = False
    needs: tuple = ()


@dataclass(frozen=True)
class Family:
    """Networks that are opened alike.

    :ivar what: in words.
    :ivar find: `(path, path of an autoencoder or "", state dict of a file, None of a folder) -> Found`.
    :ivar fits: `state dict -> bool`, whether it is of the family, by its keys.
    """

    what: str
    find: Callable
    fits: Callable = lambda state: False


class Adapter(nn.Module):
    """A network of others, called as those of this project are: `network(x, t, y=labels)`.

    :param shape: (C, H, W) of x.
    :param num_classes: that it is told as y [N], where -1 is no class; None for none.
    :param pair: translates between images and x.
    :param needs: of what it is told, what it has no answer without.
    """

    def __init__(self, shape, num_classes=None, pair=PIXELS, needs=()):
        super().__init__()
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.takes = () if num_classes is None else ("y",)
        self.pair = pair
        self.needs = needs
        self.dtype = torch.float32

    def convert_to(self, dtype):
        """Compute in float16 or bfloat16 what torch.autocast has in them; the weights stay."""
        self.dtype = dtype

    def forward(self, x, t, y=None):
        """The output [N, C or 2 C, H, W] for x [N, C, H, W] at training timesteps t [N], whole or in between.

        :param y: int64 [N].
        """
        if (y is None) != (self.num_classes is None):
            raise UserError(f"the network is told {'no ' * (self.num_classes is None)}classes, and y says otherwise")
        lower = torch.autocast(x.device.type, self.dtype) if self.dtype != torch.float32 else contextlib.nullcontext()
        with lower:
            return self.answer(x, t, y)

    def answer(self, x, t, y):
        """What `forward` gives."""
        raise NotImplementedError


def load(model, state, path):
    """Load a state dict into a network.

    :param path: where it is from, for the error.
    """
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[1:2] or [str(error)]
        raise UserError(f"--model_path {path} is not what its keys promise: {reason[0].strip()}") from error


def pretrained(cls, folder, what, **options):
    """A model that diffusers or transformers saved, with all its weights, in float32.

    :param cls: its class there.
    :param what: names the folder, for errors.
    :raises UserError: if the folder is damaged, lacks weights, or has some that are not finite numbers.
    """
    try:
        model, found = cls.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # readers of damaged folders end in any way there is
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{what} cannot be loaded as {cls.__name__}: {reason[0]}") from error
    lacking = sorted(str(key[0] if isinstance(key, tuple) else key) for key in _lacking(found))
    if lacking:
        raise UserError(f"{what} lacks {len(lacking)} of the weights of a {cls.__name__}, such as {lacking[0]}")
    if bad := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        raise UserError(f"{what} has weights that are not finite numbers ({bad[0]} for one)")
    return model


def _lacking(found):
    return [*found["missing_keys"], *found.get("mismatched_keys", ())]


def extra(package, what):
    """An installed package that this project does without elsewhere.

    :param what: needs it, for the error.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{what} needs the package {package.partition('.')[0]} ({error}); pip install 'guided-diffusion[models]' "
            "has it"
        ) from error
