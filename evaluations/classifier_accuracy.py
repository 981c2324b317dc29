"""How often a noisy classifier, at timestep 0, says of labelled images what their labels say.

python evaluations/classifier_accuracy.py --classifier_path models/digits16_classifier.pt \\
    --samples runs/classifier_sample/samples_500x16x16x1.npz
"""

from dataclasses import dataclass

import torch

from evaluations.features import with_channels
from guided_diffusion import checkpoints, dist_util, logger
from guided_diffusion.errors import NotFinite, UserError
from guided_diffusion.flags import WIDTH, FlagGroup, at_least, flag
from guided_diffusion.image_arrays import read_arrays
from guided_diffusion.image_labels import of_text, renumbered
from guided_diffusion.jobs import launch
from guided_diffusion.networks import ClassifierFlags


@dataclass
class AccuracyFlags(FlagGroup):
    """Images and classifier."""

    samples: str = flag("", "npz of the images: arr_0 uint8 [N, H, W, C], arr_1 their labels.")
    classifier_path: str = flag("", "Checkpoint of the noisy classifier.")
    batch_size: int = flag(100, "Images computed at once.", legal=at_least(1, WIDTH))

    def __post_init__(self):
        super().__post_init__()
        if not self.samples:
            raise UserError("--samples is not given; expected an npz of labelled images")


GROUPS = [AccuracyFlags, ClassifierFlags]


@torch.no_grad()
def predictions(classifier, images, batch_size):
    """The most likely class [N] of uint8 images [N, H, W, C], at timestep 0.

    :raises NotFinite: where the classifier says no finite numbers.
    """
    said = []
    for part in images.split(batch_size):
        x = part.to(dist_util.dev()).permute(0, 3, 1, 2).float() / 127.5 - 1
        said.append(classifier(x, torch.zeros(len(x), dtype=torch.long, device=x.device)).cpu())
    logits = torch.cat(said)
    if bad := int((~logits.isfinite()).any(dim=1).sum()):
        raise NotFinite(f"--classifier_path says of {bad} of {len(logits)} images what is no finite number")
    return logits.argmax(dim=1).numpy()


def main(parsed):
    settings = parsed[AccuracyFlags]
    images, labels, named = read_arrays(settings.samples, "samples")
    if labels is None:
        raise UserError(f"--samples {settings.samples} has no arr_1; expected the labels there")
    parsed, classifier = checkpoints.load_classifier(parsed, settings.classifier_path)
    names = of_text(parsed[ClassifierFlags].class_names)
    labels = renumbered(labels, len(images), named, names, f"--samples {settings.samples}")
    count = parsed[ClassifierFlags].num_classes
    if not ((labels >= 0) & (labels < count)).all():
        raise UserError(
            f"--samples {settings.samples} has labels outside 0..{count - 1}, the classes of the classifier"
        )
    size = parsed[ClassifierFlags].image_size
    if images.shape[1:3] != (size, size):
        raise UserError(
            f"--samples {settings.samples} has images of {images.shape[1]}x{images.shape[2]}; "
            f"the classifier takes {size}x{size}"
        )
    taker = f"--classifier_path {settings.classifier_path}"
    images = with_channels(torch.from_numpy(images), classifier.in_channels, taker)
    if not launch.announce(parsed):
        return
    right = predictions(classifier, images, settings.batch_size) == labels
    logger.log(f"{right.sum()} of {len(right)} images are of their class: {100 * right.mean():.1f} %")
    for label in sorted(set(labels.tolist())):
        mine = right[labels == label]
        name = f" {names[label]}" if label < len(names) and names[label] != str(label) else ""
        logger.log(f"  class {label}{name}: {mine.sum()} of {len(mine)}")


if __name__ == "__main__":
    launch.run("classifier_accuracy", __doc__, GROUPS, launch.alone(main))
