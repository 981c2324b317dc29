"""scikit-learn's 1,797 handwritten digits as a data set with ten classes.

    python datasets/digits.py --out_dir data/digits --image_size 16

The 8x8 digits are enlarged by bicubic interpolation and stay grey; a file is named by its digit, as in
3_00012.png. They need scikit-learn and no network.
"""

import numpy as np
import writer
from PIL import Image
from sklearn.datasets import load_digits

HELD_OUT = 360  # the last fifth, in scikit-learn's order


def make(args):
    """(uint8 [N, image_size, image_size, 1], digits [N]) of the split."""
    if args.image_size < 8:
        raise ValueError(f"--image_size is {args.image_size}, expected at least 8, the size of the digits")
    data = load_digits()
    part = {
        "all": slice(None),
        "train": slice(None, -HELD_OUT),
        "heldout": slice(-HELD_OUT, None),
    }[args.split]
    writer.expect_memory(len(data.images[part]), args.image_size)
    images = [enlarge(digit, args.image_size) for digit in data.images[part]]
    return np.stack(images), data.target[part]


def enlarge(digit, size):
    """A digit [8, 8] in 0..16 as uint8 [size, size, 1]."""
    grey = Image.fromarray(np.round(digit * (255 / 16)).astype(np.uint8))
    return np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC))[..., None]


def main(argv=None):
    parser = writer.parser(
        "Write scikit-learn's handwritten digits as labelled images; heldout is the last fifth of them.",
        out_dir="data/digits",
        image_size=16,
        splits=["all", "train", "heldout"],
    )
    writer.run(make, parser.parse_args(argv))


if __name__ == "__main__":
    main()
