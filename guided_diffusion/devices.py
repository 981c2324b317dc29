"""Tensors on their way to a device: none of the ways here makes a step wait for it."""

import functools

import numpy as np
import torch

from .scalars import real


def sent(tensor, device):
    """`tensor` on a device; from the CPU to a GPU by way of pinned memory, so that nothing waits for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor.pin_memory() if torch.cuda.is_available() else tensor).to(device, non_blocking=True)


def on_device(values, device):
    """A table of numbers as a tensor on a device, where the same values are copied to a GPU once.

    :param values: numbers as a list, an array or a tensor on the CPU; floats are in `real(device)` on a GPU.
    """
    if device.type == "cpu":
        return torch.as_tensor(values)
    values = np.asarray(values)
    return _copied(values.tobytes(), values.dtype.str, device)


@functools.lru_cache(maxsize=64)
def _copied(content, dtype, device):
    values = torch.from_numpy(np.frombuffer(content, dtype).copy())
    with torch.inference_mode(False):  # what is kept outlives the mode of this call
        return values.to(device, real(device) if values.is_floating_point() else None)
