"""How fast training images are read, beside a loader written as published ones are.

python benchmarks/loader.py --images 2000 --rounds 7

Makes its own images: a folder of 32-pixel PNG, one of 256-pixel JPEG that are read at 64 pixels, and an array of the
first as the dataset commands write it. The baseline opens, crops and scales image by image in a torch DataLoader, as
guided-diffusion's loader does, and reads the PNG folder where that one cannot read arrays. All read in this process,
one after the other in each round; a ratio is the median over the rounds, with the smallest and the largest.
"""

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time

import blobfile
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from guided_diffusion.image_datasets import Images, batches

BATCH = 100


class PublishedStyle(Dataset):
    """Image by image: open, convert, shrink, crop, mirror, scale to [-1, 1]."""

    def __init__(self, folder, size):
        self.paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        self.size = size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with blobfile.BlobFile(self.paths[index], "rb") as file:
            picture = Image.open(file)
            picture.load()
        picture, size = picture.convert("RGB"), self.size
        while min(picture.size) >= 2 * size:
            picture = picture.resize(tuple(side // 2 for side in picture.size), resample=Image.BOX)
        scale = size / min(picture.size)
        picture = picture.resize(tuple(round(side * scale) for side in picture.size), resample=Image.BICUBIC)
        pixels = np.array(picture)
        top, left = ((side - size) // 2 for side in pixels.shape[:2])
        pixels = pixels[top : top + size, left : left + size]
        if random.random() < 0.5:
            pixels = pixels[:, ::-1]
        pixels = pixels.astype(np.float32) / 127.5 - 1
        return pixels.transpose([2, 0, 1]), {"y": np.array(int(os.path.basename(self.paths[index])[0]), np.int64)}


def make_images(folder, count):
    """Write the data sets; returns {row: (what the project reads, what the baseline reads, size)}."""
    rng = np.random.default_rng(0)
    png, jpeg, array = (os.path.join(folder, name) for name in ("png", "jpeg", "array.npz"))
    os.makedirs(png)
    os.makedirs(jpeg)
    small = np.empty((count, 32, 32, 3), np.uint8)
    for i in range(count):  # smooth, as photographs are
        coarse = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
        picture = coarse.resize((32, 32), Image.BICUBIC)
        small[i] = np.asarray(picture)
        picture.save(os.path.join(png, f"{i % 10}_{i:05d}.png"))
        if i < count // 8:
            coarse.resize((256, 256), Image.BICUBIC).save(os.path.join(jpeg, f"{i % 10}_{i:05d}.jpg"), quality=90)
    np.savez(array, small, np.arange(count) % 10)
    return {
        "32-pixel PNG": (png, png, 32),
        "256-pixel JPEG to 64": (jpeg, jpeg, 64),
        "array of 32 pixels": (array, png, 32),
    }


def rate(stream, count):
    """Images per second of CPU time."""
    start = time.process_time()
    for images, _ in itertools.islice(stream, count // BATCH):
        images.sum()  # so that nothing is left unread
    return count / (time.process_time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="small images, and an eighth of it of large ones")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.images < 8 * BATCH or args.rounds < 1:
        parser.error(f"expected --images of at least {8 * BATCH} and --rounds of at least 1")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Pillow {Image.__version__}, 1 thread, cpu, images per second of CPU time")
    print(f"{'':22}{'published':>12}{'here':>12}{'ratio':>8}  (smallest to largest)")
    with tempfile.TemporaryDirectory() as folder:
        for name, (ours, theirs, size) in make_images(folder, args.images).items():
            baseline = PublishedStyle(theirs, size)
            dataset = Images(ours, size, class_cond=True)
            count = min(len(baseline), len(dataset)) // BATCH * BATCH
            rounds = [
                (
                    rate(iter(DataLoader(baseline, BATCH, shuffle=True, num_workers=0)), count),
                    rate(batches(dataset, BATCH, num_workers=0, start=r * (count // BATCH)), count),
                )
                for r in range(args.rounds + 1)
            ][1:]  # the first warms up
            then, now = (statistics.median(r[i] for r in rounds) for i in (0, 1))
            ratios = sorted(b / a for a, b in rounds)
            print(
                f"{name:22}{then:12,.0f}{now:12,.0f}{statistics.median(ratios):8.2f}"
                f"  ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()
