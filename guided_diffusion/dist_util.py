"""Several processes as one job.

With distributed/ this is the only place that knows MPI and torch.distributed. `setup_dist` asks
distributed/launchers.py who started the process, picks its device and joins it to the others. A single process
goes the same way but needs no MPI, opens no socket and never communicates: torch.distributed is a group of one there
(distributed/alone.py). A program that never calls `setup_dist` does without one.
"""

import atexit
import contextlib
import gc
import os
import socket
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from .distributed import launchers, messages, peers
from .errors import UserError
from .tensor_files import load_checkpoint

# Long enough for a slow first step, a compilation or a checkpoint written by one rank.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)

# Published names. A rank has the GPU of its number on its host; modulo this, where it is set to another number. Nothing
# ever read the second.
GPUS_PER_NODE = PUBLISHED_GPUS_PER_NODE = 8
SETUP_RETRY_COUNT = 3

_launch = launchers.Launch("python")
_device = None
_comm = None
_watch = None


# ------------------------------------------------------------------------------ joining the job


def setup_dist(device=None, timeout=120):
    """Join the processes of this job and choose the device; a second call does nothing.

    One line on stderr of rank 0 tells what was found. Afterwards torch.distributed has a default group, of one where
    the process is alone. A group that the program has made before stays, and says who is in the job.

    :param device: None, "cpu", "cuda", "cuda:N" or "mps" (see `launchers.choose_device`).
    :param timeout: how many seconds the ranks may take to meet.
    :raises UserError: if the launcher's variables make no sense, the device does not exist, or the ranks do not meet.
    """
    global _launch, _device, _watch
    if _device is not None:
        return
    gpus = torch.cuda.device_count()
    joined = dist.is_available() and dist.is_initialized()
    launch = _launch_of_group(os.environ, gpus) if joined else _find_launch(os.environ)
    if not 0 <= launch.rank < launch.size:
        raise UserError(f"{launch.launcher} gave rank {launch.rank} of {launch.size}, expected 0 to {launch.size - 1}")
    slot = launch.local_rank if GPUS_PER_NODE == PUBLISHED_GPUS_PER_NODE else launch.local_rank % GPUS_PER_NODE
    chosen = launchers.choose_device(device, slot, gpus)
    if chosen.type == "mps" and launch.size > 1:
        raise UserError(f"--device mps runs one process, but {launch.launcher} started {launch.size}: use --device cpu")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    threads = launchers.threads_per_rank(os.environ, launch, launchers.usable_cores())
    if threads:
        torch.set_num_threads(threads)

    if joined:
        _launch, _device = launch, chosen
        return
    hosts = _meet(launch, chosen, timeout) if launch.size > 1 else 1
    _launch, _device = launch, chosen
    if is_main():
        say(_summary(launch, chosen, hosts))
    if launch.size == 1 and dist.is_available():
        from .distributed import alone

        alone.join()
    elif launch.size > 1:
        names = broadcast_object(gather_object(place()))
        near = launch.local_size == launch.size
        _watch = peers.Watch(launch.rank, names, launch.host, broadcast_object, _end_with, near)
        atexit.register(_leave_at_exit)
        if is_main():
            say(", ".join(names))
    if launch.size == 1 and gpus > 1 and device in (None, "cuda"):
        command = f"torchrun --nproc_per_node {gpus} {' '.join(sys.argv)}"
        say(f"using one of {gpus} visible GPUs; for all of them: {command}")


def _find_launch(env):
    launcher = launchers.launcher_of(env)
    if launcher == "torchrun":
        return launchers.torchrun_launch(env)
    if launcher == "srun":
        return launchers.slurm_launch(env)
    if launcher == "mpirun" and launchers.mpi_size(env) != 1:
        launchers.refuse_left_over(env)
        return launchers.mpi_launch(env, *_join_mpi())
    return launchers.Launch(launcher)


def _launch_of_group(env, gpus):
    """The Launch of a program that has made the default group of torch.distributed itself."""
    rank = dist.get_rank()
    local_rank = int(env.get("LOCAL_RANK", rank % max(gpus, 1)))
    return launchers.Launch("python", rank, dist.get_world_size(), local_rank)


def _join_mpi():
    """Import MPI, which joins the job, and return its communicator and the one of this host."""
    global _comm
    if os.environ.get("MPI_LOCALNRANKS", "") == os.environ.get("PMI_SIZE"):
        _keep_to_this_host("UCX_NET_DEVICES", "FI_TCP_IFACE")
    try:
        from mpi4py import MPI
    # mpi4py without an MPI library says so by a RuntimeError
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"mpirun started this process but mpi4py does not load ({error}): pip install mpi4py mpich"
        ) from error
    _comm = MPI.COMM_WORLD
    sys.excepthook = _abort_on_exception
    return _comm, _comm.Split_type(MPI.COMM_TYPE_SHARED)


def _abort_on_exception(kind, error, trace):
    # MPI waits at exit for every rank, so one that dies has to take the others along.
    sys.stderr = sys.__stderr__  # while it calls this, torch.distributed has a buffer there
    if issubclass(kind, UserError):
        say(error)
        abort(2)
    sys.__excepthook__(kind, error, trace)
    abort(1)


def _meet(launch, device, timeout):
    """Make the process group and return the number of hosts in it."""
    deadline = time.monotonic() + timeout
    backend = _backend(device)
    try:
        if launch.rank > 0:
            _await_listener(launch, deadline)
        _init_process_group(launch, backend, timedelta(seconds=max(1.0, deadline - time.monotonic())))
        # NCCL only connects at its first collective: have it here, where it may still fail with a sentence.
        hosts = torch.tensor(float(launch.local_rank == 0), device=device)
        dist.all_reduce(hosts, async_op=True).wait(timedelta(seconds=timeout))
    except (RuntimeError, OSError) as error:
        raise UserError(_no_meeting(launch, backend, timeout, error)) from error
    dist.distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT)
    return int(hosts)


def _backend(device):
    return "nccl" if device.type == "cuda" and sys.platform == "linux" and dist.is_nccl_available() else "gloo"


def _await_listener(launch, deadline):
    """Wait until rank 0 listens. torch would wait as well, but end in two C++ traces."""
    while True:
        try:
            patience = max(0.1, deadline - time.monotonic())
            return socket.create_connection((launch.host, launch.port), timeout=patience).close()
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


def _init_process_group(launch, backend, timeout):
    near = launch.local_size == launch.size
    if near:
        _keep_to_this_host("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    # gloo beside nccl, so that counts and objects need not travel through the GPU
    backend = "cpu:gloo,cuda:nccl" if backend == "nccl" else backend
    place = {"rank": launch.rank, "world_size": launch.size, "timeout": timeout}
    if near and launch.launcher != "torchrun":  # whose agent has a store already
        dist.init_process_group(backend, store=_store(launch, timeout), **place)
        return
    host = f"[{launch.host}]" if ":" in launch.host else launch.host
    # torch for Windows is built without libuv
    query = "?use_libuv=0" if os.name == "nt" else ""
    dist.init_process_group(backend, init_method=f"tcp://{host}:{launch.port}{query}", **place)


def _keep_to_this_host(*variables):
    """Let libraries listen on the loopback alone, unless the variables that tell them the network are set already."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    loopback = next((name for name in names if name in ("lo", "lo0")), None)
    for variable in variables if loopback else ():
        os.environ.setdefault(variable, loopback)


def _store(launch, timeout):
    """Where ranks of one host meet: rank 0 listens at the address that the others were told, and at no other."""
    options = {"world_size": launch.size, "timeout": timeout, "use_libuv": os.name != "nt"}
    if launch.rank > 0:
        return dist.TCPStore(launch.host, launch.port, is_master=False, **options)
    family = socket.AF_INET6 if ":" in launch.host else socket.AF_INET
    listener = socket.create_server((launch.host, launch.port), family=family, backlog=1024)
    return dist.TCPStore(launch.host, launch.port, is_master=True, master_listen_fd=listener.detach(), **options)


def _no_meeting(launch, backend, timeout, error):
    reason = str(error).splitlines()[0].rstrip(".")
    remedies = [
        f"check that all {launch.size} ranks were started",
        "that MASTER_ADDR and MASTER_PORT lead to rank 0 through any firewall",
        f"and that {backend.upper()}_SOCKET_IFNAME, if there are several networks, names the common one",
    ]
    if backend == "nccl":
        remedies.append("or try NCCL_P2P_DISABLE=1")
    return (
        f"rank {launch.rank} of {launch.size} did not meet the others at {launch.host}:{launch.port} by {backend} "
        f"in {timeout:g} s ({reason}): {', '.join(remedies)}"
    )


def _summary(launch, device, hosts):
    def count(n, thing):
        return f"{n} {thing}" if n == 1 else f"{n} {thing}s"

    backend = _backend(device) if launch.size > 1 else "no"
    return (
        f"started by {launch.launcher}: {count(launch.size, 'rank')} on {count(hosts, 'host')}, {backend} backend, "
        f"device {device}, {count(torch.get_num_threads(), 'thread')} per rank"
    )


def _end_with(sentence):
    """End this process because another rank has died; called outside the main thread, which may wait for that one."""
    if sentence:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the terminal may be gone
            sys.__stderr__.write(f"{sentence}\n")
            sys.__stderr__.flush()
        time.sleep(0.5)  # the launcher drops what it has not yet passed on
    else:
        time.sleep(1.5 if _comm is None else 30)  # mpirun ends all with the status of the rank that says why
    os._exit(1)


def cleanup():
    """Leave the job. Afterwards this is one process again, and `setup_dist` may be called anew."""
    global _launch, _device, _watch
    if _watch is not None:
        _watch.leave()
        atexit.unregister(_leave_at_exit)
        _watch = None
    if dist.is_available() and dist.is_initialized():
        threads = dist.get_world_size() > 1
        dist.destroy_process_group()
        if threads:  # DDP is a reference cycle that keeps gloo's alive; ended after Python is, they abort the process
            gc.collect()
    _launch, _device = launchers.Launch("python"), None


def _leave_at_exit():
    """Leave the job at the end of a program that does not do so itself; one that failed does not wait for others."""
    if getattr(sys, "last_type", None) is None:
        cleanup()
    else:
        _watch.leave()


def abort(status):
    """End this process with exit status `status`, and under mpirun every other rank too."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _watch is not None:
        _watch.leave(peers.FAILED)
    if _comm is not None:
        time.sleep(0.5)  # mpirun drops what it has not yet passed on
        _comm.Abort(status)
    if world_size() > 1:
        os._exit(status)  # Python's teardown would race with gloo's threads, and lose the status
    sys.exit(status)


# ------------------------------------------------------------------------------ the place in it


def dev():
    """Return the torch.device of this process."""
    return _device or launchers.choose_device(None, 0, torch.cuda.device_count())


def device_name():
    """Return what the device of this process is: the model of its GPU, cpu or mps."""
    device = dev()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def rank():
    """Return the number of this process in the job, 0..world_size()-1."""
    return _launch.rank


def world_size():
    """Return the number of processes in the job."""
    return _launch.size


def local_rank():
    """Return the number of this process on its host."""
    return _launch.local_rank


def is_main():
    """Return whether this is rank 0, the one that prints and saves."""
    return _launch.rank == 0


def place():
    """Return what this process is called in messages: its rank, process number and host."""
    return f"rank {_launch.rank} (process {os.getpid()} on {socket.gethostname()})"


def say(line):
    """Print a line to standard error in one piece.

    Ranks share the terminal, and an unbuffered `print` lets another rank in before the newline.
    """
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def load_state_dict(path, map_location="cpu", **options):
    """Read a checkpoint: weights, or an optimiser's state. Every rank reads for itself, so one alone may call it.

    :param path: a local file or any address that blobfile reads.
    :param map_location: that of `torch.load`.
    :param options: others of `torch.load`, which are taken and change nothing: whatever `weights_only` says, nothing in
        a file is run.
    :return: a dict of tensors and plain values.
    :raises UserError: naming the path, if it is missing, damaged, no dict or asks for more than data.
    """
    content = load_checkpoint(path, map_location)
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, expected a dict of tensors")
    return content


# ------------------------------------------------- talking: every rank calls these, in one order


def barrier():
    """Wait until every rank has come here."""
    # A sum needs every rank's part. On the CPU it leaves the GPU's queue alone.
    all_reduce_sum(torch.zeros(1))


def all_reduce_sum(tensor):
    """Replace the contiguous `tensor` by its sum over all ranks, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor.detach())
    return tensor


def sum_gradients(params):
    """Replace the gradients of parameters by their sums over all ranks, and return them; where there is none, zeros."""
    for param in params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
    grads = [param.grad for param in params]
    if world_size() > 1:
        whole = all_reduce_sum(torch.cat([grad.flatten() for grad in grads]))
        for grad, total in zip(grads, whole.split([grad.numel() for grad in grads])):
            grad.copy_(total.view_as(grad))
    return grads


def gather_object(obj):
    """Return the list of every rank's `obj`, in rank order, on rank 0, and None elsewhere.

    :param obj: plain values, arrays and tensors; see `messages.packed`.
    """
    if world_size() == 1:
        return [obj]
    return _gathered(obj, world_size()) if is_main() else _gathered(obj, 0)


def _gathered(obj, count):
    """What `gather_object` gives; `count` is the number of messages that this rank gets, 0 for none."""
    mine = _as_tensor(obj)
    lengths = all_gather(torch.tensor([len(mine)]))
    most = int(lengths.max())
    parts = [torch.empty(most, dtype=torch.uint8) for _ in range(count)]
    dist.gather(torch.cat([mine, mine.new_zeros(most - len(mine))]), parts or None)
    found = [messages.unpacked(part[:length].numpy()) for part, length in zip(parts, lengths.tolist())]
    return found if count else None


def _as_tensor(obj):
    return torch.frombuffer(bytearray(messages.packed(obj)), dtype=torch.uint8)


def all_gather(tensor):
    """Return every rank's `tensor` [N, ...], all of the same shape, joined in rank order along the first axis."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def data_parallel(model, **options):
    """Return `model` wrapped so that backward passes average gradients over the ranks; alone, the model itself.

    The ranks have to hold the same weights already (see `sync_params`).

    :param options: more of DistributedDataParallel's.
    """
    if world_size() == 1:
        return model
    devices = [dev()] if dev().type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=devices, init_sync=False, **options)


def broadcast_object(obj, src=0):
    """Return rank `src`'s `obj` on all ranks; what the others pass is ignored.

    :param obj: plain values, arrays and tensors; see `messages.packed`.
    """
    if world_size() == 1:
        return obj
    sends = rank() == src
    message = _as_tensor(obj) if sends else torch.empty(0, dtype=torch.uint8)
    length = torch.tensor([len(message)])
    dist.broadcast(length, src)
    message = message if sends else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(message, src)
    return messages.unpacked(message.numpy())


def sync_params(params):
    """Give the tensors `params` of every rank the values of rank 0, in place, gradients or not."""
    if world_size() == 1:
        return
    with torch.no_grad():
        for param in params:
            # The wire wants memory in order; weights in channels_last are not.
            value = param.detach().contiguous()
            dist.broadcast(value, 0)
            param.copy_(value)
