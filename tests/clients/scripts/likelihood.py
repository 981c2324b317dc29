"""A client's script for bits per dimension, averaged over the ranks."""

import argparse

import torch
import torch.distributed as dist

from guided_diffusion import dist_util, logger
from guided_diffusion.image_datasets import load_data
from guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)

parser = argparse.ArgumentParser()
own = {"model_path": "", "data_dir": "", "batch_size": 2, "batches": 2}
add_dict_to_argparser(parser, {**own, **model_and_diffusion_defaults()})
args = parser.parse_args()

torch.manual_seed(0)
dist_util.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
model.to(dist_util.dev()).eval()
data = load_data(
    data_dir=args.data_dir,
    batch_size=args.batch_size,
    image_size=args.image_size,
    class_cond=args.class_cond,
    deterministic=True,
)
found = []
for _ in range(args.batches):
    x, told = next(data)
    told = {name: value.to(dist_util.dev()) for name, value in told.items()}
    bits = diffusion.calc_bpd_loop(model, x.to(dist_util.dev()), model_kwargs=told)["total_bpd"]
    mean = bits.mean() / dist.get_world_size()
    dist.all_reduce(mean)
    found.append(mean.item())
logger.log(f"bits per dimension: {sum(found) / len(found):.6f}")
dist.barrier()
