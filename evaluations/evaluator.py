"""Score samples against real images by the five numbers of guided-diffusion's evaluator, or with other features.

python evaluations/evaluator.py REFERENCE.npz SAMPLES.npz
python evaluations/evaluator.py data/digits.npz runs/digits --features classifier:models/digits16_classifier.pt
mpirun -n 2 python evaluations/evaluator.py --reference REFERENCE.npz --samples runs/image_sample --json scores.json
"""

import json
from dataclasses import dataclass

from evaluations import report
from evaluations.activations import Activations, activations_of
from evaluations.batches import open_images
from evaluations.features import FeatureFlags
from evaluations.scores import ScoreFlags, compute
from guided_diffusion import dist_util, files
from guided_diffusion.errors import UserError
from guided_diffusion.flags import WIDTH, FlagGroup, at_least, flag
from guided_diffusion.jobs import launch


@dataclass
class EvaluatorFlags(FlagGroup):
    """The images."""

    reference: str = flag("", "Real images: an npz with arr_0 or stored statistics, or a folder or zip of images.")
    samples: str = flag("", "Images to be scored, likewise, or the output folder of a sampling script.")
    batch_size: int = flag(64, "Images computed at once on a rank.", legal=at_least(1, WIDTH))
    json: str = flag("", "File for the scores and all that decides them, which compare.py compares.")


GROUPS = [EvaluatorFlags, FeatureFlags, ScoreFlags]


def refuse_swapped(reference, samples):
    """Refuse ImageSets that are in the wrong order, as far as it is certain."""
    if samples.statistics and not reference.statistics:
        raise UserError(f"--samples {samples.path} holds stored statistics, as a reference does: swap the two")


def measure(images, features, batch_size, keep):
    """The Activations of an ImageSet on rank 0; statistics stored with it take the place of computed ones.

    :param keep: keep the features, as more is asked for than their moments.
    """
    stored = images.statistics if features.inception else {}
    if not images.count or (not keep and {"features", "spatial"} <= stored.keys()):
        found = Activations(0, None, None, None)
    else:
        found = activations_of(images, features, batch_size, keep)
    if found is None:
        return None
    return found._replace(moments=stored.get("features", found.moments), spatial=stored.get("spatial", found.spatial))


def main(parsed):
    settings, scoring = parsed[EvaluatorFlags], parsed[ScoreFlags]
    reference, samples = open_images(settings.reference, "reference"), open_images(settings.samples, "samples")
    refuse_swapped(reference, samples)
    features = parsed[FeatureFlags].create()
    for images in (reference, samples):
        if not images.count and not features.inception:
            raise UserError(f"--{images.flag} {images.path} has statistics of Inception features alone, and no images")
    metrics = scoring.chosen(features.inception)
    if not launch.announce(parsed, "evaluation_flags.json"):
        return
    keep_reference, keep_samples = scoring.kept(metrics)
    of_reference = measure(reference, features, settings.batch_size, keep_reference)
    of_samples = measure(samples, features, settings.batch_size, keep_samples)
    if not dist_util.is_main():
        return
    scores, notes = compute(of_reference, of_samples, metrics, scoring, features.weights)
    decides = {
        "pr_distance": scoring.distance(features.inception),
        "fid_formula": scoring.fid_formula,
        "batch_size": settings.batch_size,
    }
    if scoring.bootstrap:
        decides |= {"bootstrap": scoring.bootstrap, "bootstrap_seed": scoring.seed}
    found = report.facts(reference, samples, features.facts, decides)
    found |= {"notes": report.caveats(reference, samples, features) + notes, "scores": scores}
    report.say(found)
    if settings.json:
        files.write_text(settings.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    launch.run("evaluator", __doc__, GROUPS, main, positional=("reference", "samples"))
