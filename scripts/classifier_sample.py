"""Sample images under the guidance of a classifier of noisy images.

mpirun -n 2 python scripts/classifier_sample.py --model_path models/digits16.pt \\
    --classifier_path models/digits16_classifier.pt --classifier_scale 1 --num_samples 100 --timestep_respacing 50
"""

from dataclasses import replace

import image_sample

from guided_diffusion import checkpoints, conditioning
from guided_diffusion.conditioning.classes import with_classes_counted
from guided_diffusion.generate import batch_maker, noise_of
from guided_diffusion.jobs import launch, sampling
from guided_diffusion.methods import ClassifierGuidance
from guided_diffusion.networks import ClassifierFlags

GROUPS = [*image_sample.GROUPS, ClassifierGuidance, ClassifierFlags]


def main(parsed):
    noise = noise_of(parsed)
    parsed, network = checkpoints.load_network(parsed)
    guidance = parsed[ClassifierGuidance]
    parsed, classifier = checkpoints.load_classifier(parsed, guidance.classifier_path)
    process = checkpoints.load_process(parsed, replace(guidance, classifier=classifier))
    parsed = with_classes_counted(parsed)
    make_batch = batch_maker(process, network, conditioning.of_sampling(parsed), noise)
    sampling.run(parsed, process, network, make_batch)


if __name__ == "__main__":
    launch.run("classifier_sample", __doc__, GROUPS, main)
