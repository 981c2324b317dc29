"""Enlarge images with a super-resolution network.

mpirun -n 2 python scripts/super_res_sample.py --model_path runs/super_res_train/ema_0.9999_005000.pt \\
    --base_samples data/small_images --num_samples 100 --timestep_respacing 50
"""

import image_sample

from guided_diffusion import checkpoints, conditioning, logger
from guided_diffusion.base_samples import BaseFlags, located, open_base
from guided_diffusion.conditioning import Classes, LowResolution, Together
from guided_diffusion.generate import SampleFlags, batch_maker, noise_of
from guided_diffusion.image_labels import of_text
from guided_diffusion.jobs import launch, sampling
from guided_diffusion.networks import SuperResFlags, UNetFlags

GROUPS = [BaseFlags, *conditioning.sampling_groups(SuperResFlags), SuperResFlags]
GROUPS += [group for group in image_sample.GROUPS if group not in conditioning.sampling_groups(UNetFlags)]
OVERRIDES = {"image_size": None}


def main(parsed):
    noise = noise_of(parsed)
    parsed = parsed.with_values({"base_samples": located(parsed[BaseFlags].base_samples)})
    parsed, network, process = checkpoints.load_diffusion(parsed)
    unet, size = parsed[UNetFlags], parsed[SuperResFlags].small_size
    num_classes = unet.num_classes if unet.class_cond else 0
    names = of_text(unet.class_names)
    base, labels = open_base(parsed[BaseFlags].base_samples, size, num_classes, unet.image_channels, names)
    if parsed[SampleFlags].num_samples > len(base):
        logger.log(f"--base_samples holds {len(base)} images: they are taken in turn")
    classes = Classes(num_classes, labels.tolist()) if num_classes else None
    told = Together([LowResolution(size, base), classes, conditioning.of_sampling(parsed)])
    sampling.run(parsed, process, network, batch_maker(process, network, told, noise))


if __name__ == "__main__":
    launch.run("super_res_sample", __doc__, GROUPS, main, OVERRIDES)
