"""Files of tensors, as `torch.save` writes them: read so that none of them can run code."""

import errno
import pickle
import re

import torch

from . import files
from .errors import UserError


def load_checkpoint(path, map_location="cpu"):
    """Read what `torch.save` wrote: tensors and plain Python values.

    :param path: a local file or any address that blobfile reads.
    :raises UserError: naming the path, if it is missing, damaged or asks for more than data.
    """
    try:
        with files.open_read(path) as file:
            start = file.read(8)
            _expect_checkpoint(path, start)
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        # torch seeks before the start of a file that is too short
        if error.errno == errno.EINVAL:
            raise UserError(f"checkpoint {path} is truncated or damaged (it ends too soon)") from error
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} was refused: {_culprit(error)}, expected only tensors and plain values"
        ) from error
    except (RuntimeError, EOFError, LookupError) as error:
        reason = str(error).split(". ")[0].splitlines() or ["it ends too soon"]
        raise UserError(f"checkpoint {path} is truncated or damaged ({reason[0].rstrip('.')})") from error


def load_state_dict(path, map_location="cpu"):
    """Read the weights in `path` like `load_checkpoint`; every rank reads for itself, so one alone may call it.

    :return: {key: tensor}.
    :raises UserError: as `load_checkpoint`, and unless they are a dict of tensors.
    """
    state = load_safetensors(path) if path.endswith(".safetensors") else load_checkpoint(path, map_location)
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, expected a dict of tensors")
    strange = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if strange:
        kind = type(state[strange[0]]).__name__
        raise UserError(f"checkpoint {path} holds a {kind} at {strange[0]!r}, expected a dict of tensors")
    return state


def load_safetensors(path):
    """{key: tensor} of a file of safetensors, which holds nothing but data.

    :raises UserError: if it is missing or damaged, or the package safetensors is.
    """
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(
            f"{path} needs the package safetensors, which is not installed; expected it, or a .pt"
        ) from None
    try:
        return safetensors.torch.load(files.read_bytes(path))
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except (safetensors.SafetensorError, KeyError) as error:
        raise UserError(f"checkpoint {path} is truncated or damaged ({error})") from error


def _expect_checkpoint(path, start):
    if not start:
        raise UserError(f"checkpoint {path} is empty")
    if not start.startswith((b"PK", b"\x80")):
        raise UserError(f"checkpoint {path} is no file of torch.save (it begins with {start!r})")


def _culprit(error):
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it asks for {found[1]}" if found else "it is damaged or asks for more than data"
