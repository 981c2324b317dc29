"""What the time-shift search costs, as a share of one call of an embedded network, as fast as samplers call it.

python benchmarks/time_shift_overhead.py --model_path models/digits16.pt --batch_size 64 --window 80

Search and network call are timed in turn, round after round; medians over the rounds.
"""

import argparse
import statistics

import timing
import torch

from guided_diffusion import checkpoints, networks
from guided_diffusion.errors import UserError
from guided_diffusion.methods import TimeShift
from guided_diffusion.scalars import everywhere


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--batch_size", type=timing.at_least(1), default=64)
    parser.add_argument("--window", type=timing.at_least(2), default=80)
    parser.add_argument("--rounds", type=timing.at_least(1), default=15)
    parser.add_argument("--device", type=timing.device, default=timing.CPU)
    args = parser.parse_args()
    device = args.device
    try:
        model, process, flags = checkpoints.open_network(args.model_path, expected="diffusion")
    except UserError as error:
        parser.error(str(error))
    model, size = networks.for_inference(model.to(device)), flags["image_size"]
    x = torch.randn(args.batch_size, *model.shape, device=device)
    t = everywhere(process.grid[len(process.grid) // 2], x)
    kwargs = {"y": torch.zeros_like(t)} if flags["class_cond"] else {}
    search = TimeShift(do_time_shift=True, window=args.window, cutoff=0).variant(process).search
    calls = {"network": lambda: model(x, t, **kwargs), "search": lambda: search(x, t)}
    with torch.no_grad():
        for call in calls.values():
            call()
        taken = timing.in_turn(calls, args.rounds, device)
    median = {name: statistics.median(column) for name, column in taken.items()}
    share, least, most = (100 * value for value in timing.ratio(taken["search"], taken["network"]))
    print(
        f"{timing.described(device)}; {networks.described(networks.computing_by())}\n"
        f"{args.batch_size} images of {size}x{size} on {device}, window {args.window}: "
        f"network call {1e3 * median['network']:.2f} ms, search {1e3 * median['search']:.3f} ms, "
        f"share {share:.2f} % [{least:.2f}, {most:.2f}] of {args.rounds} rounds"
    )


if __name__ == "__main__":
    main()
