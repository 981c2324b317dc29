"""What a user gets wrong is answered by one sentence that names it, and exit status 2."""

import shutil
import sys

import numpy as np
import pytest
import torch
from processes import MPIRUN, mpirun, needs_mpirun, slow
from processes import run as start
from script_runs import (
    CLASSIFIER,
    FOLDER,
    NETWORK,
    PROCESS,
    TRAINING,
    draw_images,
    run,
    train_class_conditional,
    train_classifier,
    train_diffusion,
    train_super_res,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On so small networks, more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of good and bad inputs, by which the tests below name them as {place}."""
    place = tmp_path_factory.mktemp("inputs")
    data = draw_images(place / "data")
    train_class_conditional(data, place / "conditional")
    train_diffusion(data, place / "unconditional")
    train_classifier(data, place / "classifier")
    train_super_res(data, place / "upsampler")
    large = ["--image_size", 32, "--classifier_attention_resolutions", ""]
    train_classifier(data, place / "large_classifier", *large, "--iterations", 1, "--save_interval", 1)
    train_classifier(data, place / "many_classifier", "--num_classes", 5)
    shutil.copy(place / "conditional" / "model000002.pt", place / "bare.pt")
    whole = (place / "bare.pt").read_bytes()
    (place / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (place / "text.pt").write_text("these are no weights\n")
    (place / "nothing.pt").write_bytes(b"")
    (place / "empty").mkdir()
    corrupt = draw_images(place / "corrupt")
    (corrupt / "ant_0.png").write_bytes((corrupt / "ant_0.png").read_bytes()[:60])
    small = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(place / "small.npz", arr_0=small, arr_1=np.array([0, 2]))
    np.savez(place / "bare.npz", arr_0=small)
    np.savez(place / "large.npz", arr_0=np.zeros((2, 9, 9, 3), np.uint8), arr_1=np.array([0, 2]))
    np.savez(place / "classes.npz", arr_0=small, arr_1=np.array([0, 3]))
    np.savez(place / "keys.npz", pictures=small)
    return place


SAMPLE = "image_sample --model_path {place}/conditional/model000002.pt --timestep_respacing 2 --num_samples 1"
FREE = "image_sample --model_path {place}/unconditional/model000002.pt --timestep_respacing 2 --num_samples 1"
GUIDED = SAMPLE.replace("image_sample", "classifier_sample")
CLASSIFIED = GUIDED + " --classifier_path {place}"
LARGER = "super_res_sample --model_path {place}/upsampler/model000002.pt --timestep_respacing 2 --num_samples 1"
TRAIN = " ".join(["image_train --data_dir {place}/data", *TRAINING, *NETWORK, *PROCESS])
CLASSIFY = " ".join(["classifier_train --data_dir {place}/data", *TRAINING, *CLASSIFIER, *PROCESS])
INVERT = "image_invert --data_dir {place}/data --model_path {place}/conditional/model000002.pt --timestep_respacing 4"
SHIFTED = INVERT + " --do_time_shift True --window 20 --cutoff 10 --time_shift_variant "
MOVED = " --dry_run True --do_time_shift True --window 98 --cutoff 10 --time_shift_variant paper "
NLL = "image_nll --data_dir {place}/data --model_path {place}/unconditional/model000002.pt --timestep_respacing 2"

# command -> words of the answer
BAD = {
    # checkpoints
    "image_sample": ["--model_path"],
    "image_sample --model_path {place}/none.pt": ["{place}/none.pt", "does not exist"],
    "image_sample --model_path {place}/cut.pt": ["{place}/cut.pt", "truncated"],
    "image_sample --model_path {place}/text.pt": ["{place}/text.pt", "torch.save"],
    "image_sample --model_path {place}/nothing.pt": ["{place}/nothing.pt", "empty"],
    "image_sample --model_path {place}/data": ["{place}/data"],
    "image_sample --model_path {place}/conditional/opt000002.pt": ["opt000002.pt"],
    "image_sample --model_path {place}/classifier/model000002.pt": ["classifier/model000002.pt"],
    "super_res_sample --base_samples {place}/small.npz": ["--model_path"],
    "super_res_sample --model_path {place}/conditional/model000002.pt": ["conditional/model000002.pt"],
    "image_nll --data_dir {place}/data": ["--model_path"],
    SAMPLE + " --num_channels 64": ["--num_channels", "64", "32"],
    SAMPLE + " --num_classes 10": ["--num_classes", "10", "3"],
    SAMPLE + " --class_cond False": ["--class_cond"],
    SAMPLE + " --noise_schedule cosine": ["--noise_schedule", "cosine", "linear"],
    "classifier_sample --model_path {place}/conditional/model000002.pt": ["--classifier_path"],
    CLASSIFIED + "/none.pt": ["{place}/none.pt"],
    CLASSIFIED + "/large_classifier/model000001.pt": ["--classifier_path", "--image_size", "16", "32"],
    CLASSIFIED + "/many_classifier/model000002.pt": ["--classifier_path", "--num_classes", "3", "5"],
    CLASSIFIED + "/conditional/model000002.pt": ["--classifier_path"],
    CLASSIFIED + "/classifier/model000002.pt --classifier_scale -1": ["--classifier_scale", "-1"],
    SAMPLE.replace("{place}/conditional/model000002.pt", "s3://nowhere/x.pt"): ["s3://nowhere/x"],
    CLASSIFIED + "/upsampler/model000002.pt": ["--classifier_path", "a super-resolution network"],
    SAMPLE.replace("conditional", "classifier"): ["--model_path", "a classifier", "a diffusion network"],
    # methods
    SAMPLE + " --eps_scaler inf": ["--eps_scaler"],
    SAMPLE + " --window 20": ["--window", "--do_time_shift"],
    SAMPLE + " --do_time_shift True --window 1": ["--window 1", "at least 2"],
    SAMPLE + " --do_time_shift True --cutoff 99": ["--cutoff 99", "below 99"],
    SAMPLE + " --do_time_shift True --cutoff 9 --time_shift_data_variance 0.2": [
        "_data_variance",
        "paper, net, target",
    ],
    SAMPLE + " --do_time_shift True --cutoff 9 --time_shift_constant 5 --window 20": ["--window 20", "_constant"],
    TRAIN + " --input_perturbation -1": ["--input_perturbation", "at least 0"],
    TRAIN + " --perturb_cutoff 5": ["--perturb_cutoff", "--input_perturbation"],
    TRAIN + " --input_perturbation 0.1 --perturb_cutoff 100": ["--perturb_cutoff 100", "below 100"],
    # sampling
    SAMPLE + " --batch_size 0": ["--batch_size", "0", "at least 1"],
    SAMPLE + " --num_samples 0": ["--num_samples", "0", "at least 1"],
    SAMPLE + " --num_samples -3": ["--num_samples", "-3"],
    SAMPLE + " --seed -1": ["--seed", "-1"],
    SAMPLE + " --timestep_respacing 101": ["--timestep_respacing", "101", "100"],
    SAMPLE + " --timestep_respacing 0": ["--timestep_respacing", "0", "1 to 100"],
    SAMPLE + " --timestep_respacing 60,60": ["--timestep_respacing", "60", "50"],
    SAMPLE + " --timestep_respacing ddim49": ["--timestep_respacing", "ddim49", "ddim34", "ddim50"],
    SAMPLE + " --timestep_respacing many": ["--timestep_respacing", "many"],
    SAMPLE + " --eta 0.5": ["--eta", "ddim"],
    SAMPLE + " --solver ddpm --eta 0.5": ["--eta", "ddim"],
    SAMPLE + " --use_ddim True --eta 2": ["--eta", "2", "0 to 1"],
    SAMPLE + " --use_ddim True --solver ddpm": ["--use_ddim", "--solver ddpm"],
    SAMPLE + " --solver euler": ["--solver", "euler", "ddim"],
    SAMPLE + " --dry_run True --thresholding dynamic --clip_denoised False": ["--thresholding", "--clip_denoised"],
    SAMPLE + MOVED + "--solver bdia": ["--time_shift_variant paper", "--solver bdia", "net"],
    SAMPLE + MOVED + "--solver unipc": ["--time_shift_variant paper", "--solver unipc", "at most"],
    SAMPLE + " --classes 3": ["--classes", "3", "0 to 2"],
    SAMPLE + " --classes=-1": ["--classes", "-1"],
    SAMPLE + " --classes nocat": ["--classes", "cat"],
    FREE + " --classes 0": ["--classes", "unconditional/model000002.pt"],
    FREE + " --per_class 2": ["--per_class", "unconditional/model000002.pt"],
    SAMPLE + " --per_class 2": ["--num_samples 1", "--per_class 2", "6"],
    SAMPLE + " --per_class -1": ["--per_class", "-1"],
    SAMPLE + " --shard 3": ["--shard", "'3'", "i/n"],
    SAMPLE + " --shard 0/8": ["--shard", "0/8", "from 1"],
    SAMPLE.replace("image_sample", "image_sample_1gpu") + " --model_type ../../adm": ["--model_type", "../../adm"],
    SAMPLE.replace("image_sample", "image_sample_1gpu") + " --data_type /etc/x": ["--data_type", "/etc/x"],
    CLASSIFIED + "/classifier/model000002.pt --classes 9": ["--classes", "9", "0 to 2"],
    LARGER: ["--base_samples"],
    LARGER + " --base_samples {place}/none.npz": ["--base_samples", "{place}/none.npz"],
    LARGER + " --base_samples {place}/large.npz": ["--base_samples", "9x9", "8"],
    LARGER + " --base_samples {place}/bare.npz": ["--base_samples", "arr_1"],
    LARGER + " --base_samples {place}/classes.npz": ["--base_samples", "0..2"],
    LARGER + " --base_samples {place}/keys.npz": ["--base_samples", "pictures", "arr_0"],
    LARGER + " --base_samples {place}/text.pt": ["--base_samples", "text.pt", "no archive"],
    # data
    TRAIN.replace("{place}/data", "{place}/none"): ["--data_dir", "{place}/none"],
    TRAIN.replace("{place}/data", "{place}/empty"): ["--data_dir", "{place}/empty", "no image"],
    TRAIN.replace("{place}/data", "{place}/corrupt"): ["{place}/corrupt/ant_0.png", "--skip_bad"],
    TRAIN.replace("--data_dir {place}/data", ""): ["--data_dir"],
    TRAIN + " --class_cond True --num_classes 2": ["--num_classes", "2", "3 classes"],
    TRAIN + " --num_workers -1": ["--num_workers", "-1"],
    CLASSIFY + " --num_classes 2": ["--num_classes", "2", "3 classes"],
    CLASSIFY + " --val_data_dir {place}/none": ["{place}/none"],
    NLL.replace("{place}/data", "{place}/empty"): ["--data_dir", "{place}/empty"],
    NLL.replace("{place}/data", "{place}/corrupt"): ["{place}/corrupt/ant_0.png", "--skip_bad"],
    # inversion
    INVERT + " --solver ddpm": ["--solver ddpm", "expected bdia", "noise"],
    INVERT + " --solver ddim --eta 0.5": ["--solver ddim", "--eta"],
    INVERT + " --eta 0.5": ["--eta 0.5", "ddim"],
    INVERT + " --gamma 0": ["--gamma 0", "DDIM", "above 0"],
    INVERT + " --gamma 1.5": ["--gamma", "1.5", "0 to 1"],
    SAMPLE + " --solver ddim --gamma 0.7": ["--gamma", "bdia"],
    SAMPLE + " --solver dpmpp_2m --eta 0": ["--eta 0", "ddim"],
    INVERT + " --gamma 1e-30": ["--gamma 1e-30", "nearer to 1"],
    SHIFTED + "adm": ["--time_shift_variant adm", "expected net"],
    SHIFTED + "paper": ["--time_shift_variant paper", "expected net"],
    SHIFTED + "target": ["--time_shift_variant target", "expected net"],
    INVERT.replace("respacing 4", "respacing 1"): ["--timestep_respacing", "at least 2"],
    INVERT + " --edit_class 3": ["--edit_class", "3", "0 to 2"],
    INVERT + " --edit_class -2": ["--edit_class", "-2", "0 to 2"],
    INVERT + " --edit_class nine": ["--edit_class", "'nine'", "whole numbers"],
    INVERT.replace("conditional", "unconditional") + " --edit_class 1": ["--edit_class", "no classes"],
    INVERT.replace("{place}/data", "{place}/empty"): ["--data_dir", "{place}/empty"],
    INVERT.replace("--data_dir {place}/data", ""): ["--data_dir"],
    # networks
    TRAIN + " --image_size 17": ["--image_size", "17", "16 and 18"],
    TRAIN + " --image_size 48 --channel_mult=": ["--image_size", "48", "32", "64"],
    TRAIN + " --channel_mult one,two": ["--channel_mult", "one,two"],
    TRAIN + " --num_channels 20": ["--num_channels", "20", "32"],
    TRAIN + " --num_heads 5": ["--num_heads", "5", "32"],
    TRAIN + " --num_head_channels 7": ["--num_head_channels", "7", "32"],
    TRAIN + " --attention_resolutions eight": ["--attention_resolutions", "eight"],
    TRAIN + " --dropout 2": ["--dropout", "2", "0 to 1"],
    TRAIN + " --use_fp16 True --use_bf16 True": ["--use_fp16", "--use_bf16"],
    TRAIN + " --diffusion_steps 0": ["--diffusion_steps", "0"],
    CLASSIFY + " --image_size 17": ["--image_size", "17", "16 and 18"],
    CLASSIFY + " --classifier_pool largest": ["--classifier_pool", "largest", "attention"],
    # training
    TRAIN + " --batch_size 0": ["--batch_size", "0"],
    TRAIN + " --microbatch 0": ["--microbatch", "0"],
    TRAIN + " --lr -0.01": ["--lr", "-0.01"],
    TRAIN + " --lr 0": ["--lr", "above 0"],
    TRAIN + " --lr nan": ["--lr", "nan"],
    TRAIN + " --lr fast": ["--lr", "fast"],
    TRAIN + " --ema_rate high": ["--ema_rate", "high"],
    TRAIN + " --ema_rate 0.9,1.5": ["--ema_rate", "1.5"],
    TRAIN + " --save_interval 0": ["--save_interval", "0"],
    TRAIN + " --global_batch 6 --batch_size 2": ["--global_batch 6", "--batch_size 2", "one of them"],
    TRAIN + " --microbatch automatic": ["--microbatch", "'automatic'", "auto"],
    TRAIN + " --microbatch -3": ["--microbatch", "-3", "auto"],
    TRAIN + " --log_interval 0": ["--log_interval", "0"],
    TRAIN + " --iterations -1": ["--iterations", "-1"],
    TRAIN + " --seed -1": ["--seed", "-1"],
    TRAIN + " --schedule_sampler often": ["--schedule_sampler", "often", "uniform"],
    TRAIN + " --resume_checkpoint {place}/none/model000002.pt": ["{place}/none/model000002.pt", "does not exist"],
    TRAIN + " --resume_checkpoint {place}/bare.pt": ["--resume_checkpoint", "{place}/bare.pt", "modelNNNNNN.pt"],
    TRAIN + " --resume_checkpoint {place}/conditional/model000002.pt --class_cond False": [
        "--resume_checkpoint",
        "--class_cond is False",
    ],
    TRAIN + " --resume_checkpoint {place}/conditional/model000002.pt --noise_schedule cosine": ["--noise_schedule"],
    TRAIN + " --resume_checkpoint {place}/classifier/model000002.pt": ["--resume_checkpoint", "a classifier"],
    TRAIN + " --resume_checkpoint {place}/none": ["{place}/none", "modelNNNNNN.pt"],
    TRAIN + " --init_from {place}/none.pt": ["--init_from", "{place}/none.pt", "does not exist"],
    TRAIN + " --init_from {place}/classifier/model000002.pt": ["--init_from", "a classifier"],
    TRAIN + " --init_from {place}/bare.pt --resume_checkpoint {place}/conditional/model000002.pt": [
        "--init_from",
        "--resume_checkpoint auto",
    ],
    TRAIN + " --grad_clip -1": ["--grad_clip", "at least 0"],
    TRAIN + " --keep_checkpoints -1": ["--keep_checkpoints", "at least 0"],
    TRAIN + " --channel_mult 0,1": ["--channel_mult", "positive"],
    TRAIN + " --channel_mult 1,-2": ["--channel_mult", "positive"],
    TRAIN + " --lr inf": ["--lr", "above 0"],
    TRAIN + " --weight_decay nan": ["--weight_decay", "at least 0"],
    TRAIN.replace("{place}/data", "s3://nowhere/data"): ["s3://nowhere/data"],
    CLASSIFY + " --eval_interval 0": ["--eval_interval", "0"],
    # the command line itself
    SAMPLE + " --device toaster": ["--device", "toaster", "cuda"],
    SAMPLE + " --device cuda:99": ["--device", "cuda:99"],
    SAMPLE + " --batchsize 3": ["--batchsize", "--batch_size"],
    SAMPLE + " --num_sample=3": ["--num_sample", "--num_samples"],
    SAMPLE + " --xyzzy 3": ["--xyzzy", "--help"],
    SAMPLE + " stray": ["stray"],
    SAMPLE + " --batch_size": ["--batch_size"],
    SAMPLE + " --batch_size many": ["--batch_size", "many"],
    SAMPLE + " --batch_size 2.5": ["--batch_size", "2.5"],
    SAMPLE + " --clip_denoised maybe": ["--clip_denoised", "True or False"],
    SAMPLE + " --out_dir {place}/text.pt/below": ["--out_dir", "{place}/text.pt/below"],
}


def answer(capsys, name, *flags):
    """What the script says on refusing; it has to be short, and end with status 2."""
    with pytest.raises(SystemExit) as ended:
        run(name, *flags)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    _, sentence = said.split(f"{name}: ")
    assert len(sentence.splitlines()) <= 10
    return sentence


@pytest.mark.parametrize("command", [*list(BAD)[::2], *slow(*list(BAD)[1::2])])
def test_refused_in_a_sentence(place, tmp_path, capsys, command):
    name, *flags = command.format(place=place).split()
    out = [] if "--out_dir" in flags else ["--out_dir", tmp_path]
    sentence = answer(capsys, name, *out, *flags)
    for word in BAD[command]:
        assert word.format(place=place) in sentence


def test_out_dir_of_the_environment(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_LOGDIR", str(place / "text.pt" / "below"))
    sentence = answer(capsys, *SAMPLE.format(place=place).split())
    assert "OPENAI_LOGDIR" in sentence and str(place / "text.pt" / "below") in sentence


def test_bare_checkpoint_of_another_network(place, tmp_path, capsys):
    sample = ["image_sample", "--model_path", place / "bare.pt", "--out_dir", tmp_path]
    assert "--image_size" in answer(capsys, *sample)
    sentence = answer(capsys, *sample, "--image_size", 16, "--channel_mult", "1,1", "--num_channels", 64)
    assert "--num_channels" in sentence and "32" in sentence


def test_skip_bad_goes_on(place, tmp_path):
    command = TRAIN.format(place=place).replace(str(place / "data"), str(place / "corrupt"))
    run(*command.split(), "--skip_bad", True, "--iterations", 3, "--out_dir", tmp_path)
    assert (tmp_path / "model000003.pt").exists()  # three batches of 4 are all 12 images


def test_a_batch_larger_than_the_data_is_no_error(place, tmp_path):
    run(*TRAIN.format(place=place).split(), "--batch_size", 30, "--iterations", 1, "--out_dir", tmp_path)
    assert (tmp_path / "model000001.pt").exists()


@needs_mpirun
@pytest.mark.parametrize(
    "flags, words",
    [
        (["--batch_size", "0"], "--batch_size is 0"),
        pytest.param([], "--model_path is not given", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_refuse_once_and_at_once(tmp_path, flags, words):
    command = [FOLDER / "image_sample.py", "--out_dir", tmp_path, *flags]
    done = start(MPIRUN, "-n", 2, sys.executable, *command, OMP_NUM_THREADS="1")
    assert done.returncode != 0
    assert done.stderr.count(words) == 1, done.stderr
    assert "Traceback" not in done.stderr


@needs_mpirun
def test_what_one_rank_refuses_is_said(tmp_path):
    done = mpirun(2, "refusing.py", "--out_dir", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("refusing: the disk of rank 1 is full") == 1, done.stderr
    assert "Traceback" not in done.stderr
