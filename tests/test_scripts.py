"""The scripts, from training to samples: on one process, under mpirun and torchrun."""

import csv
import errno
import json
import re
import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from processes import MPIRUN, mpirun, needs_mpirun, slow
from processes import run as start
from script_runs import (
    FOLDER,
    NETWORK,
    PROCESS,
    draw_images,
    groups_of,
    run,
    train_class_conditional,
    train_classifier,
    train_diffusion,
    train_super_res,
)

from guided_diffusion import flags
from guided_diffusion.jobs import launch

FEW = ["--num_samples", 5, "--batch_size", 2, "--timestep_respacing", 4]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On so small networks, more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("scripts")


@pytest.fixture(scope="module")
def data(place):
    return draw_images(place / "data")


@pytest.fixture(scope="module")
def conditional(place, data):
    return train_class_conditional(data, place / "conditional", "--sample_interval", 2, "--dropout", 0.1)


@pytest.fixture(scope="module")
def unconditional(place, data):
    return train_diffusion(data, place / "unconditional")


@pytest.fixture(scope="module")
def classifier(place, data):
    return train_classifier(data, place / "classifier", "--val_data_dir", data, "--eval_interval", 1)


@pytest.fixture(scope="module")
def upsampler(place, data):
    return train_super_res(data, place / "upsampler")


@pytest.fixture(scope="module")
def samples(place, conditional):
    """The npz of five samples of the class-conditional network."""
    run("image_sample", "--model_path", conditional, "--out_dir", place / "samples", *FEW)
    return place / "samples" / "samples_5x16x16x3.npz"


@pytest.fixture(scope="module")
def on_two_ranks(place, data, conditional, classifier):
    """The folder of what several scripts wrote in one job of two ranks."""
    folder = place / "ranks"
    one_image = draw_images(folder / "one", count=1)
    nll = [*NLL, "--model_path", conditional, "--data_dir", data]
    resume = ["--resume_checkpoint", conditional, "--iterations", 3, "--class_cond", True, "--num_classes", 3]
    commands = [
        ["image_sample", "--model_path", conditional, "--out_dir", folder / "few", *FEW, "--num_samples", 1],
        ["image_nll", "--out_dir", folder / "nll", *nll],
        ["image_train", "--data_dir", one_image, "--out_dir", folder / "train", *small(conditional), "--iterations", 2],
        ["image_train", "--data_dir", data, "--out_dir", folder / "resumed", *small(conditional), *resume],
        [
            "classifier_train",
            "--data_dir",
            data,
            "--val_data_dir",
            data,
            "--out_dir",
            folder / "classifier",
            *small(classifier),
            "--iterations",
            2,
        ],
    ]
    (folder / "commands.json").write_text(json.dumps([list(map(str, command)) for command in commands]))
    done = mpirun(2, "script_list.py", folder / "commands.json")
    assert done.returncode == 0, done.stderr
    return folder


def small(checkpoint):
    """The flags that made a checkpoint's network and process, for training on."""
    names = (
        "image_size num_channels num_res_blocks channel_mult attention_resolutions learn_sigma diffusion_steps "
        "num_classes batch_size num_workers"
    ).split()
    saved = json.loads(checkpoint.with_suffix(".json").read_text())
    kept = {k: v for k, v in saved.items() if (k in names or k.startswith("classifier_")) and v != ""}
    return [word for k, v in kept.items() for word in (f"--{k}", v)]


def arrays(path):
    with np.load(path) as npz:
        return {name: npz[name] for name in npz.files}


# --------------------------------------------------------------------------------------- training


def test_training_writes_its_files_and_a_preview(conditional):
    folder = conditional.parent
    for name in ("model000002", "ema_0.9999_000002"):
        assert (folder / f"{name}.pt").exists()
        saved = json.loads((folder / f"{name}.json").read_text())
        assert (saved["num_classes"], saved["dropout"], saved["learn_sigma"], saved["step"]) == (3, 0.1, True, 2)
    assert (folder / "opt000002.pt").exists() and (folder / "flags.json").exists()
    with Image.open(folder / "preview_000002.png") as picture:
        assert picture.size == (4 * (4 * 16 + 3), 4 * (4 * 16 + 3))
        assert len(picture.getcolors(10**6)) > 10
    header = (folder / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"step", "samples", "loss", "mse", "vb", "grad_norm", "param_norm", "progress", "time_left"} <= set(header)


def test_training_is_reproducible(data, place, unconditional):
    again = train_diffusion(data, place / "again")
    for name in ("model000002.pt", "ema_0.9999_000002.pt"):
        ours, theirs = (torch.load(path.parent / name, weights_only=True) for path in (again, unconditional))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_classifier_training_logs_held_out_accuracy(classifier):
    with open(classifier.parent / "progress.csv") as file:
        logged = list(csv.DictReader(file))
    for row in logged:
        for split in ("train", "val"):
            accuracy = 4 * float(row[f"{split}_acc@1"])  # of a batch of 4
            assert accuracy == round(accuracy) and 0 <= accuracy <= 4
            assert row[f"{split}_acc@5"] == "1.0"  # there are three classes
            assert 0 < float(row[f"{split}_loss"]) < 10
    assert not list(classifier.parent.glob("ema_*"))


@needs_mpirun
def test_two_ranks_train_on_a_single_image(on_two_ranks):
    assert (on_two_ranks / "train" / "model000002.pt").exists()
    assert (on_two_ranks / "classifier" / "model000002.pt").exists()


@needs_mpirun
def test_two_ranks_resume(on_two_ranks):
    assert (on_two_ranks / "resumed" / "model000003.pt").exists()
    log = (on_two_ranks / "resumed" / "log.txt").read_text()
    (warned,) = (line for line in log.splitlines() if line.startswith("warning"))
    assert "steps were of 4 images x 1 ranks, now they are of 4 images x 2 ranks" in warned
    assert "3/3" in log and "1/3" not in log
    state = torch.load(on_two_ranks / "resumed" / "opt000003.pt", weights_only=True)["state"]
    assert {int(entry["step"]) for entry in state.values()} == {3}


# --------------------------------------------------------------------------------------- sampling


def test_samples_are_images_with_labels_and_a_picture(samples):
    saved = arrays(samples)
    images, labels = saved["arr_0"], saved["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (5, 16, 16, 3)
    assert labels.dtype == np.int64 and labels.shape == (5,)
    assert set(labels) <= {0, 1, 2}, "the classes are the checkpoint's three, not the default thousand"
    assert len({image.tobytes() for image in images}) == 5
    picture = np.asarray(Image.open(samples.with_suffix(".png")))
    for i, image in enumerate(images):  # enlarged 4 times, with a line of 12 pixels that names the class
        top, left = 77 * (i // 3), 65 * (i % 3)
        assert np.array_equal(picture[top : top + 64 : 4, left : left + 64 : 4], image)


@needs_mpirun
def test_mpirun_gives_the_same_bytes(samples, conditional, tmp_path):
    command = [FOLDER / "image_sample.py", "--model_path", conditional, "--out_dir", tmp_path, *FEW]
    done = start(MPIRUN, "-n", 2, sys.executable, *command, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[-1] == str(tmp_path)
    assert (tmp_path / samples.name).read_bytes() == samples.read_bytes()
    assert (tmp_path / samples.name).with_suffix(".png").exists()


@pytest.mark.slow
def test_torchrun_gives_the_same_bytes(samples, conditional, tmp_path):
    command = [FOLDER / "image_sample.py", "--model_path", conditional, "--out_dir", tmp_path, *FEW]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    done = start(*launcher, *command, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / samples.name).read_bytes() == samples.read_bytes()


@needs_mpirun
def test_fewer_samples_than_ranks(on_two_ranks, samples):
    (path,) = (on_two_ranks / "few").glob("*.npz")
    assert path.name == "samples_1x16x16x3.npz"
    alone = arrays(path)
    assert alone["arr_1"][0] == arrays(samples)["arr_1"][0]
    # a batch of one may round differently from a batch of two
    assert np.abs(alone["arr_0"][0].astype(int) - arrays(samples)["arr_0"][0]).max() <= 1


def test_the_1gpu_script_names_its_file_after_model_data_and_steps(conditional, tmp_path):
    ddim = ["--timestep_respacing", "ddim5", "--num_samples", 2, "--model_path", conditional]
    names = ["--model_type", "adm", "--data_type", "digits16"]
    run("image_sample_1gpu", *ddim, "--use_ddim", True, *names, "--out_dir", tmp_path / "one")
    run("image_sample", *ddim, "--solver", "ddim", "--out_dir", tmp_path / "two")
    one = (tmp_path / "one" / "adm_digits16_ddim5step.npz").read_bytes()
    assert one == (tmp_path / "two" / "samples_2x16x16x3.npz").read_bytes()
    run("image_sample_1gpu", *FEW, "--num_samples", 1, "--model_path", conditional, "--out_dir", tmp_path / "one")
    assert (tmp_path / "one" / "adm_cifar10_4step.npz").exists()


def test_chosen_classes_take_turns(conditional, tmp_path):
    run("image_sample", "--model_path", conditional, *FEW, "--classes", "2,0", "--out_dir", tmp_path)
    assert arrays(tmp_path / "samples_5x16x16x3.npz")["arr_1"].tolist() == [2, 0, 2, 0, 2]


def test_unconditional_samples_have_no_labels(unconditional, tmp_path):
    run("image_sample", "--model_path", unconditional, *FEW, "--out_dir", tmp_path)
    assert list(arrays(tmp_path / "samples_5x16x16x3.npz")) == ["arr_0"]


def test_the_seed_decides(samples, conditional, tmp_path):
    run("image_sample", "--model_path", conditional, *FEW, "--seed", 1, "--out_dir", tmp_path)
    assert not np.array_equal(arrays(tmp_path / samples.name)["arr_0"], arrays(samples)["arr_0"])


# ----------------------------------------------------------------------------------- guided, large


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_guidance_of_scale_0_is_none(conditional, classifier, samples, tmp_path, solver):
    common = ["--model_path", conditional, *FEW, "--solver", solver]
    run("image_sample", *common, "--out_dir", tmp_path / "plain")
    for scale in (0, 30):
        flags = ["--classifier_path", classifier, "--classifier_scale", scale]
        run("classifier_sample", *common, *flags, "--out_dir", tmp_path / str(scale))
    plain, zero, strong = (arrays(tmp_path / name / samples.name) for name in ("plain", "0", "30"))
    assert np.array_equal(plain["arr_1"], zero["arr_1"]) and np.array_equal(plain["arr_1"], strong["arr_1"])
    assert np.array_equal(plain["arr_0"], zero["arr_0"])
    assert (plain["arr_0"] != strong["arr_0"]).any()


def test_an_unconditional_network_is_guided_to_the_labels_of_the_classifier(
    unconditional, classifier, samples, tmp_path
):
    common = ["--model_path", unconditional, *FEW]
    guided = ["--classifier_path", classifier, "--classes", "1,2"]
    run("image_sample", *common, "--out_dir", tmp_path / "plain")
    for scale in (0, 30):
        run("classifier_sample", *common, *guided, "--classifier_scale", scale, "--out_dir", tmp_path / str(scale))
    plain, zero, strong = (arrays(tmp_path / name / samples.name) for name in ("plain", "0", "30"))
    assert np.array_equal(plain["arr_0"], zero["arr_0"]) and (plain["arr_0"] != strong["arr_0"]).any()
    assert strong["arr_1"].tolist() == [1, 2, 1, 2, 1]


def test_upsampling_follows_each_small_image(upsampler, tmp_path, capsys):
    rng = np.random.default_rng(0)
    small = rng.integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    changed = small.copy()
    changed[2] = 255 - changed[2]
    made = []
    for images in (small, changed):
        np.savez(tmp_path / "small.npz", arr_0=images, arr_1=[2, 0, 1, 1])
        flags = ["--model_path", upsampler, "--base_samples", tmp_path / "small.npz", *FEW, "--num_samples", 7]
        out = tmp_path / str(len(made))
        run("super_res_sample", *flags, "--out_dir", out)
        made.append(arrays(out / "samples_7x16x16x3.npz"))
    assert made[0]["arr_1"].tolist() == [2, 0, 1, 1, 2, 0, 1]
    differs = [not np.array_equal(a, b) for a, b in zip(made[0]["arr_0"], made[1]["arr_0"])]
    assert differs == [False, False, True, False, False, False, True]
    with pytest.raises(SystemExit):
        run("super_res_sample", *flags, "--out_dir", tmp_path / "0")
    assert "--base_samples is 'sha256 " in capsys.readouterr().err


# ------------------------------------------------------------------------------------- likelihood

NLL = ["--num_samples", 5, "--batch_size", 2, "--timestep_respacing", 6]


@needs_mpirun
def test_likelihood_is_the_same_on_one_and_two_ranks(conditional, data, on_two_ranks, tmp_path):
    printed = run("image_nll", "--model_path", conditional, "--data_dir", data, *NLL, "--out_dir", tmp_path)
    line = next(line for line in printed.splitlines() if "bits/dim" in line)
    assert line in (on_two_ranks / "nll" / "log.txt").read_text()
    total, _, prior, bound = (float(number) for number in re.findall(r"\d+\.\d+", line))
    assert abs(total - prior - bound) < 2e-4
    for name in ("vb", "mse", "xstart_mse"):
        terms = arrays(tmp_path / f"{name}_terms.npz")["arr_0"]
        assert np.array_equal(terms, arrays(on_two_ranks / "nll" / f"{name}_terms.npz")["arr_0"])
        assert terms.shape == (6,)
    assert abs(arrays(tmp_path / "vb_terms.npz")["arr_0"].sum() - bound) < 1e-3


# ---------------------------------------------------------------------------------- output folder


def test_the_first_line_is_the_absolute_output_folder(conditional, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_LOGDIR", raising=False)
    sample = ["image_sample", "--model_path", conditional, *FEW, "--num_samples", 1]
    for given, expected in ((["--out_dir", "here"], "here"), ([], "runs/image_sample")):
        printed = run(*sample, *given)
        assert printed.splitlines()[0].endswith(f" {tmp_path / expected}")
        assert str(tmp_path / expected / "samples_1x16x16x3.npz") in printed
        assert (tmp_path / expected / "samples_1x16x16x3.npz").exists()
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path / "env"))
    run(*sample)
    assert (tmp_path / "env" / "samples_1x16x16x3.npz").exists()
    run(*sample, "--out_dir", "given")
    assert (tmp_path / "given" / "samples_1x16x16x3.npz").exists()


@pytest.mark.parametrize("more", [[], ["--lr", 0.001], ["--lr", 0.0001, "--log_interval", 10]])
def test_the_log_names_flags_that_are_not_at_their_defaults(data, tmp_path, more):
    """A value that is given as it would be anyway is none of them."""
    given = ["--data_dir", data, "--out_dir", tmp_path, *NETWORK, *PROCESS, "--batch_size", 4, "--iterations", 1]
    said = run("image_train", *given, *more)
    words = shlex.split(re.search("^flags: (.*); all: flags.json$", said, re.MULTILINE)[1])
    expected = {str(word) for word in given[::2]} | ({"--lr"} if 0.001 in more else set())
    assert {word for word in words if word.startswith("--")} == expected
    assert len(json.loads((tmp_path / "flags.json").read_text())) > 2 * len(expected)


def test_a_dry_run_resolves_the_flags_and_stops(conditional, data, tmp_path):
    printed = run("image_sample", "--model_path", conditional, "--dry_run", True, "--out_dir", tmp_path / "a")
    assert "--num_classes 3" in printed and "--dropout 0.1" in printed
    assert "--num_channels 32" in printed
    state = torch.load(conditional, weights_only=True)
    said = [rf"parameters: {sum(p.numel() for p in state.values()):,}", r"peak memory of the process: [\d.]+ GiB"]
    said.append(r"one step of 16 images on each rank: \S+ s; \S+ images per second")
    assert all(re.search(words, printed) for words in said)
    printed = run(
        "image_train",
        "--data_dir",
        data,
        "--out_dir",
        tmp_path / "b",
        *NETWORK,
        *PROCESS,
        "--batch_size",
        4,
        "--dry_run",
        True,
    )
    assert all(re.search(words.replace("16", "4"), printed) for words in said[1:]) and "--microbatch 4 fits" in printed
    for folder in ("a", "b"):
        kept = {path.name for path in (tmp_path / folder).rglob("*")}
        assert kept <= {
            ".lock",
            "log.txt",
            "progress.csv",
            "progress.json",
        }  # the logger's, which are there once it begins


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [*slow(1), pytest.param(2, marks=needs_mpirun)])
def test_a_global_batch_is_shared_by_the_ranks(data, tmp_path, ranks):
    words = ["--data_dir", data, "--out_dir", tmp_path, *NETWORK, *PROCESS, "--iterations", 1, "--num_workers", 0]
    words = [FOLDER / "image_train.py", *words, "--global_batch", 6]
    assert f"--microbatch {6 // ranks} fits" in mpirun(ranks, *words, "--dry_run", True).stdout
    done = mpirun(ranks, *words)
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "model000001.json").read_text())
    assert values["batch_size"] == 6 // ranks and values["global_batch"] == 6


def test_a_dry_run_in_a_finished_folder_leaves_its_flags(conditional, tmp_path):
    sample = ["image_sample", "--model_path", conditional, "--num_samples", 1, "--timestep_respacing", 1]
    run(*sample, "--out_dir", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert "--seed 7" in run(*sample, "--seed", 7, "--dry_run", True, "--out_dir", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.json")} == before and "flags.json" in before


# ------------------------------------------------------------------------------ published commands

# As published, less --eps_scaler, --do_time_shift, --window, --cutoff and --input_perturbation.
CIFAR = (
    "--image_size 32 --num_channels 128 --num_head_channels 32 --num_res_blocks 3 --attention_resolutions 16,8 "
    "--resblock_updown True --use_new_attention_order True --learn_sigma True --dropout 0.3 --diffusion_steps 1000 "
    "--noise_schedule cosine --use_scale_shift_norm True "
)
TOWER = (
    "--use_fp16 True --num_head_channels 64 --num_res_blocks 3 --attention_resolutions 32,16,8 --resblock_updown True "
    "--use_new_attention_order True --learn_sigma True --dropout 0.1 --diffusion_steps 1000 --noise_schedule cosine "
    "--use_scale_shift_norm True --rescale_learned_sigmas True --timestep_respacing 100 --num_samples 50000 "
)
PUBLISHED = {
    "cifar10": "image_sample.py --timestep_respacing 100 --model_path M --batch_size 512 --num_samples 50000 " + CIFAR,
    "cifar10 1gpu": "image_sample_1gpu.py --timestep_respacing ddim5 --model_path M --batch_size 512 "
    "--num_samples 50000 --use_ddim True --out_dir D --data_type cifar10 --model_type adm " + CIFAR,
    "cifar10 training": "image_train.py --data_dir P --use_fp16 True --rescale_learned_sigmas True "
    "--schedule_sampler loss-second-moment --lr 1e-4 --batch_size 64 " + CIFAR,
    "lsun tower 64": "image_sample.py --image_size 64 --num_channels 192 --batch_size 256 " + TOWER,
    "imagenet 64": "image_sample.py --image_size 64 --num_channels 192 --batch_size 256 --class_cond True " + TOWER,
    "ffhq 128": "image_sample.py --image_size 128 --num_channels 256 --batch_size 128 " + TOWER,
    "imagenet 128 guided": "classifier_sample.py --image_size 128 --timestep_respacing 100 --model_path M "
    "--classifier_path C --classifier_scale 0.5 --class_cond True --use_fp16 True --num_channels 256 --num_heads 4 "
    "--num_res_blocks 2 --attention_resolutions 32,16,8 --resblock_updown True --learn_sigma True "
    "--diffusion_steps 1000 --noise_schedule linear --use_scale_shift_norm True --batch_size 100 --num_samples 50000",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_commands_are_understood(name):
    file, *words = shlex.split(PUBLISHED[name])
    groups, overrides = groups_of(file.removesuffix(".py"))
    parsed = flags.parse(words, groups, "", overrides)
    values = parsed.values()
    for flag, text in zip(words[::2], words[1::2]):
        value = values[flag.removeprefix("--")]
        assert type(value)(text) == value if type(value) in (int, float) else str(value) == text
    unet, process = (next(g for g in groups if g.__name__ == n) for n in ("UNetFlags", "DiffusionFlags"))
    with torch.device("meta"):
        network = parsed[unet].create(parsed[process].learn_sigma)
    assert network.input_blocks[0][0].weight.shape == (parsed[unet].num_channels, 3, 3, 3)
    steps = {"ddim5": 5, "100": 100, "": 1000}[parsed[process].timestep_respacing]
    assert len(parsed[process].create().grid) == steps


ALLOC = "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 687 bytes."


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError(f"{ALLOC} Error code 12 (Cannot allocate memory)\nframe"), "tried to allocate 687 bytes)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "(Tried to allocate 2 GiB)"),
        (MemoryError("Unable to allocate 7 GiB for an array"), "Unable to allocate 7 GiB"),
        (OSError(errno.ENXIO, "No such device", "a.npz"), "a.npz: No such device"),
        (RuntimeError("a bug"), None),
    ],
)
def test_memory_and_files_that_are_not_there_are_a_sentence(tmp_path, capsys, error, reason):
    def body(parsed):
        raise error

    with pytest.raises(SystemExit if reason else RuntimeError) as end:
        launch.run("image_sample", "", [], body, argv=["--out_dir", str(tmp_path)])
    if reason:
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert end.value.code == 2 and said.startswith("image_sample: ") and reason in said and "Errno" not in said
        assert "expected a smaller --batch_size, image or network" in said or isinstance(error, OSError)


@pytest.mark.parametrize("levels", [16, 400, 20_000])
@pytest.mark.parametrize("name, flag", [("image_train", "channel_mult"), ("vae_train", "vae_channel_mult")])
def test_more_levels_than_a_side_has_halves_are_refused(tmp_path, capsys, levels, name, flag):
    with pytest.raises(SystemExit) as end:
        run(name, "--data_dir", "models", f"--{flag}", ",".join(["1"] * levels), "--out_dir", tmp_path)
    said, there = capsys.readouterr().err.strip().splitlines()[-1], levels + (name == "vae_train")
    assert end.value.code == 2 and f"{there} levels" in said and "expected at most 15 channel multipliers" in said
