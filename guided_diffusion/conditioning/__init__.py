"""Conditioning: what a network is told beside x_t and t, one thing a file; side by side they merge."""

from ..errors import UserError
from .classes import Classes
from .conditioning import Conditioning
from .latent import Latents
from .low_resolution import LowResolution
from .masked import Masked
from .vae import Drafts

CONDITIONINGS = [Classes, LowResolution, Masked, Latents, Drafts]


def training_groups():
    """Flag groups of training scripts."""
    return [group for kind in CONDITIONINGS for group in kind.training]


def sampling_groups(network):
    """Flag groups of sampling scripts.

    :param network: the flag group of the network that they are for.
    """
    return [group for kind in CONDITIONINGS if kind.network in (None, network) for group in kind.sampling]


def of_training(parsed):
    """Whatever the resolved Parsed flags of a training ask for, as one Conditioning."""
    return Together(kind.of_training(parsed) for kind in CONDITIONINGS)


def of_sampling(parsed):
    """Whatever the resolved Parsed flags of a sampling ask for, as one Conditioning."""
    return Together(kind.of_sampling(parsed) for kind in CONDITIONINGS)


def dropped(cond):
    """cond as guidance asks a network without it; what cannot be left out stays the very same tensor."""
    return {**cond, **Together(CONDITIONINGS).dropped(cond)}


class Together(Conditioning):
    """Several conditionings as one.

    :param parts: of which None are left out.
    """

    def __init__(self, parts):
        self.parts = [part for part in parts if part is not None]

    def of_data(self, x, labels):
        return self._merged("of_data", x, labels)

    @property
    def shows_images(self):
        return any(part.shows_images for part in self.parts)

    def shown(self, count, x, labels):
        return self._merged("shown", count, x, labels)

    def of_indices(self, noise, indices):
        return self._merged("of_indices", noise, indices)

    def dropped(self, cond):
        return self._merged("dropped", cond)

    def _merged(self, what, *args):
        """What the parts say together.

        :raises UserError: if two say the same name.
        """
        told, source = {}, {}
        for part in self.parts:
            for name, value in getattr(part, what)(*args).items():
                if name in told:
                    one, other = source[name], type(part).__name__
                    raise UserError(f"{one} and {other} both tell the network {name}; expected one, or another name")
                told[name], source[name] = value, type(part).__name__
        return told
