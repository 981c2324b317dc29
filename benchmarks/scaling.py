"""Cost and memory of an image by batch, steps, size and ranks, against the published style on the same network.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py [--sweeps batch,steps,size,ranks] [--rounds 3] [--out_dir benchmarks]

The network is `tiny` of network_speed.py, which has the published style too, with attention at sides 16 and 8; images
come from DDIM. A point is a process of its own, so that its peak of memory is its own; published style and here take
turns, and a point has the medians of the rounds and the range of their processor time without the start. Ranks are
those of mpirun and scripts/image_sample.py on models/emoji32.pt, in real time, the start taken off by runs of two
lengths. Writes scaling.csv, in which the rows of other sweeps stay, and scaling.png.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timing
import torch
from network_speed import ADM, NETWORKS, published_style
from plotting import pyplot
from torch.utils.flop_counter import FlopCounterMode

from guided_diffusion import networks
from guided_diffusion.script_util import create_gaussian_diffusion
from guided_diffusion.solvers import SOLVERS
from guided_diffusion.unet import UNetModel

ROOT = Path(__file__).parents[1]
# (batch, steps, size) of each
SWEEPS = {
    "batch": [(batch, 5, 32) for batch in (1, 2, 8, 32, 128, 512)],
    "steps": [(8, steps, 32) for steps in (5, 20, 100, 1000)],
    "size": [(1, 5, size) for size in (32, 64, 128, 256)],
}
STYLES = ("published style", "here")
COLUMNS = ("sweep", "batch", "steps", "size", "ranks", "style", "GFLOP an image", "s an image", "range", "peak MB")


def network(size):
    torch.manual_seed(0)
    attention = tuple(size // side for side in (16, 8))
    tiny = NETWORKS["tiny"][0] | {"image_size": size, "attention_resolutions": attention}
    return UNetModel(**ADM, **tiny).eval()


def gflop(size):
    """Of a network call for one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        published_style(network(size))(torch.zeros(1, 3, size, size), torch.zeros(1))
    return counter.get_total_flops() / 1e9


def run_point(style, batch, steps, size):
    """Print processor seconds an image and the peak of memory above that of a process with the network alone, in MB."""
    model = network(size)
    fast = published_style(model) if style == STYLES[0] else networks.for_inference(model)
    diffusion = create_gaussian_diffusion(timestep_respacing=str(steps), learn_sigma=True)
    solver, denoise = SOLVERS["ddim"](diffusion.schedule), diffusion.denoiser(fast)
    x = torch.randn(batch, 3, size, size)
    before = timing.high_water()
    with torch.no_grad():
        denoise(x[:1], torch.tensor([500]))
    took = timing.seconds(lambda: [None for _ in diffusion.sample_records(solver, denoise, x)])
    print(took / batch, timing.high_water() - before)


def measured(point, rounds):
    """{style: (s an image, its range, peak MB)}: medians."""
    found = {style: [] for style in STYLES}
    for i in range(rounds):
        for style in STYLES[:: 1 if i % 2 else -1]:
            command = [sys.executable, __file__, "--point", style, *map(str, point)]
            said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
            found[style].append(tuple(map(float, said.split())))
    columns = {style: zip(*values) for style, values in found.items()}
    return {style: (*of_rounds(took), statistics.median(peaks)) for style, (took, peaks) in columns.items()}


def of_rounds(values):
    """The median and, in words, the range."""
    return statistics.median(values), f"{min(values):.4g} to {max(values):.4g}"


def seconds_of_ranks(ranks, rounds):
    """Real seconds an image, and their range, of scripts/image_sample.py on so many ranks."""
    sampler = ["--model_path", str(ROOT / "models/emoji32.pt"), "--use_ddim", "True", "--timestep_respacing", "20"]

    def took(images):
        with tempfile.TemporaryDirectory() as folder:
            told = [*sampler, "--num_samples", str(images), "--batch_size", "16", "--out_dir", folder]
            began = time.monotonic()
            command = ["mpirun", "-n", str(ranks), sys.executable, str(ROOT / "scripts/image_sample.py"), *told]
            subprocess.run(command, capture_output=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            return time.monotonic() - began

    return of_rounds([(took(160) - took(32)) / 128 for _ in range(rounds)])


def rows_of(sweeps, rounds):
    calls = {}
    for sweep in sweeps:
        if sweep == "ranks":
            for ranks in (1, 2):
                took = seconds_of_ranks(ranks, rounds)
                yield dict(zip(COLUMNS, (sweep, 16, 20, 32, ranks, STYLES[1], "", *took, "")))
            continue
        for batch, steps, size in SWEEPS[sweep]:
            calls[size] = calls.get(size) or gflop(size)
            for style, found in measured((batch, steps, size), rounds).items():
                yield dict(zip(COLUMNS, (sweep, batch, steps, size, 1, style, steps * calls[size], *found)))


def with_others(path, rows):
    """The rows {column: text}, after those of a csv that are of other sweeps."""
    known = list(csv.DictReader(path.open())) if path.exists() else []
    measured = {row["sweep"] for row in rows}
    return [row for row in known if row["sweep"] not in measured] + rows


# (the sweeps of a panel, what lies to the right, what upwards)
PANELS = (
    (("batch",), "batch", "s an image"),
    (("batch",), "batch", "peak MB"),
    (("steps",), "steps", "s an image"),
    (("size",), "size", "s an image"),
    (("size",), "size", "peak MB"),
    (("steps", "size"), "GFLOP an image", "s an image"),
)


def draw(rows, path):
    """The PANELS, both axes logarithmic."""
    plt = pyplot()
    from matplotlib.ticker import LogLocator

    figure, panels = plt.subplots(1, len(PANELS), figsize=(3 * len(PANELS), 3.2), layout="constrained")
    for panel, (sweeps, x, y) in zip(panels, PANELS):
        shown = [row for row in rows if row["sweep"] in sweeps]
        for style in STYLES:
            points = sorted((float(row[x]), float(row[y])) for row in shown if row["style"] == style)
            panel.plot(*zip(*points), "o" if len(sweeps) > 1 else "o-", label=style)
        panel.set(xlabel=x, ylabel=y, xscale="log", yscale="log")
        if len(sweeps) == 1:
            panel.set_xticks(sorted({float(row[x]) for row in shown}))
        panel.minorticks_off()
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(STYLES))
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=timing.some_of([*SWEEPS, "ranks"]), default=[*SWEEPS, "ranks"])
    parser.add_argument("--rounds", type=timing.at_least(1), default=3)
    parser.add_argument("--out_dir", default=str(Path(__file__).parent))
    parser.add_argument("--point", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        run_point(arguments.point[0], *map(int, arguments.point[1:]))
        return
    path = Path(arguments.out_dir, "scaling.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{timing.described(timing.CPU)}\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    rows = []
    for row in rows_of(arguments.sweeps, arguments.rounds):
        rows.append(row)
        print(
            "| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |", flush=True
        )
    rows = [{k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows]
    rows = with_others(path, rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if set(SWEEPS) <= {row["sweep"] for row in rows}:
        draw(rows, Path(arguments.out_dir, "scaling.png"))


if __name__ == "__main__":
    main()
