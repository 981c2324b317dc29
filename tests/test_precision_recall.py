"""Precision, recall, density and coverage: the published float16 rule, a second library, sets with known answers."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from synthetic_features import GOLDEN, across_blocks, draw, within_a_block
from torch.utils._python_dispatch import TorchDispatchMode

from evaluations import precision_recall
from evaluations.distances import fp16, fp32
from evaluations.precision_recall import density_coverage, radii
from evaluations.precision_recall import precision_recall as scores


def golden(name):
    return [float(x) for x in GOLDEN[name]]


def published_norms(features):
    """The order in which TensorFlow sums 2048 float16 squares on a CPU, in numpy, one lane at a time."""
    squares = (features.astype(np.float32) ** 2).astype(np.float16)
    halves = []
    for half in (squares[:, :1024], squares[:, 1024:]):
        lanes = np.zeros((4, 8, len(features)), np.float16)
        for i in range(1024):
            lanes[i // 8 % 4, i % 8] += half[:, i]
        eight = (((lanes[0] + lanes[1]) + lanes[2]) + lanes[3]).astype(np.float32)
        four = eight[:4] + eight[4:]
        two = four[:2] + four[2:]
        halves.append((two[0] + two[1]).astype(np.float16))
    return halves[0] + halves[1]


def test_float16_distances_follow_the_published_rounding():
    u, v = draw(1, 9, 2048), draw(2, 7, 2048)
    a, b = u.numpy().astype(np.float16), v.numpy().astype(np.float16)
    products = (a.astype(np.float32) @ b.astype(np.float32).T).astype(np.float16)
    expected = (published_norms(a)[:, None] - np.float16(2) * products) + published_norms(b)
    found = fp16(u, v)
    assert found.dtype == torch.float16
    assert np.array_equal(found, np.maximum(expected, 0))
    assert not np.array_equal(found, fp32(u, v).half())  # it is another rule


def test_one_overflow_sends_the_block_to_float32():
    u, v = draw(1, 9, 2048), draw(2, 7, 2048)
    u[3] *= 40
    assert torch.equal(fp16(u, v), fp32(u, v))


def test_float32_distances_are_distances():
    u, v = draw(1, 9, 100), draw(2, 7, 100)
    assert torch.allclose(fp32(u, v), torch.cdist(u.double(), v.double()).square().float(), rtol=1e-4)


def test_published_values_within_a_block():
    """Sixteen times as large, they overflow float16."""
    sets = within_a_block()
    assert list(scores(*sets, fp16)) == golden("PR_1500_1200_d2048_fp16path")
    assert list(scores(*sets, fp32)) != golden("PR_1500_1200_d2048_fp16path")
    larger = [16 * features for features in sets]
    assert list(scores(*larger, fp16)) == golden("PR_1500_1200_d2048_x16_fp32path")


@pytest.mark.slow
def test_published_values_across_blocks():
    found = scores(*across_blocks(), fp16)
    assert list(found) == golden("PR_blocks_10500_10100_d64")
    assert list(scores(*across_blocks(), fp32)) != list(found)


def neighbours(features, k):
    """The squared radii [N] by scikit-learn, in float64."""
    distances, _ = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(features).kneighbors(features)
    return distances[:, k] ** 2


@pytest.fixture(params=[10000, 70], ids=["one block", "many blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(precision_recall, "BLOCK", request.param)


def test_scores_by_scikit_learn(block):
    reference, samples = draw(3, 200, 50), draw(4, 150, 50, shift=0.03)
    real, made = reference.double().numpy(), samples.double().numpy()
    between = ((real[:, None] - made[None]) ** 2).sum(axis=2)
    assert np.allclose(radii(reference, fp32), neighbours(real, 3), rtol=1e-4)
    precision = (between <= neighbours(real, 3)[:, None]).any(axis=0).mean()
    recall = (between <= neighbours(made, 3)).any(axis=1).mean()
    assert scores(reference, samples) == (precision, recall)
    inside = between <= neighbours(real, 5)[:, None]
    assert density_coverage(reference, samples) == (inside.sum() / (5 * 150), inside.any(axis=1).mean())
    assert 0 < precision < 1 and 0 < recall < 1 and 0 < inside.any(axis=1).mean() < 1


@pytest.mark.parametrize("distance", [fp16, fp32])
def test_a_set_against_itself(distance):
    features = within_a_block()[0][:400]
    assert list(scores(features, features, distance)) == golden("PR_identical_400_fp16path") == [1, 1]


def test_the_smallest_sets():
    """Five and four rows: each ball reaches the farthest of its set."""
    reference, samples = within_a_block()
    assert list(scores(reference[:5], samples[:4], fp16)) == golden("PR_n5_n4") == [1, 1]


def test_collapsed_samples_are_precise_and_reach_nothing():
    reference = draw(8, 300, 40)
    collapsed = reference[:1] + 1e-3 * draw(9, 200, 40)
    precision, recall = scores(reference, collapsed)
    assert precision == 1 and recall < 0.02
    density, coverage = density_coverage(reference, collapsed)
    assert density >= 0.2 and coverage < 0.1
    precision, recall = scores(collapsed, reference)
    assert precision < 0.02 and recall == 1


def test_equal_images_are_inside_each_other():
    assert scores(torch.ones(6, 64), torch.ones(5, 64), fp16) == (1, 1)
    assert density_coverage(torch.ones(6, 64), torch.ones(5, 64)) == (6 / 5, 1)
    assert scores(torch.ones(6, 64), torch.zeros(5, 64)) == (0, 0)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **kwargs or {})
        for each in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(each, torch.Tensor):
                self.size = max(self.size, each.numel())
        return found


@pytest.mark.parametrize("distance", [fp16, fp32])
@pytest.mark.parametrize("count", [1500, 3000])
def test_memory_has_a_strip_of_the_distances(count, distance, monkeypatch):
    monkeypatch.setattr("evaluations.distances.STRIP", 50)
    monkeypatch.setattr(precision_recall, "BLOCK", 1000)
    reference, samples = draw(1, count, 16, factors=8), draw(2, count, 16, factors=8)
    with Largest() as seen:
        scores(reference, samples, distance)
        density_coverage(reference, samples)
    assert seen.size <= max(50 * 1000, 16 * count)


@pytest.mark.parametrize("strip", [7, 100, 1000])
def test_strips_change_nothing(strip, monkeypatch):
    # of which every product is exact, in whatever order a processor adds
    reference, samples = ((8 * features).round() / 8 for features in within_a_block())
    expected = [
        fp16(reference[:90], samples[:80]),
        radii(reference[:90], fp16),
        scores(reference[:90], samples[:80], fp16),
    ]
    monkeypatch.setattr("evaluations.distances.STRIP", strip)
    found = [
        fp16(reference[:90], samples[:80]),
        radii(reference[:90], fp16),
        scores(reference[:90], samples[:80], fp16),
    ]
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]) and found[2] == expected[2]
    reference = reference[:90].clone()
    reference[-1] *= 200  # the last strip overflows, so all are float32
    assert fp16(reference, samples[:80]).dtype == torch.float32
