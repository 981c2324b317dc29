"""Runs scripts as a user does, but within this process, and makes small data and checkpoints for them."""

import contextlib
import io
import runpy
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from guided_diffusion import dist_util, logger
from guided_diffusion.jobs.launch import RunFlags

FOLDER = Path(__file__).parents[1] / "scripts"
NETWORK = "--image_size 16 --num_channels 32 --num_res_blocks 1 --channel_mult 1,1 --attention_resolutions 8".split()
PROCESS = ["--diffusion_steps", "100"]
CLASSIFIER = (
    "--image_size 16 --num_classes 3 --classifier_width 32 --classifier_depth 1 --classifier_channel_mult 1,1 "
    "--classifier_attention_resolutions 8 --classifier_num_head_channels 32"
).split()
SUPER_RES = ["--large_size", "16", "--small_size", "8", *NETWORK[2:]]
TRAINING = "--batch_size 4 --iterations 2 --log_interval 1 --num_workers 0".split()


def run(name, *flags, folder=FOLDER):
    """Run NAME.py of a folder, by default scripts, with flags and return what it printed on stdout.

    What one that exits has printed goes to stdout.
    """
    path, printed = str(folder / f"{name}.py"), io.StringIO()
    torch.manual_seed(0)  # a new process starts alike each time
    try:
        with (
            mock.patch.object(sys, "argv", [path, *map(str, flags)]),
            mock.patch.object(sys, "path", [str(folder), *sys.path]),
            contextlib.redirect_stdout(printed),
        ):
            runpy.run_path(path, run_name="__main__")
    except SystemExit:
        sys.stdout.write(printed.getvalue())
        raise
    finally:
        logger.reset()
        dist_util.cleanup()
    return printed.getvalue()


def tensors(folder, step):
    """{name: bytes} of the tensor files of a step of a run."""
    return {path.name: path.read_bytes() for path in Path(folder).glob(f"*{step:06d}.pt")}


def trained(name, folder, *flags, ends):
    """What `tensors` a training script has at the last of its `ends` where it stopped at each and was gone on with."""
    for end in ends:
        run(name, *flags, "--out_dir", folder, "--iterations", end, "--resume_checkpoint", "auto")
    return tensors(folder, ends[-1])


def groups_of(name):
    """(flag groups, overrides) of scripts/NAME.py."""
    with mock.patch.object(sys, "path", [str(FOLDER), *sys.path]):
        script = runpy.run_path(str(FOLDER / f"{name}.py"))
    return [*script["GROUPS"], RunFlags], script.get("OVERRIDES")


def draw_images(folder, count=12, size=16):
    """A folder of random pictures in the three classes ant, bee and cat, by their names."""
    Path(folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        name = f"{('ant', 'bee', 'cat')[i % 3]}_{i}.png"
        Image.fromarray(rng.integers(256, size=(size, size, 3), dtype=np.uint8)).save(Path(folder, name))
    return Path(folder)


def train(name, data, out_dir, *flags):
    """Train two steps by scripts/NAME.py; returns the checkpoint's path."""
    run(name, "--data_dir", data, "--out_dir", out_dir, *TRAINING, *PROCESS, *flags)
    return Path(out_dir, "model000002.pt")


def train_diffusion(data, out_dir, *flags):
    return train("image_train", data, out_dir, *NETWORK, "--learn_sigma", True, *flags)


def train_class_conditional(data, out_dir, *flags):
    return train_diffusion(data, out_dir, "--class_cond", True, "--num_classes", 3, *flags)


def train_classifier(data, out_dir, *flags):
    return train("classifier_train", data, out_dir, *CLASSIFIER, *flags)


def train_super_res(data, out_dir, *flags):
    conditional = ["--class_cond", True, "--num_classes", 3]
    return train("super_res_train", data, out_dir, *SUPER_RES, *conditional, "--learn_sigma", True, *flags)


def mean_colours(path, size, square=8):
    """A network for --features torchscript:PATH: the mean colours of the squares of an image; returns it."""
    network = torch.nn.Sequential(torch.nn.AvgPool2d(square), torch.nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old
        torch.jit.trace(network, torch.zeros(1, 3, size, size)).save(str(path))
    return network
