"""What an inpainting network is told: the image around a hole, the hole, and a reference for what fills it.

REFace (Baliah et al. 2024, "Realistic and Efficient Face Swapping: A Unified Approach with Diffusion Models") trains on
single images: a region is cut out, and the same region, distorted, is the reference, so that the network learns to
give back who is there and not where each pixel was.

| paper | here |
| --- | --- |
| inpainting mask | `mask` [N, 1, H, W], 1 in the hole |
| masked image | `masked` [N, C, H, W], 0 in the hole |
| source face, masked and augmented by flip, rotation, blur and elastic warp | `reference` [N, C + 1, H, W] |
| mask shuffling: each sample has another set of regions to be replaced | `--masks`, one family for each image |
| condition dropped 20 % of the time | `--reference_dropout` |

Departures from the paper: images are pixels, not latents of Stable Diffusion. Its regions are those of a segmented
face, of which nothing is known here: families of masks are places in the image. Its holes are warped at random, since
the outline of a segmented face tells what was there; places tell nothing, and stay. Its reference is CLIP and identity
features and landmarks of the source; here an encoder that is trained with the network reads the distorted pixels.
The release has fixed masks and no shuffling.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..devices import sent
from ..errors import UserError
from ..flags import BELOW_ONE, FlagGroup, flag
from ..networks import InpaintFlags
from .conditioning import Conditioning

# blocks a side that "blocks" draws, and the share of a side that lies left and right of the other holes
BLOCKS, MARGIN = 4, 1 / 8
# of a reference: radians, relative scale, shifts and elastic displacements as shares of half a side
ROTATION, SCALING, SHIFT, ELASTIC = 0.25, 0.15, 0.15, 0.08


def _box(rows, columns):
    """The family of one hole, which leaves shares of each side free."""

    def family(drawn, height, width):
        top, left = round(rows * height), round(columns * width)
        mask = torch.zeros(height, width)
        mask[top : height - top, left : width - left] = 1
        return mask.expand(len(drawn), 1, height, width)

    return family


def _blocks(drawn, height, width):
    """Each of BLOCKS x BLOCKS blocks with probability 1/2."""
    rows, columns = (torch.arange(side) * BLOCKS // side for side in (height, width))
    return (drawn[:, rows][:, :, columns] > 0).float()[:, None]


# `(standard normal [N, BLOCKS, BLOCKS], height, width) -> mask [N, 1, height, width]`
MASKS = {"center": _box(MARGIN, MARGIN), "column": _box(0, MARGIN), "blocks": _blocks}


@dataclass
class MaskFlags(FlagGroup):
    """The holes."""

    masks: str = flag(
        "center",
        "Families of holes with commas, of which each image has one: center leaves margins, column the sides, blocks "
        "any of 4 x 4 blocks.",
        lasting=True,
    )

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.families() if name not in MASKS]
        if unknown or not self.families():
            raise UserError(f"--masks is {self.masks!r}; expected some of {', '.join(MASKS)}, with commas between")

    def families(self):
        """The names as a list."""
        return [part.strip() for part in self.masks.split(",") if part.strip()]


@dataclass
class ReferenceFlags(FlagGroup):
    """The reference in training."""

    reference_dropout: float = flag(
        0.2,
        "Share of the images that are shown no reference, as classifier-free guidance needs.",
        legal=BELOW_ONE,
        lasting=True,
        needs="reference_cond",
    )


class Masked(Conditioning):
    """`masked`, `mask` and, for networks that are shown one, `reference`.

    :param families: names in MASKS. Training draws one for each image, sampling takes them in turn.
    :param shows: whether there is a reference.
    :param mirrors: whether a mirrored image is as good a reference.
    :param dropout: probability that training shows none.
    :param pictures: `indices -> (targets, references)` of sampling, float32 [N, C, H, W] in [-1, 1] each.
    """

    network = InpaintFlags
    shows_images = True
    left_out_by = "reference_dropout"

    def __init__(self, families, shows=True, mirrors=False, dropout=0.0, pictures=None):
        self.families = families
        self.shows = shows
        self.mirrors = mirrors
        self.dropout = dropout
        self.pictures = pictures

    @classmethod
    def of_training(cls, parsed):
        if InpaintFlags not in parsed.groups:
            return None
        return cls(
            parsed[MaskFlags].families(),
            parsed[InpaintFlags].reference_cond,
            parsed.values()["random_flip"],
            parsed[ReferenceFlags].reference_dropout,
        )

    def of_data(self, x, labels):
        chosen = torch.randint(len(self.families), (len(x),))
        mask = self._masks(chosen, torch.randn(len(x), BLOCKS, BLOCKS), x)
        told = self._around(x, mask)
        if self.shows:
            reference = distorted(_shown(x, mask), self.mirrors)
            told["reference"] = reference * sent((torch.rand(len(x), 1, 1, 1) >= self.dropout).to(x.dtype), x.device)
        return told

    def shown(self, count, x, labels):
        drawn = torch.randn(count, BLOCKS, BLOCKS, generator=torch.Generator().manual_seed(0))
        return self._of_pictures(x, x.roll(1, 0), torch.arange(count), drawn)

    def of_indices(self, noise, indices):
        drawn = noise.normal(BLOCKS, BLOCKS).cpu()
        return self._of_pictures(*self.pictures(indices), torch.tensor(indices), drawn)

    def _of_pictures(self, targets, references, indices, drawn):
        mask = self._masks(indices % len(self.families), drawn, targets)
        told = self._around(targets, mask)
        return {**told, "reference": _shown(references, mask)} if self.shows else told

    def _masks(self, chosen, drawn, x):
        """Those of the families numbered `chosen` [N], like the images x."""
        each = torch.stack([MASKS[name](drawn, *x.shape[2:]) for name in self.families])
        return sent(each[chosen, torch.arange(len(chosen))].to(x.dtype), x.device)

    @staticmethod
    def _around(x, mask):
        return {"masked": x * (1 - mask), "mask": mask}

    @staticmethod
    def dropped(cond):
        return {"reference": torch.zeros_like(cond["reference"])} if "reference" in cond else {}


def _shown(x, mask):
    """The reference that shows of images what lies in a mask."""
    return torch.cat([x * mask, mask], dim=1)


def filled(x, cond):
    """Images x [N, C, H, W] in the hole, and around it what `cond` has of the image."""
    return x * cond["mask"] + cond["masked"]


def distorted(x, mirrors):
    """Images [N, C, H, W], each turned, scaled, shifted, bent and, one in two, blurred; what comes in is 0.

    Draws from torch's global generator.

    :param mirrors: whether one in two is mirrored too.
    """
    count = len(x)
    turn, scale, *shift = (torch.rand(4, count) * 2 - 1).unbind()
    angle, factor = ROTATION * turn, 1 + SCALING * scale
    sign = torch.where(torch.rand(count) < 0.5, -1.0, 1.0) if mirrors else torch.ones(count)
    cosine, sine = factor * angle.cos(), factor * angle.sin()
    rows = [
        torch.stack([sign * cosine, -sine, SHIFT * shift[0]], dim=1),
        torch.stack([sign * sine, cosine, SHIFT * shift[1]], dim=1),
    ]
    places = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    bend = F.interpolate(torch.randn(count, 2, 4, 4), x.shape[2:], mode="bicubic", align_corners=False)
    places = places + ELASTIC * bend.permute(0, 2, 3, 1)
    moved = F.grid_sample(x.float(), sent(places, x.device), align_corners=False)
    soft = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1)), 3, stride=1)
    return soft.where(sent(torch.rand(count, 1, 1, 1) < 0.5, x.device), moved)
