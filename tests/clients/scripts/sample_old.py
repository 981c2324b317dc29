"""A client's script for improved-diffusion: the name of that package, its defaults, and its module names."""

import argparse
import json
import os

import improved_diffusion.gaussian_diffusion as gd
import torch
import torch.distributed as dist
from improved_diffusion import dist_util, logger
from improved_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)

parser = argparse.ArgumentParser()
add_dict_to_argparser(parser, {"model_path": "", **model_and_diffusion_defaults()})
args = parser.parse_args()

torch.manual_seed(0)
dist_util.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
model.to(dist_util.dev()).eval()
assert isinstance(diffusion, gd.GaussianDiffusion) and diffusion.loss_type is gd.LossType.RESCALED_MSE
told = {"y": torch.arange(2)} if args.class_cond else {}
x = diffusion.p_sample_loop(model, (2, 3, args.image_size, args.image_size), model_kwargs=told)
if dist.get_rank() == 0:
    torch.save(x, os.path.join(logger.get_dir(), "samples.pt"))
    with open(os.path.join(logger.get_dir(), "defaults.json"), "w") as file:
        json.dump(model_and_diffusion_defaults(), file)
dist.barrier()
