"""What distilled networks make: distances, rewards and high frequencies of their samples, and a picture of them.

python benchmarks/distilled.py data/digits.npz "teacher=runs/teacher_2" "student=runs/seed0,runs/seed1" \\
    --classifier_path models/digits16_classifier.pt --out benchmarks/distilled.png

A set is NAME=FOLDER,FOLDER,...: output folders of image_sample.py, one for each seed. Of each it prints the mean over
its seeds, and in brackets the lowest and the highest: the Frechet distance in the classifier's features, the mean of
log p(y | x), and the energy above half of the highest frequency, as a ratio to that of the reference. The picture has
the first samples of each set. Needs matplotlib.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from plotting import pyplot

from evaluations.features import ClassifierFeatures
from evaluations.fid import frechet_distance, moments_of
from guided_diffusion import checkpoints
from guided_diffusion.image_files import read_npz

SHOWN = 20


def high_frequencies(images):
    """The mean energy of uint8 images [N, H, W, C] at more than a quarter of a cycle per pixel, in either direction."""
    gray = images.astype(np.float64).mean(axis=3) / 127.5 - 1
    power = np.abs(np.fft.fft2(gray)) ** 2
    high = np.abs(np.fft.fftfreq(gray.shape[1])) > 0.25
    return power[:, high[:, None] | high[None, :]].mean()


@torch.no_grad()
def log_probability(classifier, images, labels):
    """The mean of log p(y | x) of uint8 images [N, H, W, C] with their labels [N]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    logits = classifier(x, torch.zeros(len(x))).log_softmax(dim=1)
    return float(logits.gather(1, torch.from_numpy(labels).long()[:, None]).mean())


def measured(folder, features, reference):
    """(Frechet distance, mean log-probability, ratio of high frequencies) of the samples in a folder."""
    images, labels = read_npz(next(Path(folder).glob("samples_*.npz")))[:2]
    distance = frechet_distance(moments_of(features(images)), moments_of(features(reference)))
    reward = log_probability(features.classifier, images, labels)
    return distance, reward, high_frequencies(images) / high_frequencies(reference)


def shown(values):
    """The mean of numbers, with the lowest and the highest where there are several."""
    between = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{between}"


def draw(path, sets):
    """Write the first samples of each set {name: folders}, a row each, to a file."""
    plt = pyplot()
    figure, panels = plt.subplots(len(sets), 1, figsize=(8, 0.62 * len(sets)), squeeze=False)
    for panel, (name, folders) in zip(panels[:, 0], sets.items()):
        images = read_npz(next(Path(folders[0]).glob("samples_*.npz")))[0][:SHOWN]
        panel.imshow(np.concatenate(list(images), axis=1).repeat(3 // images.shape[3], axis=2))
        panel.set_axis_off()
        panel.set_title(name, loc="left", fontsize=7, pad=2)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="npz of real images.")
    parser.add_argument("sets", nargs="+", help="NAME=FOLDER,FOLDER,...")
    parser.add_argument("--classifier_path", required=True, help="Checkpoint of a noisy classifier.")
    parser.add_argument("--out", help="Picture to write.")
    arguments = parser.parse_args()
    features = ClassifierFeatures(checkpoints.open_network(arguments.classifier_path)[0])
    reference = read_npz(arguments.reference)[0]
    sets = {name: places.split(",") for name, _, places in (text.partition("=") for text in arguments.sets)}
    print("| samples | Frechet distance | log p(y, given x) | high frequencies / real |\n| --- | ---: | ---: | ---: |")
    for name, folders in sets.items():
        columns = zip(*(measured(folder, features, reference) for folder in folders))
        print(f"| {name} | {' | '.join(map(shown, columns))} |", flush=True)
    if arguments.out:
        draw(arguments.out, sets)


if __name__ == "__main__":
    main()
