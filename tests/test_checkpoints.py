"""Checkpoints: what shapes reveal, what the flags beside them say, and errors that name the one wrong flag."""

import gzip
import json
import shutil
import sys
import warnings
from pathlib import Path

import launched
import pytest
import torch

from guided_diffusion import checkpoints, flags
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.errors import UserError
from guided_diffusion.networks import (
    CHANNEL_MULTS,
    NETWORKS,
    SUPER_RES_CHANNEL_MULTS,
    ClassifierFlags,
    SuperResFlags,
    UNetFlags,
)
from guided_diffusion.script_util import DiffusionFlags
from guided_diffusion.tensor_files import load_state_dict

PUBLISHED = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "state_dicts.json.gz").read_bytes()))
GROUPS = [CheckpointFlags, UNetFlags, DiffusionFlags]


def command_line(values):
    return [word for k, v in values.items() for word in (f"--{k}", str(v))]


def has_weights(model, state):
    found = model.state_dict()
    return all(torch.equal(found[name], value) for name, value in state.items())


# -- what the shapes reveal ------------------------------------------------------------------------


def published(name):
    """(kind, state dict of meta tensors, flags by name) of a golden checkpoint."""
    golden = PUBLISHED[name]
    state = {k: torch.empty(shape, device="meta") for k, shape in golden["state_dict"].items()}
    words = golden["flags"].split()
    return golden["kind"], state, dict(zip((w.removeprefix("--") for w in words[::2]), words[1::2]))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("given_size", [False, True])
def test_shapes_reveal_the_published_flags(name, given_size):
    kind, state, line = published(name)
    size_flag, prefix = (
        ("large_size" if kind == "sr" else "image_size"),
        ("classifier_" if kind == "classifier" else ""),
    )
    size, mults = int(line[size_flag]), SUPER_RES_CHANNEL_MULTS if kind == "sr" else CHANNEL_MULTS
    if name == "upsample_128_512" and not given_size:
        pytest.skip("built as the upsampler to 256, so its shapes cannot tell")
    network = NETWORKS[{"model": "diffusion", "sr": "super_res", "classifier": "classifier"}[kind]]
    found = network.reveal(state, size if given_size else None)
    # -- every flag of the published line that is about shapes
    texts = {k: str(v) for k, v in found.items()}
    unseen = (
        "use_fp16 num_heads num_head_channels use_new_attention_order dropout diffusion_steps noise_schedule "
        "rescale_learned_sigmas small_size large_size image_size"
    ).split()
    assert {k: v for k, v in line.items() if k not in unseen}.items() <= texts.items()
    assert found["image_size"] == size
    mult = [float(m) for m in found[prefix + "channel_mult"].split(",")]
    assert mult == list(mults[size])
    # -- and the defaults that the line leaves out
    assert found[prefix + "use_scale_shift_norm"] is True
    if kind == "classifier":
        assert found["num_classes"] == 1000
    else:
        assert found["class_cond"] is (line.get("class_cond") == "True")
        assert found.get("num_classes") == (1000 if found["class_cond"] else None)


TOYS = [
    dict(image_size=16),
    dict(image_size=32, channel_mult="1,2", num_res_blocks=2, attention_resolutions="16", resblock_updown=True),
    dict(
        image_size=16, channel_mult="1,1,2", num_res_blocks=3, attention_resolutions="16,4", use_scale_shift_norm=False
    ),
    dict(image_size=16, channel_mult="2,1", class_cond=True, num_classes=7),
    dict(image_size=8, channel_mult="1", attention_resolutions=""),
    dict(image_size=16, channel_mult="1,1.5,2", num_channels=64, attention_resolutions="8", resblock_updown=True),
]


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_shapes_reveal_toys(toy, learn_sigma):
    toy = {**dict(num_channels=32, num_res_blocks=1, attention_resolutions="8"), **toy}
    with torch.device("meta"):
        state = UNetFlags(**toy).create(learn_sigma).state_dict()
    found = NETWORKS["diffusion"].reveal(state, toy["image_size"])
    toy.setdefault("channel_mult", "1,2,2")
    assert toy.items() <= {**toy, **found}.items() and found["learn_sigma"] is learn_sigma
    with torch.device("meta"):
        again = UNetFlags(**{k: v for k, v in found.items() if k != "learn_sigma"}).create(learn_sigma).state_dict()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_shapes_reveal_channels_and_which_network_it_is(channels, learn_sigma):
    words = command_line(
        {
            **dict(image_channels=channels, learn_sigma=learn_sigma, image_size=16, num_channels=32, num_res_blocks=1),
            **dict(large_size=16, small_size=4, classifier_width=32, classifier_depth=1, classifier_channel_mult="1,2"),
            **dict(classifier_num_head_channels=32),
        }
    )
    groups = dict.fromkeys(group for network in NETWORKS.values() for group in network.groups)
    parsed = flags.parse(words, [*groups, DiffusionFlags], "")
    for name, network in NETWORKS.items():
        with torch.device("meta"):
            made = network.create(parsed)
        assert made.shape == (channels, 16, 16)
        state = made.state_dict()
        found = network.reveal(state, 16)
        assert found["image_channels"] == channels and found.get("learn_sigma", learn_sigma) is learn_sigma
        for other in NETWORKS.keys() - {name}:
            with pytest.raises((LookupError, ValueError, ZeroDivisionError)):
                NETWORKS[other].reveal(state, 16)


def test_a_network_of_two_or_five_channels_is_no_diffusion_network():
    state = {"input_blocks.0.0.weight": torch.empty(8, 5, 3, 3)}
    with pytest.raises(ValueError, match="5"):
        NETWORKS["diffusion"].reveal(state)
    with pytest.raises(ValueError, match="2.5"):
        NETWORKS["super_res"].reveal(state)


CLASSIFIER_TOYS = [
    dict(image_size=16),
    dict(image_size=16, classifier_resblock_updown=False, classifier_depth=2),
    dict(image_size=16, classifier_depth=3),
    dict(image_size=32, classifier_depth=2, classifier_attention_resolutions="16,8"),
    dict(image_size=16, classifier_channel_mult="1,2", classifier_pool="adaptive"),
    dict(
        image_size=16, classifier_channel_mult="1,2", classifier_pool="spatial", classifier_use_scale_shift_norm=False
    ),
    dict(image_size=32, classifier_channel_mult="1,2,4", classifier_pool="spatial_v2"),
]


@pytest.mark.parametrize("toy", CLASSIFIER_TOYS)
def test_shapes_reveal_toy_classifiers(toy):
    toy = {
        **dict(classifier_width=32, classifier_depth=1, classifier_attention_resolutions="8", num_classes=7),
        **dict(classifier_num_head_channels=32),
        **toy,
    }
    with torch.device("meta"):
        state = ClassifierFlags(**toy).create().state_dict()
    found = NETWORKS["classifier"].reveal(state, toy["image_size"])
    expected = {k: v for k, v in toy.items() if k != "classifier_num_head_channels"}
    expected.setdefault("classifier_channel_mult", ",".join(map(str, CHANNEL_MULTS[toy["image_size"]])))
    expected.setdefault("classifier_pool", "attention")
    expected.setdefault("classifier_resblock_updown", True)
    assert expected.items() <= found.items()


# -- one wrong flag --------------------------------------------------------------------------------

TRUTH = dict(
    image_size=16, num_channels=32, num_res_blocks=1, num_heads=2, num_heads_upsample=1, num_head_channels=-1,
    attention_resolutions="8", channel_mult="1,2,2", class_cond=True, num_classes=10, use_scale_shift_norm=True,
    resblock_updown=True, use_new_attention_order=False, learn_sigma=True, diffusion_steps=100,
    noise_schedule="cosine", predict_xstart=False, rescale_timesteps=False,
)  # fmt: skip
FLIPS = dict(
    image_size=32, num_channels=64, num_res_blocks=2, channel_mult="1,2,4", attention_resolutions="16",
    learn_sigma=False, class_cond=False, num_classes=1000, use_scale_shift_norm=False, resblock_updown=False,
)  # fmt: skip
HIDDEN_FLIPS = dict(
    num_heads=4, num_heads_upsample=2, num_head_channels=16, use_new_attention_order=True, noise_schedule="linear",
    diffusion_steps=1000, predict_xstart=True, rescale_timesteps=True,
)  # fmt: skip

CLASSIFIER_TRUTH = dict(
    image_size=16, num_classes=10, classifier_width=32, classifier_depth=1, classifier_attention_resolutions="8",
    classifier_use_scale_shift_norm=True, classifier_resblock_updown=True, classifier_pool="adaptive",
    classifier_num_head_channels=32, classifier_channel_mult="",
)  # fmt: skip
CLASSIFIER_FLIPS = dict(
    classifier_width=64, classifier_depth=2, classifier_attention_resolutions="16",
    classifier_use_scale_shift_norm=False, classifier_resblock_updown=False, classifier_pool="attention",
    classifier_channel_mult="1,2,4",
)  # fmt: skip
PROCESS = dict(diffusion_steps=100, noise_schedule="cosine", rescale_timesteps=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """bare.pt and saved.pt, a classifier likewise; the saved ones have their flags beside them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    p = flags.parse(command_line(TRUTH), GROUPS, "")
    model = p[UNetFlags].create(True).state_dict()
    checkpoints.write(str(folder / "bare.pt"), model)
    checkpoints.write(str(folder / "saved.pt"), model, p.values())
    p = flags.parse(command_line({**CLASSIFIER_TRUTH, **PROCESS}), [ClassifierFlags, DiffusionFlags], "")
    model = p[ClassifierFlags].create().state_dict()
    checkpoints.write(str(folder / "bare_classifier.pt"), model)
    checkpoints.write(str(folder / "saved_classifier.pt"), model, p.values())
    return folder


def load(path, **given):
    return checkpoints.load_diffusion(flags.parse(command_line({**given, "model_path": path}), GROUPS, ""))


def load_classifier(path, given, process=PROCESS):
    """The classifier, for the diffusion network of an image size of 16 with 10 classes."""
    groups = [CheckpointFlags, UNetFlags, ClassifierFlags, DiffusionFlags]
    values = {"image_size": 16, "class_cond": True, "num_classes": 10, **process, **given}
    return checkpoints.load_classifier(flags.parse(command_line(values), groups, ""), str(path))


def only_line(error, name, given, trained):
    """The error is short and has one line of findings, which names the flag and both values."""
    lines = str(error.value).splitlines()
    assert len(lines) == 2, str(error.value)
    assert lines[1].startswith(f"  --{name} is {given!r}, the checkpoint has {trained!r}"), lines[1]


@pytest.mark.parametrize("name", FLIPS)
@pytest.mark.parametrize("file", ["bare", "saved"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_wrong_flag_is_named_with_both_values(folder, file, name, alone):
    """`alone` gives no other flag; else the command line is that of training but for the one."""
    given = {name: FLIPS[name]} if alone else {**TRUTH, name: FLIPS[name]}
    if name == "image_size" and not alone:
        given["channel_mult"] = ""  # with the multipliers given as well, nothing in the tensors tells the size
    with pytest.raises(UserError) as error:
        load(folder / f"{file}.pt", **given)
    only_line(error, name, FLIPS[name], TRUTH[name])
    assert ("--override True" in str(error.value)) is (file == "saved")


@pytest.mark.parametrize("name", HIDDEN_FLIPS)
def test_what_shapes_cannot_tell_is_told_by_the_flags_beside(folder, name):
    given = {**TRUTH, name: HIDDEN_FLIPS[name]}
    with pytest.raises(UserError) as error:
        load(folder / "saved.pt", **given)
    only_line(error, name, HIDDEN_FLIPS[name], TRUTH[name])
    p, _, _ = load(folder / "bare.pt", **given)
    assert p.values()[name] == HIDDEN_FLIPS[name]


@pytest.mark.parametrize("name", HIDDEN_FLIPS)
def test_override_insists(folder, name):
    p, _model, diffusion = load(folder / "saved.pt", override=True, **{name: HIDDEN_FLIPS[name]})
    expected = {**TRUTH, name: HIDDEN_FLIPS[name]}
    assert expected.items() <= p.values().items()
    assert diffusion.schedule.num_timesteps == expected["diffusion_steps"]


def test_override_of_a_shape_ends_in_a_short_error_that_names_tensors(folder):
    with pytest.raises(UserError) as error:
        load(folder / "saved.pt", override=True, num_channels=64)
    lines = str(error.value).splitlines()
    assert len(lines) <= 10 and "--model_path" in lines[0] and "time_embed.0.weight is (128, 32)" in str(error.value)


def test_many_wrong_flags_still_make_a_short_error(folder):
    given = {**FLIPS, **HIDDEN_FLIPS, "num_channels": 128}
    with pytest.raises(UserError) as error:
        load(folder / "saved.pt", **given)
    lines = str(error.value).splitlines()
    assert len(lines) <= 10 and lines[-1] == f"  and {len(given) - 7} more"


@pytest.mark.parametrize("name", CLASSIFIER_FLIPS)
@pytest.mark.parametrize("file", ["bare", "saved"])
def test_a_wrong_flag_of_the_classifier_is_named(folder, file, name):
    given = {**CLASSIFIER_TRUTH, name: CLASSIFIER_FLIPS[name]}
    with pytest.raises(UserError) as error:
        load_classifier(folder / f"{file}_classifier.pt", given)
    trained = "1,2,2" if (file, name) == ("bare", "classifier_channel_mult") else CLASSIFIER_TRUTH[name]
    only_line(error, name, CLASSIFIER_FLIPS[name], trained)
    assert "--classifier_path" in str(error.value)


@pytest.mark.parametrize("file", ["bare", "saved"])
@pytest.mark.parametrize("name, other", [("image_size", 32), ("num_classes", 1000)])
def test_a_classifier_of_another_size_or_classes_than_the_network_is_refused(folder, file, name, other):
    with pytest.raises(UserError) as error:
        load_classifier(folder / f"{file}_classifier.pt", {name: other})
    only_line(error, name, other, CLASSIFIER_TRUTH[name])


@pytest.mark.parametrize(
    "name, other", [("diffusion_steps", 1000), ("noise_schedule", "linear"), ("rescale_timesteps", True)]
)
def test_a_classifier_of_another_process_is_refused_if_its_flags_say_so(folder, name, other):
    process = {**PROCESS, name: other}
    with pytest.raises(UserError) as error:
        load_classifier(folder / "saved_classifier.pt", {}, process)
    only_line(error, name, other, PROCESS[name])
    load_classifier(folder / "bare_classifier.pt", {"classifier_num_head_channels": 32}, process)


def test_what_the_network_resolved_to_counts_as_given_for_its_classifier(folder):
    groups = [CheckpointFlags, UNetFlags, ClassifierFlags, DiffusionFlags]
    p = flags.parse(command_line({"model_path": folder / "saved.pt"}), groups, "")
    p, _, _ = checkpoints.load_diffusion(p)
    p, classifier = checkpoints.load_classifier(p, str(folder / "saved_classifier.pt"))
    assert classifier.out_channels == 10
    with pytest.raises(UserError) as error:
        checkpoints.load_classifier(p.with_values({"diffusion_steps": 1000}), str(folder / "saved_classifier.pt"))
    only_line(error, "diffusion_steps", 1000, 100)


# -- which source speaks ---------------------------------------------------------------------------


def test_flags_beside_the_checkpoint_speak_for_it(folder):
    p, model, diffusion = load(folder / "saved.pt")
    assert TRUTH.items() <= p.values().items()
    assert model.num_heads == 2 and model.num_classes == 10 and not model.training
    assert diffusion.schedule.num_timesteps == 100


def test_shapes_speak_where_there_are_no_flags(folder):
    p, _, _ = load(folder / "bare.pt")
    told = {k: v for k, v in TRUTH.items() if k not in HIDDEN_FLIPS}
    assert told.items() <= p.values().items()
    assert p[UNetFlags].num_heads == UNetFlags().num_heads and p[DiffusionFlags].diffusion_steps == 1000


@pytest.mark.parametrize("file", ["bare", "saved"])
def test_flags_of_one_run_are_free(folder, file):
    free = dict(timestep_respacing="5", use_kl=True, dropout=0.3, use_checkpoint=True, use_bf16=True)
    p, model, diffusion = load(folder / f"{file}.pt", **{**TRUTH, **free})
    assert free.items() <= p.values().items()
    assert len(diffusion.grid) == 5 and model.dtype is torch.bfloat16


def test_equal_meanings_are_no_conflict(folder):
    for file in ("bare", "saved"):
        load(folder / f"{file}.pt", **{**TRUTH, "channel_mult": "", "attention_resolutions": "8"})
        load(folder / f"{file}.pt", image_size=16, channel_mult="1,2,2.0")
        # of 16 pixels only 16, 8 and 4 have a level
        load(folder / f"{file}.pt", image_size=16, attention_resolutions="8,2")


@pytest.mark.parametrize("saved", [False, True])
def test_an_image_size_with_other_multipliers_than_its_default_is_no_conflict(tmp_path, saved):
    p = flags.parse(command_line({**TRUTH, "image_size": 64, "channel_mult": "1,2"}), GROUPS, "")
    path = str(tmp_path / "x.pt")
    checkpoints.write(path, p[UNetFlags].create(True).state_dict(), p.values() if saved else None)
    p, model, _ = load(path, image_size=64)
    assert p[UNetFlags].image_size == 64 and model.channel_mult == (1, 2)
    if not saved:
        with pytest.raises(UserError, match="does not tell its image size: give --image_size"):
            load(path)


def test_a_network_of_one_level_has_no_resampling_to_contradict(tmp_path):
    values = {**TRUTH, "image_size": 8, "channel_mult": "1"}
    p = flags.parse(command_line(values), GROUPS, "")
    checkpoints.write(str(tmp_path / "x.pt"), p[UNetFlags].create(True).state_dict())
    load(tmp_path / "x.pt", **values)


def test_flags_beside_that_lack_some(folder, tmp_path):
    """Such as those of a later version, or written by hand."""
    (tmp_path / "x.pt").write_bytes((folder / "bare.pt").read_bytes())
    (tmp_path / "x.json").write_text(json.dumps({"attention_resolutions": "8", "num_heads": 2, "unknown": 1}))
    p, _, _ = load(tmp_path / "x.pt", **{k: v for k, v in TRUTH.items() if k != "num_heads"})
    assert TRUTH.items() <= p.values().items()


@pytest.mark.parametrize("text, words", [("{", "not valid JSON"), ("[]", "holds a list")])
def test_broken_flags_beside(folder, tmp_path, text, words):
    (tmp_path / "x.pt").write_bytes((folder / "bare.pt").read_bytes())
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=f"x.json .*{words}"):
        load(tmp_path / "x.pt")


def test_files_that_are_no_such_network(folder, tmp_path):
    with pytest.raises(UserError, match="--model_path is not given"):
        load("")
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "missing.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="--model_path .*a.pt is not a diffusion network"):
        load(tmp_path / "a.pt")
    with pytest.raises(UserError, match="--model_path .*bare_classifier.pt is not a diffusion network"):
        load(folder / "bare_classifier.pt")


def test_an_upsampler_is_known_by_its_shapes(tmp_path):
    groups = [CheckpointFlags, SuperResFlags, UNetFlags, DiffusionFlags]
    values = {k: v for k, v in TRUTH.items() if k != "image_size"} | {"large_size": 16, "small_size": 4}

    def parsed(**values):
        return flags.parse(command_line({**values, "model_path": tmp_path / "x.pt"}), groups, "", {"image_size": None})

    p = parsed(**values)
    checkpoints.write(str(tmp_path / "x.pt"), p[SuperResFlags].create(p[UNetFlags], True).state_dict())
    p, model, _ = checkpoints.load_diffusion(parsed(small_size=4))
    assert p[SuperResFlags].large_size == 16 and p[UNetFlags].num_classes == 10
    assert model.in_channels == 6
    with pytest.raises(UserError) as error:
        checkpoints.load_diffusion(parsed(**{**values, "num_res_blocks": 3}))
    only_line(error, "num_res_blocks", 3, 1)
    with pytest.raises(UserError) as error:
        checkpoints.load_diffusion(parsed(large_size=32, small_size=4))
    only_line(error, "large_size", 32, 16)


def test_a_written_file_is_a_plain_dict_for_the_bare_network(folder):
    state = torch.load(folder / "saved.pt", weights_only=True)
    assert isinstance(state, dict)
    model = UNetFlags(**{k: v for k, v in TRUTH.items() if hasattr(UNetFlags, k)}).create(True)
    model.load_state_dict(state)
    assert has_weights(model, state)
    saved = json.loads((folder / "saved.json").read_text())
    assert TRUTH.items() <= saved.items() and list(saved) == sorted(saved)


def test_advice_on_young_averages_and_raw_weights(tmp_path, capsys):
    for name in ("ema_0.999_000100.pt", "ema_0.999_009000.pt", "model009000.pt", "model000100.pt"):
        (tmp_path / name).touch()
    said = {}
    for name in ("ema_0.999_000100.pt", "ema_0.999_009000.pt", "model009000.pt", "digits.pt"):
        checkpoints._advise(str(tmp_path / name), {})
        said[name] = capsys.readouterr().out
    assert "is still 90 % the weights it began with, untrained ones" in said["ema_0.999_000100.pt"]
    # its start was trained
    checkpoints._advise(str(tmp_path / "ema_0.999_000100.pt"), {"init_from": "models/digits16.pt"})
    assert capsys.readouterr().out == ""
    assert "ema_*_009000.pt beside it" in said["model009000.pt"]
    assert said["ema_0.999_009000.pt"] == said["digits.pt"] == ""


def bare(folder, tmp_path):
    """The path of a copy of bare.pt."""
    return shutil.copy(folder / "bare.pt", str(tmp_path / "x.pt"))


def test_what_shapes_do_not_show_is_said(folder, tmp_path, capsys):
    """The warning names the assumed values, and only of flags that were not given."""
    script = launched.read("image_sample")
    path = bare(folder, tmp_path)
    flags_given = ["--model_path", path, "--image_size", str(TRUTH["image_size"]), "--noise_schedule", "cosine"]
    parsed = flags.parse(flags_given, script.groups, "", script.overrides)
    checkpoints.resolve(parsed, path, checkpoints.DIFFUSION)
    said = capsys.readouterr().out
    assert "--num_heads 4" in said and "--diffusion_steps 1000" in said and "--noise_schedule" not in said


def test_flags_beside_of_a_wrong_type_are_refused(folder, tmp_path):
    path = bare(folder, tmp_path)
    Path(checkpoints.sidecar_path(path)).write_text('{"num_channels": "abc", "image_size": 16}')
    script = launched.read("image_sample")
    parsed = flags.parse(["--model_path", path], script.groups, "", script.overrides)
    with pytest.raises(UserError, match="has 'abc' for num_channels; expected a value such as 128"):
        checkpoints.resolve(parsed, path, checkpoints.DIFFUSION)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "ema_model."])
@pytest.mark.parametrize("beside", [True, False])
def test_what_a_wrapper_puts_before_names_is_taken_off(folder, tmp_path, prefix, beside, capsys):
    path = bare(folder, tmp_path)
    if beside:
        shutil.copy(folder / "saved.json", Path(path).with_suffix(".json"))
    state = torch.load(path, weights_only=True)
    torch.save({prefix + k: v for k, v in state.items()}, path)
    model, _, _found = checkpoints.open_network(path, expected="diffusion", image_size=16)
    assert has_weights(model, state)
    assert f"names begin with {prefix.split('.')[0]}., which is taken off" in capsys.readouterr().out
    # one that is not before all names is none
    torch.save({prefix + k if i else k: v for i, (k, v) in enumerate(state.items())}, path)
    with pytest.raises(UserError):
        checkpoints.open_network(path, expected="diffusion", image_size=16)


def nested(path, **content):
    state = torch.load(path, weights_only=True)
    torch.save({**content, "model": state, "ema": {k: v + 1 for k, v in state.items()}}, path)
    return state


@pytest.mark.parametrize("key, more", [("model", 0), ("ema", 1)])
def test_a_key_chooses_among_several_state_dicts(folder, tmp_path, key, more):
    path = bare(folder, tmp_path)
    state = nested(path, step=3, optimizer={"lr": 0.1}, name="mine")
    script = launched.read("image_sample")
    words = ["--model_path", path, *command_line(TRUTH)]
    with pytest.raises(UserError, match="holds weights at model, ema: choose by --checkpoint_key"):
        checkpoints.load_diffusion(flags.parse(words, script.groups, "", script.overrides))
    for wrong in ("optimizer", "none", "step"):
        with pytest.raises(UserError, match=f"no weights at '{wrong}'; it has them at: model, ema"):
            checkpoints.load_diffusion(
                flags.parse([*words, "--checkpoint_key", wrong], script.groups, "", script.overrides)
            )
    parsed = flags.parse([*words, "--checkpoint_key", key], script.groups, "", script.overrides)
    _, model, _ = checkpoints.load_diffusion(parsed)
    assert has_weights(model, {k: v + more for k, v in state.items()})


@pytest.mark.parametrize("key", ["a.b", "ema.0.999", "a.b.c"])
def test_a_key_has_dots_where_dicts_are_nested(tmp_path, key):
    weights, path = {"w": torch.ones(2)}, tmp_path / "x.pt"
    outer, _, inner = key.partition(".")
    content = {outer: {inner: weights}} if key != "a.b.c" else {"a": {"b": {"c": weights, "n": 3}}}
    torch.save({**content, "step": 2}, path)
    assert torch.equal(load_state_dict(path, key=key)["w"], weights["w"])
    with pytest.raises(UserError, match=f"; it holds weights at {key}: choose by --checkpoint_key"):
        load_state_dict(path)


def test_a_key_of_a_file_without_any_is_said(folder, tmp_path):
    with pytest.raises(UserError, match="no weights at 'ema'; it is a state dict itself, without any key"):
        load_state_dict(bare(folder, tmp_path), key="ema")


def test_a_flag_that_has_no_key_advises_none(folder, tmp_path):
    path = bare(folder, tmp_path)
    nested(path, step=3)
    with pytest.raises(UserError, match="--classifier_path: .*holds weights at model, ema: save those alone to a file"):
        checkpoints.open_network(path, flag="classifier_path", expected="classifier")


@pytest.mark.parametrize(
    "dtype, words",
    [
        (torch.float8_e4m3fn, "holds numbers of 8 bits at"),
        (torch.int8, "holds torch.int8 at .*; expected real numbers"),
        (torch.bool, "holds torch.bool at .*; expected real numbers"),
    ],
)
def test_weights_of_a_type_that_is_no_weight_are_refused(folder, tmp_path, dtype, words):
    path = bare(folder, tmp_path)
    state = torch.load(path, weights_only=True)
    name = next(iter(state))
    torch.save({**state, name: state[name].to(dtype)}, path)
    with pytest.raises(UserError, match=words):
        checkpoints.open_network(path, expected="diffusion", image_size=16)


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".bin"])
@pytest.mark.parametrize("written", ["torch", "safetensors"])
def test_what_lies_there_decides_the_format_and_not_its_name(tmp_path, ending, written):
    saved = {"w": torch.arange(6.0).reshape(2, 3)}
    path = tmp_path / f"x{ending}"
    if written == "torch":
        torch.save(saved, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(saved, path)
    assert torch.equal(load_state_dict(path)["w"], saved["w"])


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("where", ["file", "link", "link to a link", "target"])
def test_flags_lie_beside_a_checkpoint_of_any_name_or_what_it_links_to(folder, tmp_path, ending, where):
    safetensors = pytest.importorskip("safetensors.torch")
    real = tmp_path / "real"
    real.mkdir()
    path = real / f"saved{ending}"
    state = torch.load(folder / "saved.pt", weights_only=True)
    safetensors.save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    named = path
    if where != "file":
        for name in ("latest", "again")[: 1 + (where == "link to a link")]:
            named, before = tmp_path / f"{name}{ending}", named
            named.symlink_to(before)
    beside = (named if where == "link" else path).with_suffix("") if ending else (named if where == "link" else path)
    shutil.copy(folder / "saved.json", f"{beside}.json")
    model, _, found = checkpoints.open_network(str(named))
    assert found["image_size"] == TRUTH["image_size"] and found["noise_schedule"] == TRUTH["noise_schedule"]
    assert has_weights(model, state)


def test_without_the_package_safetensors_are_refused_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "x.safetensors").write_bytes(b"12345678{}")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="x.safetensors needs the package safetensors: pip install safetensors"):
        checkpoints.open_network(str(tmp_path / "x.safetensors"))


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch will do without them
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


STRANGE = {
    "sparse": {"a": torch.eye(3).to_sparse()},
    "no values": {"a": torch.ones(3, device="meta")},
    "complex": {"a": torch.ones(2, dtype=torch.complex64)},
    "quantised": {"a": quantised()},
    "1,000,000,000,000 numbers in 4 bytes": {"a": torch.ones(1).expand(10**12)},
    "a number as key": {1: torch.ones(1)},
    "none as key": {None: torch.ones(1)},
    "a list": [torch.ones(1)],
    "a number": {"a": 1},
    "text": {"a": "weights"},
    "nothing": None,
    "a deep list": {"a": [[[[1]]]]},
}


@pytest.mark.parametrize("what", STRANGE)
def test_content_that_is_no_weights_is_refused_in_a_sentence(tmp_path, what):
    path = str(tmp_path / "x.pt")
    torch.save(STRANGE[what], path)
    for flag in ("model_path", "init_from", "classifier_path"):
        with pytest.raises(UserError, match=f"--{flag}: checkpoint .*x.pt ") as error:
            checkpoints.open_network(path, flag)
        assert "\n" not in str(error.value)


def test_a_resumed_run_takes_the_flags_of_its_checkpoint(folder, tmp_path):
    script = launched.read("image_train")
    path = bare(folder, tmp_path)
    Path(checkpoints.sidecar_path(path)).write_text(
        '{"num_channels": 32, "noise_schedule": "cosine", "image_size": 16}'
    )
    parsed = flags.parse(["--data_dir", "x"], script.groups, "", script.overrides)
    values = checkpoints.resumed(parsed, path, checkpoints.DIFFUSION).values()
    assert (values["num_channels"], values["noise_schedule"], values["data_dir"]) == (32, "cosine", "x")
    assert checkpoints.resumed(parsed, "", checkpoints.DIFFUSION) is parsed


@pytest.mark.parametrize("given, expected", [([], 0.15), (["--input_perturbation", "0.1"], 0.1)])
def test_a_resumed_run_keeps_its_input_perturbation(folder, tmp_path, given, expected):
    script = launched.read("image_train")
    path = bare(folder, tmp_path)
    beside = {"num_channels": 32, "image_size": 16, "input_perturbation": 0.15}
    Path(checkpoints.sidecar_path(path)).write_text(json.dumps(beside))
    parsed = flags.parse(given, script.groups, "", script.overrides)
    assert checkpoints.resumed(parsed, path, checkpoints.DIFFUSION).values()["input_perturbation"] == expected


# -- any network, and each file once ---------------------------------------------------------------

NETWORK_TOYS = {
    "diffusion": TRUTH,
    "super_res": {**{k: v for k, v in TRUTH.items() if k != "image_size"}, "large_size": 16, "small_size": 8},
    "classifier": {**CLASSIFIER_TRUTH, **PROCESS},
    "inpaint": {**{k: v for k, v in TRUTH.items() if k not in ("class_cond", "num_classes")}, "reference_cond": True},
}


@pytest.fixture(scope="module", params=NETWORK_TOYS)
def toy(request, tmp_path_factory):
    """(name in NETWORKS, folder with bare.pt and saved.pt of it, the network)."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    network, values = NETWORKS[name], NETWORK_TOYS[name]
    parsed = flags.parse(command_line(values), [*network.groups, DiffusionFlags], "")
    made = network.create(parsed)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    told = {k: v for k, v in parsed.values().items() if k in checkpoints.described(network)}
    checkpoints.write(str(folder / "saved.pt"), made.state_dict(), told)
    checkpoints.write(str(folder / "bare.pt"), made.state_dict())
    return name, folder, made.eval()


def answers(name, network):
    inputs = [torch.linspace(-1, 1, 3 * 256).reshape(1, 3, 16, 16), torch.tensor([7.0])]
    if name == "super_res":
        inputs.append(torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8))
    if name == "inpaint":
        inputs += [torch.linspace(-1, 1, channels * 256).reshape(1, channels, 16, 16) for channels in (3, 1, 4)]
    with torch.no_grad():
        return network(*inputs, **({"y": torch.tensor([3])} if "y" in getattr(network, "takes", ()) else {}))


def untold(name, file):
    """Flags of a toy that its file does not tell, of those of its network."""
    hidden = {*flags.marked(NETWORKS[name].groups, "hidden"), "num_heads_upsample"}
    return {k: v for k, v in NETWORK_TOYS[name].items() if k in hidden and file == "bare"}


@pytest.mark.parametrize("file", ["bare", "saved"])
def test_any_network_is_opened_by_its_path_alone(toy, file):
    name, folder, expected = toy
    network, process, told = checkpoints.open_network(str(folder / f"{file}.pt"), **untold(name, file))
    assert type(network) is type(expected) and not network.training
    assert torch.equal(answers(name, network), answers(name, expected))
    assert network.shape == (3, 16, 16) and told["image_channels"] == 3
    assert process.schedule.num_timesteps == (100 if file == "saved" else 1000)
    assert told["noise_schedule"] == ("cosine" if file == "saved" else "linear")
    described = {k: v for k, v in NETWORK_TOYS[name].items() if k not in PROCESS}
    if file == "bare" and name == "classifier":
        described["classifier_channel_mult"] = "1,2,2"
    assert described.items() <= told.items()
    assert ("timestep_respacing" in told) is (name != "classifier")


@pytest.mark.parametrize("file", ["bare", "saved"])
def test_a_network_of_another_kind_or_none_is_refused(toy, file, tmp_path):
    name, folder, _ = toy
    for other in NETWORKS.keys() - {name}:
        with pytest.raises(UserError) as caught:
            checkpoints.open_network(str(folder / f"{file}.pt"), flag="teacher", expected=other)
        for word in ("--teacher ", NETWORKS[name].what, NETWORKS[other].what):
            assert word in str(caught.value)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "linear.pt")
    with pytest.raises(UserError, match="--teacher .*linear.pt is no network that is known"):
        checkpoints.open_network(str(tmp_path / "linear.pt"), flag="teacher")
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(UserError, match="--teacher .*empty.pt is no network that is known"):
        checkpoints.open_network(str(tmp_path / "empty.pt"), flag="teacher")
    with pytest.raises(UserError, match="--teacher: checkpoint none.pt does not exist"):
        checkpoints.open_network("none.pt", flag="teacher")


def test_what_is_said_of_a_network_to_open_is_validated(folder):
    with pytest.raises(UserError) as error:
        checkpoints.open_network(str(folder / "saved.pt"), num_heads=4)
    only_line(error, "num_heads", 4, 2)
    with pytest.raises(UserError, match="--num_heads is 0"):
        checkpoints.open_network(str(folder / "bare.pt"), num_heads=0)
    with pytest.raises(TypeError, match="'colour'"):
        checkpoints.open_network(str(folder / "bare.pt"), colour=3)


@pytest.fixture
def reads(monkeypatch):
    """The number of calls of torch.load, as a list of as many."""
    calls, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: calls.append(1) or load(*args, **kwargs))
    return calls


@pytest.mark.parametrize("file", ["bare", "saved"])
def test_a_checkpoint_is_unpickled_once(folder, toy, file, reads):
    name, toys, _ = toy
    checkpoints.open_network(str(toys / f"{file}.pt"), **untold(name, file))
    assert len(reads) == 1
    load(folder / f"{file}.pt", **TRUTH)
    assert len(reads) == 2
    load_classifier(folder / f"{file}_classifier.pt", {"classifier_num_head_channels": 32})
    assert len(reads) == 3


@pytest.mark.parametrize("name, kind", [("resume_checkpoint", "resumed"), ("init_from", "initialise")])
def test_training_unpickles_its_bare_start_once(folder, tmp_path, reads, name, kind):
    path = shutil.copy(folder / "bare.pt", str(tmp_path / "model000002.pt"))
    parsed = flags.parse(command_line(TRUTH), GROUPS, "")
    parsed = getattr(checkpoints, kind)(parsed, path, checkpoints.DIFFUSION)
    checkpoints.load_into(checkpoints.DIFFUSION.create(parsed), path, name)
    assert len(reads) == 1


def test_shapes_alone_are_read_once_and_a_changed_file_again(folder, tmp_path, reads):
    path = shutil.copy(folder / "bare.pt", str(tmp_path / "x.pt"))
    parsed = flags.parse(command_line({**TRUTH, "model_path": path}), GROUPS, "")
    for _ in range(3):
        assert checkpoints.resolved(parsed).values()["diffusion_steps"] == 100
    assert len(reads) == 1
    state = torch.load(path, weights_only=True)
    checkpoints.write(path, {k: v + 1 for k, v in state.items()})
    _, model, _ = checkpoints.load_diffusion(parsed)
    assert len(reads) == 3 and all(torch.equal(v, state[k] + 1) for k, v in model.state_dict().items())


# -- flags that are younger than a checkpoint ------------------------------------------------------


def hidden_of(name):
    network = NETWORKS[name]
    groups = [*network.groups, *checkpoints.process_groups(network)]
    return sorted(flags.marked(groups, "hidden").keys() & checkpoints.described(network))


@pytest.mark.parametrize("name, lacking", [(name, flag) for name in NETWORK_TOYS for flag in hidden_of(name)])
def test_a_hidden_flag_that_the_sidecar_lacks_is_its_default(name, lacking, tmp_path):
    """So giving another value contradicts the checkpoint, and giving none is that."""
    network = NETWORKS[name]
    groups = [*network.groups, *checkpoints.process_groups(network)]
    defaults = flags.parse([], groups, "").values()
    told = {k: v for k, v in defaults.items() if k in checkpoints.described(network) and k != lacking}
    (tmp_path / "model.json").write_text(json.dumps(told))
    (tmp_path / "model.pt").touch()
    resolved = checkpoints.resolve(flags.parse([], groups, ""), str(tmp_path / "model.pt"), network).values()
    assert resolved[lacking] == defaults[lacking]
    field = next(field for group in groups for field in flags.flags_of(group) if field.name == lacking)
    value = field.default
    other = not value if isinstance(value, bool) else {"linear": "cosine", "eps": "v"}.get(value) or abs(value) // 2 + 1
    words = [f"--{lacking}={other}"] + ["--prediction=v"] * (
        lacking == "rescale_zero_terminal_snr" and name != "classifier"
    )
    with pytest.raises(UserError, match=f"--{lacking} is {other!r}, the checkpoint has {value!r}"):
        checkpoints.resolve(flags.parse(words, groups, ""), str(tmp_path / "model.pt"), network)


@pytest.mark.parametrize("saved", [{"predict_xstart": True}, {"predict_xstart": True, "prediction": "x0"}])
@pytest.mark.parametrize(
    "words, expected",
    [
        ([], "x0"),
        (["--prediction", "eps"], "eps"),
        (["--prediction", "v"], "v"),
        (["--predict_xstart", False], "eps"),
        (["--predict_xstart", True], "x0"),
    ],
)
def test_what_is_given_wins_by_either_spelling(saved, words, expected, tmp_path):
    """With --override True; without, what contradicts is refused."""
    told = {**flags.parse([], GROUPS[1:], "").values(), "prediction": None, **saved}
    (tmp_path / "model.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}))
    parsed = flags.parse(list(map(str, words)), GROUPS, "")
    made = checkpoints.resolve(parsed, str(tmp_path / "model.pt"), checkpoints.DIFFUSION, override=True).values()
    assert (made["prediction"], made["predict_xstart"]) == (expected, expected == "x0")
    if expected != "x0":
        with pytest.raises(UserError, match="is another network than the flags say"):
            checkpoints.resolve(parsed, str(tmp_path / "model.pt"), checkpoints.DIFFUSION)


@pytest.mark.parametrize(
    "key, value",
    [
        ("prediction", "vv"),
        ("noise_schedule", "quadratic"),
        ("diffusion_steps", 0),
        ("dropout", 2.0),
        ("num_heads", -3),
    ],
)
def test_a_sidecar_with_an_illegal_value_is_refused(key, value, tmp_path):
    told = {**flags.parse([], GROUPS[1:], "").values(), key: value}
    (tmp_path / "model.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=f"--{key} is {value!r}"):
        checkpoints.resolve(flags.parse([], GROUPS, ""), str(tmp_path / "model.pt"), checkpoints.DIFFUSION)


@pytest.mark.parametrize("zero", [False, True])
def test_a_classifier_predicts_nothing(zero, tmp_path):
    """So it may be of a process that begins at pure noise without a word of --prediction."""
    script = launched.read("classifier_train")
    words = command_line({**CLASSIFIER_TRUTH, **PROCESS, "rescale_zero_terminal_snr": zero})
    parsed = flags.parse(words, script.groups, "", script.overrides)
    network = checkpoints.CLASSIFIER.create(parsed)
    checkpoints.write(str(tmp_path / "model.pt"), network.state_dict(), parsed.values())
    _, process, told = checkpoints.open_network(str(tmp_path / "model.pt"))
    assert process.schedule.ends_in_noise == zero == told["rescale_zero_terminal_snr"] and "prediction" not in told
