"""A program that makes the process group itself before it asks dist_util; each rank saves FOLDER/RANK.json."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from guided_diffusion import dist_util


def main(folder):
    dist.init_process_group("gloo")
    dist_util.setup_dist()
    param = torch.nn.Parameter(torch.full((2,), 1.0 + dist.get_rank()))
    dist_util.sync_params([param])
    seen = [dist_util.rank(), dist_util.world_size(), dist_util.is_main(), param.tolist()]
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


main(*sys.argv[1:])
