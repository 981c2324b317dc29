"""Random patches of scikit-learn's two photographs (a temple and a flower, 427x640).

    python datasets/photo_patches.py --out_dir data/photo_patches --image_size 32 --num_images 20000

Every patch is cut at one of two scales, with equal chance: as it is, or twice as large and then
averaged over 2x2 pixels. The right-most fifth of each photograph is held out: a patch lies wholly to
the left of that border (train) or wholly to the right of it (heldout), so the splits share no pixel.

With --labels the patches have four classes: 0 temple, 1 temple at half the scale, 2 flower, 3 flower at half.
"""

import numpy as np
import writer
from sklearn.datasets import load_sample_images

from guided_diffusion.flags import IMAGES

COLUMNS = {"train": (0, 512), "heldout": (512, 640)}
HEIGHT = 427
FACTORS = (1, 2)


def make(args):
    """(uint8 [num_images, image_size, image_size, 3], labels [num_images] or None) of the split."""
    left, right = COLUMNS[args.split]
    largest = min(HEIGHT, right - left) // max(FACTORS)
    if not 1 <= args.image_size <= largest:
        raise ValueError(f"--image_size is {args.image_size}, expected 1 to {largest} for --split {args.split}")
    if args.num_images < 1:
        raise ValueError(f"--num_images is {args.num_images}, expected at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}, expected at least 0")
    writer.expect_memory(args.num_images, args.image_size)
    photos = load_sample_images().images
    places = draw_places(args.num_images, args.image_size, args.split, args.seed)
    images = np.stack([cut(photos[photo], *place, args.image_size) for photo, *place in places])
    labels = [len(FACTORS) * photo + FACTORS.index(factor) for photo, _, _, factor in places]
    return images, labels if args.labels else None


def draw_places(count, size, split, seed):
    """`count` random (photo, top, left, factor): a square of size * factor pixels inside the split."""
    rng = np.random.default_rng([seed, list(COLUMNS).index(split)])
    left, right = COLUMNS[split]
    places = []
    for _ in range(count):
        photo, factor = rng.integers(2), rng.choice(FACTORS)
        top = rng.integers(HEIGHT - size * factor, endpoint=True)
        column = rng.integers(left, right - size * factor, endpoint=True)
        places.append((int(photo), int(top), int(column), int(factor)))
    return places


def cut(photo, top, left, factor, size):
    """The square of size * factor pixels at (top, left), averaged over factor x factor, as uint8."""
    square = photo[top : top + size * factor, left : left + size * factor]
    blocks = square.reshape(size, factor, size, factor, 3)
    return np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)


def main(argv=None):
    parser = writer.parser(
        "Write random patches of scikit-learn's two sample photographs; heldout is their right-most fifth.",
        out_dir="data/photo_patches",
        image_size=32,
        splits=["train", "heldout"],
    )
    parser.add_argument("--num_images", type=writer.up_to(IMAGES), default=20000, help="number of patches")
    parser.add_argument(
        "--seed", type=writer.up_to(2**63 - 1), default=0, help="decides where the patches lie; 0 or more"
    )
    parser.add_argument("--labels", action="store_true", help="four classes: photograph and scale")
    writer.run(make, parser.parse_args(argv))


if __name__ == "__main__":
    main()
