"""Checkpoint files: plain state dicts, and the flags that lie beside them."""

import io
import json
import re

import torch

from .. import files
from ..errors import UserError
from ..tensor_files import load_state_dict

# Tensors whose shapes depend on the classes: those of the class embedding, and of a classifier's last layers.
HEAD = re.compile(r"(label_emb|out)\.")

# {version of a file: its state dict}, one at most: read for its shapes, it waits for its network to be made
_waiting = {}


def sidecar_path(path):
    """Where the flags of a checkpoint lie: its name with .json for .pt or .safetensors."""
    return re.sub(r"\.(pt|safetensors)$", "", path) + ".json"


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
    try:
        values = json.loads(files.read_text(sidecar_path(path)))
    except ValueError as error:
        raise UserError(
            f"{sidecar_path(path)} is not valid JSON ({error}); expected the flags of its checkpoint"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{sidecar_path(path)} holds a {type(values).__name__}; expected an object of flags")
    return values


def peek(path, flag="model_path"):
    """The state dict at `path`, for its shapes; `load_into` takes the same one, so that no file is unpickled twice.

    :param flag: that names the path, for errors.
    :raises UserError: as `load_state_dict`.
    """
    version = _version(path)
    if version not in _waiting:
        _waiting.clear()
        _waiting[version] = _read(path, flag)
    return _waiting[version]


def take(path, flag="model_path"):
    """The state dict at `path`, which is not kept; as `peek`."""
    return _waiting.pop(_version(path), None) or _read(path, flag)


def load_into(model, path, flag="model_path", free_head=False):
    """Load the weights at `path` into a network.

    :param flag: that names the path, for errors.
    :param free_head: whether tensors whose shape depends on the classes may differ; they stay as they are then.
    :return: the names of those that did.
    :raises UserError: at most ten lines, if keys or shapes differ.
    """
    state = take(path, flag)
    expected = model.state_dict()
    left = [k for k in sorted({*state, *expected}) if free_head and HEAD.match(k) and not _alike(k, state, expected)]
    state = {k: v for k, v in state.items() if k not in left} | {k: expected[k] for k in left if k in expected}
    missing = [k for k in expected if k not in state]
    surplus = [k for k in state if k not in expected]
    other = [k for k in expected if k in state and state[k].shape != expected[k].shape]
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


def _version(path):
    """What changes when a file does."""
    try:
        return path, files.stamp(path)
    except OSError:  # reading it says what is wrong
        return path, None


def _read(path, flag):
    try:
        return load_state_dict(path)
    except UserError as error:
        raise UserError(f"--{flag}: {error}") from error
