"""Propose flags for a sampler from measurements of its exposure bias, and, with --refine, try them.

python datasets/digits.py --out_dir data/digits --image_size 16 --split train
mpirun -n 2 python scripts/tune_sampler.py --model_path models/digits16.pt --data_dir data/digits --use_ddim True \\
    --timestep_respacing 20 --num_samples 100 --out_dir runs/tuned
mpirun -n 2 python scripts/tune_sampler.py --model_path models/digits16.pt --data_dir data/digits --use_ddim True \\
    --timestep_respacing 20 --refine 500 --features classifier:models/digits16_classifier.pt --out_dir runs/tuned
python scripts/image_sample.py --model_path models/digits16.pt --preset runs/tuned/preset.json --num_samples 100

The sampler is that of the flags. Each of its methods proposes its own: a scaler by the lengths of the predicted noise,
a search and a constant shift of timesteps by the variance of the states. --refine N makes N images of each proposal and
of its neighbours, from the same noise, and compares them with those of --data_dir by --features; the sampler stays as
it is unless one gains more than two standard errors. What is measured and tried is kept, and the same command goes on.

Writes preset.json, which --preset reads in every sampling script; tuning.csv and tuning.md, all that was proposed and
tried; and a figure. Without --refine the preset holds the proposal of fewest flags.
"""

import exposure_bias

from evaluations.exposure.tuning import TuneFlags, tune
from evaluations.features import FeatureFlags
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch

GROUPS = [*exposure_bias.SAMPLER, DataFlags, TuneFlags, FeatureFlags]
OVERRIDES = {"num_samples": 100, "random_flip": None, "random_crop": None, "num_workers": None}


if __name__ == "__main__":
    launch.run("tune_sampler", __doc__, GROUPS, launch.alone(tune), OVERRIDES)
