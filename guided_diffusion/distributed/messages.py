"""Plain values as bytes and back, for what ranks tell each other: JSON and raw numbers, which run nothing.

A message is the length of a JSON text in 8 bytes, the text, and the raw numbers of its arrays and tensors, one after
another. In the text a list stands for what is no plain JSON value, and its first word says for what.
"""

import json
import sys

import numpy as np
import torch

_NAMED = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def packed(value):
    """The message that a value is.

    :param value: None, bool, int, float, text, bytes, a numpy number or array, a tensor, or a list, tuple, set or dict
        of these.
    :raises TypeError: for anything else.
    """
    raw = []
    text = json.dumps(_told(value, raw)).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *raw])


def unpacked(message):
    """The value that a message is, its tensors on the CPU.

    :raises ValueError: if it is none.
    """
    message = memoryview(message)
    end = 8 + int.from_bytes(message[:8], "little")
    try:
        return _meant(json.loads(bytes(message[8:end])), message[end:])
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{error!r} in a message of another rank") from error


def _told(value, raw):
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):  # torch.__version__ is of a class of its own
        return str(value)
    if type(value) in (list, tuple, set):
        return [type(value).__name__, *(_told(part, raw) for part in value)]
    if type(value) is dict:
        return ["dict", *([_told(key, raw), _told(part, raw)] for key, part in value.items())]
    if type(value) is bytes:
        return ["bytes", *_put(value, raw)]
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return ["tensor", str(value.dtype).removeprefix("torch."), list(value.shape), *_put(numbers, raw)]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        return [
            "array" if isinstance(value, np.ndarray) else "number",
            value.dtype.str,
            list(value.shape),
            *_put(np.ascontiguousarray(value).tobytes(), raw),
        ]
    raise TypeError(f"{type(value).__name__} is nothing that ranks tell each other")


def _put(data, raw):
    """(start, end) of data behind the text."""
    start = sum(map(len, raw))
    raw.append(data)
    return start, start + len(data)


def _meant(told, raw):
    if not isinstance(told, list):
        return told
    kind, *parts = told
    if kind == "dict":
        return {_key(_meant(key, raw)): _meant(part, raw) for key, part in parts}
    if kind in ("list", "tuple", "set"):
        return {"list": list, "tuple": tuple, "set": set}[kind](_meant(part, raw) for part in parts)
    *form, start, end = parts
    data = bytearray(raw[start:end])
    if kind == "bytes":
        return bytes(data)
    dtype, shape = form
    if kind == "tensor":
        empty = torch.empty(shape, dtype=_NAMED[dtype])
        return torch.frombuffer(data, dtype=_NAMED[dtype]).reshape(shape) if data else empty
    if kind not in ("array", "number"):
        raise ValueError(f"{kind!r} is no kind of value")
    array = np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)
    return array if kind == "array" else array[()]


def _key(key):
    return sys.intern(key) if isinstance(key, str) else key
