"""What torch-fidelity makes of the features in tests/synthetic_features.py; tests/test_torch_fidelity.py compares.

torch-fidelity needs a torchvision that installs beside no CPU build of our torch, so it has an environment of its own:

    python3 -m venv /tmp/fidelity && /tmp/fidelity/bin/pip install torch-fidelity==0.4.0
    PYTHONPATH=tests /tmp/fidelity/bin/python benchmarks/torch_fidelity_scores.py > torch_fidelity.json

The file lies in tests/data/evaluator.
"""

import json

import torch
import torch_fidelity
from synthetic_features import for_other_library
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc


def main():
    reference, samples, logits = for_other_library()
    statistics = [metric_fid.fid_features_to_statistics(features) for features in (samples, reference)]
    whole = {"kid_subsets": 1, "kid_subset_size": len(samples), "verbose": False}
    neighbours = metric_prc.prc_features_to_metric(samples, reference, prc_neighborhood=3, verbose=False)
    found = {
        "torch_fidelity": torch_fidelity.__version__,
        "torch": torch.__version__,
        "fid": metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
        "kid": metric_kid.kid_features_to_metric(samples.double(), reference.double(), **whole)[
            "kernel_inception_distance_mean"
        ],
        "inception_score": metric_isc.isc_features_to_metric(logits, 1, False)["inception_score_mean"],
        "precision": neighbours["precision"],
        "recall": neighbours["recall"],
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
