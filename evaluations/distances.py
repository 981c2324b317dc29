"""Squared Euclidean distances between features, in the number format in which published scores were computed.

guided-diffusion's evaluator computes them in float16, which changes precision and recall by up to 0.01, and goes to
float32 only where float16 overflows. `fp16` repeats it bit for bit, as its TensorFlow 2.21 does on a CPU: features,
products, norms and each sum are rounded to float16, products are accumulated in float32, and norms in the order of
the vector unit's lanes.
"""

import torch

from guided_diffusion.errors import UserError

# rows of a block that are computed at once
STRIP = 1000
# elements that the order of a norm's sum takes in one piece, its accumulators, and the lanes of each
PIECE, ACCUMULATORS, LANES = 1600, 4, 8


def fp16(u, v):
    """Squared distances [n, m] of features u [n, D] and v [m, D]: float16, or float32 if any overflows.

    A set that is cut into blocks decides block by block, so the size of the blocks is part of the result. The order
    of the sums is that of TensorFlow where D is 64 or 2048; other sizes are filled up with zeros.
    """
    return torch.cat(in_strips(u, v, fp16, lambda rows, found: found))


def fp32(u, v):
    """Squared distances float32 [n, m] of features u [n, D] and v [m, D]."""
    return torch.cat(in_strips(u, v, fp32, lambda rows, found: found))


def in_strips(u, v, distance, reduce):
    """[reduce(rows, distances [rows, m])] of a block, without having it whole.

    :param u: features [n, D].
    :param v: features [m, D].
    :param distance: fp16 or fp32.
    :param reduce: `(slice of u, distances) -> what is kept of them`; with fp16 it may be called in vain.
    """
    strips = [slice(start, start + STRIP) for start in range(0, len(u), STRIP)]
    if distance is fp32:
        u, v = u.float(), v.float()
        norms_v, products = v.square().sum(dim=1), v.T
        return [reduce(rows, _fp32(u[rows], products, norms_v)) for rows in strips]
    half_v, kept = v.half(), []
    norms_v, single_v = _norms(half_v), half_v.float().T
    for rows in strips:
        half_u = u[rows].half()
        products = (half_u.float() @ single_v).half() * 2
        found = ((_norms(half_u)[:, None] - products) + norms_v).clamp_(min=0)
        if not found.isfinite().all():
            return in_strips(u, v, fp32, reduce)
        kept.append(reduce(rows, found))
    return kept


def _fp32(u, columns, norms_v):
    norms_u = u.square().sum(dim=1)
    found = torch.mm(u, columns).mul_(-2).add_(norms_u[:, None]).add_(norms_v).clamp_(min=0)
    if not found.isfinite().all():
        raise UserError("features are so large that their distances are no numbers in float32")
    return found


def _norms(features):
    """Squared norms float16 [n] of float16 features [n, D]."""
    return _sum(features.float().square().half())


def _sum(x):
    """Row sums float16 [n] of x [n, D], rounded as a vector unit of eight float16 lanes would."""
    size = x.shape[1]
    if size > PIECE:
        middle = (size // 2 + LANES - 1) // LANES * LANES
        return _sum(x[:, :middle]) + _sum(x[:, middle:])
    step = ACCUMULATORS * LANES
    x = torch.nn.functional.pad(x, (0, -size % step)).unflatten(1, (-1, ACCUMULATORS, LANES))
    lanes = torch.zeros_like(x[:, 0])
    for part in x.unbind(1):
        lanes = lanes + part
    first, second, third, fourth = lanes.unbind(1)
    total = (((first + second) + third) + fourth).float()
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total[:, 0].half()


DISTANCES = {"fp16": fp16, "fp32": fp32}
