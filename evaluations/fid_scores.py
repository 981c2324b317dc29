"""FID and the other Frechet distances as metrics: their notes, their standard errors, their extrapolation."""

from . import fid, fid_infinity, jackknife
from .metric import Found

# variance of equal float32 features, relative to their squared mean
ROUNDING = 1e-12
UNDEFINED = " undefined: expected at least 2 images, or stored statistics, of either set"


def score(reference, samples, flags, weights):
    """The Found of two Activations by their features, with a standard error where flags.standard_error asks for it."""
    found = _found(reference.moments, samples.moments, flags)
    return _with_error(found, samples.features, reference.moments, samples.labels, flags)


def spatial_score(reference, samples, flags, weights):
    """As `score`, by the spatial features."""
    found = _found(reference.spatial, samples.spatial, flags)
    return _with_error(found, samples.spatial_features, reference.spatial, samples.labels, flags)


def _with_error(found, features, reference, labels, flags):
    if not (found.values and flags.standard_error):
        return found
    if features is None:
        return found._replace(notes=(*found.notes, " standard error undefined: it needs images"))
    error, notes = jackknife.standard_error(features, reference, labels, flags.seed)
    return found._replace(error=error, notes=(*found.notes, *notes))


def infinity_score(reference, samples, flags, weights):
    """The Found of two Activations by their features: the distance extrapolated to infinitely many samples."""
    if reference.moments is None:
        return Found(notes=(UNDEFINED,))
    value, notes = fid_infinity.extrapolated(samples.features, reference.moments, samples.labels, flags.seed)
    return Found(() if value is None else (value,), notes=notes)


def _found(reference, samples, flags):
    """The Found of two Moments, either of which may be None."""
    if reference is None or samples is None:
        return Found(notes=(UNDEFINED,))
    pair, notes, dimension = {"reference": reference, "sampled": samples}, (), len(reference.mean)
    few = [moments.count for moments in pair.values() if 0 < moments.count <= dimension]
    if alike := [who for who, moments in pair.items() if _without_variance(moments)]:
        notes = (f": all {' and all '.join(alike)} images have the same features, of variance 0",)
    elif few:
        notes = (
            f": {min(few)} images are too few for {dimension} dimensions, so a covariance is singular and the value "
            "too high",
        )
    return Found((fid.FORMULAS[flags.fid_formula](reference, samples),), notes=notes)


def _without_variance(moments):
    """Whether features differ by no more than rounding."""
    return bool(moments.covariance.trace() <= ROUNDING * moments.mean.square().sum())
