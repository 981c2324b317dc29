"""How near enlarged images are to the true ones, beside bicubic enlargement.

    python benchmarks/upsampled.py --data data/digits_heldout.npz --factor 8 --write_small data/small.npz
    python benchmarks/upsampled.py --data data/digits_heldout.npz --factor 8 runs/*/samples_*.npz

The first command writes the means of areas of the images of --data, with their labels, for super_res_sample.py to
enlarge in their order. The second prints the mean of the images' peak signal-to-noise ratios in decibels, with its
standard error, of Pillow's bicubic enlargement of these and of each npz of samples.
"""

import argparse

import numpy as np
from PIL import Image

from guided_diffusion.images import as_picture


def small(images, factor):
    """Means of factor x factor areas of uint8 images [N, H, W, C], rounded to uint8."""
    count, height, width, channels = images.shape
    areas = images.reshape(count, height // factor, factor, width // factor, factor, channels)
    return np.round(areas.mean(axis=(2, 4))).astype(np.uint8)


def bicubic(images, size):
    """uint8 images [N, h, w, C] enlarged to size = (height, width)."""
    enlarged = [as_picture(image).resize(size[::-1], Image.Resampling.BICUBIC) for image in images]
    return np.stack(enlarged).reshape(len(images), *size, -1)


def decibels(images, true):
    """Peak signal-to-noise ratios [N] of uint8 images [N, H, W, C]."""
    errors = np.square(images.astype(float) - true).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / errors.clip(1e-2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="npz of the true images")
    parser.add_argument("--factor", type=int, default=8, help="by which they were shrunk")
    parser.add_argument("--write_small", default="", help="npz to write of the shrunk images")
    parser.add_argument("samples", nargs="*", help="npz of enlarged images")
    args = parser.parse_args()
    data = np.load(args.data)
    true = data["arr_0"]
    if args.factor < 1 or any(side % args.factor for side in true.shape[1:3]):
        parser.error(f"--factor is {args.factor}; expected a divisor of {true.shape[1]} and {true.shape[2]}")
    shrunk = small(true, args.factor)
    if args.write_small:
        np.savez(args.write_small, arr_0=shrunk, arr_1=data["arr_1"])
        return
    made = {"bicubic": bicubic(shrunk, true.shape[1:3])}
    for path in args.samples:
        made[path] = np.load(path)["arr_0"]
        if made[path].shape != true.shape:
            parser.error(f"{path} has images {made[path].shape}; expected {true.shape}, one of each of --data")
    for name, images in made.items():
        found = decibels(images, true)
        print(f"{found.mean():.2f} +- {found.std(ddof=1) / len(found) ** 0.5:.2f} dB  {name}")


if __name__ == "__main__":
    main()
