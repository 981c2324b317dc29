"""Presets against the published flags that stand in the goldens and in the papers' tables."""

import gzip
import json
import re
import shlex
from pathlib import Path

import launched
import numpy as np
import pytest
import script_runs
import torch
from PIL import Image

from guided_diffusion import averages, flags
from guided_diffusion.errors import UserError
from guided_diffusion.jobs import launch
from guided_diffusion.networks import UNetFlags
from guided_diffusion.presets import PRESETS, expand, table

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "state_dicts.json.gz").read_bytes()))
NAMES = {
    "imagenet64_cond": "imagenet64",
    "imagenet128_cond": "imagenet128",
    "imagenet256_cond": "imagenet256",
    "imagenet512_cond": "imagenet512",
    "lsun_bedroom256": "lsun256",
}


@pytest.mark.parametrize("case", GOLDEN)
def test_networks_have_their_published_flags(case):
    words = shlex.split(GOLDEN[case]["flags"])
    published = dict(zip((w.removeprefix("--") for w in words[::2]), words[1::2]))
    preset = {k: str(v) for k, v in PRESETS[NAMES.get(case, case)].flags.items() if k != "classifier_scale"}
    defaults = {"use_scale_shift_norm": "True", "class_cond": "False"}
    assert {**defaults, **preset} == {**defaults, **published}


@pytest.mark.parametrize(
    "name, expected, score",
    [
        ("cifar10_adm_es_100", {"eps_scaler": "1.017", "timestep_respacing": "100"}, "FID 2.17"),
        ("ffhq128_adm_es_50", {"eps_scaler": "1.007", "timestep_respacing": "50"}, "FID 9.50"),
        ("imagenet128_adm_es_linear_20", {"eps_scaler": "0.00022,1.00291", "classifier_scale": 0.5}, "FID 9.86"),
        ("lsun_tower64_adm_20", {"timestep_respacing": "20"}, "FID 23.92"),
        ("cifar10_adm_ts_ddim5", {"do_time_shift": True, "window": 80, "cutoff": 300, "use_ddim": True}, "FID 26.94"),
        ("ts_ddim_20", {"timestep_respacing": "ddim20", "window": 40, "time_shift_variant": "target"}, "FID 8.03"),
        ("ts_pndm_f_100", {"solver": "pndm_f", "window": 5, "cutoff": 550}, "FID 3.86"),
        ("cifar10_adm_ip_training", {"input_perturbation": 0.15, "batch_size": 64}, "FID 2.70 at 100 steps"),
    ],
)
def test_published_rows(name, expected, score):
    assert expected.items() <= PRESETS[name].flags.items() and PRESETS[name].score == score


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_valid_command_line_of_some_script(name):
    fitting = []
    for script in map(launched.read, launched.NAMES):
        known = set().union(*(g.__dataclass_fields__ for g in script.groups))
        known -= {k for k, v in script.overrides.items() if v is None}
        if PRESETS[name].flags.keys() <= known:
            parsed = flags.parse(["--preset", name], script.groups, "", script.overrides, launch._preset)
            assert PRESETS[name].flags.items() <= parsed.values().items()
            fitting.append(script.name)
    assert fitting


PHOTOS = [f"photos{size}_{width}" for size in (32, 64, 128) for width in ("small", "base")]


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_need_no_other_flag_than_their_folder(name):
    script = launched.read("image_train")
    argv = ["--preset", name, "--data_dir", "photos"]
    values = flags.parse(argv, script.groups, "", script.overrides, launch._preset).values()
    size = int(re.search(r"\d+", name)[0])
    assert values["image_size"] == size and values["iterations"] and values["sample_interval"]
    assert values["ema_warmup"] and values["resume_checkpoint"] == "auto" and values["keep_checkpoints"]
    # at the end of the run, and at its first preview, the average has forgotten the weights it began with
    for step in (values["sample_interval"], values["iterations"]):
        assert not averages.young(float(values["ema_rate"]), step, True)
    with torch.device("meta"):
        network = UNetFlags(**{k: values[k] for k in UNetFlags.__dataclass_fields__}).create(values["learn_sigma"])
        t = torch.zeros(2, dtype=torch.long)
        assert network(torch.zeros(2, 3, size, size), t).shape == (2, 6, size, size)
    count = sum(p.numel() for p in network.parameters())
    assert count < 30e6 if name.endswith("small") else 40e6 < count < 120e6


def test_photos_from_a_folder_to_samples(tmp_path):
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(40, 60, 3), (70, 50, 3), (32, 32, 3), (90, 91, 3)]):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(256, size=shape, dtype=np.uint8)).save(tmp_path / "photos" / f"IMG {i}.JPG")
    command = ["--preset", "photos32_small", "--data_dir", tmp_path / "photos", "--out_dir", tmp_path / "run"]
    few = ["--batch_size", 2, "--num_workers", 0]
    for steps in (1, 2):  # the second goes on with the first
        printed = script_runs.run("image_train", *command, *few, "--iterations", steps)
    assert "step 2/2  loss" in printed
    path = tmp_path / "run" / "ema_0.9995_000002.pt"
    script_runs.run(
        "image_sample", "--model_path", path, "--num_samples", 1, "--timestep_respacing", 1, "--out_dir", tmp_path
    )
    assert np.load(tmp_path / "samples_1x32x32x3.npz")["arr_0"].shape == (1, 32, 32, 3)


def test_flags_given_by_hand_win():
    script = launched.read("image_sample")
    argv = ["--preset", "cifar10_adm_es_100", "--eps_scaler", "1.01"]
    parsed = flags.parse(argv, script.groups, "", script.overrides, launch._preset)
    values = parsed.values()
    assert values["eps_scaler"] == "1.01" and values["num_channels"] == 128
    assert {"eps_scaler", "num_channels", "timestep_respacing"} <= parsed.given


def test_what_is_no_preset_is_refused():
    with pytest.raises(UserError, match="--preset nothing .* --preset list"):
        expand("nothing", {"image_size"})
    with pytest.raises(UserError, match="--preset cifar10 sets no flag"):
        expand("cifar10", {"samples"})


def test_the_list_is_printed(capsys):
    script = launched.read("image_sample")
    launch.run("image_sample", "", script.groups[:-1], lambda parsed: pytest.fail("ran"), argv=["--preset", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PRESETS) and lines == table().splitlines()
    assert any("cifar10_adm_es_100" in line and "cifar10: --timestep_respacing 100 --eps" in line for line in lines)
    assert any("cifar10_adm_es_100" in line and "FID 2.17" in line and "--eps_scaler 1.017" in line for line in lines)


@pytest.mark.parametrize("wrong, meant", [("bacth_size", "batch_size"), ("eps_scalar", "eps_scaler")])
def test_a_misspelt_flag_in_a_file_is_refused(tmp_path, wrong, meant):
    (tmp_path / "own.json").write_text(json.dumps({"flags": {"batch_size": 3, wrong: 4}}))
    with pytest.raises(UserError, match=f"sets --{wrong}, which is no flag here; did you mean --{meant}"):
        expand(str(tmp_path / "own.json"), {"batch_size", "eps_scaler", "lr"})


def test_flags_of_other_scripts_in_a_file_are_left_out(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"flags": {"batch_size": 3, "grad_clip": 1.0, "eps_scaler": "1.01"}}))
    assert expand(str(tmp_path / "own.json"), {"batch_size", "lr"}) == {"batch_size": 3}
