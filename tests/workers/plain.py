"""Run as one process under an audit hook that allows no socket at all."""

import sys


def forbid_sockets(event, _):
    if event.startswith("socket."):
        raise AssertionError(f"a single process used {event}")


sys.addaudithook(forbid_sockets)

import torch  # noqa: E402

from guided_diffusion import dist_util, logger  # noqa: E402


def main(folder):
    dist_util.setup_dist("cpu")
    dist_util.sync_params([torch.nn.Parameter(torch.ones(2))])
    dist_util.barrier()
    assert dist_util.gather_object("x") == ["x"]
    torch.save({"w": torch.ones(2)}, f"{folder}/model.pt")
    assert dist_util.load_state_dict(f"{folder}/model.pt")["w"].sum() == 2
    logger.configure(folder)
    logger.logkv_mean("loss", 1.0)
    logger.dumpkvs()
    dist_util.cleanup()
    assert not torch.distributed.is_initialized()
    assert not any(name.startswith("mpi4py") for name in sys.modules)
    print("plain and quiet")


main(*sys.argv[1:])
