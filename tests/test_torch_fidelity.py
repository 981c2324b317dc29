"""The scores against torch-fidelity's of the same features, which benchmarks/torch_fidelity_scores.py recorded."""

import json

import pytest
import torch
from synthetic_features import DATA, for_other_library

from evaluations.fid import frechet_distance, moments_of
from evaluations.inception_score import inception_score
from evaluations.kid import kid
from evaluations.precision_recall import precision_recall

RECORDED = json.loads((DATA / "torch_fidelity.json").read_text())


def test_scores_of_another_library():
    reference, samples, logits = for_other_library()
    precision, recall = precision_recall(reference, samples)
    found = {
        "fid": frechet_distance(moments_of(reference), moments_of(samples)),
        "kid": kid(reference, samples)[0],
        "inception_score": inception_score(logits, torch.eye(40)).value,
        "precision": precision,
        "recall": recall,
    }
    assert found == pytest.approx({name: RECORDED[name] for name in found}, rel=1e-6)
    assert 0 < precision < 1 and 0 < recall < 1
