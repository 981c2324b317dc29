"""Compiled kernels for the CPU, where a compiler was there when the package was installed; see kernels.c.

`current()` gives the Kernels of this process, or None: what stands in for them is plain torch.
"""

import ctypes
import functools
import os
import threading
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from ..errors import UserError

# the widest vectors first
INSTRUCTIONS = ("avx512", "avx2")
SWITCH = "GUIDED_DIFFUSION_KERNELS"
# of the library that is called here, as kernels.c has it
VERSION = 1


def find():
    """The path of the compiled library, or None."""
    places = (Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next(filter(Path.exists, places), None)


@functools.cache
def current():
    """The Kernels that this process computes by, or None.

    The environment variable GUIDED_DIFFUSION_KERNELS may ask for avx2 or avx512 alone, or for none.

    :raises UserError: if it asks for something else, or for what is not there.
    """
    asked = os.environ.get(SWITCH, "")
    if asked not in ("", "none", *INSTRUCTIONS):
        raise UserError(f"{SWITCH} is {asked!r}; expected {', '.join(INSTRUCTIONS)} or none")
    wanted = [] if asked == "none" else [asked] if asked else INSTRUCTIONS
    path = find()
    found = next(filter(None, (load(path, name) for name in wanted)), None) if path else None
    if asked and asked != "none" and found is None:
        raise UserError(f"{SWITCH} is {asked}, and there are no such kernels for this processor; expected it unset")
    return found


def instructions():
    """The instruction set of `current`, or "none"."""
    found = current()
    return "none" if found is None else found.instructions


def load(path, instructions):
    """The Kernels of a library for an instruction set; None where the library or the processor does not fit.

    :param path: of the library.
    :param instructions: "avx2" or "avx512".
    """
    try:
        library = ctypes.CDLL(os.fspath(path))
        fits = library.version() == VERSION and library.supports(instructions.encode())
        return Kernels(library, instructions) if fits else None
    except (OSError, AttributeError):  # made for another system, or by another version
        return None


class Kernels:
    """The functions of kernels.c for one instruction set, on float32 tensors in main memory, without gradients.

    Images are [N, C, H, W] and lie channels last; what lies otherwise is copied. C code checks no bounds, so every
    function raises ValueError for shapes that do not fit together.

    :param library: what ctypes made of the compiled file.
    :ivar instructions: "avx2" or "avx512".
    """

    def __init__(self, library, instructions):
        self.instructions = instructions
        self._space = threading.local()
        # argument types: p pointer, l long, i int, f float
        self._filter_floats = self._function(library, "filter_floats", "ll", ctypes.c_long)
        self._filters = self._function(library, "convolution_filters", "ppllii", None)
        self._convolution = self._function(library, "convolution", "pppppllllli")
        self._filter_gradient = self._function(library, "filter_gradient", "pppllllli")
        self._linear_floats = self._function(library, "linear_floats", "ll", ctypes.c_long)
        self._linear_weights = self._function(library, "linear_weights", "ppll", None)
        self._linear = self._function(library, "linear", "pppppllli", None)
        self._normalised = self._function(library, "normalised", "ppppplppllllfii")
        self._normalised_gradient = self._function(library, "normalised_gradient", "ppppppl" + "ppp" + "llllii")

    def _function(self, library, name, arguments, result=ctypes.c_int):
        types = {"p": ctypes.c_void_p, "l": ctypes.c_long, "i": ctypes.c_int, "f": ctypes.c_float}
        function = getattr(library, f"{name}_{self.instructions}")
        function.argtypes, function.restype = [types[letter] for letter in arguments], result
        return function

    def filters(self, weight, turned=False, kept=True):
        """The transform of filters [O, C, 3, 3], four times as large, as `convolution` takes it.

        :param turned: for the gradient of the convolution's input: of filters [C, O, 3, 3], each turned by 180 degrees.
        :param kept: False gives memory that the next call of this thread uses again, for fresh memory costs more time
            than the transform.
        """
        weight = weight.contiguous()
        outputs, inputs = weight.shape[:2][::-1] if turned else weight.shape[:2]
        size = self._filter_floats(inputs, outputs)
        packed = _empty(size) if kept else self._reused(size)
        self._filters(weight.data_ptr(), packed.data_ptr(), inputs, outputs, turned, torch.get_num_threads())
        return packed

    def _reused(self, size):
        space = getattr(self._space, "filters", None)
        if space is None or len(space) < size:
            space = self._space.filters = _empty(size)
        return space

    def convolution(self, x, filters, outputs, bias=None, residual=None):
        """The 3x3 convolution of x [N, C, H, W] with padding 1, plus bias [outputs], plus residual like the result.

        :param x: H and W are multiples of 4.
        :param filters: see `filters`.
        """
        x, bias, residual = _last(x), _dense(bias), None if residual is None else _last(residual)
        n, channels, height, width = x.shape
        # memory that is used again may be longer
        _fit(len(filters) >= self._filter_floats(channels, outputs) and not height % 4 and not width % 4)
        _fit(_is(bias, outputs) and _is(residual, n, outputs, height, width))
        y = _images(n, outputs, height, width)
        pointers = (x.data_ptr(), filters.data_ptr(), _pointer(bias), _pointer(residual), y.data_ptr())
        _check(self._convolution(*pointers, n, height, width, channels, outputs, torch.get_num_threads()))
        return y

    def filter_gradient(self, x, gradient):
        """The gradient [O, C, 3, 3] of the filters, for x [N, C, H, W] and the gradient [N, O, H, W] of the result."""
        x, gradient = _last(x), _last(gradient)
        n, channels, height, width = x.shape
        outputs = gradient.shape[1]
        _fit(_is(gradient, n, outputs, height, width) and not height % 4 and not width % 4)
        made = _empty(outputs, channels, 3, 3)
        pointers = (x.data_ptr(), gradient.data_ptr(), made.data_ptr())
        _check(self._filter_gradient(*pointers, n, height, width, channels, outputs, torch.get_num_threads()))
        return made

    def linear_floats(self, weight):
        """How many floats `linear_weights` makes of weights [O, C, ...]."""
        return self._linear_floats(weight[0].numel(), len(weight))

    def linear_weights(self, weight):
        """Weights [O, C, ...] as `linear` takes them, for rows in which what follows C comes before it."""
        weight = weight.movedim(1, -1).flatten(1).contiguous()
        outputs, inputs = weight.shape
        packed = _empty(self.linear_floats(weight))
        self._linear_weights(weight.data_ptr(), packed.data_ptr(), inputs, outputs)
        return packed

    def linear(self, x, weights, outputs, bias=None, residual=None):
        """x [..., C] times weights, plus bias [outputs], plus residual [..., outputs]; a row depends on no other.

        :param weights: see `linear_weights`.
        """
        x, bias, residual = map(_dense, (x, bias, residual))
        _fit(len(weights) == self._linear_floats(x.shape[-1], outputs))
        _fit(_is(bias, outputs) and _is(residual, *x.shape[:-1], outputs))
        y = _empty(*x.shape[:-1], outputs)
        pointers = (x.data_ptr(), weights.data_ptr(), _pointer(bias), _pointer(residual), y.data_ptr())
        self._linear(*pointers, x.shape[:-1].numel(), x.shape[-1], outputs, torch.get_num_threads())
        return y

    def normalised(self, x, groups, weight, bias, eps, scale_shift=None, silu=True):
        """Group normalisation of x [N, C, ...], times 1 + scale, plus shift, then SiLU: (result, statistics).

        :param x: C is a multiple of 16.
        :param scale_shift: [N, 2 C], scales before shifts, or None.
        :param silu: whether there is a SiLU.
        :return: statistics [N, 2, C] are the means and 1 / deviations.
        """
        x, weight, bias, scale_shift = _last(x), _dense(weight), _dense(bias), _by_rows(scale_shift)
        n, channels = x.shape[:2]
        _fit(not channels % 16 and not channels % groups and _is(weight, channels) and _is(bias, channels))
        _fit(_is(scale_shift, n, 2 * channels))
        y, statistics = torch.empty_like(x), _empty(n, 2, channels)
        pointers = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), *_halves(scale_shift, channels))
        results = (y.data_ptr(), statistics.data_ptr())
        sizes = (n, x.shape[2:].numel(), channels, groups)
        _check(self._normalised(*pointers, *results, *sizes, eps, silu, torch.get_num_threads()))
        return y, statistics

    def normalised_gradient(self, x, gradient, statistics, groups, weight, bias, scale_shift=None, silu=True):
        """Gradients of `normalised`, for that of its result: (of x, sums).

        :param statistics: what `normalised` gave.
        :return: sums [N, 2, C] over the positions: of the gradient before SiLU, and of its product with the
            normalised x.
        """
        x, gradient = _last(x), _last(gradient)
        weight, bias, scale_shift = _dense(weight), _dense(bias), _by_rows(scale_shift)
        n, channels = x.shape[:2]
        _fit(not channels % 16 and not channels % groups and _is(weight, channels) and _is(bias, channels))
        _fit(_is(scale_shift, n, 2 * channels) and _is(statistics, n, 2, channels) and _is(gradient, *x.shape))
        dx, sums = torch.empty_like(x), _empty(n, 2, channels)
        images = (x.data_ptr(), gradient.data_ptr())
        told = (weight.data_ptr(), bias.data_ptr(), *_halves(scale_shift, channels), statistics.data_ptr())
        sizes = (n, x.shape[2:].numel(), channels, groups)
        results = (dx.data_ptr(), sums.data_ptr())
        _check(self._normalised_gradient(*images, *told, *results, *sizes, silu, torch.get_num_threads()))
        return dx, sums


def _empty(*shape):
    """Memory as kernels write it, whatever torch makes by default."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _is(tensor, *shape):
    """Whether a tensor has a shape, or is None."""
    return tensor is None or tensor.shape == shape


def _fit(fits):
    if not fits:
        raise ValueError("shapes do not fit together, or not to kernels")


def _last(x):
    """x [N, C, ...] with its channels last in memory."""
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _images(*shape):
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)


def _dense(tensor):
    """A tensor, or None, without gaps in memory; it has to outlive the call that is given its address."""
    return None if tensor is None else tensor.contiguous()


def _by_rows(scale_shift):
    return scale_shift if scale_shift is None or scale_shift.stride(-1) == 1 else scale_shift.contiguous()


def _pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


def _halves(scale_shift, channels):
    """(pointer to scales, pointer to shifts, floats from one image to the next)."""
    if scale_shift is None:
        return None, None, 0
    start = scale_shift.data_ptr()
    return start, start + 4 * channels, scale_shift.stride(0)


def _check(status):
    if status:
        raise MemoryError("there is no memory for a kernel's work space")
