"""Moving averages of weights: their rate at each step, and how much of the first weights they still hold."""

import math


def rate_at(rate, step, warmup=False):
    """The rate of the update after `step` earlier ones; warming up it begins at 0.1 and grows to `rate`."""
    return min(rate, (1 + step) / (10 + step)) if warmup else rate


def initial_share(rate, steps, warmup=False):
    """The share, 0 to 1, of the first weights in an average after `steps` updates: the product of their rates."""
    grown = (10 * rate - 1) / (1 - rate) if rate < 1 else math.inf  # from this step on the rate is the whole one
    low = math.ceil(max(0, min(steps, grown))) if warmup else 0
    # the product of (1 + n) / (10 + n) over n below `low`
    begun = math.exp(math.lgamma(low + 1) + math.lgamma(10) - math.lgamma(low + 10))
    return begun * rate ** (steps - low)


def young(rate, steps, warmup=False):
    """What is to be said of an average that is still more than 1 % of its first weights; "" of one that is not."""
    share = initial_share(rate, steps, warmup)
    return f"is still {100 * share:.0f} % the weights it began with" if share > 0.01 else ""
