"""Time of the published class API outside of the network, here and in another checkout of this project.

    python benchmarks/class_api.py --against ../before [--batches 8,64,512] [--rounds 7]

Both trees run in a process of their own and take turns, so that a busy machine disturbs both alike; the network is a
constant. Prints milliseconds a step (CPU time of the process, median over rounds) and other / this.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

STEPS = 20
CASES = ("ddim_sample_loop", "p_sample_loop", "training_losses")


def serve():
    """Answer each line `case batch` on stdin with the milliseconds of one step."""
    import torch

    from guided_diffusion.script_util import create_gaussian_diffusion

    torch.set_num_threads(1)
    torch.manual_seed(0)
    flags = {"noise_schedule": "cosine", "learn_sigma": True}
    loops = create_gaussian_diffusion(**flags, timestep_respacing=str(STEPS))
    training = create_gaussian_diffusion(**flags)
    constants = {}
    for line in sys.stdin:
        case, batch = line.split()
        if batch not in constants:
            shape = (int(batch), 3, 32, 32)
            constants[batch] = torch.randn(shape), torch.randn(int(batch), 6, 32, 32) / 2
        x, output = constants[batch]

        def network(x, t, output=output, **cond):
            return output

        began = time.process_time()
        if case == "training_losses":
            for _ in range(STEPS):
                training.training_losses(network, x, torch.randint(0, training.num_timesteps, (len(x),)))
        else:
            getattr(loops, case)(network, x.shape, noise=x, device="cpu")
        print(json.dumps((time.process_time() - began) / STEPS * 1e3), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default=".", help="the other checkout; this one again shows the noise")
    parser.add_argument("--batches", default="8,64,512")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    trees = [Path(args.against).resolve(), Path(__file__).resolve().parents[1]]
    served = [
        subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tree in trees
    ]

    def ask(process, case, batch):
        print(case, batch, file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    print(f"torch {version('torch')}, 1 thread, cpu; {args.rounds} rounds")
    print(f"{'case':18} {'batch':>5} {'other ms':>9} {'this ms':>9} {'ratio':>6}  [min, max]")
    for case in CASES:
        for batch in args.batches.split(","):
            for process in served:
                ask(process, case, batch)
            rounds = [[ask(process, case, batch) for process in served] for _ in range(args.rounds)]
            ratios = [other / this for other, this in rounds]
            other, this = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(
                f"{case:18} {batch:>5} {other:9.3f} {this:9.3f} {statistics.median(ratios):6.2f}"
                f"  [{min(ratios):.2f}, {max(ratios):.2f}]",
                flush=True,
            )
    for process in served:
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
