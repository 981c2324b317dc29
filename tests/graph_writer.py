"""Writes the golden Inception network as a frozen TensorFlow graph, from the rules of the protocol-buffer wire format.

It holds the nodes that decide numbers; nodes of no effect, such as CheckNumerics, are left out.
"""

import struct

import numpy as np
from inception_recipe import LAYERS

MAX_POOLS = ["pool", "pool_1", "mixed_3/pool", "mixed_8/pool", "mixed_10/tower_2/pool"]
AVERAGE_POOLS = [f"mixed{i}/tower_2/pool" for i in ("", "_1", "_2", "_4", "_5", "_6", "_7", "_9")] + ["pool_3"]
FLOAT, INTEGER = 1, 3  # tensorflow.DataType


def _varint(number):
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _bytes(field, content):
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field, value):
    return _varint(field << 3) + _varint(int(value))


def _attribute(name, content):
    return _bytes(5, _bytes(1, name.encode()) + _bytes(2, content))


def node(name, operation, *attributes):
    """The bytes of a NodeDef within a GraphDef."""
    return _bytes(1, _bytes(1, name.encode()) + _bytes(2, operation.encode()) + b"".join(attributes))


def constant(name, array, listed=False):
    """A Const node; `listed` writes numbers one by one instead of as raw content, equal ones once."""
    integer = array.dtype == np.int32
    tensor = _number(1, INTEGER if integer else FLOAT)
    tensor += _bytes(2, b"".join(_bytes(2, _number(1, length)) for length in array.shape))
    if not listed:
        tensor += _bytes(4, array.tobytes())
    else:
        values = array.ravel()[:1] if (array == array.flat[0]).all() else array.ravel()
        packed = b"".join(map(_varint, values.tolist())) if integer else struct.pack(f"<{len(values)}f", *values)
        tensor += _bytes(7 if integer else 5, packed)
    return node(name, "Const", _attribute("value", _bytes(8, tensor)))


def frozen_graph(weights, scale=True, listed=False, epsilon=0.001, half=128):
    """The bytes of a GraphDef.

    :param weights: {node: array}, as graph_weights returns.
    :param scale: scale_after_normalization, whether gamma is used.
    :param listed: write one-dimensional constants number by number.
    :param half: what preprocessing subtracts.
    """
    parts = [constant("Sub/y", np.array(half, np.float32), listed=True)]
    parts += [constant("Mul/y", np.array(0.0078125, np.float32))]
    parts += [constant("ResizeBilinear/size", np.array([299, 299], np.int32), listed)]
    parts += [constant(name, array, listed and array.ndim == 1) for name, array in weights.items()]
    attributes = (
        _attribute("variance_epsilon", _varint(4 << 3 | 5) + struct.pack("<f", epsilon)),
        _attribute("scale_after_normalization", _number(5, scale)),
    )
    for scope in (layer["tf_scope"] for layer in LAYERS):
        parts += [node(f"{scope}/Conv2D", "Conv2D"), node(scope, "Relu")]
        parts += [node(f"{scope}/batchnorm", "BatchNormWithGlobalNormalization", *attributes)]
    parts += [node(name, "MaxPool") for name in MAX_POOLS] + [node(name, "AvgPool") for name in AVERAGE_POOLS]
    return b"".join(parts)
