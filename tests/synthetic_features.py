"""Feature matrices from a seed, for which guided-diffusion's evaluator printed the numbers in golden_metrics.json.

Random draws are of numpy's frozen RandomState stream, and all else is + - *, so the same bits come out everywhere.
"""

import json
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data" / "evaluator"
GOLDEN = json.loads((DATA / "golden_metrics.json").read_text())["synthetic_features"]


def draw(seed, count, dimension, factors=96, strengths=(0.55, 0.45, 0.30), shift=0.0):
    """float32 [count, dimension], at least 0: two of `factors` hidden variables each and noise, by strength."""
    random = np.random.RandomState(seed).random_sample
    hidden, noise = random((count, factors)) - 0.5, random((count, dimension)) - 0.5
    column = np.arange(dimension)
    first, second, third = strengths
    mixed = 0.35 + shift + first * hidden[:, column % factors] + second * hidden[:, (7 * column + 3) % factors]
    return torch.from_numpy(np.maximum(mixed + third * noise, 0).astype(np.float32))


def for_inception_score():
    """[5300, 2048]: a full split of 5,000 rows and a short one."""
    return draw(902, 5300, 2048, strengths=(0.9, 0.8, 0.4))


def within_a_block():
    """[1500, 2048] and [1200, 2048]; some goldens are of their first rows."""
    return draw(921, 1500, 2048), draw(922, 1200, 2048, strengths=(0.55, 0.45, 0.33), shift=0.01)


def across_blocks():
    """[10500, 64] and [10100, 64]: more than a block of 10,000, with one row each that overflows float16."""
    reference, samples = draw(911, 10500, 64, factors=24), draw(912, 10100, 64, 24, (0.55, 0.45, 0.36), 0.02)
    reference[10400] *= 200
    samples[10050] *= 150
    return reference, samples


def for_other_library():
    """A reference [500, 96], samples [500, 96] and logits [800, 40]."""
    return draw(21, 500, 96), draw(22, 500, 96, shift=0.02), 4 * draw(23, 800, 40)
