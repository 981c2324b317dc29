"""A client's sampling script for one GPU, which defines the flags of time shift itself, before and after the others."""

import argparse
import os

import numpy as np
import torch
import torch.distributed as dist

from guided_diffusion import dist_util_1gpu, logger
from guided_diffusion.script_util import (
    NUM_CLASSES,
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
    str2bool,
)

parser = argparse.ArgumentParser()
own = {"model_path": "", "count": 3, "batch_size": 2, "window": 2, "out_dir": ".", "gpu_id": "0"}
add_dict_to_argparser(parser, {**own, **model_and_diffusion_defaults()})
parser.add_argument("--do_time_shift", type=str2bool, default=False)
parser.add_argument("--cutoff", type=int, default=300)
args = parser.parse_args()

os.environ["CUDA_VISIBLE_DEVICES"] = args.gpu_id
torch.manual_seed(0)
dist_util_1gpu.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
model.load_state_dict(dist_util_1gpu.load_state_dict(args.model_path, map_location="cpu"))
model.to(dist_util_1gpu.dev()).eval()
images, labels = [], []
while len(images) * args.batch_size < args.count:
    y = torch.randint(NUM_CLASSES, (args.batch_size,), device=dist_util_1gpu.dev())
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    x = diffusion.ddim_sample_loop(model, shape, model_kwargs={"y": y})
    pixels = (127.5 * (x + 1)).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
    for found, kept in ((pixels, images), (y, labels)):
        parts = [torch.zeros_like(found) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, found)
        kept.extend(parts)
if dist.get_rank() == 0:
    name = f"{args.timestep_respacing}_{args.window}_{args.cutoff}.npz" if args.do_time_shift else "plain.npz"
    path = os.path.join(args.out_dir, name)
    np.savez(path, *(torch.cat(parts)[: args.count].cpu().numpy() for parts in (images, labels)))
dist.barrier()
