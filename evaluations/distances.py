"""Squared Euclidean distances between features, in the number format in which published scores were computed.

guided-diffusion's evaluator computes them in float16, which changes precision and recall by up to 0.01, and goes to
float32 only where float16 overflows. `fp16` repeats it bit for bit, as its TensorFlow 2.21 does on a CPU: features,
products, norms and each sum are rounded to float16, products are accumulated in float32, and norms in the order of
the vector unit's lanes.
"""

import torch

# rows of a block that are computed at once
STRIP = 1000
# elements that the order of a norm's sum takes in one piece, its accumulators, and the lanes of each
PIECE, ACCUMULATORS, LANES = 1600, 4, 8


def fp16(u, v):
    """Squared distances [n, m] of features u [n, D] and v [m, D]: float16, or float32 if any overflows.

    A set that is cut into blocks decides block by block, so the size of the blocks is part of the result. The order
    of the sums is that of TensorFlow where D is 64 or 2048; other sizes are filled up with zeros.
    """
    half_u, half_v = u.half(), v.half()
    norms_u, norms_v = _norms(half_u), _norms(half_v)
    single_v = half_v.float().T
    found = torch.empty(len(u), len(v), dtype=torch.float16, device=u.device)
    for start in range(0, len(u), STRIP):
        rows = slice(start, start + STRIP)
        products = (half_u[rows].float() @ single_v).half() * 2
        found[rows] = ((norms_u[rows, None] - products) + norms_v).clamp(min=0)
        if not found[rows].isfinite().all():
            return fp32(u, v)
    return found


def fp32(u, v):
    """Squared distances float32 [n, m] of features u [n, D] and v [m, D]."""
    u, v = u.float(), v.float()
    return (u.square().sum(dim=1)[:, None] - 2 * (u @ v.T) + v.square().sum(dim=1)).clamp(min=0)


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
