"""How often a filled image is taken for its reference: top-1 retrieval by a judge that no training has seen.

    python benchmarks/swapped_identities.py --train data/digits.npz --data data/digits_heldout.npz runs/*/samples_*.npz

The samples are those of inpaint_sample.py without --reference_dir, one of each image of --data: image i is filled as
the image half the data further on says. The judge is scikit-learn's linear discriminant analysis of the pixels of
--train, shrunk by a tenth; an image is at the cosine of its projection. Of each sample the nearest image of --data is
looked up, but for the two that made it; it counts as found where that has the class of the reference. Pairs of one
class are left out. The first line is what the judge makes of the true images, each looked up among the others.
"""

import argparse

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis


def grey(images):
    """[N, H W] in 0..1 of uint8 images [N, H, W, C], the mean of their channels."""
    return images.mean(axis=3).reshape(len(images), -1) / 255.0


def directions(judge, images):
    """[N, D] of length 1 of uint8 images [N, H, W, C]."""
    projected = judge.transform(grey(images))
    return projected / np.linalg.norm(projected, axis=1, keepdims=True)


def found(queries, gallery, labels, wanted, own):
    """bool [N]: whether the nearest of the gallery has the class wanted, without those numbered `own` [N, k]."""
    likeness = queries @ gallery.T
    np.put_along_axis(likeness, own, -2, axis=1)
    return labels[likeness.argmax(axis=1)] == wanted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="npz of images with labels, which the judge learns")
    parser.add_argument("--data", required=True, help="npz of the images that were filled, with labels")
    parser.add_argument("samples", nargs="+", help="npz of samples")
    args = parser.parse_args()
    data = np.load(args.data)
    train = np.load(args.train)
    flat = grey(train["arr_0"])
    judge = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1).fit(flat, train["arr_1"])
    labels, count = data["arr_1"], len(data["arr_1"])
    gallery, targets = directions(judge, data["arr_0"]), np.arange(count)
    true = found(gallery, gallery, labels, labels, targets[:, None])
    print(f"{true.mean():.3f} of {count} true images")
    references = (targets + count // 2) % count
    other = labels[targets] != labels[references]
    for path in args.samples:
        queries = directions(judge, np.load(path)["arr_0"])
        if len(queries) != count:
            parser.error(f"{path} has {len(queries)} images; expected {count}, one of each of --data")
        hits = found(queries, gallery, labels, labels[references], np.stack([targets, references], axis=1))
        print(f"{hits[other].mean():.3f} of {other.sum()} samples  {path}")


if __name__ == "__main__":
    main()
