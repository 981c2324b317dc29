"""Sample images under the guidance of a classifier of noisy images.

mpirun -n 2 python scripts/classifier_sample.py --model_path models/digits16.pt \\
    --classifier_path models/digits16_classifier.pt --classifier_scale 1 --num_samples 100 --timestep_respacing 50
"""

from dataclasses import dataclass

from guided_diffusion import checkpoints, dist_util
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.flags import FlagGroup, at_least, flag
from guided_diffusion.generate import (
    ClassFlags,
    IndexedNoise,
    SampleFlags,
    as_arrays,
    chosen_classes,
    labels_of,
    make_images,
    with_classes_counted,
)
from guided_diffusion.jobs import launch
from guided_diffusion.jobs.sampling_job import ShardFlags, generate_images
from guided_diffusion.methods.classifier_guidance import ClassifierGradient
from guided_diffusion.networks import ClassifierFlags, UNetFlags
from guided_diffusion.script_util import SAMPLING_METHODS, DiffusionFlags
from guided_diffusion.solver_flags import SolverFlags


@dataclass
class GuidanceFlags(FlagGroup):
    """Classifier guidance."""

    classifier_path: str = flag("", "Checkpoint of the noisy classifier.", content=True)
    classifier_scale: float = flag(1.0, "Weight of the classifier's gradient; 0 is no guidance.", legal=at_least(0))


GROUPS = [
    CheckpointFlags,
    GuidanceFlags,
    SampleFlags,
    ShardFlags,
    SolverFlags,
    ClassFlags,
    UNetFlags,
    ClassifierFlags,
    DiffusionFlags,
    *SAMPLING_METHODS,
]


def main(parsed):
    guidance = parsed[GuidanceFlags]
    parsed, model, diffusion = checkpoints.load_diffusion(parsed)
    parsed, classifier = checkpoints.load_classifier(parsed, guidance.classifier_path)
    unet, num_classes = parsed[UNetFlags], parsed[ClassifierFlags].num_classes
    parsed = with_classes_counted(parsed, num_classes)
    flags, classes = parsed[SampleFlags], chosen_classes(parsed[ClassFlags].classes, num_classes)
    gradient = ClassifierGradient(classifier, guidance.classifier_scale)

    def make_batch(indices):
        noise = IndexedNoise(flags.seed, indices)
        y = labels_of(noise, indices, classes, num_classes).to(dist_util.dev())
        images = make_images(
            diffusion,
            model,
            parsed[SolverFlags],
            noise,
            model.shape,
            flags.clip_denoised,
            model_kwargs={"y": y} if unet.class_cond else {},
            cond_fn=lambda x, t, **_: gradient(x, t, y),
        )
        return as_arrays(images, y)

    generate_images(parsed, diffusion, make_batch)


if __name__ == "__main__":
    launch.run("classifier_sample", __doc__, GROUPS, main)
