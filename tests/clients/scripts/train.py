"""A client's training script, with input perturbation among its own flags; with --large_size, of an upsampler."""

import argparse
import random

import numpy as np
import torch
from torch.nn.functional import interpolate

from guided_diffusion import dist_util, logger, script_util
from guided_diffusion.image_datasets import load_data
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.train_util import TrainLoop

parser = argparse.ArgumentParser()
parser.add_argument("--upsampler", action="store_true")
enlarges = parser.parse_known_args()[0].upsampler
defaults = (script_util.sr_model_and_diffusion_defaults if enlarges else script_util.model_and_diffusion_defaults)()
create = script_util.sr_create_model_and_diffusion if enlarges else script_util.create_model_and_diffusion
own = {"data_dir": "", "lr": 1e-3, "batch_size": 2, "steps": 3, "schedule_sampler": "uniform", "input_pertub": 0.0}
script_util.add_dict_to_argparser(parser, {**own, **defaults})
args = parser.parse_args()

for seeded in (torch.manual_seed, np.random.seed, random.seed):
    seeded(0)
dist_util.setup_dist()
logger.configure()
model, diffusion = create(**script_util.args_to_dict(args, defaults.keys()))
model.to(dist_util.dev())
size = args.large_size if enlarges else args.image_size
data = load_data(data_dir=args.data_dir, batch_size=args.batch_size, image_size=size, class_cond=args.class_cond)
if enlarges:
    data = ((x, {**told, "low_res": interpolate(x, args.small_size, mode="area")}) for x, told in data)
TrainLoop(
    model=model,
    diffusion=diffusion,
    data=data,
    batch_size=args.batch_size,
    microbatch=-1,
    lr=args.lr,
    ema_rate="0.9,0.99",
    log_interval=1,
    save_interval=2,
    resume_checkpoint="",
    use_fp16=args.use_fp16,
    fp16_scale_growth=1e-3,
    schedule_sampler=create_named_schedule_sampler(args.schedule_sampler, diffusion),
    weight_decay=0.0,
    lr_anneal_steps=args.steps,
).run_loop()
