"""Files of tensors, as `torch.save` or safetensors write them: read so that none of them can run code. And networks in
TorchScript, which are code.

Whatever is wrong with one is a sentence with its name, and none takes more memory than it has bytes.
"""

import errno
import io
import pickle
import re
import warnings
import zipfile

import torch

from . import files
from .errors import UserError


def load_checkpoint(path, map_location="cpu"):
    """Read what `torch.save` wrote, tensors and plain Python values, or the tensors of a .safetensors file.

    :param path: a local file or any address that blobfile reads.
    :raises UserError: naming the path, if it is missing, damaged or asks for more than data.
    """
    try:
        with files.open_read(path) as file:
            start = file.read(9)
            if start[8:] == b"{":  # after the length of a header in JSON
                file.seek(0)
                return _safetensors(path, file, map_location)
            _expect_checkpoint(path, start)
            if start.startswith(b"PK"):
                _expect_whole(path, file)
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} was refused: {_culprit(error)}, expected only tensors and plain values, such as the "
            "state_dict() of a network; where you trust it, torch.load(..., weights_only=False) has that"
        ) from error
    except OSError as error:
        # torch seeks before the start of a file that is too short
        if error.errno == errno.EINVAL:
            raise UserError(f"checkpoint {path} is truncated or damaged (it ends too soon)") from error
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # parsers of damaged bytes end in any way there is
        reason = str(error).split(". ")[0].splitlines() or ["it ends too soon"]
        raise UserError(f"checkpoint {path} is truncated or damaged ({reason[0].rstrip('.')})") from error


def load_state_dict(path, map_location="cpu", key="", choice="choose by --checkpoint_key"):
    """Read the weights in `path` like `load_checkpoint`; every rank reads for itself, so one alone may call it.

    :param key: of the file's content, where that holds several state dicts, such as "ema" or "model.ema"; "" where it
        is one.
    :param choice: how a key is given, for errors.
    :return: {name: tensor}, all of finite numbers in memory of their own.
    :raises UserError: as `load_checkpoint`, and unless they are a dict of such tensors.
    """
    state = load_checkpoint(path, map_location)
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, expected a dict of tensors")
    inner = dict(_weights_within(state))
    if key:
        if key not in inner:
            others = f"it has them at: {', '.join(inner)}" if inner else "it is a state dict itself, without any key"
            raise UserError(f"checkpoint {path} has no weights at {key!r}; {others if state else 'it is empty'}")
        state = inner[key]
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            several = f"; it holds weights at {', '.join(inner)}: {choice}" if inner else ""
            raise UserError(
                f"checkpoint {path} holds {name!r} of type {type(value).__name__}, expected a dict of tensors{several}"
            )
        if not isinstance(name, str):
            raise UserError(f"checkpoint {path} has the key {name!r}, expected names of tensors")
        if strange := _strange(value):
            raise UserError(f"checkpoint {path} holds {strange} at {name!r}, expected plain tensors of real numbers")
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(f"the weights of {path} are not finite numbers ({bad[0]} for one); expected another checkpoint")
    return state


def _weights_within(content, depth=3):
    """(key, state dict) of the dicts of tensors within a dict; a key has dots between those of nested dicts."""
    for name, value in content.items() if depth else ():
        if isinstance(value, dict) and value:
            if all(isinstance(part, torch.Tensor) for part in value.values()):
                yield str(name), value
            else:
                yield from ((f"{name}.{key}", weights) for key, weights in _weights_within(value, depth - 1))


def _strange(tensor):
    """What a tensor is that no weight is, in words; None for a plain one."""
    if tensor.layout is not torch.strided:
        return "a sparse tensor"
    if tensor.is_quantized:
        return "a quantised tensor"
    if tensor.is_meta:
        return "a tensor without values"
    if tensor.is_complex():
        return "complex numbers"
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return "numbers of 8 bits"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"a tensor of {tensor.numel()} numbers in {tensor.untyped_storage().nbytes()} bytes"
    return None


def _safetensors(path, file, map_location):
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(f"checkpoint {path} needs the package safetensors: pip install safetensors") from error
    state = safetensors.torch.load(file.read())
    return {name: value.to(map_location) for name, value in state.items()}


def _expect_checkpoint(path, start):
    if not start:
        raise UserError(f"checkpoint {path} is empty")
    if not start.startswith((b"PK", b"\x80")):
        raise UserError(f"checkpoint {path} is no file of torch.save or safetensors (it begins with {start[:8]!r})")


def load_torchscript(path, device, name):
    """A network that `torch.jit.save` wrote, in eval mode; it is code, so callers let no user run it unawares.

    :param name: the flag and its value, for errors.
    :return: `images -> whatever it gives`, which raises a UserError where the network fails.
    :raises UserError: if it is damaged, or no such network.
    """
    try:
        with files.open_read(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is old
            if zipfile.is_zipfile(file) and (bad := zipfile.ZipFile(file).testzip()) is not None:
                raise UserError(f"{name} is damaged: the checksum of its part {bad} is another")
            file.seek(0)
            network = torch.jit.load(file, map_location=device).eval()
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: there is no file {path}") from None
    except Exception as error:  # as above
        reason = (str(error).splitlines() or ["it ends too soon"])[0].split(". ")[0]
        raise UserError(f"{name} is not what torch.jit.save writes ({reason})") from error
    for p in network.parameters():
        p.requires_grad_(False)

    def answer(images):
        try:
            return network(images)
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().splitlines()[-1]  # below a trace
            raise UserError(f"{name} fails on images {tuple(images.shape)}: {reason}") from error

    return answer


def _expect_whole(path, file):
    """Compare the parts of a zip with their checksums, which torch does not look at."""
    with zipfile.ZipFile(file) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
        length = file.seek(0, io.SEEK_END)
        if claimed > length:  # torch.save compresses nothing
            raise UserError(f"checkpoint {path} is damaged: it claims {claimed} bytes in a file of {length}")
        if (bad := archive.testzip()) is not None:
            raise UserError(f"checkpoint {path} is damaged: the checksum of its part {bad} is another")


def _culprit(error):
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it asks for {found[1]}" if found else "it is damaged or asks for more than data"
