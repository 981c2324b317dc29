"""Measure the exposure bias of samplers: along sampling, and at true states beside it, with standard errors.

python datasets/digits.py --out_dir data/digits --image_size 16 --split train
mpirun -n 2 python scripts/exposure_bias.py --model_path models/digits16.pt --data_dir data/digits --num_samples 32 \\
    --use_ddim True --steps 20 --out_dir runs/bias
mpirun -n 2 python scripts/exposure_bias.py --model_path models/digits16.pt --data_dir data/digits --num_samples 100 \\
    --settings benchmarks/samplers_quick.txt --steps 10,20 --out_dir runs/bias_of_some

Writes exposure_bias.csv (a line for each kept timestep of each setting: the length of the predicted noise, delta_t, the
variance of the states, the errors of the predictions, each with its standard error), exposure_bias.json, and a figure.
What each measure can and cannot show stands in its file in evaluations/exposure/measures/.

Settings files are those of compare_samplers; without one, the flags of the command line are the sampler. A network
with classes is told those of the real images. The same command, run again in its folder, goes on where it ended.
"""

import image_sample

from evaluations.comparison import SettingsFlags
from evaluations.exposure import measure
from guided_diffusion import checkpoints
from guided_diffusion.conditioning.classes import ClassFlags
from guided_diffusion.generate import RngFlags
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch
from guided_diffusion.jobs.sampling import ShardFlags

# of a sampler
SAMPLER = [group for group in image_sample.GROUPS if group not in (RngFlags, ShardFlags, ClassFlags)]
# what a line of the settings file may set
LINE = [*SAMPLER, *checkpoints.GUIDANCE]
GROUPS = [*LINE, DataFlags, SettingsFlags]
OVERRIDES = {"num_samples": 32, "steps": "20", "random_flip": None, "random_crop": None, "num_workers": None}


def main(parsed):
    measure(parsed, LINE)


if __name__ == "__main__":
    launch.run("exposure_bias", __doc__, GROUPS, launch.alone(main), OVERRIDES)
