"""Use every collective once; each rank saves what it saw as FOLDER/RANK.json.

A second argument adds a backward pass, which costs seconds of imports.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from open_sockets import sockets

from guided_diffusion import dist_util


def digest(params):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in params)).hexdigest()


def averaged_gradient(rank):
    """The gradient is the input: 1 on rank 0 and 2 on rank 1."""
    model = torch.nn.Linear(1, 1, bias=False)
    dist_util.sync_params(model.parameters())
    wrapped = dist_util.data_parallel(model)  # has to live until the backward pass
    wrapped(torch.full((1, 1), 1.0 + rank)).sum().backward()
    return model.weight.grad.tolist()


def main(folder, gradient=""):
    inherited = sockets()  # mpirun leaves some
    dist_util.setup_dist("cpu")
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
        joined=dist_util.all_gather(torch.full((1, 1), float(rank))).tolist(),
        gradient=averaged_gradient(rank) if gradient else None,
        told=dist_util.broadcast_object(f"from {rank}", src=dist_util.world_size() - 1),
        before=before,
        after=digest(params),
        trainable=all(p.requires_grad for p in params),
        mpi="mpi4py.MPI" in sys.modules,
        process_group=torch.distributed.is_initialized(),
        new_sockets=len(sockets()) - len(inherited),
    )
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist_util.cleanup()
    assert (dist_util.rank(), dist_util.world_size()) == (0, 1)


main(*sys.argv[1:])
