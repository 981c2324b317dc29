"""Times and levels that all samples of a batch share, as numbers on the host.

At every seam times and levels are tensors [N], since they may differ from sample to sample. Where the loop knows that
they do not, the tensor remembers the one number (and otherwise, where it is known, the range) of its entries, so that
the coefficients of a step are Python floats: no table is read on the device, nothing waits for it, and each coefficient
is computed once in float64. What torch computes from such a tensor has forgotten it, and is right all the same.

The functions of this module take such a number, or a tensor, and return what they are given.
"""

import math

import torch

UNKNOWN = (-math.inf, math.inf)


def bounded(values, low, high):
    """The very tensor `values` [N], which from now on remembers that its entries lie in [low, high]."""
    if not values.is_inference():  # such a tensor does not say whether it was changed in place
        values.known = low, high, values._version
    return values


def everywhere(value, like, dtype=None):
    """A tensor [N] of N times the number `value`, which it remembers.

    :param like: [N, ...], whose length and device it has.
    :param dtype: by default int64 for an int, float64 for a float.
    """
    if dtype is None:
        dtype = torch.long if isinstance(value, int) else real(like.device)
    with torch.inference_mode(False):  # see `bounded`
        values = torch.full((len(like),), value, dtype=dtype, device=like.device)
    return bounded(values, value, value)


def real(device):
    """The dtype of levels and coefficients on a device: float64, but for Metal, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def bounds(values):
    """(low, high) of a number, or of the entries of a tensor as far as it remembers them."""
    if not isinstance(values, torch.Tensor):
        return values, values
    low, high, version = getattr(values, "known", (*UNKNOWN, None))
    return (low, high) if version is not None and version == values._version else UNKNOWN


def shared(values):
    """The number that all entries of a tensor [N] are, where it remembers one; else the tensor."""
    low, high = bounds(values)
    return low if low == high else values


def less(a, b):
    """a < b, of numbers or [N]: a bool where that is known, else bool [N]."""
    (a_low, a_high), (b_low, b_high) = bounds(a), bounds(b)
    if a_high < b_low or a_low >= b_high:
        return a_high < b_low
    return a < b


def either(a, b):
    """a or b, of bools or bool [N]."""
    if isinstance(a, bool):
        return a or b
    return either(b, a) if isinstance(b, bool) else a | b


def where(condition, yes, no):
    """`yes` where the condition (a bool, or bool [N]) holds, else `no`."""
    if isinstance(condition, bool):
        return yes if condition else no
    if not isinstance(yes, torch.Tensor) and not isinstance(no, torch.Tensor):
        no = torch.full_like(condition, no, dtype=real(condition.device))
    return torch.where(condition, yes, no)


def per_sample(values, x):
    """Shape values [N] as [N, 1, ..., 1] in x's dtype, to be multiplied with x [N, ...]; a number stays one."""
    if not isinstance(values, torch.Tensor):
        return values
    return values.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def combined(a, x, b, y):
    """a x + b y of numbers or [N] a and b, and x and y [N, C, ...], in two passes over memory.

    Numbers and tensors of them give the same bits: the second product is added in one rounding.
    """
    return add_(x * per_sample(a, x), b, y)


def add_(x, a, y):
    """x + a y of x and y [N, C, ...] and a number or [N] a, in the place of x."""
    if isinstance(a, torch.Tensor):
        return x.addcmul_(per_sample(a, x), y)
    return x.add_(y, alpha=a)


def ratio(a, b):
    """a / b, of numbers as of tensors: infinite or NaN where b is 0."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor) or b:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)


def sqrt(values):
    """The square root; of a number below 0, NaN."""
    if isinstance(values, torch.Tensor):
        return values.sqrt()
    return math.sqrt(values) if values >= 0 else math.nan


def at_least_zero(values):
    """The larger of the values and 0; a tensor that remembers that none is below is itself."""
    if not isinstance(values, torch.Tensor):
        return max(values, 0.0)
    low, high = bounds(values)
    return values if low >= 0 else bounded(values.clamp(min=0), 0, max(high, 0))


def expm1(values):
    """exp(values) - 1, exact near 0."""
    return values.expm1() if isinstance(values, torch.Tensor) else math.expm1(values)


def log(values):
    """The natural logarithm, -inf of 0."""
    if isinstance(values, torch.Tensor):
        return values.log()
    return math.log(values) if values > 0 else -math.inf
