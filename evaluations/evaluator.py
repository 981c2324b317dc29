"""Score samples against real images by the five numbers of guided-diffusion's evaluator, or with other features.

python evaluations/evaluator.py REFERENCE.npz SAMPLES.npz
python evaluations/evaluator.py REFERENCE.npz runs/emoji --features classifier:models/emoji32_classifier.pt
mpirun -n 2 python evaluations/evaluator.py --reference REFERENCE.npz --samples runs/image_sample --json scores.json
python evaluations/evaluator.py REFERENCE.npz runs/a runs/b runs/c --standard_error True --out_dir runs/scores

Several sets of samples become a table in the output folder: scores.md, scores.csv, scores.png.
"""

import json
import math
from dataclasses import dataclass

from evaluations import report
from evaluations.activations import Activations, activations_of
from evaluations.batches import open_images
from evaluations.features import FeatureFlags
from evaluations.scores import ScoreFlags, compute, title
from guided_diffusion import files, logger
from guided_diffusion.errors import UserError
from guided_diffusion.flags import WIDTH, FlagGroup, at_least, flag, words_of
from guided_diffusion.jobs import launch


@dataclass
class EvaluatorFlags(FlagGroup):
    """The images."""

    reference: str = flag(
        "", "Real images: an npz with arr_0 or stored statistics, or a folder or zip of images.", essential="reference"
    )
    samples: str = flag(
        "", "Images to be scored, likewise, or the output folder of a sampling script.", essential="samples"
    )
    more_samples: str = flag(
        "", "Further sets of them, for a table of all: paths with spaces between, quoted as in a shell.", many=True
    )
    batch_size: int = flag(64, "Images computed at once on a rank.", legal=at_least(1, WIDTH), essential="batch_size")
    json: str = flag("", "File for the scores and all that decides them, which compare.py compares.", essential="json")


GROUPS = [EvaluatorFlags, FeatureFlags, ScoreFlags]


def refuse_swapped(reference, samples):
    """Refuse ImageSets that are in the wrong order, as far as it is certain."""
    if samples.statistics and not reference.statistics:
        raise UserError(f"--samples {samples.path} holds stored statistics, as a reference does: swap the two")


def refuse_other_sizes(sets, features):
    """Refuse ImageSets whose images the network does not take, or whose features have different sizes.

    :param features: their Extractor.
    """
    first = {}
    for images in sets:
        if not images.count and not features.stored(images):
            raise UserError(f"--{images.flag} {images.path} has statistics of Inception features alone, and no images")
        found = {f"stored {name}": len(moments.mean) for name, moments in features.stored(images).items()}
        if images.count:
            found |= zip(("features", "spatial"), features.dimensions(images))
        for what, size in found.items():
            name = what.removeprefix("stored ")
            there, expected = first.setdefault(name, (f"--{images.flag} {images.path}", size))
            if size != expected:
                raise UserError(
                    f"--{images.flag} {images.path}: {what} have {size} dimensions; expected {expected}, as {there} has"
                )


def measure(images, features, batch_size, keep, keep_spatial=False):
    """The Activations of an ImageSet on rank 0; statistics stored with it take the place of computed ones.

    :param keep: keep the features, as more is asked for than their moments.
    :param keep_spatial: the same of the spatial ones.
    """
    stored = features.stored(images)
    enough = stored.keys() >= ({"features", "spatial"} if features.inception else {"features"})
    if not images.count or (enough and not keep and not keep_spatial):
        found = Activations(0, None, None, None)
    else:
        found = activations_of(images, features, batch_size, keep, keep_spatial)
    if found is None:
        return None
    return found._replace(moments=stored.get("features", found.moments), spatial=stored.get("spatial", found.spatial))


def scored(parsed, reference, sets, features):
    """(ImageSet, {name: float}, notes) of each of some ImageSets, on rank 0; other ranks call this too.

    :param parsed: Parsed flags with those of EvaluatorFlags and ScoreFlags.
    :param reference: ImageSet.
    :param features: their Extractor.
    :raises UserError: for a score that is not finite, once it is yielded.
    """
    scoring, batch_size = parsed[ScoreFlags], parsed[EvaluatorFlags].batch_size
    metrics = scoring.chosen(features.inception)
    keep_reference, keep_samples, keep_spatial = scoring.kept(metrics)
    of_reference = measure(reference, features, batch_size, keep_reference)
    for samples in sets:
        of_samples = measure(samples, features, batch_size, keep_samples, keep_spatial)
        if of_samples is None:
            continue
        scores, notes = compute(of_reference, of_samples, metrics, scoring, features.weights)
        finite = {name: value for name, value in scores.items() if math.isfinite(value)}
        yield samples, finite, report.caveats(reference, samples, features) + notes
        strange = [f"{title(name)} is {value}" for name, value in scores.items() if name not in finite]
        if strange:
            raise UserError(f"{samples.path}: {', '.join(strange)}; expected finite numbers")


def main(parsed):
    settings, scoring = parsed[EvaluatorFlags], parsed[ScoreFlags]
    metrics = scoring.chosen(parsed[FeatureFlags].of_inception)
    paths = [settings.samples, *words_of(settings.more_samples, "more_samples")]
    report.make_room(settings.json, "json", reference=settings.reference, samples=paths)
    reference = open_images(settings.reference, "reference")
    sets = [open_images(path, "samples") for path in paths]
    for samples in sets:
        refuse_swapped(reference, samples)
    features = parsed[FeatureFlags].create()
    refuse_other_sizes([reference, *sets], features)
    if not launch.announce(parsed, "evaluation_flags.json"):
        return
    decides = {
        "pr_distance": scoring.distance(features.inception),
        "fid_formula": scoring.fid_formula,
        "batch_size": settings.batch_size,
        **scoring.resampling(metrics),
    }
    reports, failure = [], None
    try:
        for samples, scores, notes in scored(parsed, reference, sets, features):
            found = report.facts(reference, samples, features.facts, decides)
            reports.append(found | {"notes": notes, "scores": scores})
            report.say(reports[-1])
    except UserError as error:
        if len(sets) == 1:
            raise
        failure = error  # the runs before it are scored
    if not reports:
        if failure:
            raise failure
        return
    if len(sets) > 1:
        from evaluations import runs  # draws pictures, which a single score has none of

        folder = logger.get_dir()
        rows = [
            runs.Row(found["samples"]["path"], found["samples"]["count"], found["scores"], runs.first_images(samples))
            for found, samples in zip(reports, sets)
        ]
        runs.save(rows, folder)
        logger.log("\n" + runs.markdown(rows) + f"saved scores.md, scores.csv and scores.png in {folder}")
    if settings.json:
        files.write_text(
            settings.json, json.dumps(reports[0] if len(sets) == 1 else {"runs": reports}, indent=1) + "\n"
        )
    if failure:
        raise failure


if __name__ == "__main__":
    launch.run("evaluator", __doc__, GROUPS, launch.alone(main), positional=("reference", "samples", "more_samples"))
