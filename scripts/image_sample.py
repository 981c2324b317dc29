"""Sample images from a diffusion network.

mpirun -n 2 python scripts/image_sample.py --model_path models/digits16.pt --num_samples 100 --timestep_respacing 50
python scripts/image_sample.py --model_path models/digits16.pt --classes 3,7 --per_class 50 --timestep_respacing 25
"""

from guided_diffusion import checkpoints, conditioning, logger, methods
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.conditioning import classes
from guided_diffusion.generate import RngFlags, SampleFlags, batch_maker, noise_of
from guided_diffusion.jobs import launch, sampling
from guided_diffusion.jobs.sampling import ShardFlags
from guided_diffusion.networks import ConvFlags, UNetFlags
from guided_diffusion.process import DiffusionFlags, SpacingFlags
from guided_diffusion.solvers.flags import SolverFlags

GROUPS = [
    CheckpointFlags,
    SampleFlags,
    RngFlags,
    ShardFlags,
    SolverFlags,
    *conditioning.sampling_groups(UNetFlags),
    UNetFlags,
    ConvFlags,
    DiffusionFlags,
    SpacingFlags,
    *methods.of_sampling(),
]


def main(parsed, name=None):
    """Sample and save; `name(parsed)` is the file name of the npz, by default samples_NxHxWxC.npz."""
    noise = noise_of(parsed)
    parsed, network, process = checkpoints.load_diffusion(parsed)
    parsed = classes.with_classes_counted(parsed)
    for sentence in classes.advice(parsed):
        logger.warn(sentence)
    make_batch = batch_maker(process, network, conditioning.of_sampling(parsed), noise)
    sampling.run(parsed, process, network, make_batch, name and name(parsed))


if __name__ == "__main__":
    launch.run("image_sample", __doc__, GROUPS, main)
