"""Command lines: what is parsed, what is refused and how, and the published functions on top."""

import argparse
import dataclasses
import gzip
import inspect
import json
import re
from dataclasses import dataclass, make_dataclass
from pathlib import Path

import launched
import pytest
import torch

from guided_diffusion import flags, script_util
from guided_diffusion.errors import UserError
from guided_diffusion.flags import (
    FRACTION,
    FlagGroup,
    at_least,
    flag,
    flags_of,
    int_list,
    marked,
    parse,
    parser_for,
    str2bool,
)
from guided_diffusion.gaussian_diffusion import LossType, ModelMeanType, ModelVarType
from guided_diffusion.networks import ClassifierFlags, SuperResFlags, UNetFlags
from guided_diffusion.script_util import DiffusionFlags
from guided_diffusion.training.flags import TrainFlags

CHECKPOINTS = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "state_dicts.json.gz").read_bytes()))
SCRIPT_OF = {"model": "image_sample", "sr": "super_res_sample", "classifier": "classifier_train"}


@dataclass
class Fruit:
    """Fruit."""

    apples: int = flag(3, "Number of apples.", aliases=("max_apples",))
    kind: str = flag("red", "Kind of apple.", choices=("red", "green"))
    ripe: bool = flag(False, "Whether they are ripe.")
    weight: float = flag(0.5, "Weight of one, 100% by default.")
    size: int = flag(1, "Size of the fruit.", shared=True)


@dataclass
class Basket:
    """A basket. It holds fruit."""

    size: int = flag(1, "Size of the basket.", shared=True)
    name: str = flag("", "Name of the basket.")


GROUPS = [Fruit, Basket]


def parsed(*argv, overrides=None):
    return parse(list(argv), GROUPS, "", overrides)


# -- parsing ---------------------------------------------------------------------------------------


def test_an_empty_command_line_gives_the_defaults():
    p = parsed()
    assert p[Fruit] == Fruit(3, "red", False, 0.5, 1) and p[Basket] == Basket(1, "") and p.given == set()


def test_values_are_typed_and_both_groups_get_a_shared_flag():
    p = parsed("--apples", "7", "--ripe", "True", "--weight=1e-3", "--size", "-1", "--kind", "green")
    assert p[Fruit] == Fruit(7, "green", True, 1e-3, -1) and p[Basket].size == -1
    assert p.given == {"apples", "ripe", "weight", "size", "kind"}
    assert list(p.values().items()) == [
        ("apples", 7), ("kind", "green"), ("name", ""), ("ripe", True), ("size", -1), ("weight", 1e-3)
    ]  # fmt: skip


def test_an_alias_is_the_flag():
    assert parsed("--max_apples", "9")[Fruit].apples == 9
    assert parse(["--max_steps", "9"], [TrainFlags], "")[TrainFlags].iterations == 9


def test_overrides_change_defaults_or_take_flags_away():
    p = parsed(overrides={"apples": 5, "kind": None})
    assert p[Fruit].apples == 5 and p[Fruit].kind == "red" and "kind" not in p.values() and p.given == set()
    assert parsed("--apples", "6", overrides={"apples": 5})[Fruit].apples == 6
    with pytest.raises(UserError, match="--kind is not a flag of this script"):
        parsed("--kind", "red", overrides={"kind": None})


def test_with_values_reaches_every_group_and_keeps_what_was_given():
    p = parsed("--apples", "6").with_values({"size": 4, "name": "b"})
    assert p[Fruit] == Fruit(apples=6, size=4) and p[Basket] == Basket(4, "b") and p.given == {"apples"}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--aples", "7"], "--aples is not a flag of this script; did you mean --apples?"),
        (["--apple", "7"], "--apple is not a flag of this script; did you mean --apples?"),
        (["--aples=7"], "--aples is not a flag of this script; did you mean --apples?"),
        (["--zzzzzzz", "7"], "--zzzzzzz is not a flag of this script; --help all lists them"),
        (["seven"], "'seven' does not belong to any flag; flags are written --name value"),
    ],
)
def test_unknown_words(argv, message):
    with pytest.raises(UserError) as error:
        parsed(*argv)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--apples", "many"], ["--apples", "'many'", "int"]),
        (["--apples", "1.5"], ["--apples", "'1.5'", "int"]),
        (["--weight", "x"], ["--weight", "'x'", "float"]),
        (["--ripe", "maybe"], ["--ripe", "expected True or False"]),
        (["--kind", "blue"], ["--kind", "'blue'", "red", "green"]),
        (["--kind", "gren"], ["--kind", "did you mean green?"]),
        (["--apples"], ["--apples", "expected one argument"]),
        (["--apples", "-1,2"], ["--apples", "'-1,2'", "int"]),
    ],
)
def test_bad_values_name_the_flag_and_what_is_legal(argv, words):
    with pytest.raises(UserError) as error:
        parsed(*argv)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("value, words", [(True, "True true T yes y 1"), (False, "False f NO n 0")])
def test_str2bool(value, words):
    assert all(str2bool(word) is value for word in words.split()) and str2bool(value) is value


def test_str2bool_refuses_other_words():
    with pytest.raises(argparse.ArgumentTypeError):
        str2bool("on")


def test_int_list():
    assert int_list("32,16, 8", "x") == [32, 16, 8] and int_list("", "x") == []
    with pytest.raises(UserError, match="--sizes is '32,a'"):
        int_list("32,a", "sizes")
    for text in ("32,,8", "32,", ","):
        with pytest.raises(UserError, match="--sizes is .*; expected whole numbers with commas between"):
            int_list(text, "sizes")


# -- the flags of the scripts ----------------------------------------------------------------------


@pytest.mark.parametrize("name", launched.NAMES)
def test_every_flag_is_explained_in_help(name):
    script = launched.read(name)
    text = " ".join(flags.parser_for(script.groups, script.description, script.overrides).format_help().split())
    description, text = text.split("options:")
    assert " ".join(script.description.split()) in description
    for group in script.groups:
        for field in flags.flags_of(group):
            if script.overrides.get(field.name, "") is None:
                assert f"--{field.name} {type(field.default).__name__.upper()} " not in text
                continue
            sentence = field.metadata["help"]
            assert re.fullmatch(r"\w.*\w.*[^.]\.", sentence), field.name
            assert ". " not in sentence, f"{field.name}: more than one sentence"
            default = script.overrides.get(field.name, field.default)
            assert type(default) is type(field.default)
            shown = re.search(rf"--{field.name} {type(default).__name__.upper()}\b.*?\(default: (.*?)\)", text)[1]
            legal = field.metadata["choices"] or (["True", "False"] if isinstance(default, bool) else [])
            assert shown.startswith("''" if default == "" else str(default)), field.name
            assert all((str(choice) or "''") in shown for choice in legal), field.name
            assert not field.metadata["choices"] or default in legal


@pytest.mark.parametrize("name", launched.NAMES)
def test_a_script_and_its_flags_have_one_meaning(name):
    """Where groups share a flag, it is of one type; a script's overrides are flags it has."""
    script, types = launched.read(name), {}
    for group in script.groups:
        for field in dataclasses.fields(group):
            assert types.setdefault(field.name, type(field.default)) is type(field.default), field.name
    assert set(script.overrides) <= set(types)
    assert script.name == name
    defaults = parse([], script.groups, "", script.overrides).values()
    assert {k: v for k, v in script.overrides.items() if v is not None}.items() <= defaults.items()


@pytest.mark.parametrize("name", launched.NAMES)
def test_the_commands_in_the_docstring_parse(name):
    script = launched.read(name)
    lines = script.description.replace("\\\n", " ").splitlines()
    commands = [line.split(f"{name}.py ", 1)[1].split() for line in lines if f"{name}.py " in line]
    assert commands
    for command in commands:
        parse(command, script.groups, "", script.overrides)


@pytest.mark.parametrize("name", [*launched.NAMES, *launched.EVALUATIONS])
def test_help_explains_what_one_needs_first_and_names_the_rest(name, capsys):
    script = launched.read(name)
    parser = flags.parser_for(script.groups, script.description, script.overrides)
    first, every = parser.first(), [action.dest for action in parser._actions if action.dest != "help"]
    assert 3 <= len(first) <= flags.FIRST and "out_dir" in every
    shown = {}
    for words in (["--help"], ["-h"], ["--help", "all"]):
        with pytest.raises(SystemExit) as end:
            parse(words, script.groups, script.description, script.overrides)
        assert end.value.code == 0
        shown[words[-1]] = capsys.readouterr().out
    assert shown["--help"] == shown["-h"] and shown["all"] == parser.format_help()
    explained, rest = shown["--help"].split("the rest, which --help all explains:")
    assert script.description.strip() in explained
    for dest in every:
        place, kind = (explained, " [A-Z]+") if dest in first else (rest, "")
        assert re.search(rf"--{dest}{kind}[\s,]", place), dest
        assert dest not in first or not re.search(rf"--{dest}\s", rest), dest


def test_what_people_say_leads_to_flags_that_there_are():
    """Every word leads somewhere, to what a script has, in each script that lacks it and has what is meant."""
    reached = set()
    for script in map(launched.read, [*launched.NAMES, *launched.EVALUATIONS]):
        parser = flags.parser_for(script.groups, "", script.overrides)
        known = [option for action in parser._actions for option in action.option_strings]
        for said, meant in flags.REPLACED.items():
            there = [words for words in meant if words.split()[0] in known]
            reached.update(there)
            for spelling in {said, said.replace("_", "-"), said.upper()} - {word.lstrip("-") for word in known}:
                if there and f"--{said}" not in known:
                    with pytest.raises(UserError) as error:
                        parse([f"--{spelling}", "1"], script.groups, "", script.overrides)
                    assert str(error.value).endswith(f"; did you mean {' or '.join(there)}?"), spelling
    assert reached == set().union(*flags.REPLACED.values())


@pytest.mark.parametrize(
    "script, said, meant",
    [
        ("image_train", "--epochs", "--iterations"),
        ("image_sample", "--steps", "--timestep_respacing"),
        ("image_train", "--config", "--preset"),
        ("image_train", "--lr-decay", "--lr_anneal_steps"),
        ("classifier_train", "--resume", "--resume_checkpoint"),
        ("image_sample", "--output", "--out_dir"),
        ("evaluator", "--bootstrap", "--standard_error True"),
        ("image_sample", "-n", "--num_samples"),
    ],
)
def test_what_people_say(script, said, meant):
    script = launched.read(script)
    with pytest.raises(UserError) as error:
        parse([said, "3"], script.groups, "", script.overrides)
    assert str(error.value) == f"{said} is not a flag of this script; did you mean {meant}?"


@pytest.mark.parametrize("said", ["epochs", "lr_decay", "resume", "grad_accum", "pretrained", "warmup"])
@pytest.mark.parametrize("name", ["nearest", "evaluator"])
def test_a_word_for_what_a_script_does_not_have_leads_to_no_other_flag(name, said):
    script = launched.read(name)
    with pytest.raises(UserError) as error:
        parse([f"--{said}", "3"], script.groups, "", script.overrides)
    assert str(error.value) == f"--{said} is not a flag of this script; --help all lists them"


@pytest.mark.parametrize("after", [[], ["--out_dir", "x"]])
@pytest.mark.parametrize("name", launched.NAMES)
def test_a_switch_alone_is_told_what_to_say(name, after):
    script = launched.read(name)
    for field in (field for group in script.groups for field in flags.flags_of(group)):
        if isinstance(field.default, bool) and script.overrides.get(field.name, "") is not None:
            with pytest.raises(UserError) as error:
                parse([f"--{field.name}", *after], script.groups, "", script.overrides)
            assert str(error.value) == f"argument --{field.name}: expected True or False, as in --{field.name} True"


# -- marks, and fields that are no flags -----------------------------------------------------------


@dataclass
class Pips(FlagGroup):
    """Pips, and what they are kept in."""

    pips: int = flag(8, "Number of pips.", legal=at_least(1), lasting=True, idle=True)
    halved: bool = flag(False, "Whether each is halved.", free=True)
    knife: str = flag("", "File that describes the knife.", content=True, needs="halved")
    jar: object = None


def test_marks_are_told_by_name():
    p = parse([], [Fruit, Pips], "", {"halved": None})
    assert p.marked("lasting") == p.marked("idle") == {"pips"} and p.marked("content") == {"knife"}
    assert p.marked("classes") == set()
    assert p.marked("free") == set(), "a flag that the script takes away has no marks there"
    assert marked([Fruit, Pips], "free") == {"halved": True} and marked([Pips], "needs") == {"knife": "halved"}


def test_an_unknown_mark_can_be_neither_written_nor_asked_for():
    with pytest.raises(TypeError, match="lazy"):
        flag(1, "One.", lazy=True)
    with pytest.raises(KeyError, match="lazy"):
        parsed().marked("lazy")


@pytest.mark.parametrize("name", launched.NAMES)
def test_a_flag_needs_a_flag_that_is_true_or_false(name):
    script = launched.read(name)
    defaults = parse([], script.groups, "", script.overrides).values()
    for needed in marked(script.groups, "needs").values():
        assert isinstance(defaults.get(needed, False), bool)


def test_a_field_that_is_no_flag_is_left_alone():
    class Jar:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    assert "jar" not in parser_for([Pips], "").format_help()
    with pytest.raises(UserError, match="--jar is not a flag"):
        parse(["--jar", "x"], [Pips], "")
    p = parse(["--pips", "3"], [Pips], "")
    p[Pips].jar = jar = Jar()
    assert p.values() == {"halved": False, "knife": "", "pips": 3} and p.defaults()["pips"] == 8
    other = p.with_values({"pips": 4, "jar": None})
    assert other[Pips].jar is jar and other[Pips].pips == 4
    with pytest.raises(UserError, match="--pips is 0"):
        p.with_values({"pips": 0})


# -- the published commands ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_commands_build_the_published_networks(name):
    published = CHECKPOINTS[name]
    script = launched.read(SCRIPT_OF[published["kind"]])
    command = published["flags"].split()
    if published["kind"] == "classifier":
        command += "--iterations 300000 --anneal_lr True --batch_size 256 --lr 3e-4 --save_interval 10000".split()
    else:
        command += "--batch_size 4 --num_samples 100 --timestep_respacing 250 --model_path models/x.pt".split()
    p = parse(command, script.groups, "", script.overrides)
    for name, text in zip(command[::2], command[1::2]):
        value = p.values()[name.removeprefix("--")]
        assert str(value) == text or value == float(text)
    with torch.device("meta"):
        if published["kind"] == "classifier":
            model = p[ClassifierFlags].create()
        elif published["kind"] == "sr":
            model = p[SuperResFlags].create(p[UNetFlags], p[DiffusionFlags].learn_sigma)
        else:
            model = p[UNetFlags].create(p[DiffusionFlags].learn_sigma)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == published["state_dict"]
    process = next(group for group in p.groups.values() if isinstance(group, DiffusionFlags)).create()
    assert process.schedule.num_timesteps == 1000
    assert len(process.grid) == (1000 if published["kind"] == "classifier" else 250)


# -- the published functions -----------------------------------------------------------------------

TOY = dict(image_size=16, num_channels=32, num_res_blocks=1, attention_resolutions="8", num_heads=2, diffusion_steps=50)
DEFAULTS_AND_CREATE = {
    "model": (script_util.model_and_diffusion_defaults, script_util.create_model_and_diffusion, TOY),
    "sr": (
        script_util.sr_model_and_diffusion_defaults,
        script_util.sr_create_model_and_diffusion,
        {**{k: v for k, v in TOY.items() if k != "image_size"}, "large_size": 16, "small_size": 4},
    ),
    "classifier": (
        script_util.classifier_and_diffusion_defaults,
        script_util.create_classifier_and_diffusion,
        dict(
            image_size=16,
            classifier_width=32,
            classifier_attention_resolutions="8",
            classifier_depth=1,
            diffusion_steps=50,
        ),
    ),
}


@pytest.mark.parametrize("kind", DEFAULTS_AND_CREATE)
def test_published_functions_round_trip_through_argparse(kind):
    make_defaults, create, toy = DEFAULTS_AND_CREATE[kind]
    defaults = make_defaults()
    parser = argparse.ArgumentParser()
    script_util.add_dict_to_argparser(parser, defaults)
    assert script_util.args_to_dict(parser.parse_args([]), defaults.keys()) == defaults
    argv = [word for k, v in toy.items() for word in (f"--{k}", str(v))]
    values = script_util.args_to_dict(parser.parse_args([*argv, "--rescale_timesteps", "yes"]), defaults.keys())
    assert values == {**defaults, **toy, "rescale_timesteps": True}
    model, diffusion = create(**values)
    assert diffusion.num_timesteps == 50 and diffusion.rescale_timesteps
    inputs = [torch.zeros(2, 3, 16, 16), torch.zeros(2)] + [torch.zeros(2, 3, 4, 4)] * (kind == "sr")
    with torch.no_grad():
        assert model(*inputs).shape == ((2, 1000) if kind == "classifier" else (2, 3, 16, 16))


PUBLISHED_SIGNATURES = {
    "create_model": "image_size num_channels num_res_blocks channel_mult='' learn_sigma=False class_cond=False "
    "use_checkpoint=False attention_resolutions='16' num_heads=1 num_head_channels=-1 num_heads_upsample=-1 "
    "use_scale_shift_norm=False dropout=0 resblock_updown=False use_fp16=False use_new_attention_order=False",
    "sr_create_model": "large_size small_size num_channels num_res_blocks learn_sigma class_cond use_checkpoint "
    "attention_resolutions num_heads num_head_channels num_heads_upsample use_scale_shift_norm dropout "
    "resblock_updown use_fp16",
    "create_classifier": "image_size classifier_use_fp16 classifier_width classifier_depth "
    "classifier_attention_resolutions classifier_use_scale_shift_norm classifier_resblock_updown classifier_pool",
}


@pytest.mark.parametrize("name", PUBLISHED_SIGNATURES)
def test_published_signatures_are_explicit(name):
    """Clients read them with inspect; what is added comes after, and may be left out."""
    published = PUBLISHED_SIGNATURES[name].split()
    own = list(inspect.signature(getattr(script_util, name)).parameters.values())
    assert [str(parameter) for parameter in own[: len(published)]] == published
    assert all(parameter.default is not parameter.empty for parameter in own[len(published) :])


@pytest.mark.parametrize("channels", [1, 4])
def test_published_functions_take_other_image_channels(channels):
    toy = {k: v for k, v in TOY.items() if k != "diffusion_steps"}
    model = script_util.create_model(**toy, learn_sigma=True, image_channels=channels)
    assert model(torch.zeros(2, channels, 16, 16), torch.zeros(2)).shape == (2, 2 * channels, 16, 16)
    classifier = script_util.create_classifier(
        16, False, 32, 1, "8", True, True, "attention", num_classes=5, image_channels=channels
    )
    assert classifier(torch.zeros(2, channels, 16, 16), torch.zeros(2)).shape == (2, 5)
    toy.pop("image_size")
    toy |= {"learn_sigma": False, "class_cond": False, "use_checkpoint": False, "num_head_channels": -1}
    toy |= {"num_heads_upsample": -1, "use_scale_shift_norm": True, "dropout": 0, "resblock_updown": True}
    enlarge = script_util.sr_create_model(16, 4, **toy, use_fp16=False, image_channels=channels)
    small = torch.zeros(2, channels, 4, 4)
    assert enlarge(torch.zeros(2, channels, 16, 16), torch.zeros(2), small).shape == (2, channels, 16, 16)


def test_published_defaults():
    """As in guided-diffusion, and no others: clients hand them all to functions of the published signatures."""
    defaults = script_util.model_and_diffusion_defaults()
    published = dict(
        image_size=64, num_channels=128, num_res_blocks=2, num_heads=4, num_heads_upsample=-1, num_head_channels=-1,
        attention_resolutions="16,8", channel_mult="", dropout=0.0, class_cond=False, use_checkpoint=False,
        use_scale_shift_norm=True, resblock_updown=False, use_fp16=False, use_new_attention_order=False,
        learn_sigma=False, diffusion_steps=1000, noise_schedule="linear", timestep_respacing="", use_kl=False,
        predict_xstart=False, rescale_timesteps=False, rescale_learned_sigmas=False,
    )  # fmt: skip
    assert list(defaults.items()) == list(published.items())
    sr = script_util.sr_model_and_diffusion_defaults()
    assert sr["large_size"] == 256 and sr["small_size"] == 64 and "image_size" not in sr
    classifier = script_util.classifier_defaults()
    published = dict(
        image_size=64, classifier_use_fp16=False, classifier_width=128, classifier_depth=2,
        classifier_attention_resolutions="32,16,8", classifier_use_scale_shift_norm=True,
        classifier_resblock_updown=True, classifier_pool="attention",
    )  # fmt: skip
    assert list(classifier.items()) == list(published.items())
    assert script_util.NUM_CLASSES == 1000


def test_add_dict_to_argparser_takes_none_as_text():
    parser = argparse.ArgumentParser()
    script_util.add_dict_to_argparser(parser, {"a": None, "b": 2})
    assert vars(parser.parse_args(["--a", "x"])) == {"a": "x", "b": 2}


def test_an_unknown_argument_is_refused_as_by_python():
    with pytest.raises(TypeError, match="'colour'"):
        script_util.create_model_and_diffusion(**script_util.model_and_diffusion_defaults() | TOY, colour=3)


@pytest.mark.parametrize(
    "changes, mean, var, loss",
    [
        ({}, "EPSILON", "FIXED_LARGE", "MSE"),
        ({"sigma_small": True}, "EPSILON", "FIXED_SMALL", "MSE"),
        ({"learn_sigma": True}, "EPSILON", "LEARNED_RANGE", "MSE"),
        ({"learn_sigma": True, "rescale_learned_sigmas": True}, "EPSILON", "LEARNED_RANGE", "RESCALED_MSE"),
        ({"use_kl": True, "rescale_learned_sigmas": True}, "EPSILON", "FIXED_LARGE", "RESCALED_KL"),
        ({"predict_xstart": True}, "START_X", "FIXED_LARGE", "MSE"),
    ],
)
def test_diffusion_flags_choose_the_process(changes, mean, var, loss):
    d = script_util.diffusion_of(DiffusionFlags(**changes))
    assert d.model_mean_type is ModelMeanType[mean]
    assert d.model_var_type is ModelVarType[var]
    assert d.loss_type is LossType[loss]


@pytest.mark.parametrize(
    "make, flag_name",
    [
        (lambda: DiffusionFlags(diffusion_steps=0), "diffusion_steps"),
        (lambda: DiffusionFlags(sigma_small=True, learn_sigma=True), "sigma_small"),
        (lambda: DiffusionFlags(timestep_respacing="2000").create(), "timestep_respacing"),
        (lambda: UNetFlags(dropout=1.5), "dropout"),
        (lambda: UNetFlags(num_channels=0), "num_channels"),
        (lambda: UNetFlags(use_fp16=True, use_bf16=True), "use_bf16"),
        (lambda: UNetFlags(image_size=48).create(False), "image_size"),
        (lambda: UNetFlags(image_size=20, channel_mult="1,2,2,2").create(False), "image_size"),
        (lambda: UNetFlags(channel_mult="1,x").create(False), "channel_mult"),
        (lambda: UNetFlags(attention_resolutions="0").create(False), "attention_resolutions"),
        (lambda: SuperResFlags(large_size=32, small_size=64), "small_size"),
        (
            lambda: SuperResFlags(large_size=30, small_size=10).create(UNetFlags(channel_mult="1,2,2"), False),
            "large_size",
        ),
        (lambda: ClassifierFlags(classifier_depth=0), "classifier_depth"),
        (lambda: ClassifierFlags(classifier_channel_mult="a").create(), "classifier_channel_mult"),
        (lambda: ClassifierFlags(image_size=48).create(), "classifier_channel_mult"),
        (lambda: ClassifierFlags(classifier_num_head_channels=-1).create(), "classifier_num_head_channels"),
        (lambda: UNetFlags(image_size=16, channel_mult="1,", num_channels=32).create(False), "channel_mult"),
        (lambda: UNetFlags(num_heads=0), "num_heads"),
        (lambda: UNetFlags(num_heads_upsample=0), "num_heads_upsample"),
        (lambda: UNetFlags(num_head_channels=0), "num_head_channels"),
        (lambda: ClassifierFlags(classifier_num_head_channels=0), "classifier_num_head_channels"),
        (
            lambda: UNetFlags(image_size=16, num_channels=32, attention_resolutions="8", num_heads=3).create(False),
            "num_heads",
        ),
        (
            lambda: UNetFlags(image_size=16, num_channels=32, attention_resolutions="8", num_head_channels=7).create(
                False
            ),
            "num_head_channels",
        ),
    ],
)
def test_impossible_values_are_user_errors_that_name_the_flag(make, flag_name):
    with pytest.raises(UserError, match=f"--{flag_name}"):
        make()


@dataclass
class Pair(FlagGroup):
    """Two names."""

    first: str = flag("", "One.")
    second: str = flag("", "The other.")


@pytest.mark.parametrize("words", ["a b", "--first a b", "--second b a", "a --second b", "--second=b --first=a"])
def test_positions_stand_for_flags(words):
    parsed = parse(words.split(), [Pair], "", positional=("first", "second"))
    assert parsed[Pair] == Pair("a", "b") and parsed.given == {"first", "second"}


@pytest.mark.parametrize("words, wrong", [("a b c", "'c'"), ("--first a b c", "'c'"), ("a --frist b", "--frist")])
def test_a_word_too_many_is_refused(words, wrong):
    with pytest.raises(UserError, match=wrong):
        parse(words.split(), [Pair], "", positional=("first", "second"))


def _group(name, field, default, **options):
    return make_dataclass(name, [(field, type(default), flag(default, f"Of {name}.", **options))], bases=(FlagGroup,))


@pytest.mark.parametrize(
    "default, other, shared",
    [
        (1.0, {}, False),
        (1.0, {"default": 2.0}, False),
        (1.0, {"legal": FRACTION}, False),
        (1.0, {"name": "delta", "aliases": ("gamma",)}, False),
        (1.0, {"shared": True}, True),
        (1.0, {"default": 2.0, "shared": True}, False),
    ],
)
def test_groups_share_a_name_on_purpose_alone(default, other, shared):
    name, value = other.pop("name", "gamma"), other.pop("default", default)
    one = _group("One", "gamma", default, shared=other.get("shared", False))
    two = _group("Two", name, value, **other)
    assert parse(["--gamma", "0.5"], [one, one], "").values() == {"gamma": 0.5}
    if shared:
        assert parse(["--gamma", "0.5"], [one, two], "")[two].gamma == 0.5
    else:
        with pytest.raises(UserError, match="--gamma is a flag of One and another of Two"):
            parse([], [one, two], "")


OF_SCRIPTS = {
    f"{group.__name__}.{field.name}": (group, field)
    for name in launched.NAMES
    for group in launched.read(name).groups
    for field in flags_of(group)
}


@pytest.mark.parametrize("name", OF_SCRIPTS)
def test_a_value_that_is_not_legal_is_refused_whoever_gives_it(name):
    """By a sidecar or from Python no parser is in the way."""
    group, field = OF_SCRIPTS[name]
    bad = [1e400, -1e400, float("nan")] if isinstance(field.default, float) else []
    bad += ["no such choice"] if field.metadata["choices"] else []
    bad += ["3", None] if field.metadata["legal"] else []
    if isinstance(field.default, int) and field.metadata["legal"]:
        bad += [value for value in (-7, 10**9) if not field.metadata["legal"].holds(value)]
    for value in bad:
        with pytest.raises(UserError, match=f"--{field.name} is"):
            group(**{field.name: value})


@pytest.mark.parametrize(
    "given",
    [{"prediction": "V"}, {"time_shift_variant": "foo"}, {"thresholding": "foo"}, {"guidance_interval": "1,2"}],
)
def test_the_class_api_refuses_them_too(given):
    with pytest.raises(UserError, match=f"--{next(iter(given))}"):
        script_util.create_gaussian_diffusion(**given)
