"""A client's sampling script, guided where --classifier_path is given. It seeds torch's generator first."""

import argparse
import os

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import log_softmax

from guided_diffusion import dist_util, logger
from guided_diffusion.script_util import (
    NUM_CLASSES,
    add_dict_to_argparser,
    args_to_dict,
    classifier_defaults,
    create_classifier,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)


def everywhere(tensor):
    parts = [torch.zeros_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts).cpu()


parser = argparse.ArgumentParser()
own = {"model_path": "", "classifier_path": "", "classifier_scale": 1.0, "count": 3, "batch_size": 2, "use_ddim": False}
add_dict_to_argparser(parser, {**own, **model_and_diffusion_defaults(), **classifier_defaults()})
args = parser.parse_args()

torch.manual_seed(0)
dist_util.setup_dist()
logger.configure()
model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
model.to(dist_util.dev()).eval()

guide = None
if args.classifier_path:
    classifier = create_classifier(**args_to_dict(args, classifier_defaults().keys()))
    classifier.load_state_dict(dist_util.load_state_dict(args.classifier_path, map_location="cpu"))
    classifier.to(dist_util.dev()).eval()

    def guide(x, t, y=None):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            chosen = log_softmax(classifier(x, t), dim=1).gather(1, y[:, None])
            return args.classifier_scale * torch.autograd.grad(chosen.sum(), x)[0]


def network(x, t, y=None):
    return model(x, t, y if args.class_cond else None)


loop = diffusion.ddim_sample_loop if args.use_ddim else diffusion.p_sample_loop
images, labels = [], []
while sum(map(len, images)) < args.count:
    y = torch.randint(NUM_CLASSES, (args.batch_size,), device=dist_util.dev())
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    x = loop(network, shape, model_kwargs={"y": y}, cond_fn=guide, device=dist_util.dev())
    pixels = (127.5 * (x + 1)).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
    images.append(everywhere(pixels))
    labels.append(everywhere(y))
    logger.log(f"{sum(map(len, images))} images")
if dist.get_rank() == 0:
    path = os.path.join(logger.get_dir(), "samples.npz")
    np.savez(path, *(torch.cat(parts)[: args.count].numpy() for parts in (images, labels)))
dist.barrier()
logger.log("the end")
