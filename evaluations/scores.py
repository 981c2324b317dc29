"""The scores of samples against a reference, from the activations of both: a table of metrics."""

from dataclasses import dataclass

from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, at_least, flag

from . import cmmd, fid, fid_scores, inception_score, kid, precision_recall
from .distances import DISTANCES
from .metric import Metric, counted
from .precision_recall import DENSITY_NEIGHBOURS, NEIGHBOURS

# in the order in which they are printed
METRICS = [
    Metric({"inception_score": "Inception Score"}, (0, 1), inception_score.score, inception=True, published=True),
    Metric({"fid": "FID"}, (0, 0), fid_scores.score, inception=True, published=True),
    Metric(
        {"fid_infinity": "FID of infinitely many samples"},
        (0, 2),
        fid_scores.infinity_score,
        inception=True,
        asked=True,
    ),
    Metric({"frechet_distance": "Frechet distance"}, (0, 0), fid_scores.score, inception=False),
    Metric(
        {"frechet_distance_infinity": "Frechet distance of infinitely many samples"},
        (0, 2),
        fid_scores.infinity_score,
        inception=False,
        asked=True,
    ),
    Metric({"sfid": "sFID"}, (0, 0), fid_scores.spatial_score, inception=True, published=True),
    Metric(
        {"precision": "Precision", "recall": "Recall"},
        (NEIGHBOURS + 1, NEIGHBOURS + 1),
        precision_recall.score,
        published=True,
    ),
    Metric({"kid": "KID"}, (2, 2), kid.score),
    Metric({"cmmd": "CMMD"}, (1, 1), cmmd.score, inception=False, asked=True),
    Metric({"density": "Density", "coverage": "Coverage"}, (DENSITY_NEIGHBOURS + 1, 1), precision_recall.density_score),
]
ERROR = "_standard_error"


@dataclass
class ScoreFlags(FlagGroup):
    """The scores."""

    metrics: str = flag(
        "",
        "Names with commas, such as fid,kid; empty takes the published five, or without Inception all there are.",
        essential="metrics",
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
    standard_error: bool = flag(
        False,
        "Standard error of FID and other Frechet distances by the jackknife: within classes where the "
        "samples have labels (arr_1 of an npz, names of files), as many of each.",
        essential="standard_error",
    )
    seed: int = flag(0, "Seed of the samples that standard errors and extrapolations leave out.", legal=at_least(0))

    def chosen(self, inception):
        """The names of the metrics to compute, in the order in which they are printed.

        :param inception: whether the features are Inception's.
        """
        legal = {name: metric for metric in METRICS if metric.inception in (None, inception) for name in metric.titles}
        names = [name.strip() for name in self.metrics.split(",") if name.strip()]
        for name in names:
            if name not in legal:
                raise UserError(f"--metrics has {name!r}; with these --features expected some of {', '.join(legal)}")
        default = [name for name, metric in legal.items() if (metric.published or not inception) and not metric.asked]
        return [name for name in legal if name in (names or default)]

    def kept(self, metrics):
        """Whether features are read, beside their moments: (of the reference, of the samples, spatial of the samples).

        :param metrics: names, as of `chosen`.
        """
        needs = [metric.needs for metric in METRICS if not metric.titles.keys().isdisjoint(metrics)]
        of_samples = any(samples for _, samples in needs)
        frechet = self.standard_error and not {"fid", "frechet_distance"}.isdisjoint(metrics)
        return (
            any(reference for reference, _ in needs),
            of_samples or frechet,
            self.standard_error and "sfid" in metrics,
        )

    def resampling(self, metrics):
        """{flag: value} of those that decide standard errors and extrapolations, as far as there are some.

        :param metrics: names, as of `chosen`.
        """
        found = {"standard_error": True} if self.standard_error else {}
        return found | ({"seed": self.seed} if found or any(name.endswith("_infinity") for name in metrics) else {})

    def distance(self, inception):
        """The name in DISTANCES of what precision and recall use."""
        return self.pr_distance or ("fp16" if inception else "fp32")


def title(name):
    """The title of a score that `compute` names."""
    of = name.removesuffix(ERROR)
    titles = next(metric.titles for metric in METRICS if of in metric.titles)
    return titles[of] + (" standard error" if of != name else "")


def compute(reference, samples, metrics, flags, weights=None):
    """({name: float}, notes): the scores, and sentences on what is undefined or to be read with care.

    A score that is undefined for so few images is left out.

    :param reference: Activations.
    :param samples: Activations.
    :param metrics: names, as of `ScoreFlags.chosen`.
    :param flags: ScoreFlags.
    :param weights: of Inception's logits [2048, 1008]; None with other features.
    """
    scores, notes = {}, []
    for metric in METRICS:
        names = [name for name in metric.titles if name in metrics]
        if not names:
            continue
        titles = ", ".join(metric.titles[name] for name in names)
        if not metric.enough(reference, samples):
            needed = zip(metric.needs, ("reference image", "sampled image"))
            expected = " and ".join(counted(count, noun) for count, noun in needed if count)
            notes.append(
                f"{titles} undefined: expected at least {expected}, found {reference.count} and {samples.count}"
            )
            continue
        found = metric.compute(reference, samples, flags, weights)
        scores |= {name: value for name, value in zip(metric.titles, found.values) if name in names}
        if found.error is not None:
            scores[names[0] + ERROR] = found.error
        notes += [titles + note for note in found.notes]
    return scores, notes
