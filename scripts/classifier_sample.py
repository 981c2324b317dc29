"""Sample images under the guidance of a classifier of noisy images.

mpirun -n 2 python scripts/classifier_sample.py --model_path models/digits16.pt \\
    --classifier_path models/digits16_classifier.pt --classifier_scale 1 --num_samples 100 --timestep_respacing 50
"""

import image_sample

from guided_diffusion.jobs import launch
from guided_diffusion.methods import ClassifierGuidance
from guided_diffusion.networks import ClassifierFlags

GROUPS = [*image_sample.GROUPS, ClassifierGuidance, ClassifierFlags]


if __name__ == "__main__":
    launch.run("classifier_sample", __doc__, GROUPS, image_sample.main)
