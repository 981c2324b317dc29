"""Real time of a whole run, with its start: two commands that a first reader runs, here and in another checkout.

    OMP_NUM_THREADS=1 python benchmarks/whole_run.py --against ../before [--ranks 2] [--rounds 3]

The commands are those of this project's first README: 100 digits by 100 steps of DDPM on so many ranks, and their
scores. Both checkouts run them on the network, classifier and digits of the other one, and take turns. Prints the
medians in seconds, and the median and range of the ratios other / this.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timing

HERE = Path(__file__).resolve().parents[1]


def run(tree, *words):
    """Seconds of a Python script of a checkout."""
    began = time.monotonic()
    told = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    subprocess.run(list(map(str, words)), cwd=tree, capture_output=True, check=True, env=told)
    return time.monotonic() - began


def commands(tree, models, data, ranks, out):
    """{what: its words}."""
    sampled = ["--model_path", models / "digits16.pt", "--num_samples", 100, "--batch_size", 50, "--out_dir", out]
    sampled += ["--classes", ",".join(map(str, range(10))), "--timestep_respacing", 100]
    scored = [data.with_suffix(".npz"), out, "--features", f"classifier:{models / 'digits16_classifier.pt'}"]
    python, launched = sys.executable, ["mpirun", "-n", ranks] if ranks > 1 else []
    return {
        "sampling": [*launched, python, tree / "scripts/image_sample.py", *sampled],
        "scoring": [python, tree / "evaluations/evaluator.py", *scored],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, help="the other checkout")
    parser.add_argument("--ranks", type=timing.at_least(1), default=2)
    parser.add_argument("--rounds", type=timing.at_least(1), default=3)
    args = parser.parse_args()
    print(f"{timing.described(timing.CPU)} a rank, {args.ranks} ranks")
    other = Path(args.against).resolve()
    took = {tree: {} for tree in (other, HERE)}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "digits")
        digits = [sys.executable, other / "datasets/digits.py", "--out_dir", data]
        run(other, *digits, "--image_size", 16, "--split", "train")
        for i in range(args.rounds):
            for tree in list(took)[:: 1 if i % 2 else -1]:
                out = Path(folder, f"{i}{tree.name}")
                for what, words in commands(tree, other / "models", data, args.ranks, out).items():
                    took[tree].setdefault(what, []).append(run(tree, *words))
    for seconds in took.values():
        seconds["both"] = list(map(sum, zip(*seconds.values())))
    for what in took[HERE]:
        pairs = list(zip(took[other][what], took[HERE][what]))
        ratios, (before, now) = [a / b for a, b in pairs], map(statistics.median, zip(*pairs))
        print(f"{what}: {before:.1f} s, here {now:.1f} s; ratio {statistics.median(ratios):.2f}", end="")
        print(f" ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
