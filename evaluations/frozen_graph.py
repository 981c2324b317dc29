"""The weights in classify_image_graph_def.pb, the frozen TensorFlow graph of the original evaluator.

Node names follow from the tables in inception.py: a convolution of scope S has S/conv2d_params, S/Conv2D and
S/batchnorm/{beta,gamma,moving_mean,moving_variance}. The file is read by the protocol buffers in tensorboard.
"""

from collections import Counter

import numpy as np
import torch

from guided_diffusion.errors import UserError

from .inception import BLOCKS, EPSILON, SIZE, STEM, Conv, avg_same

PREPROCESSING = {"ResizeBilinear/size": [SIZE, SIZE], "Sub/y": 128, "Mul/y": 1 / 128}
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
# tensorflow.DataType: (numpy type, field of the TensorProto)
NUMBERS = {1: ("<f4", "float_val"), 3: ("<i4", "int_val")}


def scopes():
    """{scope of a convolution or name of a pool: (torch module or "", Conv or pool function)}, in the graph's order.

    Branches of more than one step lie in tower, tower_1 and so on; steps side by side in mixed below that.
    """
    found, count = {}, Counter()

    def numbered(path):
        count[path] += 1
        return path if count[path] == 1 else f"{path}_{count[path] - 1}"

    def add(folder, block, step):
        if isinstance(step, Conv):
            found[numbered(f"{folder}conv")] = (block + step.name, step)
        elif callable(step):
            found[numbered(f"{folder}pool")] = ("", step)
        else:
            for layer in step:
                add(f"{folder}mixed/", block, layer)

    for step in STEM:
        add("", "", step)
    for name, branches in BLOCKS.items():
        mixed = numbered("mixed")
        for branch in branches:
            folder = f"{mixed}/" if len(branch) == 1 else numbered(f"{mixed}/tower") + "/"
            for step in branch:
                add(folder, f"{name}.", step)
    return found


def read(data, path):
    """The weights of a graph as a state dict of the Inception network: {name: float32 tensor}.

    Shapes are not compared with the network's.

    :param data: the content of the file, bytes.
    :param path: where it lies, for errors.
    :raises UserError: if this is not the graph of 2015-12-05, or tensorboard is not installed.
    """
    graph = _Graph(data, path)
    graph.expect_operations()
    state = {"fc.weight": graph.constant("softmax/weights").T, "fc.bias": graph.constant("softmax/biases")}
    for scope, (module, layer) in scopes().items():
        if not isinstance(layer, Conv):
            continue
        kernel = graph.constant(f"{scope}/conv2d_params")
        state[f"{module}.conv.weight"] = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel
        for key, name in NORM.items():
            state[f"{module}.bn.{key}"] = graph.constant(f"{scope}/batchnorm/{name}")
        if not graph.normalization_scales(scope):
            state[f"{module}.bn.weight"] = np.ones_like(state[f"{module}.bn.weight"])
    return {name: torch.from_numpy(np.array(array, np.float32, order="C")) for name, array in state.items()}


class _Graph:
    """A GraphDef whose nodes are found by name; what it lacks is a UserError."""

    def __init__(self, data, path):
        try:
            from google.protobuf.message import DecodeError
            from tensorboard.compat.proto.graph_pb2 import GraphDef
        except ImportError as error:
            raise UserError(
                f"reading the graph {path} needs tensorboard, which does not load ({error}): pip install tensorboard"
            ) from error
        self.path = path
        try:
            self.nodes = {node.name: node for node in GraphDef.FromString(data).node}
        except DecodeError:
            raise UserError(
                f"Inception weights {path} are neither a torch file nor a frozen TensorFlow graph, or are truncated"
            ) from None

    def refuse(self, why):
        return UserError(f"Inception weights {self.path} are not the graph of 2015-12-05: {why}")

    def expect_operations(self):
        """Raise unless convolutions, pools and preprocessing are those of the network."""
        expected = {"pool_3": "AvgPool"}
        for scope, (module, layer) in scopes().items():
            pool = "AvgPool" if layer is avg_same else "MaxPool"
            expected |= {f"{scope}/Conv2D": "Conv2D"} if module else {scope: pool}
        found = {name: node.op for name, node in self.nodes.items() if node.op in ("Conv2D", "MaxPool", "AvgPool")}
        strange = sorted(name for name in found | expected if found.get(name) != expected.get(name))
        if strange:
            raise self.refuse(f"{len(strange)} of its convolutions and pools differ, such as {strange[0]}")
        for name, value in PREPROCESSING.items():
            if not np.array_equal(self.constant(name), value):
                raise self.refuse(f"{name} is {self.constant(name).tolist()}, not {value}")

    def constant(self, name):
        """The array of a Const node, of floats or integers."""
        if name not in self.nodes:
            raise self.refuse(f"it has no node {name}")
        tensor = self.nodes[name].attr["value"].tensor
        shape = [axis.size for axis in tensor.tensor_shape.dim]
        if tensor.dtype not in NUMBERS:
            raise self.refuse(f"node {name} holds no numbers")
        kind, field = NUMBERS[tensor.dtype]
        try:
            if tensor.tensor_content:
                return np.frombuffer(tensor.tensor_content, kind).reshape(shape)
            values = np.array(getattr(tensor, field), kind)
            # the last value stands for all that follow it
            return np.pad(values, (0, int(np.prod(shape)) - len(values)), mode="edge").reshape(shape)
        except ValueError:
            raise self.refuse(f"node {name} does not hold what its shape {shape} needs") from None

    def normalization_scales(self, scope):
        """Whether the normalisation of a convolution multiplies by gamma."""
        node = self.nodes.get(f"{scope}/batchnorm")
        epsilon = node.attr["variance_epsilon"].f if node else 0.0
        if abs(epsilon - EPSILON) > 1e-9:
            raise self.refuse(f"the epsilon of {scope}/batchnorm is {epsilon:g}, not {EPSILON}")
        return node.attr["scale_after_normalization"].b
