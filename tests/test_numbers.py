"""Numbers are looked at: averages that have hardly begun, learned variances, and whatever is not finite."""

import re

import numpy as np
import pytest
import script_runs
import torch
from tiny_loop import START, half_square, plain_sum, rows, tiny, weights

from guided_diffusion import logger
from guided_diffusion.averages import initial_share, rate_at
from guided_diffusion.denoiser import ModelMeanType, ModelVarType
from guided_diffusion.errors import UserError
from guided_diffusion.learned_variance import hold, outside
from guided_diffusion.process import Process
from guided_diffusion.schedule import NoiseSchedule, get_named_beta_schedule
from guided_diffusion.solvers.flags import SolverFlags
from guided_diffusion.tensor_files import load_checkpoint, load_state_dict


@pytest.fixture(autouse=True)
def terminal_afterwards():
    yield
    logger.reset()


# ------------------------------------------------------------------------------------ averages, rates


@pytest.mark.parametrize("rate", [0, 0.05, 0.1, 0.5, 0.99, 0.9999, 1])
@pytest.mark.parametrize("warmup", [False, True])
def test_the_share_of_the_first_weights_is_the_product_of_the_rates(rate, warmup):
    share = 1.0
    for step in range(1200):
        assert initial_share(rate, step, warmup) == pytest.approx(share, rel=1e-9, abs=1e-15)
        share *= min(rate, (1 + step) / (10 + step)) if warmup else rate
        assert rate_at(rate, step) == rate


@pytest.mark.parametrize("warmup", [False, True])
def test_an_average_follows_the_rates_and_says_how_young_it_is(tmp_path, warmup):
    pictures = np.zeros((1, 8, 8, 3), np.uint8)
    loop, seen = tiny(
        tmp_path, half_square, iterations=6, ema_rate="0.3,0.9", ema_warmup=warmup, save_interval=3, sample_interval=4,
        preview=lambda model: pictures,
    )  # fmt: skip
    loop.run_loop()
    for rate in (0.3, 0.9):
        average, share = np.array(START), 1.0
        for n, w in enumerate(seen):
            r = min(rate, (1 + n) / (10 + n)) if warmup else rate
            average, share = r * average + (1 - r) * w.double().numpy(), share * r
        assert np.allclose(weights(tmp_path / f"ema_{rate}_000006.pt")["weight"][0], average, atol=1e-6)
        said = re.findall(rf"moving average {rate} is still (\d+) %", (tmp_path / "log.txt").read_text())
        # at the preview of step 4 that of the first average alone
        expected = {(0.3, False): [3], (0.9, False): [73, 53], (0.3, True): [], (0.9, True): []}[rate, warmup]
        expected = expected[:1] if rate == 0.3 and not warmup else expected
        assert [int(n) for n in said] == expected


@pytest.mark.parametrize("anneal, warmup", [(0, 0), (0, 4), (8, 0), (8, 4), (8, 20)])
def test_the_learning_rate_rises_and_falls(tmp_path, anneal, warmup):
    # the gradient is 1 everywhere, so each of Adam's steps is the learning rate
    loop, seen = tiny(
        tmp_path, plain_sum, iterations=7, lr_anneal_steps=anneal, lr_warmup_steps=warmup, save_interval=3
    )
    loop.run_loop()
    rates = -np.diff([START[0], *[float(w[0]) for w in seen]])
    expected = [0.1 * (1 - n / anneal if anneal else 1) * min(1, (n + 1) / warmup if warmup else 1) for n in range(7)]
    assert np.allclose(rates, expected, atol=1e-6)
    resumed, after = tiny(
        tmp_path, plain_sum, iterations=7, lr_anneal_steps=anneal, lr_warmup_steps=warmup,
        resume_checkpoint=str(tmp_path / "model000003.pt"),
    )  # fmt: skip
    resumed.run_loop()
    assert torch.equal(torch.stack(after), torch.stack(seen[3:]))


# ------------------------------------------------------------------------------------ learned variances


def test_a_held_variance_has_the_gradients_that_lead_inside():
    output = torch.tensor([-5.0, -5.0, -1.0, 0.25, 1.0, 3.0, 3.0], requires_grad=True)
    gradient = torch.tensor([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -7.0])
    held = hold(output)
    held.backward(gradient)
    assert held.tolist() == [-1, -1, -1, 0.25, 1, 1, 1]
    assert output.grad.tolist() == [-1, 0, 3, 4, 5, 6, 0]


def process_of(variance, clip, steps=20):
    """(a Process of few steps, a network that says this variance output everywhere)."""
    schedule = NoiseSchedule(get_named_beta_schedule("cosine", 1000))
    process = Process(
        schedule, np.linspace(0, 999, steps).astype(int).tolist(), mean_type=ModelMeanType.START_X,
        var_type=ModelVarType.LEARNED_RANGE, clip_variance=clip, solver=SolverFlags(),
    )  # fmt: skip
    return process, lambda x, t: torch.cat([0 * x, torch.full_like(x, variance)], 1)


@pytest.mark.parametrize("variance, far", [(-1.0, False), (0.3, False), (1.5, False), (4.0, True), (60.0, True)])
@pytest.mark.parametrize("clip", [False, True])
def test_clipped_variances_stay_in_their_interval_and_others_are_told(variance, far, clip):
    ends = []
    for value in (variance, max(-1, min(1, variance))):
        process, network = process_of(value, clip)
        torch.manual_seed(0)
        *_, last, _ = process.sample_records(process.solver, process.denoiser(network), torch.randn(2, 1, 4, 4))
        ends.append((last.x, process.report()))
    (x, said), (inside, nothing) = ends
    assert torch.equal(x, inside) == (clip or -1 <= variance <= 1) and nothing == []
    assert len(said) == (far and not clip)
    if said:
        assert "100 % at timestep" in said[0] and "of 20)" in said[0] and "--clip_variance True" in said[0]


def test_the_share_outside_is_that_of_an_image():
    assert outside(torch.tensor([[0.0, 1.0, 3.5, -4.0], [float("nan"), 0, 2, -2]])).tolist() == [0.5, 0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    place = tmp_path_factory.mktemp("numbers")
    data = script_runs.draw_images(place / "data")
    return script_runs.train_class_conditional(data, place / "run", "--class_source", "prefix")


def test_training_logs_the_range_of_the_fraction(checkpoint):
    found = rows(checkpoint.parent)
    assert all(row["variance_fraction_min"] <= row["variance_fraction_max"] for row in found)
    assert found[0]["variance_fraction_min"] == found[0]["variance_fraction_max"] == 0.5  # a new network says 0


def changed(checkpoint, path, change):
    """A copy of a checkpoint, and of its flags, with `change` made of its weights."""
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    torch.save(state, path)
    path.with_suffix(".json").write_text(checkpoint.with_suffix(".json").read_text())
    return path


def throw_one_class(state):
    state["label_emb.weight"][1] = 3e38


def throw_all(state):
    state["out.2.weight"][:3] = 3e38


def throw_variances(state):
    state["out.2.bias"][3:] = 400


SAMPLE = "--num_samples 6 --batch_size 4 --timestep_respacing 5 --classes 0,1,2".split()


@pytest.mark.parametrize(
    "change, bad, cause",
    [(throw_one_class, [1, 4], ""), (throw_all, range(6), ""), (throw_variances, range(6), "--clip_variance True")],
)
def test_images_that_are_not_finite_end_a_run(checkpoint, tmp_path, capsys, change, bad, cause):
    path = changed(checkpoint, tmp_path / "thrown.pt", change)
    for again in (False, True):
        with pytest.raises(SystemExit) as end:
            script_runs.run("image_sample", "--model_path", path, "--out_dir", tmp_path / "out", *SAMPLE)
        said = capsys.readouterr().err
        assert end.value.code == 2 and f"{len(bad)} of 6 images are not finite numbers" in said, said
        assert again or cause in said
        assert not list(tmp_path.glob("out/samples_6x*"))
        kept = list(tmp_path.glob("out/samples_finite_*.npz"))
        assert bool(kept) == (len(bad) < 6)
    if kept:
        whole = script_runs.run("image_sample", "--model_path", checkpoint, "--out_dir", tmp_path / "whole", *SAMPLE)
        assert "not finite" not in whole
        with np.load(kept[0]) as found, np.load(next(tmp_path.glob("whole/*.npz"))) as all_six:
            assert found["indices"].tolist() == [0, 2, 3, 5]
            assert np.array_equal(found["arr_0"], all_six["arr_0"][[0, 2, 3, 5]])
            assert np.array_equal(found["arr_1"], all_six["arr_1"][[0, 2, 3, 5]])


def test_clipping_variances_makes_the_same_weights_finite(checkpoint, tmp_path):
    path = changed(checkpoint, tmp_path / "thrown.pt", throw_variances)
    words = ["--model_path", path, "--out_dir", tmp_path / "out", "--clip_variance", True, *SAMPLE]
    assert "saved" in script_runs.run("image_sample", *words)


@pytest.mark.parametrize("name", ["image_nll", "image_invert"])
def test_measures_that_are_not_finite_end_a_run(checkpoint, tmp_path, capsys, name):
    path = changed(checkpoint, tmp_path / "thrown.pt", throw_one_class)
    data = checkpoint.parents[1] / "data"
    words = ["--model_path", path, "--data_dir", data, "--class_source", "prefix", "--out_dir", tmp_path / "out"]
    with pytest.raises(SystemExit) as end:
        script_runs.run(name, *words, "--num_samples", 6, "--batch_size", 3, "--timestep_respacing", 4)
    said = capsys.readouterr().err
    assert end.value.code == 2 and re.search(r"\d of 6 images (is|are) not finite", said) and "--gamma" not in said, (
        said
    )


# ------------------------------------------------------------------------------------ altered files


@pytest.mark.parametrize("where", [0.05, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("listed", [True, False])
def test_an_altered_checkpoint_is_noticed(checkpoint, tmp_path, where, listed):
    data = bytearray(checkpoint.read_bytes())
    start = int(where * len(data))
    for i in range(start, start + 16):
        data[i] ^= 0x21
    path = tmp_path / "model000002.pt"
    path.write_bytes(data)
    for name in ("model000002.json", *(["manifest000002.json"] * listed)):
        (tmp_path / name).write_text((checkpoint.parent / name).read_text())
    with pytest.raises(SystemExit):
        script_runs.run("image_sample", "--model_path", path, "--out_dir", tmp_path / "out", *SAMPLE)
    if not listed:
        with pytest.raises(UserError, match=r"is (truncated or )?damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, dtype):
    state = {"good": torch.ones(2), "whole": torch.ones(2, dtype=torch.long), "bad": torch.zeros(3, dtype=dtype)}
    torch.save(state, tmp_path / "x.pt")
    assert load_state_dict(tmp_path / "x.pt").keys() == state.keys()
    state["bad"][1] = value
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x.pt are not finite numbers \(bad for one\)"):
        load_state_dict(tmp_path / "x.pt")
