"""Time of what the evaluator computes, against the way of pytorch-fid and torch-fidelity.

    python benchmarks/scoring.py [--rounds 5] [--size 64] [--batch_size 4] [--dimension 2048] [--points 4000]

Inception features of images, those of a noisy classifier (models/emoji32_classifier.pt), the Frechet distance of two
sets, and precision with recall, of random weights, images and features. The baselines are written here: Inception with
its normalisations, channels first; the classifier in the published style of network_speed.py; the distance by scipy's
square root of the product (pytorch-fid) and by its eigenvalues (torch-fidelity 0.4); neighbours by the whole matrix of
distances. Where pytorch-fid is installed its own network is a further baseline. Both take turns in one process, half of
the rounds in the other order; a round's ratio is baseline time / time here, of process CPU time (on a GPU: of wall
time). A line has the median of both in seconds, and the median ratio with its range.
"""

import argparse
import statistics
from pathlib import Path
from unittest import mock

import numpy as np
import scipy.linalg
import timing
import torch
import torch.nn.functional as F
from network_speed import published_style

from evaluations.features import ClassifierFeatures
from evaluations.fid import frechet_distance, moments_of
from evaluations.inception import SIZE, Inception
from evaluations.precision_recall import precision_recall
from guided_diffusion import checkpoints
from guided_diffusion.networks.classifier import last_layer

CLASSIFIER = Path(__file__).parents[1] / "models/emoji32_classifier.pt"


def channels_first(network):
    """The features of uint8 images [N, H, W, 3] as other libraries compute them, of the same weights."""
    network = network.to(memory_format=torch.contiguous_format)

    def resized(images):
        x = images.permute(0, 3, 1, 2).float().contiguous()
        return F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)

    return lambda images: network(resized(images))[0]


def pytorch_fid(weights, device):
    """As `channels_first`, by pytorch-fid itself; None where it is not installed."""
    try:
        from pytorch_fid import inception as theirs
    except (ImportError, RuntimeError):  # torchvision's error beside another torch
        return None
    with mock.patch.object(theirs, "load_state_dict_from_url", lambda *args, **kwargs: weights):
        network = theirs.InceptionV3([3]).eval().to(device)
    return torch.no_grad()(
        lambda images: network((images.permute(0, 3, 1, 2).float() / 255).contiguous())[0].flatten(1)
    )


def in_published_style(classifier, device):
    """Its features, by a network that computes as the published code does."""
    features = ClassifierFeatures(classifier, device)
    features.classifier = published_style(classifier)
    features.last = last_layer(features.classifier)
    return features


def by_square_root(a, b):
    """The Frechet distance of two Moments by scipy's square root of the product."""
    (mean_a, cov_a), (mean_b, cov_b) = ((m.mean.numpy(), m.covariance.numpy()) for m in (a, b))
    return np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)


def by_eigenvalues(a, b):
    """The same by the eigenvalues of the product."""
    (mean_a, cov_a), (mean_b, cov_b) = ((m.mean.numpy(), m.covariance.numpy()) for m in (a, b))
    common = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).astype(complex)).real.sum()
    return np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * common


def by_whole_matrices(reference, samples, k=3):
    """Precision and recall by all distances at once."""
    radii = [torch.cdist(x, x).kthvalue(k + 1, dim=1).values for x in (reference, samples)]
    between = torch.cdist(reference, samples)
    inside = (between <= radii[0][:, None]).any(dim=0), (between <= radii[1]).any(dim=1)
    return tuple(float(each.float().mean()) for each in inside)


def features(seed, count, dimension, device):
    """float32 [count, dimension] above 0 with a covariance that falls off."""
    random = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -2, dimension)
    return (torch.randn(count, dimension, generator=random) * spread + 0.3).relu().to(device)


def rows(args):
    """(name of the baseline, baseline, the same here) of each line."""
    torch.manual_seed(0)
    network, plain = Inception().eval().to(args.device), Inception().eval()
    plain.load_state_dict(network.state_dict())
    images = torch.randint(256, (args.batch_size, args.size, args.size, 3), dtype=torch.uint8, device=args.device)
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    baselines = {
        "channels first": channels_first(plain.to(args.device)),
        "pytorch-fid": pytorch_fid(weights, args.device),
    }
    network.fold()
    for name, baseline in baselines.items():
        if baseline is not None:
            title = f"Inception, {args.batch_size} images of {args.size}x{args.size}: {name}"
            yield title, lambda baseline=baseline: baseline(images), lambda: network(images)[0]
    classifier = checkpoints.open_network(str(CLASSIFIER), expected="classifier")[0].to(args.device)
    small = torch.randint(256, (16 * args.batch_size, *classifier.shape[1:], 3), dtype=torch.uint8, device=args.device)
    baseline, fast = in_published_style(classifier, args.device), ClassifierFeatures(classifier, args.device)
    yield f"a classifier, {len(small)} images of 32x32", lambda: baseline(small), lambda: fast(small)
    pair = [moments_of(features(seed, args.count, args.dimension, "cpu")) for seed in (1, 2)]
    for name, baseline in (("sqrtm", by_square_root), ("eigenvalues", by_eigenvalues)):
        title = f"Frechet distance, on the CPU, {args.dimension} dimensions: {name}"
        yield title, lambda baseline=baseline: baseline(*pair), lambda: frechet_distance(*pair)
    sets = [features(seed, args.points, args.dimension, args.device) for seed in (3, 4)]
    title = f"precision and recall, {args.points} and {args.points}: whole matrices"
    yield title, lambda: by_whole_matrices(*sets), lambda: precision_recall(*sets)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=timing.at_least(1), default=5)
    parser.add_argument("--size", type=timing.at_least(1), default=64, help="of the images")
    parser.add_argument("--batch_size", type=timing.at_least(1), default=4)
    parser.add_argument(
        "--count", type=timing.at_least(5), default=5000, help="of the features whose distance is taken"
    )
    parser.add_argument("--points", type=timing.at_least(5), default=4000, help="of those for precision and recall")
    parser.add_argument("--dimension", type=timing.at_least(1), default=2048)
    parser.add_argument("--device", type=timing.device, default=timing.CPU)
    args = parser.parse_args()
    print(f"{timing.described(args.device)}, {args.rounds} rounds")
    print(f"{'':64}{'baseline':>10}{'here':>10}{'ratio':>8}  (smallest to largest)")
    for name, *calls in rows(args):
        for call in calls:
            call()  # warms up
        taken = timing.in_turn(dict(enumerate(calls)), args.rounds, args.device)
        then, now = map(statistics.median, taken.values())
        median, least, most = timing.ratio(*taken.values())
        print(f"{name:64}{then:10.3f}{now:10.3f}{median:8.2f}  ({least:.2f} to {most:.2f})")


if __name__ == "__main__":
    main()
