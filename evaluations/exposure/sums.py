"""Sums over images of what measures read, made batch by batch, and the curves of them with their standard errors.

The images are dealt in their order to at most SHARES shares, and sums are kept by share, so that a standard error is
that of leaving out one share after the other. Which share and which batch an image is in depends on its index alone:
ranks, and a run that was killed and goes on, make the same sums in the same order.
"""

import io
from typing import NamedTuple

import numpy as np
import torch

from guided_diffusion import dist_util, files, logger
from guided_diffusion.errors import NotFinite
from guided_diffusion.generate import batches_of
from guided_diffusion.jobs.sample_store import SampleStore
from guided_diffusion.jobs.sampling import fill
from guided_diffusion.methods.method import jackknife

from .walks import walk

SHARES = 32
# a standard deviation of the images that are left takes two of them
FEWEST = 3
THEN = "the same command continues"


class Curve(NamedTuple):
    """A number at each kept step.

    :ivar values: float64 [S], by increasing timestep.
    :ivar left_out: float64 [shares, S], without one share of the images each.
    :ivar theory: float64 [S] without any error of network and solver, or None.
    """

    values: np.ndarray
    left_out: np.ndarray
    theory: np.ndarray | None = None

    @property
    def errors(self):
        """Standard errors float64 [S]."""
        return jackknife(self.left_out)


class Measured(NamedTuple):
    """What was measured of one sampler.

    :ivar curves: {measure: {curve: Curve}}.
    :ivar tallies: {name: what its methods counted along sampling, as in `Process.tallies`}.
    """

    curves: dict
    tallies: dict


def share_of(indices, count):
    """The share [n] that each of `indices` belongs to, of `count` images in all."""
    return np.asarray(indices) * min(count, SHARES) // count


def share_sizes(count):
    """The number of images in each share."""
    return np.bincount(share_of(range(count), count))


def batch_maker(process, network, real, seed, setup, measures):
    """`indices -> {key: float64 [shares of the batch, S, ...]}`, the sums of a batch; see `_keys`.

    :param process: a Process with a solver.
    :param real: RealImages.
    :param setup: the measures' Setup.
    """
    walks = list(dict.fromkeys(name for measure in measures for name in measure.walks))

    def make_batch(indices):
        image, cond = real.batch(indices)
        share = share_of(indices, real.count)
        place = torch.from_numpy(share - share[0])

        def summed(values):
            values = values.double().cpu()
            total = values.new_zeros(int(place[-1]) + 1, *values.shape[1:])
            return total.index_add_(0, place, values).numpy()

        made = {
            f"{measure.name} {key}": summed(values)
            for measure in measures
            for key, values in measure.of_images(image).items()
        }
        for name in walks:
            for tally in process.tallies.values():
                tally.values.zero_()
            steps = {}
            for moment in walk(name, process, network, cond, image, seed, indices, setup.gaussian):
                for measure in measures:
                    if name in measure.walks:
                        for key, values in measure.read(moment, setup).items():
                            steps.setdefault(f"{measure.name} {name} {key}", []).append(summed(values))
            made |= {key: np.stack(values[::-1], axis=1) for key, values in steps.items()}
            if name == "sampled":
                made |= {f"tally {k}": tally.values.cpu().numpy()[None] for k, tally in process.tallies.items()}
        return made

    return make_batch


def measured(out_dir, key, title, make_batch, count, batch_size, setup, measures):
    """The Measured of a sampler, on every rank: read where it is there, else made, batch by batch.

    :param out_dir: keeps OUT_DIR/measured/KEY.npz, and until that is whole the batches beside it.
    :param key: of what decides it all; the same on every rank.
    :param title: of the sampler, for the log.
    """
    store = SampleStore(files.join(out_dir, "measured"), key)
    path = f"{store.folder.removesuffix('.chunks')}.npz"
    if dist_util.broadcast_object(_load(path) is not None if dist_util.is_main() else None):
        logger.log(f"{title}: taken from {path}")
    else:
        store.prepare()
        chunks = batches_of(count, batch_size)
        fill(store, store.missing(chunks), count, make_batch, THEN, title)
        if dist_util.is_main():
            _join(store, chunks, path, count, setup, measures, title)
    if dist_util.is_main() and files.exists(store.folder):  # a run that was killed here leaves some
        for name, _ in [*files.entries(store.folder)]:
            files.remove(files.join(store.folder, name))
    return _of_arrays(dist_util.broadcast_object(_load(path) if dist_util.is_main() else None))


def _join(store, chunks, path, count, setup, measures, title):
    """Write the curves of all batches."""
    sums = added(((chunk, store.whole(chunk)) for chunk in chunks), count)
    arrays = {key: values for key, values in sums.items() if key.startswith("tally ")}
    for measure, curves in curves_of(sums, count, setup, measures).items():
        for name, curve in curves.items():
            arrays[f"{measure} {name}"] = np.vstack([curve.values, curve.left_out])
            if curve.theory is not None:
                arrays[f"{measure} {name} theory"] = curve.theory
            _refuse_not_finite(curve.values, setup, f"{title}: {name}")
    files.write_npz(path, arrays)


def added(made, count):
    """{key: float64 [shares, ...]} of all batches, and tallies without shares.

    :param made: (indices, what `batch_maker` made of them) of each batch, in order.
    :param count: of the images in all.
    """
    sums, shares = {}, min(count, SHARES)
    for indices, arrays in made:
        first = share_of(indices, count)[0]
        for key, values in arrays.items():
            if key.startswith("tally "):
                sums[key] = sums.get(key, 0) + values[0]
                continue
            total = sums.setdefault(key, np.zeros((shares, *values.shape[1:])))
            total[first : first + len(values)] += values
    return sums


@np.errstate(all="ignore")  # what is not finite is refused when it is kept
def curves_of(sums, count, setup, measures):
    """{measure: {curve: Curve}} of the sums of all batches, as of `added`."""
    found = {}
    for measure in measures:
        own = {_key(key, measure): values for key, values in sums.items() if key.startswith(measure.name + " ")}
        whole = {key: values.sum(axis=0) for key, values in own.items()}
        values, left_out = measure.estimate(whole, count, setup), []
        for share, size in enumerate(share_sizes(count)):
            others = {key: whole[key] - own[key][share] for key in own}
            left_out.append(measure.estimate(others, count - size, setup))
        theory = measure.theory(values, setup)
        found[measure.name] = {
            name: Curve(values[name], np.stack([each[name] for each in left_out]), theory.get(name))
            for name in measure.curves
        }
    return found


def _key(key, measure):
    """The key of an array, as a measure knows it: a text, or (walk, text)."""
    *walk_name, own = key.removeprefix(measure.name + " ").split(" ")
    return (walk_name[0], own) if walk_name else own


def _refuse_not_finite(values, setup, what):
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise NotFinite(f"{what} is not a finite number from timestep {setup.times[bad[-1]]} on")


def _load(path):
    """The arrays of a Measured at a path; None where there are none, or none that can be read."""
    if not files.exists(path):
        return None
    try:
        with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as npz:
            return {key: npz[key] for key in npz.files}
    except files.NPZ_DAMAGE:
        return None


def _of_arrays(arrays):
    curves, tallies = {}, {}
    for key, values in arrays.items():
        kind, name, *theory = key.split(" ")
        if kind == "tally":
            tallies[key.removeprefix("tally ")] = values
        elif not theory:
            found = Curve(values[0], values[1:], arrays.get(f"{key} theory"))
            curves.setdefault(kind, {})[name] = found
    return Measured(curves, tallies)
