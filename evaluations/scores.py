"""The scores of samples against a reference, from the activations of both."""

import math
from dataclasses import dataclass

from guided_diffusion import dist_util
from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, Legal, at_least, flag

from . import fid
from .activations import float64_device
from .distances import DISTANCES
from .inception_score import inception_score
from .kid import kid
from .precision_recall import DENSITY_NEIGHBOURS, NEIGHBOURS, density_coverage, precision_recall

# what guided-diffusion's evaluator prints, under its names, and what else can be had of Inception
PUBLISHED = {
    "inception_score": "Inception Score",
    "fid": "FID",
    "sfid": "sFID",
    "precision": "Precision",
    "recall": "Recall",
}
FURTHER = {"kid": "KID", "density": "Density", "coverage": "Coverage"}
# of any features
GENERAL = {
    "frechet_distance": "Frechet distance",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
}
ERRORS = {
    "fid_standard_error": "FID standard error",
    "frechet_distance_standard_error": "Frechet distance standard error",
    "kid_standard_error": "KID standard error",
}
TITLES = PUBLISHED | GENERAL | ERRORS
# variance of equal float32 features, relative to their squared mean
ROUNDING = 1e-12


@dataclass
class ScoreFlags(FlagGroup):
    """The scores."""

    metrics: str = flag(
        "", "Names with commas, such as fid,kid; empty takes the published five, or without Inception all there are."
    )
    pr_distance: str = flag(
        "",
        "Distances of precision and recall: fp16 as published, or fp32; empty is fp16 with Inception, else fp32.",
        choices=("", *DISTANCES),
    )
    fid_formula: str = flag(
        "eigenvalues",
        "How the square root in FID is taken: symmetric, or by scipy's sqrtm of the product as published.",
        choices=tuple(fid.FORMULAS),
    )
    bootstrap: int = flag(
        0,
        "Draws of the bootstrap for the standard error of FID; 0 gives none.",
        legal=Legal("0 or at least 2", lambda value: value == 0 or value >= 2),
    )
    seed: int = flag(0, "Seed of the bootstrap.", legal=at_least(0))

    def chosen(self, inception):
        """The metrics to compute, in the order in which they are printed.

        :param inception: whether the features are Inception's.
        """
        legal = [*PUBLISHED, *FURTHER] if inception else list(GENERAL)
        names = [name.strip() for name in self.metrics.split(",") if name.strip()]
        for name in names:
            if name not in legal:
                raise UserError(f"--metrics has {name!r}; with these --features expected some of {', '.join(legal)}")
        default = PUBLISHED if inception else GENERAL
        return [name for name in legal if name in (names or default)]

    def distance(self, inception):
        """The name in DISTANCES of what precision and recall use."""
        return self.pr_distance or ("fp16" if inception else "fp32")


def compute(reference, samples, metrics, flags, weights=None):
    """({name: float}, notes): the scores, and sentences on what is undefined or to be read with care.

    A score that is undefined for so few images is left out.

    :param reference: Activations.
    :param samples: Activations.
    :param metrics: names, as of `ScoreFlags.chosen`.
    :param flags: ScoreFlags.
    :param weights: of Inception's logits [2048, 1008]; None with other features.
    """
    found, notes = {}, []
    device = dist_util.dev()

    def enough(names, needed_reference, needed_samples):
        """The names that are asked for, if the sets are large enough."""
        names = [name for name in names if name in metrics]
        if not names or reference.count >= needed_reference and samples.count >= needed_samples:
            return names
        who = " and ".join(
            counted(needed, f"{what} image")
            for needed, what in ((needed_reference, "reference"), (needed_samples, "sampled"))
            if needed
        )
        notes.append(
            f"{', '.join(TITLES[name] for name in names)} undefined: expected at least {who}, "
            f"found {reference.count} and {samples.count}"
        )
        return []

    if enough(["inception_score"], 0, 1):
        score = inception_score(samples.features, weights)
        found["inception_score"] = score.value
        if score.zeros:
            notes.append(
                f"Inception Score: {score.zeros} probabilities underflow to 0 and 0 log 0 counts as 0, "
                "where the published evaluator prints nan"
            )
    for name, pair in (
        ("fid", (reference.moments, samples.moments)),
        ("frechet_distance", (reference.moments, samples.moments)),
        ("sfid", (reference.spatial, samples.spatial)),
    ):
        if name in metrics:
            _frechet(name, pair, flags.fid_formula, found, notes)
    if flags.bootstrap and (name := next((n for n in ("fid", "frechet_distance") if n in found), None)):
        if samples.features is None:
            notes.append(f"{TITLES[name]} standard error undefined: it needs images")
        else:
            found[f"{name}_standard_error"] = fid.bootstrap_error(
                samples.features, reference.moments, flags.bootstrap, flags.seed
            )
            if samples.count <= samples.features.shape[1]:
                notes.append(
                    f"{TITLES[name]} standard error is unreliable: the draws have singular covariances, as there are "
                    f"{counted(samples.count, 'sample')} for {samples.features.shape[1]} dimensions"
                )
    if names := enough(["precision", "recall"], NEIGHBOURS + 1, NEIGHBOURS + 1):
        distance = DISTANCES[flags.distance(weights is not None)]
        both = precision_recall(reference.features.to(device), samples.features.to(device), distance)
        found |= {name: value for name, value in zip(("precision", "recall"), both) if name in names}
    if enough(["kid"], 2, 2):
        found["kid"], error = kid(*(a.features.to(float64_device()) for a in (reference, samples)))
        if math.isfinite(error):
            found["kid_standard_error"] = error
    if names := enough(["density", "coverage"], DENSITY_NEIGHBOURS + 1, 1):
        both = density_coverage(reference.features.to(device), samples.features.to(device))
        found |= {name: value for name, value in zip(("density", "coverage"), both) if name in names}
    return found, notes


def _frechet(name, pair, formula, found, notes):
    if None in pair:
        notes.append(f"{TITLES[name]} undefined: expected at least 2 images, or stored statistics, of either set")
        return
    dimension = len(pair[0].mean)
    found[name] = fid.FORMULAS[formula](*pair)
    few = [moments.count for moments in pair if 0 < moments.count <= dimension]
    alike = [who for who, moments in zip(("reference", "sampled"), pair) if _without_variance(moments)]
    if alike:
        notes.append(f"{TITLES[name]}: all {' and all '.join(alike)} images have the same features, of variance 0")
    elif few:
        notes.append(
            f"{TITLES[name]}: {min(few)} images are too few for {dimension} dimensions, so a covariance is singular "
            "and the value too high"
        )


def _without_variance(moments):
    """Whether features differ by no more than rounding."""
    return bool(moments.covariance.trace() <= ROUNDING * moments.mean.square().sum())


def counted(count, noun):
    """A number of things in words: 1 sample, 2 samples."""
    return f"{count} {noun}" + "s" * (count != 1)
