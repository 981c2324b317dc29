"""script_util as clients use it: by signature, by key, by argparse; and the methods' flags through its helpers."""

import argparse
import ast
import inspect
import json
from types import SimpleNamespace

import numpy as np
import papers
import pytest
import torch
from goldens import PERTURBED_T, closed_form, published
from recipe import tensor

from guided_diffusion import methods, script_util
from guided_diffusion.denoiser import ModelMeanType, ModelVarType
from guided_diffusion.errors import UserError
from guided_diffusion.flags import flags_of
from guided_diffusion.methods.method import no_corruption
from guided_diffusion.sampling import no_correction, no_coupling

DIFFUSION = (
    "learn_sigma=False diffusion_steps=1000 noise_schedule='linear' timestep_respacing='' use_kl=False "
    "predict_xstart=False rescale_timesteps=False rescale_learned_sigmas=False"
)
MODEL = (
    "image_size=64 num_channels=128 num_res_blocks=2 num_heads=4 num_heads_upsample=-1 num_head_channels=-1 "
    "attention_resolutions='16,8' channel_mult='' dropout=0.0 class_cond=False use_checkpoint=False "
    "use_scale_shift_norm=True resblock_updown=False use_fp16=False use_new_attention_order=False"
)
CLASSIFIER = (
    "image_size=64 classifier_use_fp16=False classifier_width=128 classifier_depth=2 "
    "classifier_attention_resolutions='32,16,8' classifier_use_scale_shift_norm=True classifier_resblock_updown=True "
    "classifier_pool='attention'"
)
SUPER_RES = (
    "num_channels=128 num_res_blocks=2 num_heads=4 num_heads_upsample=-1 num_head_channels=-1 "
    "attention_resolutions='16,8' dropout=0.0 class_cond=False use_checkpoint=False use_scale_shift_norm=True "
    f"resblock_updown=False use_fp16=False {DIFFUSION} large_size=256 small_size=64"
)
DEFAULTS = {
    "diffusion_defaults": DIFFUSION,
    "model_and_diffusion_defaults": f"{MODEL} {DIFFUSION}",
    "classifier_defaults": CLASSIFIER,
    "classifier_and_diffusion_defaults": f"{CLASSIFIER} {DIFFUSION}",
    "sr_model_and_diffusion_defaults": SUPER_RES,
}
SIGNATURES = {
    "create_model_and_diffusion": "image_size class_cond learn_sigma num_channels num_res_blocks channel_mult "
    "num_heads num_head_channels num_heads_upsample attention_resolutions dropout diffusion_steps noise_schedule "
    "timestep_respacing use_kl predict_xstart rescale_timesteps rescale_learned_sigmas use_checkpoint "
    "use_scale_shift_norm resblock_updown use_fp16 use_new_attention_order",
    "create_model": "image_size num_channels num_res_blocks channel_mult='' learn_sigma=False class_cond=False "
    "use_checkpoint=False attention_resolutions='16' num_heads=1 num_head_channels=-1 num_heads_upsample=-1 "
    "use_scale_shift_norm=False dropout=0 resblock_updown=False use_fp16=False use_new_attention_order=False",
    "create_classifier_and_diffusion": "image_size classifier_use_fp16 classifier_width classifier_depth "
    "classifier_attention_resolutions classifier_use_scale_shift_norm classifier_resblock_updown classifier_pool "
    "learn_sigma diffusion_steps noise_schedule timestep_respacing use_kl predict_xstart rescale_timesteps "
    "rescale_learned_sigmas",
    "create_classifier": "image_size classifier_use_fp16 classifier_width classifier_depth "
    "classifier_attention_resolutions classifier_use_scale_shift_norm classifier_resblock_updown classifier_pool",
    "sr_create_model_and_diffusion": "large_size small_size class_cond learn_sigma num_channels num_res_blocks "
    "num_heads num_head_channels num_heads_upsample attention_resolutions dropout diffusion_steps noise_schedule "
    "timestep_respacing use_kl predict_xstart rescale_timesteps rescale_learned_sigmas use_checkpoint "
    "use_scale_shift_norm resblock_updown use_fp16",
    "sr_create_model": "large_size small_size num_channels num_res_blocks learn_sigma class_cond use_checkpoint "
    "attention_resolutions num_heads num_head_channels num_heads_upsample use_scale_shift_norm dropout "
    "resblock_updown use_fp16",
}
GAUSSIAN = (
    "steps=1000 learn_sigma=False sigma_small=False noise_schedule='linear' use_kl=False predict_xstart=False "
    "rescale_timesteps=False rescale_learned_sigmas=False timestep_respacing=''"
)
TINY = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "8", "channel_mult": "1,1"}


def read(text):
    """{name: default} of "a=1 b='x'"."""
    return {name: ast.literal_eval(value) for name, value in (word.split("=") for word in text.split())}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_have_the_published_keys_in_the_published_order(name):
    found = getattr(script_util, name)()
    assert list(found.items()) == list(read(DEFAULTS[name]).items())
    found["image_size"] = 1
    assert getattr(script_util, name)() == read(DEFAULTS[name])


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_the_published_ones_for_every_way_of_inspect(name):
    function, words = getattr(script_util, name), SIGNATURES[name].split()
    names = [word.split("=")[0] for word in words]
    spec = inspect.getfullargspec(function)
    assert spec.args == spec[0] == names and spec.varargs is None and spec.varkw is None
    parameters = list(inspect.signature(function).parameters.values())
    assert [str(p) for p in parameters[: len(words)]] == words
    # a client that asks for what has no default finds published names alone
    required = [p.name for p in parameters if p.default is p.empty]
    assert required == [word for word in words if "=" not in word]
    assert list(inspect.signature(function).bind(*names).arguments) == names


def test_the_signature_of_the_process_begins_as_published():
    parameters = list(inspect.signature(script_util.create_gaussian_diffusion).parameters.values())
    assert [str(p) for p in parameters[:9]] == GAUSSIAN.split()
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)


@pytest.mark.parametrize(
    "name", ["create_model_and_diffusion", "create_classifier_and_diffusion", "sr_create_model_and_diffusion"]
)
def test_inspect_shows_every_flag_of_a_method_as_optional(name):
    """And a configuration that is filtered by what a function takes keeps them."""
    found = inspect.signature(getattr(script_util, name)).parameters
    for method in methods.of_class_api():
        for field in flags_of(method):
            for spelling in methods.spellings(field):
                assert found[spelling].default == field.default
    assert {"num_classes", "image_channels", "prediction", "spacing", "sigma_small"} <= found.keys()


def tiny(**changes):
    """The published defaults of a small network, with changes."""
    return {**script_util.model_and_diffusion_defaults(), **TINY, "timestep_respacing": "4", **changes}


def test_positional_calls_are_the_same_as_calls_by_name():
    values = tiny(learn_sigma=True)
    model, diffusion = script_util.create_model_and_diffusion(*(values[k] for k in spelt("create_model_and_diffusion")))
    assert model.out[-1].out_channels == 6 and diffusion.num_timesteps == 4
    classifier = script_util.create_classifier(16, False, 32, 1, "8", True, True, "attention")
    assert classifier(torch.zeros(2, 3, 16, 16), torch.zeros(2)).shape == (2, 1000)
    enlarge = script_util.sr_create_model(64, 16, 32, 1, True, False, False, "8", 1, -1, -1, True, 0, False, False)
    assert enlarge.out[-1].out_channels == 6


def spelt(name):
    return inspect.getfullargspec(getattr(script_util, name)).args


FURTHER = {
    "num_classes": (5, lambda m, d: m.label_emb.num_embeddings == 5),
    "image_channels": (1, lambda m, d: m.input_blocks[0][0].in_channels == 1),
    "sigma_small": (True, lambda m, d: d.model_var_type is ModelVarType.FIXED_SMALL),
    "prediction": ("v", lambda m, d: d.model_mean_type is ModelMeanType.VELOCITY),
    "spacing": ("quad", lambda m, d: list(d.timestep_map) != [0, 333, 666, 999]),
}


@pytest.mark.parametrize("name", FURTHER)
def test_further_keywords_are_optional_and_act(name):
    value, holds = FURTHER[name]
    plain, changed = (
        script_util.create_model_and_diffusion(**tiny(class_cond=True), **more) for more in ({}, {name: value})
    )
    assert holds(*changed) and not holds(*plain)


def test_what_is_unknown_or_missing_is_a_type_error():
    with pytest.raises(TypeError, match="'colour'"):
        script_util.create_model_and_diffusion(**tiny(), colour=3)
    with pytest.raises(TypeError, match="image_size"):
        script_util.create_model_and_diffusion(**{k: v for k, v in tiny().items() if k != "image_size"})


def test_the_number_of_classes_is_the_one_of_the_module(monkeypatch):
    monkeypatch.setattr(script_util, "NUM_CLASSES", 10)
    model, _ = script_util.create_model_and_diffusion(**tiny(class_cond=True))
    assert model.label_emb.num_embeddings == 10


@pytest.mark.parametrize(
    "name, of",
    [
        ("UNetModel", "model_and_diffusion"),
        ("EncoderUNetModel", "classifier_and_diffusion"),
        ("SuperResModel", "sr_model_and_diffusion"),
        ("SpacedDiffusion", "model_and_diffusion"),
    ],
)
def test_a_class_that_a_client_puts_into_the_module_is_the_one_that_is_made(name, of, monkeypatch):
    Own = type("Own", (getattr(script_util, name),), {})
    monkeypatch.setattr(script_util, name, Own)
    values = {**getattr(script_util, f"{of}_defaults")(), "num_channels": 32, "classifier_width": 64}
    create = getattr(script_util, f"sr_create_{of[3:]}" if of.startswith("sr_") else f"create_{of}")
    made = create(**{k: v for k, v in values.items() if k in inspect.getfullargspec(create).args})
    assert Own in map(type, made)


@pytest.mark.parametrize(
    "name, of", [("create_model", ""), ("create_classifier", "classifier_"), ("sr_create_model", "sr_")]
)
def test_a_function_that_a_client_puts_into_the_module_makes_the_network(name, of, monkeypatch):
    """As most wrap it: `lambda *args, **kwargs: ...`."""
    own, told = getattr(script_util, name), []
    defaults = {"": "model_and_diffusion", "sr_": "sr_model_and_diffusion"}.get(of, "classifier_and_diffusion")
    values = {**getattr(script_util, f"{defaults}_defaults")(), "num_channels": 32, "classifier_width": 64}
    create = getattr(script_util, f"{of}create_model_and_diffusion" if of != "classifier_" else f"create_{defaults}")
    values = {k: v for k, v in values.items() if k in inspect.getfullargspec(create).args}
    before, _ = create(**values)
    monkeypatch.setattr(script_util, name, lambda *args, **kwargs: told.append(kwargs) or own(*args, **kwargs))
    after, diffusion = create(**values)
    assert {k: v.shape for k, v in after.state_dict().items()} == {k: v.shape for k, v in before.state_dict().items()}
    assert len(told) == 1 and diffusion.num_timesteps == 1000


# -- methods: what reaches the process, against outputs of the releases ------------------------------

COSINE = {"noise_schedule": "cosine", "learn_sigma": True}


def shifted(diffusion):
    torch.manual_seed(1)
    model = closed_form({"steps": 1000, **COSINE})
    return diffusion.ddim_sample_loop(model, (6, 3, 8, 8), device="cpu").numpy()


def scaled(diffusion):
    torch.manual_seed(1)
    model = closed_form({"steps": 1000, **COSINE})
    return diffusion.ddim_sample_loop(model, (3, 3, 8, 8), device="cpu").numpy()


def perturbed(diffusion):
    x0 = tensor("cosine_rescaled_mse:x0", 3, 3, 8, 8).clamp(-1, 1)
    torch.manual_seed(1)
    return diffusion.training_losses(closed_form({"steps": 1000, **COSINE}), x0, PERTURBED_T)["loss"].numpy()


def perturbed_by_time(diffusion):
    x0 = tensor("ip_schedule:x0", 3, 3, 8, 8).clamp(-1, 1)
    torch.manual_seed(1)
    return diffusion.training_losses(closed_form({"steps": 1000, **COSINE}), x0, PERTURBED_T)["loss"].numpy()


# the flags of a release, its process, what to compute, and the golden of its own code
RELEASES = {
    "TS-DPM-ADM": (
        {"do_time_shift": True, "window": 80, "cutoff": 300},
        {"timestep_respacing": "ddim5"},
        shifted,
        ("time_shift", "cosine_ddim5_w80_c300.shifted.samples"),
    ),
    "ADM-ES": (
        {"eps_scaler": 1.005},
        {"timestep_respacing": "ddim10"},
        scaled,
        ("epsilon_scaling", "ddim_cosine_learned.clip1.samples"),
    ),
    "DDPM-IP": (
        {"input_pertub": 0.15},
        {"rescale_learned_sigmas": True},
        perturbed,
        ("input_perturbation", "cosine_rescaled_mse.seeded.loss"),
    ),
    "TS-DPM-ADM training": (
        {"input_pertub": 0.15, "perturb_schedule_type": "linear", "perturb_cutoff": 200},
        {"rescale_learned_sigmas": True},
        perturbed_by_time,
        ("time_shift", "ip_schedule_linear.loss"),
    ),
}


def golden(name):
    file, key = RELEASES[name][3]
    array = published(file)[key]
    return array[-1] if key.endswith("samples") else array


def defined_before(parser, told):
    """As the releases' scripts do: their own defaults, updated with the published ones."""
    own = {name: type(value)() for name, value in told.items()}
    script_util.add_dict_to_argparser(parser, {**own, **script_util.model_and_diffusion_defaults()})


def defined_after(parser, told):
    script_util.add_dict_to_argparser(parser, script_util.model_and_diffusion_defaults())
    for name, value in told.items():
        parser.add_argument(f"--{name}", type=script_util.str2bool if value is True else type(value))


def defined_by_a_second_dict(parser, told):
    script_util.add_dict_to_argparser(parser, script_util.model_and_diffusion_defaults())
    script_util.add_dict_to_argparser(parser, {name: type(value)() for name, value in told.items()})


def defined_by_the_parser_first(parser, told):
    for name, value in told.items():
        parser.add_argument(f"--{name}", type=script_util.str2bool if value is True else type(value))
    script_util.add_dict_to_argparser(parser, script_util.model_and_diffusion_defaults())


def not_defined(parser, told):
    script_util.add_dict_to_argparser(parser, script_util.model_and_diffusion_defaults())


WAYS = [defined_before, defined_after, defined_by_a_second_dict, defined_by_the_parser_first, not_defined]


def by_argparse(way, told, process):
    """The diffusion of a script whose command line says all that."""
    parser = argparse.ArgumentParser()
    way(parser, told)
    said = {**TINY, **COSINE, **process, **told}
    args = parser.parse_args([word for name, value in said.items() for word in (f"--{name}", str(value))])
    values = script_util.args_to_dict(args, script_util.model_and_diffusion_defaults().keys())
    return script_util.create_model_and_diffusion(**values)[1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("release", RELEASES)
def test_a_release_s_flags_act_however_its_script_defines_them(release, way):
    told, process, compute, _ = RELEASES[release]
    made = compute(by_argparse(way, told, process))
    np.testing.assert_allclose(made, golden(release), rtol=1e-4, atol=1e-5)
    assert np.abs(made - compute(by_argparse(way, {}, process))).max() > 1e-3


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_s_flags_act_as_arguments(release):
    told, process, compute, _ = RELEASES[release]
    _, diffusion = script_util.create_model_and_diffusion(
        **tiny(**COSINE, **{"timestep_respacing": "", **process}), **told
    )
    np.testing.assert_allclose(compute(diffusion), golden(release), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("release", RELEASES)
def test_methods_reach_the_processes_of_the_other_networks(release):
    told, process, compute, _ = RELEASES[release]
    sizes = {"large_size": 16, "small_size": 8, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "8"}
    classifier = {"image_size": 16, "classifier_width": 64, "classifier_depth": 1}
    for kind, small in (("sr_model", sizes), ("classifier", classifier)):
        values = getattr(script_util, f"{kind}_and_diffusion_defaults")() | small | COSINE | process
        create = script_util.sr_create_model_and_diffusion if kind == "sr_model" else None
        _, diffusion = (create or script_util.create_classifier_and_diffusion)(**values, **told)
        np.testing.assert_allclose(compute(diffusion), golden(release), rtol=1e-4, atol=1e-5)


def parsed(*words, way=not_defined, told=None):
    parser = argparse.ArgumentParser()
    way(parser, told or {})
    return parser.parse_args(words)


KEYS = list(script_util.model_and_diffusion_defaults())


@pytest.mark.parametrize(
    "words, carried",
    [
        ("", {}),
        ("--eps_scaler 1.0", {}),
        ("--eps_scaler 1", {}),
        ("--input_pertub 0.0 --do_time_shift False", {}),
        ("--window 2 --cutoff 300", {}),
        ("--eps_scaler 1.017", {"eps_scaler": "1.017"}),
        ("--eps_scaler 0.0004,1.0042", {"eps_scaler": "0.0004,1.0042"}),
        ("--input_pertub 0.15", {"input_perturbation": 0.15}),
        ("--input_perturbation 0.15 --perturb_cutoff 9", {"input_perturbation": 0.15, "perturb_cutoff": 9}),
        ("--do_time_shift True --window 40", {"do_time_shift": True, "window": 40}),
        ("--do_time_shift True --time_shift_variant paper", {"do_time_shift": True, "time_shift_variant": "paper"}),
        ("--guidance_scale 2", {"guidance_scale": 2.0}),
        ("--thresholding dynamic", {"thresholding": "dynamic"}),
    ],
)
def test_what_differs_from_its_identity_is_carried(words, carried):
    args = parsed(*words.split())
    assert script_util.args_to_dict(args, KEYS) == {**script_util.model_and_diffusion_defaults(), **carried}
    # keys that are no diffusion's mean what they say
    assert script_util.args_to_dict(args, ["num_heads"]) == {"num_heads": 4}


@pytest.mark.parametrize("words", ["--window 40", "--perturb_schedule_type linear", "--guidance_interval 1,2"])
def test_a_flag_that_nothing_would_read_is_refused(words):
    with pytest.raises(UserError, match=f"{words.split()[0]} .* does nothing without --"):
        script_util.args_to_dict(parsed(*words.split()), KEYS)


def test_a_client_s_own_flags_of_the_same_names_stay_the_client_s():
    """Only names of releases are taken from a script that defines them, and those only where their method is on."""
    own = {"guidance_scale": 7.5, "thresholding": "soft", "window": "hann", "cutoff": 0.5}
    parser = argparse.ArgumentParser()
    script_util.add_dict_to_argparser(parser, {**own, **script_util.model_and_diffusion_defaults()})
    args = parser.parse_args(["--guidance_scale", "3"])
    assert (args.guidance_scale, args.thresholding, args.window, args.cutoff) == (3.0, "soft", "hann", 0.5)
    assert script_util.args_to_dict(args, KEYS) == script_util.model_and_diffusion_defaults()


def test_arguments_need_no_parser():
    """A client's own object of settings, which may have flags of releases."""
    args = SimpleNamespace(**tiny(), eps_scaler=1.02, guidance_scale=4.0)
    assert script_util.args_to_dict(args, KEYS) == {**tiny(), "eps_scaler": 1.02}


def test_arguments_can_be_written_as_json_and_read_again():
    """As scripts keep them beside what they made."""
    args = parsed("--eps_scaler", "1.05", "--guidance_scale", "1.5", "--guidance_interval", "1,2")
    again = argparse.Namespace(**json.loads(json.dumps(vars(args))))
    carried = script_util.args_to_dict(again, KEYS)
    assert carried == script_util.args_to_dict(args, KEYS) and carried["guidance_scale"] == 1.5


def test_adding_twice_adds_once():
    parser = argparse.ArgumentParser()
    for _ in range(2):
        script_util.add_dict_to_argparser(parser, script_util.diffusion_defaults())
    options = [option for action in parser._actions for option in action.option_strings]
    assert len(options) == len(set(options)) and "--eps_scaler" in options
    assert script_util.args_to_dict(parser.parse_args(["--eps_scaler", "2"]), DIFFUSION_KEYS)["eps_scaler"] == "2"


DIFFUSION_KEYS = list(script_util.diffusion_defaults())


def test_a_dict_that_is_no_diffusion_s_is_added_alone():
    parser = argparse.ArgumentParser()
    script_util.add_dict_to_argparser(parser, script_util.classifier_defaults())
    assert vars(parser.parse_args([])) == script_util.classifier_defaults()
    with pytest.raises(SystemExit):
        parser.parse_args(["--eps_scaler", "1.1"])


def test_an_argument_group_takes_flags_too():
    parser = argparse.ArgumentParser()
    script_util.add_dict_to_argparser(parser.add_argument_group("mine"), script_util.model_and_diffusion_defaults())
    args = parser.parse_args(["--eps_scaler", "1.1"])
    assert script_util.args_to_dict(args, KEYS)["eps_scaler"] == "1.1"


def test_help_lists_the_methods(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    assert {"--eps_scaler", "--input_pertub", "--window"} <= set(capsys.readouterr().out.replace(",", " ").split())


@pytest.mark.parametrize("gamma", [0.0, 0.15])
def test_the_misspelt_schedule_of_a_release_is_linear(gamma):
    """As TS-DPM-ADM's own defaults have it."""
    release = {"window": 2, "cutoff": 300, "do_time_shift": False, "input_pertub": gamma, "perturb_cutoff": 0}
    with pytest.warns(UserWarning, match="'linaer' is taken as 'linear'"):
        _, misspelt = script_util.create_model_and_diffusion(
            **tiny(**COSINE), **release, perturb_schedule_type="linaer"
        )
    _, linear = script_util.create_model_and_diffusion(**tiny(**COSINE), **release, perturb_schedule_type="linear")
    x0, t = tensor("linaer:x0", 3, 3, 8, 8), torch.tensor([0, 1, 3])
    losses = []
    for diffusion in (misspelt, linear):
        torch.manual_seed(0)
        losses.append(diffusion.training_losses(closed_form({"steps": 1000, **COSINE}), x0, t)["loss"])
    assert torch.equal(*losses)


def test_the_misspelt_schedule_is_carried_from_a_script_that_has_it():
    own = {"input_pertub": 0.1, "perturb_schedule_type": "linaer", "perturb_cutoff": 0}
    args = SimpleNamespace(**tiny(), **own)
    with pytest.warns(UserWarning, match="linaer"):
        script_util.create_model_and_diffusion(**script_util.args_to_dict(args, KEYS))


@pytest.mark.parametrize(
    "told, word",
    [
        ({"perturb_schedule_type": "steep", "input_pertub": 0.1}, "perturb_schedule_type"),
        ({"time_shift_variant": "new", "do_time_shift": True}, "time_shift_variant"),
        ({"eps_scaler": "0"}, "eps_scaler"),
        ({"eps_scaler": -1}, "eps_scaler"),
        ({"input_pertub": 0.1, "input_perturbation": 0.2}, "input_pertub"),
        ({"thresholding": "soft"}, "thresholding"),
        ({"guidance_interval": "1,2"}, "guidance_interval"),
    ],
)
def test_bad_values_are_answered_with_one_sentence(told, word):
    with pytest.raises(UserError, match=f"--{word}"):
        script_util.create_gaussian_diffusion(**told)


def test_a_release_s_spelling_of_no_scaling_is_none():
    """ADM-ES's default is the number 0, with which its own training adds nothing to the noise."""
    made = [scaled(script_util.create_gaussian_diffusion(**COSINE, timestep_respacing="ddim5", **told))
            for told in ({}, {"eps_scaler": 0.0})]  # fmt: skip
    assert np.array_equal(*made)
    assert "eps_scaler" not in script_util.args_to_dict(SimpleNamespace(**tiny(), eps_scaler=0.0), KEYS)


@pytest.mark.parametrize(
    "method",
    [
        methods.InputPerturbation(perturb_schedule_type="linear", perturb_cutoff=5),
        methods.TimeShift(window=80, cutoff=100, time_shift_variant="net"),
        methods.TimeShift(time_shift_constant=5),
        methods.EpsilonScaling(),
        methods.Thresholding(threshold_percentile=90.0),
    ],
    ids=repr,
)
def test_the_first_flag_of_a_method_turns_it_on(method):
    """At its default nothing is moved, whatever the others say."""
    process = script_util.create_gaussian_diffusion(timestep_respacing="ddim5").process

    def denoise(x, t, cond):
        raise NotImplementedError

    assert method.wrap(denoise, process) is denoise and method.clock(process) is None
    assert method.couple(process) is no_coupling and method.correct(process) is no_correction
    assert method.corrupt(process) is no_corruption


def test_a_method_of_the_table_comes_through_the_helpers(monkeypatch):
    """A paper is a file and a line of the table: nothing else has to name its flag."""
    monkeypatch.setattr(methods, "STACK", [*methods.STACK, papers.Dimmed])
    args = parsed("--dimming", "0.5", "--timestep_respacing", "ddim5", "--noise_schedule", "cosine")
    values = script_util.args_to_dict(args, KEYS)
    assert values["dimming"] == 0.5
    _, dimmed = script_util.create_model_and_diffusion(**{**values, **TINY})
    torch.manual_seed(0)
    model = closed_form({"steps": 1000, "noise_schedule": "cosine"})
    *_, last = dimmed.ddim_sample_loop_progressive(model, (2, 3, 8, 8), device="cpu", clip_denoised=False)
    t = torch.zeros(2, dtype=torch.long)
    x = tensor("dimmed", 2, 3, 8, 8)
    plain = script_util.create_gaussian_diffusion(noise_schedule="cosine", timestep_respacing="ddim5")
    expected = 0.5 * plain.p_mean_variance(model, x, t, clip_denoised=False)["pred_xstart"]
    assert torch.allclose(dimmed.p_mean_variance(model, x, t, clip_denoised=False)["pred_xstart"], expected, atol=1e-6)
    assert last["sample"].isfinite().all()
