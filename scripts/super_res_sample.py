"""Enlarge images with a super-resolution network.

mpirun -n 2 python scripts/super_res_sample.py --model_path runs/super_res_train/ema_0.9999_005000.pt \\
    --base_samples runs/image_sample/samples_100x16x16x3.npz --num_samples 100 --timestep_respacing 50
"""

import image_sample

from guided_diffusion import checkpoints, conditioning, logger
from guided_diffusion.conditioning.low_resolution import LowResolution
from guided_diffusion.generate import SampleFlags, batch_maker, noise_of
from guided_diffusion.jobs import launch, sampling
from guided_diffusion.networks import SuperResFlags, UNetFlags

GROUPS = [*conditioning.sampling_groups(SuperResFlags), SuperResFlags]
GROUPS += [group for group in image_sample.GROUPS if group not in conditioning.sampling_groups(UNetFlags)]
OVERRIDES = {"image_size": None}


def main(parsed):
    noise = noise_of(parsed)
    parsed, network, process = checkpoints.load_diffusion(parsed)
    told, flags = conditioning.of_sampling(parsed), parsed[SampleFlags]
    (count,) = (len(part.base) for part in told.parts if isinstance(part, LowResolution))
    if flags.num_samples > count:
        logger.log(f"--base_samples holds {count} images: they are taken in turn")
    sampling.run(parsed, process, batch_maker(process, network, told, noise))


if __name__ == "__main__":
    launch.run("super_res_sample", __doc__, GROUPS, main, OVERRIDES)
