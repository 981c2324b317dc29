"""How fast Inception features are against pytorch-fid's, on the same images and random weights.

python benchmarks/inception_throughput.py --size 64 --batch_size 4 --rounds 7

Needs pytorch-fid and torchvision beside torch. Rounds alternate between the two; on the CPU, processor time is
compared too, which a busy machine does not change.
"""

import argparse
import statistics
import time
from unittest import mock

import torch

from evaluations.inception import Inception


def pytorch_fid_network(weights):
    """pytorch-fid's network as a function from uint8 images [N, H, W, 3] to features."""
    from pytorch_fid import inception as theirs

    with mock.patch.object(theirs, "load_state_dict_from_url", lambda *args, **kwargs: weights):
        network = theirs.InceptionV3([3]).eval()

    @torch.no_grad()
    def compute(images):
        # in the layout of its own loader
        return network((images.permute(0, 3, 1, 2).float() / 255).contiguous())[0].flatten(1)

    return network, compute


def seconds(compute, images):
    """(wall, processor) seconds per image."""
    wall, processor = time.perf_counter(), time.process_time()
    compute(images).cpu()
    return (time.perf_counter() - wall) / len(images), (time.process_time() - processor) / len(images)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    torch.manual_seed(0)
    ours = Inception().eval()
    network, theirs = pytorch_fid_network({name: value.contiguous() for name, value in ours.state_dict().items()})
    ours.to(args.device)
    network.to(args.device)
    images = torch.randint(256, (args.batch_size, args.size, args.size, 3), dtype=torch.uint8, device=args.device)
    runs = {"ours": lambda x: ours(x)[0], "pytorch-fid": theirs}
    taken = {name: [] for name in runs}
    for turn in range(args.rounds + 1):
        for name, compute in runs.items():
            found = seconds(compute, images)
            if turn:  # the first warms up
                taken[name].append(found)
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {args.size}x{args.size}")
    median = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in taken.items()}
    for name, (wall, processor) in median.items():
        print(f"{name:12} {wall:.4f} s an image, {processor:.4f} s of processor time (medians of {args.rounds})")
    for kind, i in (("wall", 0), ("processor", 1)):
        ratio = statistics.median(b[i] / a[i] for a, b in zip(taken["ours"], taken["pytorch-fid"]))
        print(f"throughput against pytorch-fid by {kind} time: {ratio:.2f}")


if __name__ == "__main__":
    main()
