"""Compare samplers on the same noise: one picture, and one table of Frechet distances.

mpirun -n 2 python scripts/compare_samplers.py --model_path models/digits16.pt --steps 5,10 \\
    --settings benchmarks/samplers_quick.txt --reference data/digits.npz \\
    --features classifier:models/digits16_classifier.pt

Each line of the settings file is `NAME: flags of image_sample`, on top of those of the command line; lines that begin
with # are remarks. In the flags, {N} stands for the number of steps (--timestep_respacing is {N} unless given, and
has to keep N timesteps), {5:80 10:40} for 80 at 5 steps and 40 at 10, and {shift NAME} for the mean shift that the
time-shift searches of an earlier line chose at that number of steps, as the control of a search needs it. A line with
{sweep 0,1,4} stands for one with each of the values; a line, or the command line, with --classifier_path is guided.

With --calls 5,10 in place of --steps each sampler takes the most steps that cost no more network calls per image;
{5:80 10:40} then speaks of calls. The same command, run again in its folder, takes the rows that are finished.
"""

import image_sample

from evaluations.comparison import CompareFlags, SettingsFlags, compare
from evaluations.features import FeatureFlags
from guided_diffusion import checkpoints
from guided_diffusion.generate import RngFlags
from guided_diffusion.jobs import launch
from guided_diffusion.jobs.sampling import ShardFlags

# what a line of the settings file may set
SAMPLER = [group for group in image_sample.GROUPS if group not in (RngFlags, ShardFlags)]
SAMPLER += checkpoints.GUIDANCE
GROUPS = [*SAMPLER, SettingsFlags, CompareFlags, FeatureFlags]
OVERRIDES = {"num_samples": 500, "batch_size": 50, "per_class": None}


def main(parsed):
    compare(parsed, SAMPLER)


if __name__ == "__main__":
    launch.run("compare_samplers", __doc__, GROUPS, launch.alone(main), OVERRIDES)
