"""A client's script that enlarges the images of an npz, each rank its share."""

import argparse
import os

import numpy as np
import torch
import torch.distributed as dist

from guided_diffusion import dist_util, logger
from guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)

parser = argparse.ArgumentParser()
add_dict_to_argparser(parser, {"model_path": "", "base_samples": "", **sr_model_and_diffusion_defaults()})
args = parser.parse_args()

torch.manual_seed(0)
dist_util.setup_dist()
logger.configure()
model, diffusion = sr_create_model_and_diffusion(**args_to_dict(args, sr_model_and_diffusion_defaults()))
model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
model.to(dist_util.dev()).eval()
with np.load(args.base_samples) as npz:
    small, labels = (torch.from_numpy(npz[key][dist.get_rank() :: dist.get_world_size()]) for key in npz)
told = {"low_res": small.permute(0, 3, 1, 2).float() / 127.5 - 1, "y": labels}
told = {name: value.to(dist_util.dev()) for name, value in told.items()}
x = diffusion.p_sample_loop(model, (len(small), 3, args.large_size, args.large_size), model_kwargs=told)
pixels = (127.5 * (x + 1)).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
parts = [torch.zeros_like(pixels) for _ in range(dist.get_world_size())]
dist.all_gather(parts, pixels)
if dist.get_rank() == 0:
    np.savez(os.path.join(logger.get_dir(), "samples.npz"), torch.stack(parts, 1).flatten(0, 1).cpu().numpy())
dist.barrier()
