"""The Inception score as guided-diffusion's evaluator printed it, and where that printed nan."""

import numpy as np
import pytest
import torch
from inception_recipe import graph_weights
from synthetic_features import GOLDEN, draw, for_inception_score

from evaluations.inception_score import inception_score


@pytest.fixture(scope="module")
def weights():
    return torch.from_numpy(graph_weights()["softmax/weights"])


@pytest.mark.parametrize(
    "golden, rows, split",
    [("IS_5300x2048_split5000", 5300, 5000), ("IS_first700", 700, 5000), ("IS_split1000", 5300, 1000)],
)
def test_published_values(weights, golden, rows, split):
    found = inception_score(for_inception_score()[:rows], weights, split)
    assert found.value == pytest.approx(float(GOLDEN[golden]), rel=3e-7)
    assert found.zeros == 0


def test_what_underflows_is_finite_and_counted(weights):
    assert GOLDEN["IS_underflow_x8_nan"] == "nan"
    features = for_inception_score()[:600] * 8
    p = (features.double() @ weights.double()).softmax(dim=1)
    expected = (p * (p.log() - p.mean(dim=0).log())).sum(dim=1).mean().exp()
    found = inception_score(features, weights)
    assert found.value == pytest.approx(float(expected), rel=1e-4)
    assert found.zeros > 0


def test_a_certain_and_even_answer_scores_the_number_of_classes():
    found = inception_score(torch.eye(10).repeat(4, 1), 1000 * torch.eye(10))
    assert found.value == pytest.approx(10) and found.zeros == 40 * 9


def test_equal_images_score_one():
    assert inception_score(draw(1, 1, 30).repeat(5, 1), draw(2, 30, 8)).value == pytest.approx(1, abs=1e-6)
    assert np.isfinite(inception_score(draw(1, 1, 30), draw(2, 30, 8)).value)
