"""Files that a training run opens again when it goes on: what is said when they are others by then."""

import json
import shutil
import warnings

import launched
import numpy as np
import pytest
import script_runs
import torch
from processes import slow
from tiny_loop import weights

from guided_diffusion.flags import flags_of, marked

NETWORK = "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions=".split()
RUN = "--diffusion_steps 10 --noise_schedule cosine --prediction v --batch_size 3 --num_workers 0 --lr 1e-3".split()
CLASSES = ["--class_cond", True, "--num_classes", 3]
CLASSIFIER = (
    "--image_size 8 --num_classes 3 --classifier_width 32 --classifier_depth 1 --classifier_channel_mult 1 "
    "--classifier_attention_resolutions 8 --classifier_num_head_channels 32"
).split()
VAE = "--image_size 8 --vae_channels 8 --vae_channel_mult 1,2 --vae_latent_dim 5".split()

CONSISTENT = [*NETWORK, *CLASSES, "--objective", "consistency_distillation", "--consistency_steps", 4]
# of each kind: the script and its words, in which {file} is the file
KINDS = {
    "teacher": ("image_train", [*CONSISTENT, "--teacher", "{file}"], "unet"),
    "reward": ("image_train", [*CONSISTENT, "--teacher", "{unet}", "--reward", "classifier:{file}"], "classifier"),
    "reward of code": (
        "image_train",
        [*CONSISTENT, "--teacher", "{unet}", "--trust_reward", True, "--reward", "torchscript:{file}"],
        "torchscript",
    ),
    "identity_path": (
        "inpaint_train",
        [*NETWORK, "--masks", "center", "--objective", "unrolled", "--unroll_steps", 2, "--identity_path", "{file}"],
        "classifier",
    ),
    "vae_path": ("image_train", [*NETWORK, "--vae_path", "{file}"], "autoencoder"),
}
SAVED = {"teacher", "identity_path"}  # with the run
SAID = "is not what --resume_checkpoint was trained with"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images.npz and a file of each sort, SORT.pt."""
    folder = tmp_path_factory.mktemp("opened")
    drawn = np.random.default_rng(0).integers(256, size=(9, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", arr_0=drawn, arr_1=np.arange(9) % 3)
    made = {
        "unet": ("image_train", [*NETWORK, *CLASSES, *RUN]),
        "classifier": ("classifier_train", [*CLASSIFIER, *RUN[:4], *RUN[-6:]]),
        "autoencoder": ("vae_train", [*VAE, *RUN[-6:]]),
    }
    for name, (script, words) in made.items():
        train(folder, script, folder / name, *words, "--iterations", 1)
        for ending in ("pt", "json"):
            shutil.copy(folder / name / f"model000001.{ending}", folder / f"{name}.{ending}")
    write_reward(folder / "torchscript.pt", 0)
    return folder


def train(place, script, folder, *words):
    return script_runs.run(script, "--data_dir", place / "images.npz", "--out_dir", folder, *words)


def write_reward(path, seed):
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 1), torch.nn.Flatten(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old
        torch.jit.trace(network, torch.zeros(2, 3, 8, 8)).save(str(path))


def replace(path):
    """Put another network of the same shapes in the place of that at `path`."""
    if path.stem == "torchscript":
        write_reward(path, 1)
    else:
        torch.save({name: value + 0.01 for name, value in weights(path).items()}, path)


@pytest.mark.parametrize("change", ["none", "moved", "replaced"])
@pytest.mark.parametrize("kind", [*list(KINDS)[:1], *slow(*list(KINDS)[1:])])
def test_a_file_that_is_another_when_a_run_goes_on_is_said(place, tmp_path, kind, change):
    script, words, sort = KINDS[kind]
    file = tmp_path / f"{sort}.pt"
    for path in place.glob(f"{sort}.*"):
        shutil.copy(path, tmp_path)
    words = [str(word).format(file=file, unet=place / "unet.pt") for word in words]
    words = [*words, *RUN, "--resume_checkpoint", "auto"]
    assert SAID not in train(place, script, tmp_path / "run", *words, "--iterations", 1)
    if change == "moved":
        (tmp_path / "new").mkdir()
        for path in tmp_path.glob(f"{sort}.*"):
            path.rename(tmp_path / "new" / path.name)
        words = [word.replace(str(tmp_path / sort), str(tmp_path / "new" / sort)) for word in words]
    elif change == "replaced":
        replace(file)
    said = train(place, script, tmp_path / "run", *words, "--iterations", 2)
    flag = f"--{kind.split()[0]}"
    assert all(f"{flag} " in line for line in said.splitlines() if SAID in line)
    assert said.count(SAID) == (change == "replaced")
    if change == "replaced":
        assert ("goes on with those that it began with" in said) == (kind in SAVED)
        assert ("goes on with that" in said) == (kind not in SAVED)
        # from here on it is the file of this run
        assert (SAID in train(place, script, tmp_path / "run", *words, "--iterations", 3)) == (kind in SAVED)


@pytest.mark.parametrize("script", [name for name in launched.NAMES if name.endswith("_train")])
def test_every_flag_of_training_that_names_such_a_file_is_of_a_kind(script):
    groups = launched.read(script).groups
    named = {*marked(groups, "content"), *marked(groups, "opens")}
    named |= {field.name for group in groups for field in flags_of(group) if field.name.endswith("_path")}
    assert named <= KINDS.keys()


def test_a_run_without_such_files_has_no_list_of_them(place):
    assert "files" not in json.loads((place / "unet.json").read_text())
