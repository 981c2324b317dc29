"""The names of dist_util under the path that TS-DPM's release has for one process on one GPU."""

from .dist_util import GPUS_PER_NODE, SETUP_RETRY_COUNT, dev, load_state_dict, setup_dist, sync_params

__all__ = ["GPUS_PER_NODE", "SETUP_RETRY_COUNT", "dev", "load_state_dict", "setup_dist", "sync_params"]
