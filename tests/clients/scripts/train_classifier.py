"""A client's training of a classifier of noisy images, with a loop of its own."""

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from guided_diffusion import dist_util, logger
from guided_diffusion.fp16_util import MixedPrecisionTrainer
from guided_diffusion.image_datasets import load_data
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    classifier_and_diffusion_defaults,
    create_classifier_and_diffusion,
)
from guided_diffusion.train_util import log_loss_dict, parse_resume_step_from_filename

parser = argparse.ArgumentParser()
own = {"data_dir": "", "iterations": 3, "batch_size": 2, "lr": 1e-3, "resume_checkpoint": ""}
add_dict_to_argparser(parser, {**own, **classifier_and_diffusion_defaults()})
args = parser.parse_args()

torch.manual_seed(0)
dist_util.setup_dist()
logger.configure()
model, diffusion = create_classifier_and_diffusion(**args_to_dict(args, classifier_and_diffusion_defaults()))
model.to(dist_util.dev())
sampler, begun = create_named_schedule_sampler("uniform", diffusion), 0
if args.resume_checkpoint:
    begun = parse_resume_step_from_filename(args.resume_checkpoint)
    model.load_state_dict(dist_util.load_state_dict(args.resume_checkpoint, map_location=dist_util.dev()))
dist_util.sync_params(model.parameters())
trainer = MixedPrecisionTrainer(model=model, use_fp16=args.classifier_use_fp16, initial_lg_loss_scale=16.0)
parallel = DistributedDataParallel(model, broadcast_buffers=False)
data = load_data(
    data_dir=args.data_dir, batch_size=args.batch_size, image_size=args.image_size, class_cond=True, random_crop=True
)
opt = torch.optim.AdamW(trainer.master_params, lr=args.lr)
for step in range(begun, args.iterations):
    x, told = next(data)
    labels = told["y"].to(dist_util.dev())
    t, _ = sampler.sample(len(x), dist_util.dev())
    logits = parallel(diffusion.q_sample(x.to(dist_util.dev()), t), timesteps=t)
    losses = {"loss": cross_entropy(logits, labels, reduction="none")}
    losses["hits"] = (logits.argmax(dim=1) == labels).float()
    logger.logkv("step", step)
    log_loss_dict(diffusion, t, losses)
    trainer.zero_grad()
    trainer.backward(losses["loss"].mean())
    trainer.optimize(opt)
    logger.dumpkvs()
if dist.get_rank() == 0:
    state = trainer.master_params_to_state_dict(trainer.master_params)
    torch.save(state, os.path.join(logger.get_dir(), f"model{args.iterations:06d}.pt"))
dist.barrier()
