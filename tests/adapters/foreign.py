"""The numbers of published networks in tests/golden/foreign: weights and inputs by rule, outputs as they were."""

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / "golden" / "foreign"


@cache
def _read(name):
    return json.loads(gzip.decompress((FOLDER / name).read_bytes()))


def cases(*networks):
    """{name: case} of rule B."""
    found = _read("outputs.json.gz")["cases"]
    return {name: case for name, case in found.items() if name.endswith(".B") and case["network"] in networks}


def samplers():
    return _read("outputs.json.gz")["samplers"]


def configurations():
    return _read("keys.json.gz")["configurations"]


def state_dict(case):
    """The weights of a case, by rule B."""
    state = {}
    for name, shape, k in case["state_dict"]:
        count = int(np.prod(shape))
        if k is None:
            values = np.asarray(case["kept"][name], dtype=np.float64)
        else:
            j = np.arange(1, count + 1, dtype=np.float64)
            values = np.sin(0.37 * j + 1.3 * (k + 1) + 0.0013 * j**2)
            if len(shape) >= 2:
                values = 1.5 * values / np.sqrt(np.prod(shape[1:]))
            elif name.endswith("weight"):
                values = 1 + 0.2 * values
            else:
                values = 0.2 * values
        state[name] = torch.from_numpy(values.reshape(shape)).float()
    return state


def unit(shape):
    """The input x_unit (float64)."""
    j = np.arange(1, int(np.prod(shape)) + 1, dtype=np.float64)
    return torch.from_numpy((1.2 * np.sin(0.23 * j + 0.7 + 0.0007 * j**2)).reshape(shape))


def tensor(values):
    return None if values is None else torch.tensor(values, dtype=torch.float32)


def output(case, name, shape=None):
    return tensor(case["outputs"][name]).reshape(shape or case["output_shape"])
