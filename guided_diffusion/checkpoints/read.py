"""Checkpoint files: plain state dicts, and the flags that lie beside them."""

import io
import json
import re

import torch

from .. import files, logger
from ..errors import UserError
from ..tensor_files import load_state_dict
from . import manifest

# Tensors whose shapes depend on the classes: those of the class embedding, and of a classifier's last layers.
HEAD = re.compile(r"(label_emb|out)\.")

# What wrappers put before the names of a network's tensors: DDP, torch.compile, and classes that hold a network.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema.", "ema_model.", "diffusion_model.")

ENDING = r"\.(pt|pth|ckpt|bin|safetensors)$"

# flags whose checkpoint --checkpoint_key chooses from
KEYED = ("model_path", "init_from")

# {version of a file: its state dict}, one at most: read for its shapes, it waits for its network to be made
_waiting = {}


def sidecar_path(path):
    """Where the flags of a checkpoint lie: its name with .json for .pt and the like, or that of what it links to."""
    places = [re.sub(ENDING, "", str(place)) + ".json" for place in (path, files.target(path))]
    return places[1] if not files.exists(places[0]) and files.exists(places[1]) else places[0]


def write(path, state, flags=None):
    """Write a state dict, and beside it the flags {name: value} as JSON.

    :param path: local, or any address blobfile writes.
    """
    folder, name = files.split(path)
    for part, data in parts(name, state, flags):
        files.write_bytes(files.join(folder, part), data)


def parts(name, state, flags=None):
    """(file name, content as bytes) of the flags {name: value} as JSON, and then of the state dict they lie beside."""
    if flags is not None:
        yield sidecar_path(name), (json.dumps(flags, indent=1, sort_keys=True) + "\n").encode()
    data = io.BytesIO()
    torch.save(state, data)
    yield name, data.getbuffer()


def read_flags(path):
    """The flags beside a checkpoint, {} if there are none.

    :raises UserError: if they are damaged.
    """
    if not files.exists(sidecar_path(path)):
        return {}
    manifest.check_listed(sidecar_path(path))
    values = files.read_json(sidecar_path(path), "the flags of its checkpoint")
    if not isinstance(values, dict):
        raise UserError(f"{sidecar_path(path)} holds a {type(values).__name__}; expected an object of flags")
    return values


def peek(path, flag="model_path", key=""):
    """The state dict at `path`, for its shapes; `load_into` takes the same one, so that no file is unpickled twice.

    :param flag: that names the path, for errors.
    :param key: of the file's content, where that holds several state dicts.
    :raises UserError: as `load_state_dict`.
    """
    version = _version(path, key)
    if version not in _waiting:
        _waiting.clear()
        _waiting[version] = _read(path, flag, key)
    return _waiting[version]


def take(path, flag="model_path", key=""):
    """The state dict at `path`, which is not kept; as `peek`."""
    return _waiting.pop(_version(path, key), None) or _read(path, flag, key)


def load_into(model, path, flag="model_path", free_head=False, key=""):
    """Load the weights at `path` into a network.

    :param flag: that names the path, for errors.
    :param free_head: whether tensors whose shape depends on the classes may differ; they stay as they are then.
    :param key: of the file's content, where that holds several state dicts.
    :return: the names of those that did.
    :raises UserError: at most ten lines, if keys or shapes differ.
    """
    state = take(path, flag, key)
    expected = model.state_dict()
    left = [k for k in sorted({*state, *expected}) if free_head and HEAD.match(k) and not _alike(k, state, expected)]
    state = {k: v for k, v in state.items() if k not in left} | {k: expected[k] for k in left if k in expected}
    missing = [k for k in expected if k not in state]
    surplus = [k for k in state if k not in expected]
    other = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    counts = [k for k in expected if k in state and expected[k].is_floating_point() > state[k].is_floating_point()]
    if counts:
        raise UserError(f"--{flag} {path} holds {state[counts[0]].dtype} at {counts[0]}; expected real numbers")
    if missing or surplus or other:
        lines = [f"--{flag} {path} is a checkpoint of another network than the flags describe:"]
        for what, keys in (("it lacks", missing), ("it has beyond that", surplus)):
            if keys:
                lines.append(f"  {what} {len(keys)} tensors, such as {keys[0]}")
        lines += [
            f"  {key} is {tuple(state[key].shape)}, the flags make it {tuple(expected[key].shape)}" for key in other[:3]
        ]
        raise UserError("\n".join(lines))
    model.load_state_dict(state)
    return left


def _alike(key, state, expected):
    return key in state and key in expected and state[key].shape == expected[key].shape


def _version(path, key):
    """What changes when a file does."""
    try:
        return path, key, files.stamp(path)
    except OSError:  # reading it says what is wrong
        return path, key, None


def _read(path, flag, key=""):
    try:
        manifest.check_listed(path)
        choice = "choose by --checkpoint_key" if flag in KEYED else "save those alone to a file"
        state = load_state_dict(path, key=key, choice=choice)
    except UserError as error:
        raise UserError(f"--{flag}: {error}") from error
    while prefix := _wrapper_of(state):
        logger.log(f"{path}: its tensors' names begin with {prefix}, which is taken off")
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _wrapper_of(state):
    """What all names of a state dict begin with that a wrapper around the network has put there; "" for nothing."""
    first = next(iter(state), "").split(".")[0] + "."
    return first if first in WRAPPERS and all(name.startswith(first) for name in state) else ""
