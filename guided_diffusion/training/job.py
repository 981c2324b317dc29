"""The bodies of the training scripts."""

from dataclasses import replace

import numpy as np
import torch

from .. import checkpoints, conditioning, dist_util, logger, methods, objectives
from ..checkpoints import resume
from ..denoiser import refuse_untaken
from ..errors import UserError
from ..generate import preview_sampler
from ..images import to_uint8
from ..jobs import launch
from ..networks import ClassifierFlags, ConvFlags, UNetFlags, VaeFlags
from ..objectives import ClassifierObjective, ValidationFlags
from ..objectives.vae import VaeObjective
from ..process import DiffusionFlags, NoisingFlags
from ..script_util import diffusion_of
from .data import first_batch, next_batch, stream, training_images, with_facts
from .flags import AUTO, TrainFlags
from .log import line
from .loop import Loop
from .validation import held_out_losses

# images of a preview, at most
SHOWN = 16


def begin(parsed, network):
    """The Parsed flags of a run that begins or goes on; from here on its random numbers are drawn. For every rank.

    :param network: the Network that is trained.
    """
    parsed = resume.starting_point(_of_each_rank(parsed), network)
    seed_everything(parsed[TrainFlags])
    parsed[ConvFlags].apply(training=True)
    logger.show_lines(line)
    return parsed


def _of_each_rank(parsed):
    """The Parsed flags with --batch_size given, where --global_batch was."""
    total, ranks = parsed[TrainFlags].global_batch, dist_util.world_size()
    if not total:
        return parsed
    if total % ranks:
        raise UserError(f"--global_batch is {total}; expected a multiple of {ranks}, the number of ranks")
    return replace(parsed.with_values({"batch_size": total // ranks}), given=parsed.given | {"batch_size"})


def _run(goes, settings, objective, **given):
    """Train; or, in a dry run, take a step with the microbatch that it finds to fit.

    :param given: the other arguments of Loop.
    """
    if not goes and not (objective.waits_for_ranks and dist_util.world_size() > 1):
        settings = replace(settings, microbatch=AUTO)
    loop = Loop(objective=objective, flags=settings, **given)
    loop.run_loop() if goes else loop.rehearse()


def seed_everything(flags):
    """Seed this rank's generators, and say how large a step is over all ranks.

    A resumed run whose random states cannot be restored draws numbers of its own, not those of the first steps again.
    """
    seeds = np.random.SeedSequence([flags.seed, dist_util.rank(), flags.first_step()]).generate_state(2)
    np.random.seed(seeds[0])
    torch.manual_seed(int(seeds[1]))
    ranks = dist_util.world_size()
    logger.log(f"each step: {flags.batch_size} images x {ranks} ranks = {flags.batch_size * ranks}")


def train_diffusion(parsed, network, after_step=None):
    """Train a diffusion network by --objective.

    :param parsed: the command line; what follows is asked with its resolved Parsed flags.
    :param network: the Network that is trained.
    :param after_step: `parsed -> an after_step of Loop, or None`.
    """
    parsed = begin(parsed, network)
    dataset, parsed = training_images(parsed, network)
    parsed = checkpoints.with_networks(parsed)
    unet, process, settings = parsed[UNetFlags], parsed[DiffusionFlags], parsed[TrainFlags]
    model, diffusion = network.create(parsed), diffusion_of(process, methods.chosen(parsed))
    data = stream(dataset, parsed, next_batch(settings))
    goes = launch.announce(parsed)
    told = conditioning.of_training(parsed)

    def told_of(x, extra):
        cond = told.of_data(x, extra.get("y"))
        refuse_untaken(cond, model.takes)
        return cond

    count, images, labels = SHOWN, None, None
    if told.shows_images:
        batch, extra = first_batch(dataset, parsed)
        images, labels = batch[:SHOWN], extra["y"][:SHOWN] if "y" in extra else None
        count = len(images)
    objective = objectives.create(parsed, diffusion)
    _run(
        goes,
        settings,
        objective,
        model=model.to(dist_util.dev()),
        data=data,
        resolved=with_facts(parsed, dataset) | checkpoints.meant_for(objective.sampled_by, objective.timesteps),
        dtype=unet.dtype,
        conditioning=told_of,
        preview=preview_sampler(
            process,
            count,
            told.shown(count, images, labels),
            sampler=objective.sampled_by,
            values=parsed.values(),
        ),
        after_step=after_step(parsed) if after_step else None,
    )


def train_classifier(parsed):
    """Train a classifier of noisy images."""
    parsed = begin(parsed, checkpoints.CLASSIFIER)
    dataset, parsed = training_images(parsed, checkpoints.CLASSIFIER)
    classifier, settings = parsed[ClassifierFlags], parsed[TrainFlags]
    if parsed[ValidationFlags].anneal_lr:
        settings = replace(settings, lr_anneal_steps=settings.lr_anneal_steps or settings.iterations)
    model, diffusion = classifier.create(), diffusion_of(parsed[NoisingFlags])
    data = stream(dataset, parsed, next_batch(settings))
    after_step = held_out_losses(parsed, diffusion)
    goes = launch.announce(parsed)
    _run(
        goes,
        settings,
        ClassifierObjective.create(parsed, diffusion),
        model=model.to(dist_util.dev()),
        data=data,
        resolved=with_facts(parsed, dataset),
        dtype=classifier.dtype,
        after_step=after_step,
    )


def train_vae(parsed):
    """Train an autoencoder of images; previews are images of latents drawn from the prior."""
    parsed = begin(parsed, checkpoints.VAE)
    dataset, parsed = training_images(parsed, checkpoints.VAE)
    model, settings = parsed[VaeFlags].create(), parsed[TrainFlags]
    data = stream(dataset, parsed, next_batch(settings))
    goes = launch.announce(parsed)
    z = torch.randn(SHOWN, model.latent_dim, generator=torch.Generator().manual_seed(0))

    def preview(network):
        with torch.no_grad():
            return to_uint8(network.decode(z.to(dist_util.dev())))

    _run(
        goes,
        settings,
        VaeObjective.create(parsed),
        model=model.to(dist_util.dev()),
        data=data,
        resolved=with_facts(parsed, dataset),
        preview=preview,
    )
