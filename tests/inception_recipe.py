"""An Inception network whose 23.9 million weights come from a seed, and pictures from a seed.

Golden outputs of this network, by TensorFlow, lie in tests/data/evaluator. Random draws are of numpy's frozen
RandomState stream, and all else is + - * / sqrt, so the same bits come out everywhere.
"""

import csv
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "evaluator"
SEED = 101
# over names, types, shapes and bytes, as `digest` of the published recipe
DIGEST = "89f4d021d0aea4235b41a45180eaf656a30964c625bb988783215ffd45ae8a4e"
SOFTMAX_SCALE = 0.2

with open(DATA / "layers.csv") as file:
    LAYERS = list(csv.DictReader(file))


def _draws(stream):
    return np.random.RandomState(SEED * 1000003 + stream).random_sample


def graph_weights():
    """{name of a node of the frozen graph: float32 array in TensorFlow's layout}."""
    statistics = np.load(DATA / "bn_101.npz")
    weights, channel = {}, 0
    for i, layer in enumerate(LAYERS):
        height, width, into, out = (int(layer[k]) for k in ("kernel_h", "kernel_w", "in_channels", "out_channels"))
        scope, draw = layer["tf_scope"], _draws(i)
        bound = (0.2 + 0.6 * draw()) * np.sqrt(6.0 / (height * width * into))
        weights[f"{scope}/conv2d_params"] = (draw((height, width, into, out)) * 2.0 - 1.0) * bound
        draw = _draws(10000 + i)
        weights[f"{scope}/batchnorm/gamma"] = 0.7 + 0.6 * draw(out)
        weights[f"{scope}/batchnorm/beta"] = -0.25 + 0.6 * draw(out)
        for name, key in (("moving_mean", "mean"), ("moving_variance", "var")):
            weights[f"{scope}/batchnorm/{name}"] = statistics[key][channel : channel + out]
        channel += out
    draw = _draws(20000)
    half = (draw((1024, 1008)) * 2.0 - 1.0) * (np.sqrt(3.0) * SOFTMAX_SCALE)
    # rows in opposite pairs: no class gains from all features being positive
    weights["softmax/weights"] = np.stack([half, -half], axis=1).reshape(2048, 1008)
    weights["softmax/biases"] = (draw(1008) * 2.0 - 1.0) * 2.0
    return {name: array.astype(np.float32) for name, array in weights.items()}


TORCH_NAMES = {
    "conv2d_params": "conv.weight",
    "batchnorm/gamma": "bn.weight",
    "batchnorm/beta": "bn.bias",
    "batchnorm/moving_mean": "bn.running_mean",
    "batchnorm/moving_variance": "bn.running_var",
}


def torch_weights(graph):
    """The same as {name in the torch file: array}."""
    state = {"fc.weight": graph["softmax/weights"].T, "fc.bias": graph["softmax/biases"]}
    for layer in LAYERS:
        for node, key in TORCH_NAMES.items():
            array = graph[f"{layer['tf_scope']}/{node}"]
            state[f"{layer['torch_module']}.{key}"] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def pictures(count, size):
    """uint8 [count, size, size, 3]: the golden pictures of that size, of waves, boxes, ramps and noise."""
    draw = np.random.RandomState(5000 + size).random_sample
    y, x = np.meshgrid(np.arange(size) / size, np.arange(size) / size, indexing="ij")
    made = []
    for _ in range(count):
        picture, base = np.zeros((size, size, 3)), draw(3)
        for _ in range(4):
            along, down, phase = (draw(3) * 2 - 1) * np.array([9.0, 9.0, 1.0])
            wave = along * x + down * y + phase
            picture += np.abs((wave - np.floor(wave)) * 2 - 1)[:, :, None] * (draw(3) - 0.5)
        for _ in range(3):
            x0, y0, x1, y1 = draw(4)
            box = (x >= min(x0, x1)) & (x < max(x0, x1)) & (y >= min(y0, y1)) & (y < max(y0, y1))
            picture[box] = draw(3) - 0.2
        noise = draw() * 0.3
        picture += (draw((size, size, 3)) - 0.5) * noise
        picture = picture + base
        picture = picture - picture.min()
        made.append(np.floor(picture / picture.max() * 255.0 + 0.5).astype(np.uint8))
    return np.stack(made)
