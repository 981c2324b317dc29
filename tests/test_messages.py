"""What ranks tell each other: plain values come back as they were, and nothing else is told or run."""

import json
import pickle

import numpy as np
import pytest
import torch

from guided_diffusion.distributed import messages

NAN = float("nan")
VALUES = [
    *(None, True, False, 0, -7, 2**70, 0.1, 1e-320, float("inf"), "", "text", "Ünïcödé \udcff", b"", b"\x00\xff"),
    *([], (), set(), {}, [1, [2, (3, None)]], (1, "a"), {1, 2, 5}, {"a": 1, 2: "b", None: [], (1, 2): {3}}),
    *([["dict", 1]], "tuple", ["tensor", "float32", [1], 0, 4]),
]
ARRAYS = [np.arange(6).reshape(2, 3).astype(kind) for kind in ("u1", "i8", "f2", "f4", "f8", "c8", "?")]
ARRAYS += [np.zeros((0, 3), np.float32), np.array(2.5), np.float64(0.1), np.int64(3), np.arange(9.0)[::2]]
TENSORS = [torch.arange(6).reshape(2, 3).to(kind) for kind in (torch.uint8, torch.int64, torch.float32, torch.bfloat16)]
TENSORS += [torch.zeros(0, 4), torch.tensor(3.5), torch.arange(12.0).reshape(3, 4).t(), torch.tensor([True, False])]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_come_back(value):
    back = messages.unpacked(messages.packed(value))
    assert back == value and type(back) is type(value)


def test_text_of_other_classes_comes_back_as_text():
    back = messages.unpacked(messages.packed({"torch": torch.__version__, "name": np.str_("x")}))
    assert back == {"torch": str(torch.__version__), "name": "x"} and {type(v) for v in back.values()} == {str}


def test_nan_comes_back():
    assert np.isnan(messages.unpacked(messages.packed([NAN]))[0])


@pytest.mark.parametrize("value", [*ARRAYS, *TENSORS], ids=lambda v: f"{type(v).__name__} {v.dtype} {tuple(v.shape)}")
def test_arrays_and_tensors_come_back_bit_for_bit_and_may_be_written(value):
    back = messages.unpacked(messages.packed({"it": [value, value]}))["it"]
    for one in back:
        assert type(one) is type(value) and one.dtype == value.dtype and one.shape == value.shape
        if isinstance(value, torch.Tensor):
            assert torch.equal(one, value)
            one.zero_()
        elif isinstance(value, np.ndarray):
            assert np.array_equal(one, value)
            one[...] = 0
        else:
            assert one == value


@pytest.mark.parametrize(
    "value",
    [object(), range(3), print, np.array([object()]), torch.eye(2).to_sparse(), 1j],
    ids=lambda v: type(v).__name__,
)
def test_anything_else_is_an_error_of_the_program(value):
    with pytest.raises(TypeError, match="is nothing that ranks tell each other"):
        messages.packed([value])


class Evil:
    def __reduce__(self):
        return print, ("owned",)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x05",
        pickle.dumps(Evil()),
        (8).to_bytes(8, "little") + pickle.dumps(Evil()),
        *(len(t := json.dumps(told)).to_bytes(8, "little") + t.encode() for told in (
            ["print", 1], ["array", "O", [1], 0, 8], ["tensor", "dtype", [1], 0, 4], ["array", "<f8", [10**12], 0, 0],
            ["tensor", "float32", [10**12], 0, 4], [], ["dict", 1], ["set", ["list"]], ["array", "<f8"], [["list"]],
        )),
        (10**9).to_bytes(8, "little") + b"[" * 10**5,
    ],
)  # fmt: skip
def test_a_strange_message_is_an_error_and_runs_nothing(message, capsys):
    with pytest.raises((ValueError, RuntimeError)):
        messages.unpacked(message)
    assert capsys.readouterr().out == ""
