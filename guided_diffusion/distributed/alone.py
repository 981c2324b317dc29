"""torch.distributed in a process that is alone: a group of one, which opens no socket, port or thread.

Published scripts ask torch.distributed itself for the world's size, gather what they made and wrap their network in
DistributedDataParallel, as one process too. gloo would listen on a port for that, and NCCL on the network; among one,
every collective is a copy at most.
"""

import sys

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future

NAME = "alone"


class Alone(dist.ProcessGroup):
    """A process group of one: reductions and broadcasts leave tensors as they are, the rest copies them."""

    def __init__(self, store, rank, size, timeout):
        super().__init__(rank, size)

    def getBackendName(self):
        """What torch calls the backend in its messages."""
        return NAME

    # -- every rank's part is the whole ----------------------------------------------------------

    def barrier(self, opts=None):
        return _done([torch.zeros(1)])

    def broadcast(self, tensors, *options):
        return _done(tensors)

    reduce = allreduce = allreduce_coalesced = broadcast

    # -- lists of one list of one tensor ---------------------------------------------------------

    def allgather(self, outputs, inputs, *options):
        return _copied(outputs[0], inputs) if outputs else _done(inputs)

    gather = allgather

    def scatter(self, outputs, inputs, *options):
        return _copied(outputs, inputs[0])

    reduce_scatter = scatter

    # -- lists of one tensor ---------------------------------------------------------------------

    def alltoall(self, outputs, inputs, *options):
        return _copied(outputs, inputs)

    # by their names in torch of all versions
    allgather_into_tensor_coalesced = reduce_scatter_tensor_coalesced = alltoall
    all_gather_single_coalesced = reduce_scatter_single_coalesced = alltoall

    def allgather_coalesced(self, outputs, inputs, *options):
        return _copied([tensor for tensors in outputs for tensor in tensors], inputs)

    # -- tensors, of any shape with as many elements ---------------------------------------------

    def _allgather_base(self, output, source, *options):
        return _copied([output], [source])

    _reduce_scatter_base = alltoall_base = _allgather_base
    all_gather_single = reduce_scatter_single = all_to_all_single = _allgather_base


def _copied(outputs, inputs):
    with torch.no_grad():
        for output, source in zip(outputs, inputs, strict=True):
            output.copy_(source.reshape(output.shape))
    return _done(outputs)


def _done(tensors):
    """A torch.distributed.Work that is at its end, with these tensors."""
    future = torch.futures.Future(devices=sorted({t.device for t in tensors if t.is_cuda}, key=str))
    future.set_result(list(tensors))
    return _create_work_from_future(future)


def join():
    """Make this process the default group of torch.distributed, of one."""
    if NAME not in dist.Backend.backend_list:
        dist.Backend.register_backend(NAME, Alone, devices=["cpu", "cuda", "mps"])
    hook = sys.excepthook
    dist.init_process_group(NAME, store=dist.HashStore(), rank=0, world_size=1)
    sys.excepthook = hook  # torch's own puts a rank before each line
