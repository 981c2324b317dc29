"""Use every collective once; each rank saves what it saw as FOLDER/RANK.json."""

import hashlib
import json
import sys
from pathlib import Path

import torch

from guided_diffusion import dist_util


def digest(params):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in params)).hexdigest()


def main(folder):
    dist_util.setup_dist("cpu", timeout=60)
    rank = dist_util.rank()
    torch.manual_seed(rank)
    params = list(torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last).parameters())
    before = digest(params)
    dist_util.sync_params(params)
    dist_util.barrier()
    seen = dict(
        launch=vars(dist_util._launch),
        device=str(dist_util.dev()),
        threads=torch.get_num_threads(),
        main=dist_util.is_main(),
        total=dist_util.all_reduce_sum(torch.tensor([1.0 + rank, 10.0])).tolist(),
        leaf_total=dist_util.all_reduce_sum(torch.nn.Parameter(torch.ones(1))).tolist(),
        gathered=dist_util.gather_object({"rank": rank}),
        all_gathered=dist_util.all_gather_object(rank),
        told=dist_util.broadcast_object(f"from {rank}", src=dist_util.world_size() - 1),
        before=before,
        after=digest(params),
        trainable=all(p.requires_grad for p in params),
        mpi="mpi4py.MPI" in sys.modules,
        process_group=torch.distributed.is_initialized(),
    )
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist_util.cleanup()
    assert (dist_util.rank(), dist_util.world_size()) == (0, 1)


main(*sys.argv[1:])
