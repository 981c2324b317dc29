"""Presets against the published flags that stand in the goldens and in the papers' tables."""

import gzip
import json
import shlex
from pathlib import Path

import launched
import pytest

from guided_diffusion import flags
from guided_diffusion.errors import UserError
from guided_diffusion.jobs import launch
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
