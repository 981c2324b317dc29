"""What published code asks of torch.distributed after setup_dist(), alone or as a rank; each saves FOLDER/RANK.json.

Every answer is a number that follows from the rank and the number of ranks.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from open_sockets import sockets
from torch.nn.parallel.distributed import DistributedDataParallel

from guided_diffusion import dist_util, dist_util_1gpu


def gradient(rank):
    """The mean over ranks of the gradient 1 + rank of a weight, by a network wrapped as published code wraps it."""
    model = torch.nn.Linear(1, 1, bias=False).to(dist_util.dev())
    dist_util.sync_params(model.parameters())
    wrapped = DistributedDataParallel(
        model,
        device_ids=None,
        broadcast_buffers=False,
        bucket_cap_mb=128,
        find_unused_parameters=False,
    )
    x = torch.full((1, 1), 1.0 + rank)
    with wrapped.no_sync():
        wrapped(x).sum().backward()
    alone = model.weight.grad.item()
    model.zero_grad()
    wrapped(x).sum().backward()
    return alone, model.weight.grad.item()


def main(folder, module="dist_util"):
    inherited, threads = sockets(), len(os.listdir("/proc/self/task"))
    {"dist_util": dist_util, "dist_util_1gpu": dist_util_1gpu}[module].setup_dist()
    opened = len(sockets()) - len(inherited)
    rank, size = dist.get_rank(), dist.get_world_size()
    parts = [torch.zeros(2) for _ in range(size)]
    dist.all_gather(parts, torch.tensor([rank, 10.0]))
    total = torch.tensor([1.0 + rank])
    dist.all_reduce(total)
    told = torch.tensor([5.0 + rank])
    dist.broadcast(told, 0)
    objects = [None] * size
    dist.all_gather_object(objects, {"rank": rank})
    dist.barrier()
    seen = dict(
        rank=rank,
        size=size,
        parts=[part.tolist() for part in parts],
        total=total.item(),
        told=told.item(),
        objects=objects,
        gradient=gradient(rank),
        opened=opened,
        sockets=sockets()[len(inherited) :] if size == 1 else None,
        threads=len(os.listdir("/proc/self/task")) - threads,
    )
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))


main(*sys.argv[1:])
