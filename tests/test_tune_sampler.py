"""tune_sampler: known biases are found again, trials by a second computation, ranks, presets in files, mistakes."""

import csv
import itertools
import json
import subprocess
import sys

import exposure
import numpy as np
import pytest
import script_runs
import torch
from PIL import Image
from processes import HANGS, MPIRUN, clean_env, needs_mpirun
from scipy.linalg import sqrtm

from evaluations.exposure import figure, tuning_tables
from evaluations.exposure.measures import Norms
from evaluations.exposure.refine import BLOCKS, leaving_out
from evaluations.exposure.sums import Curve
from evaluations.exposure.tuning import Candidate, Trial, choice
from evaluations.fid import moments_of
from guided_diffusion import presets
from guided_diffusion.errors import UserError
from guided_diffusion.methods import of_values
from guided_diffusion.methods.epsilon_scaling import EpsilonScaling, fitted, moved_by_eps
from guided_diffusion.methods.method import jackknife
from guided_diffusion.methods.time_shift import VARIANTS, TimeShift

SHAPE = (3, 4, 4)
VARIANCE = 0.3


# -- a scale that is wrong by a known factor -------------------------------------------------------


def exact_eps(x, alpha_bar):
    """E[eps | x_t] of N(0, VARIANCE)."""
    ab = alpha_bar.to(x)[:, None, None, None]
    return (1 - ab).sqrt() * x / (ab * VARIANCE + 1 - ab)


def images(count):
    return VARIANCE**0.5 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(4))


def proposals(solver, steps, factor, count=128, **flags):
    """{name: Proposal} for a network whose noise is multiplied by `factor(i)`.

    :param flags: schedule and prediction.
    """
    real = exposure.Real(images(count))
    # the data's own Gaussian, known as well as by many images
    real.gaussian.axes, real.gaussian.variances = torch.eye(48).double(), torch.full((48,), VARIANCE).double()
    real.gaussian.mean = torch.zeros(48).double()

    def probe(values, *names):
        made = exposure.process(steps, solver, of_values(values), **flags)
        network = exposure.Exact(exact_eps, made, SHAPE, factor)
        return exposure.measured(made, network, real, [exposure.KNOWN[name] for name in names], batch=count)

    return {proposal.name: proposal for proposal in EpsilonScaling().propose(probe)}


@pytest.mark.parametrize("factor", [0.98, 1.0, 1.017, 1.05])
@pytest.mark.parametrize("solver, steps", [("ddim", 5), ("ddim", 20), ("ddpm", 20), ("dpmpp_2m", 10), ("heun", 10)])
def test_a_constant_factor_is_found_to_a_thousandth(solver, steps, factor):
    found = proposals(solver, steps, lambda i: factor + 0 * i)
    value, error = found["constant scaler"].numbers["B"]
    assert value == pytest.approx(factor, rel=1e-3) and error < 1e-3
    assert EpsilonScaling(found["constant scaler"].values["eps_scaler"]).b == pytest.approx(factor, rel=1e-3)
    assert found["scale at true states"].numbers["B"][0] == pytest.approx(factor, rel=1e-3)
    assert found["opposite of the constant scaler"].near and not found["constant scaler"].near
    assert found["half of the constant scaler"].numbers["B"][0] - 1 == pytest.approx((value - 1) / 2)


@pytest.mark.parametrize("factor", [0.98, 1.017])
@pytest.mark.parametrize("solver, steps", [("ddim", 10), ("ddpm", 20)])
def test_a_factor_of_v_is_found_beside_the_step_that_is_not_scaled(solver, steps, factor):
    """The first, from the last cosine timestep, where the network makes no error."""

    def of_step(i):
        return torch.where(i < steps - 1, factor, 1.0)

    found = proposals(solver, steps, of_step, schedule="cosine", prediction="v")
    assert found["constant scaler"].numbers["B"][0] == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize("k, b", [(0.002, 1.0), (0.001, 0.97), (0.0004, 1.0042)])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m"])
def test_a_factor_linear_in_the_step_is_found_to_a_thousandth(solver, k, b):
    found = proposals(solver, 20, lambda i: k * i + b)["linear scaler"]
    said = EpsilonScaling(found.values["eps_scaler"])
    steps = np.arange(20)
    assert said.k * steps + said.b == pytest.approx(k * steps + b, rel=1e-3)
    assert found.numbers["K"][0] == pytest.approx(said.k, rel=1e-6)


def test_a_factor_that_falls_is_proposed_as_a_constant_alone():
    found = proposals("ddim", 10, lambda i: 1.03 - 0.002 * i)
    assert "linear scaler" not in found and 1.01 < found["constant scaler"].numbers["B"][0] < 1.03


def test_fits_are_weighted_least_squares():
    rng = np.random.default_rng(0)
    ratios, weights, steps = 1 + 0.1 * rng.random((5, 9)) + 0.01 * np.arange(9), rng.random(9), np.arange(9)
    for row, (k, b) in zip(ratios, fitted(ratios, weights, True)):
        slope, offset = np.polyfit(steps, row, 1, w=weights)
        assert (k, b) == (pytest.approx(slope), pytest.approx(offset))
    for row, (k, b) in zip(ratios, fitted(ratios, weights, False)):
        assert k == 0 and b == pytest.approx(np.average(row, weights=weights**2))
    levels = np.array([0.99, 0.7, 0.2, 1e-6])
    # of a step of DDIM from x = eps, x0 = 0: how x changes with eps
    change = [
        np.sqrt(to) * -np.sqrt(1 - level) / np.sqrt(level) + np.sqrt(1 - to)
        for level, to in zip(levels, [1, *levels[:-1]])
    ]
    assert moved_by_eps(levels) == pytest.approx(np.minimum(1, np.abs(change)))


def test_without_bias_the_interval_holds_one():
    for seed in range(3):
        real = exposure.Real(images(64 + seed))
        found = exposure.measured(
            made := exposure.process(10), exposure.Exact(exact_eps, made, SHAPE), real, [Norms()], seed=seed
        )
        curves = found.curves["norms"]
        ratio, other = curves["eps_sampled"], curves["eps_along"]
        values = ratio.values / other.values
        errors = jackknife(ratio.left_out / other.left_out)
        assert (np.abs(values[3:] - 1) < 4 * errors[3:] + 0.05).all()


# -- a shift that is known -------------------------------------------------------------------------


def shifted_by(shift, error, mean_shift, asked, times=range(0, 1000, 100)):
    """A probe of a sampler whose states fit times that are `shift` [S] away."""
    still = np.tile(shift, (8, 1))
    curves = {"shift": Curve(np.array(shift, float), still), "search_error": Curve(np.array(error, float), still)}

    def probe(values, *names):
        asked.append((values, names))
        found = {"mean_shift": mean_shift}
        return exposure.Found(np.array(times), np.linspace(0.99, 0.01, 10), 0.25, 0.0, {"variance": curves}, found)

    return probe


def test_a_known_shift_is_proposed():
    asked = []
    error = [400, 300, 150, 90, 40, 40, 40, 40, 90, 500]
    found = list(TimeShift().propose(shifted_by([300, 200, 100, *[-20] * 7], error, -19.6, asked)))
    search, constant, *near = found
    assert search.values == {
        "do_time_shift": True,
        "time_shift_variant": "paper",
        "window": 40,
        "cutoff": 300,
        "time_shift_data_variance": 0.25,
        "time_shift_constant": 0,
    }
    assert search.numbers["mean shift of a free search"][0] == pytest.approx(-20)
    assert constant.values["time_shift_constant"] == -20 and constant.values["window"] == 2
    assert [each.values["time_shift_constant"] for each in near] == [-10, -40, 20]
    assert not search.near and not constant.near and all(each.near for each in near)
    # measured without any shift, and then with the search that is proposed
    assert asked[0][0]["do_time_shift"] is False and asked[1][0] == search.values


@pytest.mark.parametrize("variant", ["paper", "net", "target"])
@pytest.mark.parametrize("begin", [0, 99])
@pytest.mark.parametrize("first", range(9))
def test_the_steps_that_move_are_those_at_which_the_search_can_tell(variant, first, begin):
    """But for the ends of a run that a variant never moves."""
    error, times = [500] * first + [90] * (10 - first), range(begin, begin + 901, 100)
    method = TimeShift(do_time_shift=True, time_shift_variant=variant)
    search, *_ = method.propose(shifted_by([-20] * 10, error, -20, [], times))
    made = VARIANTS[variant](None, exposure.process(10).schedule, times, search.values["cutoff"])
    least = 1 + (begin == 0) if variant == "target" else 0
    assert [i for i in range(10) if made.moves(i)] == [*range(max(first, least), 9)]


def test_a_window_is_no_wider_than_a_step_and_a_variant_of_the_user_stays():
    method = TimeShift(do_time_shift=True, time_shift_variant="net", window=10)
    search, *_ = method.propose(shifted_by([-300] * 10, [90] * 10, 0.0, []))
    assert search.values["window"] == 100 and search.values["time_shift_variant"] == "net"
    assert len(list(method.propose(shifted_by([-300] * 10, [90] * 10, 0.2, [])))) == 1  # no constant shift of 0


# -- trials ----------------------------------------------------------------------------------------


def textbook_distance(a, b):
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    gap = a.mean(axis=0) - b.mean(axis=0)
    return gap @ gap + sum(np.trace(c) for c in covariances) - 2 * np.trace(sqrtm(covariances[0] @ covariances[1])).real


def test_distances_without_a_block_each():
    rng = np.random.default_rng(0)
    features, real = rng.normal(size=(87, 3)).astype(np.float32), rng.normal(1, 2, size=(200, 3))
    found = leaving_out(features, moments_of(torch.from_numpy(real)))
    assert found[0] == pytest.approx(textbook_distance(features, real), rel=1e-6)
    block = np.arange(87) * BLOCKS // 87
    for i in range(BLOCKS):
        assert found[1 + i] == pytest.approx(textbook_distance(features[block != i], real), rel=1e-6)


def candidate(name, gain, error, near=False, values=None):
    trial = None if gain is None else Trial(1.0, 0.1, gain, error)
    return Candidate(name, "M", {"eps_scaler": "1.01"} if values is None else values, {}, near, trial)


@pytest.mark.parametrize(
    "others, chosen",
    [
        ([("a", 0.3, 0.1), ("b", 0.5, 0.2), ("c", 0.9, 0.5)], "b"),
        ([("a", 0.19, 0.1), ("b", -0.5, 0.1)], "as it is"),
        ([], "as it is"),
    ],
)
def test_identity_stays_unless_a_gain_exceeds_two_standard_errors(others, chosen):
    assert choice([candidate("as it is", 0.0, 0.0), *(candidate(*each) for each in others)]).name == chosen


def test_without_trials_the_simplest_proposal_is_chosen():
    many = candidate("many", None, None, values={"window": 4, "cutoff": 3})
    near = candidate("near", None, None, near=True)
    identity = candidate("as it is", None, None)
    assert choice([identity, many, near, candidate("one", None, None)]).name == "one"
    assert choice([identity, near]) is identity


# -- the script ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    data = script_runs.draw_images(folder / "data", count=30)
    script_runs.train_class_conditional(data, folder / "run")
    script_runs.mean_colours(folder / "colours.pt", 16)
    return folder


def command(place, out_dir, *more):
    return [
        *("--model_path", place / "run" / "model000002.pt", "--data_dir", place / "data", "--use_ddim", True),
        *("--timestep_respacing", 4, "--num_samples", 8, "--batch_size", 4, "--out_dir", out_dir, *more),
    ]


def refined(place):
    return ["--refine", 40, "--features", f"torchscript:{place / 'colours.pt'}", "--trust_code", True]


@pytest.fixture(scope="module")
def tuned(place, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("tuned")
    return out_dir, script_runs.run("tune_sampler", *command(place, out_dir, *refined(place)))


def table_of(folder):
    with open(folder / "tuning.csv", newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_what_is_written(tuned):
    out_dir, printed = tuned
    rows = table_of(out_dir)
    assert rows[0]["proposal"] == "as it is" and float(rows[0]["gain"]) == float(rows[0]["gain_se"]) == 0
    assert {"TimeShift", "EpsilonScaling"} <= {row["method"] for row in rows}
    for row in rows:
        assert float(row["distance"]) >= 0 and float(row["distance_se"]) > 0
        assert float(row["gain"]) == pytest.approx(float(rows[0]["distance"]) - float(row["distance"]), abs=1e-5)
    chosen = json.loads((out_dir / "preset.json").read_text())
    assert chosen["flags"]["timestep_respacing"] == "4" and chosen["flags"]["use_ddim"] is True and chosen["score"]
    assert "flags: --timestep_respacing 4 --use_ddim True" in printed and "chosen: " in printed
    with Image.open(out_dir / "tuning.png") as picture:
        assert picture.width > 1000
    assert "± 0" not in {part for row in rows for part in row["numbers"].split(", ")}
    assert (out_dir / "tuning.md").read_text().startswith("| proposal | method | flags | measured | distance | gain |")


def outputs(folder):
    return {name: (folder / name).read_bytes() for name in ("tuning.csv", "tuning.md", "preset.json")}


def test_the_same_command_tries_nothing_again(place, tuned):
    before = outputs(tuned[0])
    printed = script_runs.run("tune_sampler", *command(place, tuned[0], *refined(place)))
    assert outputs(tuned[0]) == before and "0 of 40 images" not in printed.replace("40 of 40 images", "")
    assert printed.count("40 of 40 images are there already") == len(table_of(tuned[0]))


@pytest.mark.slow
@needs_mpirun
def test_two_ranks_write_the_same_bytes(place, tuned, tmp_path):
    words = [MPIRUN, "-n", 2, sys.executable, script_runs.FOLDER / "tune_sampler.py"]
    words += command(place, tmp_path, *refined(place))
    subprocess.run(list(map(str, words)), check=True, env=clean_env(OMP_NUM_THREADS="1"), timeout=HANGS)
    assert outputs(tmp_path) == outputs(tuned[0])


def test_a_preset_in_a_file_makes_the_images_of_its_flags(place, tmp_path):
    script_runs.run("tune_sampler", *command(place, tmp_path / "tuned"))
    preset = tmp_path / "tuned" / "preset.json"
    flags = json.loads(preset.read_text())["flags"]
    assert set(flags) == {"timestep_respacing", "use_ddim", "eps_scaler"}
    shared = ["--model_path", place / "run" / "model000002.pt", "--num_samples", 4, "--batch_size", 4]
    script_runs.run("image_sample", *shared, "--preset", preset, "--out_dir", tmp_path / "preset")
    by_hand = [word for name, value in flags.items() for word in (f"--{name}", value)]
    script_runs.run("image_sample", *shared, *by_hand, "--out_dir", tmp_path / "hand")
    first, second = (next((tmp_path / name).glob("samples_*.npz")).read_bytes() for name in ("preset", "hand"))
    assert first == second
    script_runs.run("image_sample", *shared, "--preset", preset, "--eps_scaler", 1.0, "--out_dir", tmp_path / "other")
    assert json.loads((tmp_path / "other" / "flags.json").read_text())["eps_scaler"] == "1.0"


def test_the_preset_of_a_bare_checkpoint_tells_its_network_too(place, tmp_path):
    bare = tmp_path / "bare.pt"
    bare.write_bytes((place / "run" / "model000002.pt").read_bytes())
    told = {"image_size": 16, "noise_schedule": "linear", "diffusion_steps": 100, "num_heads": 1}
    words = [word for name, value in told.items() for word in (f"--{name}", value)]
    script_runs.run("tune_sampler", *command(place, tmp_path / "tuned", *words, "--model_path", bare))
    flags = presets.flags_of_preset(str(tmp_path / "tuned" / "preset.json"))
    assert flags.items() >= told.items()
    preset = ["--preset", tmp_path / "tuned" / "preset.json", "--num_samples", 4, "--batch_size", 4]
    said = script_runs.run("image_sample", "--model_path", bare, *preset, "--out_dir", tmp_path / "out")
    assumed = said.partition("assumed ")[2].partition(":")[0].split()
    assert assumed and not {f"--{name}" for name in told} & {*assumed}


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--refine", "50"], "--refine 50 compares features of images; expected --features"),
        (["--refine", "7"], "--refine is 7; expected 0 or at least 40"),
        (["--num_samples", "2"], "--num_samples is 2; a standard error needs at least 3 images"),
        (["--timestep_respacing", "101"], "--timestep_respacing asks for 101 steps"),
        (["--data_dir", "nowhere"], "--data_dir nowhere is not there"),
        (["--refine", "50"], "expected --features inception, classifier:PATH, dinov2:PATH, clip:PATH or torchscript"),
        (["--classes", "1"], "--classes is not a flag of this script"),
    ],
)
def test_mistakes_get_one_sentence(place, tmp_path, capsys, more, sentence):
    with pytest.raises(SystemExit) as stop:
        script_runs.run("tune_sampler", *command(place, tmp_path / "out", *more))
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and sentence in said[-1]


@pytest.mark.parametrize(
    "features, sentence",
    [
        ("resnet", "--features is 'resnet'"),
        ("classifier:nowhere.pt", "there is no file nowhere.pt"),
        ("dinov2:nowhere", "there is no folder nowhere"),
        ("torchscript:colours.pt", "is code that would run here; expected --trust_code True"),
        ("classifier:emoji32_classifier.pt", "takes images of 32x32; these are 16x16"),
    ],
)
def test_features_that_do_not_fit_are_refused_before_anything_is_measured(place, tmp_path, capsys, features, sentence):
    kind, _, name = features.partition(":")
    folders = (place, script_runs.FOLDER.parent / "models")
    path = next((folder / name for folder in folders if (folder / name).is_file()), name)
    with pytest.raises(SystemExit) as stop:
        given = ["--refine", 40, "--features", f"{kind}:{path}" if name else kind]
        script_runs.run("tune_sampler", *command(place, tmp_path / "out", *given))
    assert stop.value.code == 2 and sentence in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out" / "measured").exists()


def test_features_without_a_trial_are_warned_of(place, tmp_path, capsys):
    printed = script_runs.run("tune_sampler", *command(place, tmp_path / "out", "--features", "resnet"))
    assert "--features does nothing without --refine" in printed + capsys.readouterr().err


@pytest.mark.parametrize("clipped", [False, True])
def test_a_sampler_that_nothing_can_be_measured_of_is_refused(place, tmp_path, capsys, clipped):
    """Not said to have no better one, with a preset of itself."""
    state = torch.load(place / "run" / "model000002.pt", weights_only=True)
    state["out.2.bias"].fill_(3e38)
    state["out.2.weight"].fill_(3e38)
    torch.save(state, tmp_path / "model000002.pt")
    (tmp_path / "model000002.json").write_bytes((place / "run" / "model000002.json").read_bytes())
    with pytest.raises(SystemExit):
        words = command(place, tmp_path / "out", "--model_path", tmp_path / "model000002.pt")
        script_runs.run("tune_sampler", *words, "--clip_denoised", clipped)
    assert "is not a finite number from timestep " in capsys.readouterr().err
    assert not (tmp_path / "out" / "preset.json").exists()


@pytest.mark.parametrize("tried", [False, True])
def test_nothing_in_the_figure_lies_across_anything_else(tried):
    curve, times = Curve(np.linspace(0.9, 1.1, 5), np.array([[0.99], [1.01]]) * np.ones(5)), np.arange(5) * 200
    shift = "--do_time_shift True --window 248 --cutoff 0 --time_shift_variant paper --time_shift_data_variance 0.4831"
    results = {
        "as it is": {
            "norms": {"eps_along": curve, "eps_sampled": curve},
            "variance": {"shift": curve},
            "times": times,
        },
        shift: {"lengths": {"eps_sampled": curve}, "times": times},
        "--eps_scaler 0.0043938734,1.0000713": {"lengths": {"eps_sampled": curve}, "times": times},
    }
    names = ["as it is", "opposite of the constant shift of that search"]
    candidates = [Candidate(name, "", {}, {}, False, Trial(1.0, 0.1, 0.2, 0.1) if tried else None) for name in names]
    plt = figure.pyplot()
    with plt.rc_context(figure.STYLE):
        drawing = tuning_tables.drawn(plt, candidates, results, candidates[0])
        drawing.canvas.draw()
        parts = [axes.get_tightbbox() for axes in drawing.axes]
        parts += [key.get_window_extent() for key in drawing.legends]
        plt.close(drawing)
    assert len(parts) == 3 + tried
    for part in parts:
        assert part.x0 >= 0 and part.y0 >= 0 and part.x1 <= drawing.bbox.x1 and part.y1 <= drawing.bbox.y1
    for one, other in itertools.combinations(parts, 2):
        assert not one.overlaps(other)


# -- presets in files ------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    flags = {"eps_scaler": "1.01", "window": 4, "use_ddim": True, "eta": 0.5}
    path = str(tmp_path / "preset.json")
    presets.write(path, presets.Preset(flags, "FID 3"))
    assert presets.read(path) == flags and presets.expand(path, {"window", "eta", "seed"}) == {"window": 4, "eta": 0.5}
    with pytest.raises(UserError, match="sets no flag of this script: --eps_scaler --window"):
        presets.expand(path, {"seed"})


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "is not there; expected a .json file"),
        ("{", "is no preset; expected"),
        ("[1]", "is no preset; expected"),
        ('{"score": ""}', "is no preset; expected"),
        ('{"flags": {"window": [1]}}', "is no preset; expected"),
        ('{"flags": {}}', "sets no flag of this script: none"),
        ('{"flags": {"batch_size": "4"}}', "--batch_size is '4' there; expected int, such as 16"),
        ('{"flags": {"timestep_respacing": 20}}', "--timestep_respacing is 20 there; expected str, such as ''"),
        ('{"flags": {"use_ddim": 1}}', "--use_ddim is 1 there; expected bool, such as False"),
        ('{"flags": {"eps_scaler": "x"}}', "--eps_scaler is 'x'"),
        ('{"flags": {"batch_size": 0}}', "--batch_size is 0; expected at least 1"),
    ],
)
def test_a_file_that_is_no_preset_gets_one_sentence(tmp_path, capsys, content, sentence):
    path = tmp_path / "preset.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        script_runs.run("image_sample", "--preset", path, "--out_dir", tmp_path / "out")
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and sentence in said[-1]


def test_a_whole_number_stands_for_a_float_in_a_file(place, tmp_path):
    (tmp_path / "preset.json").write_text('{"flags": {"eta": 1, "use_ddim": true, "timestep_respacing": "3"}}')
    words = ["--model_path", place / "run" / "model000002.pt", "--num_samples", 1, "--out_dir", tmp_path / "out"]
    script_runs.run("image_sample", *words, "--preset", tmp_path / "preset.json")
    assert json.loads((tmp_path / "out" / "flags.json").read_text())["eta"] == 1
