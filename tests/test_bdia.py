"""BDIA: its identity setting, and images that it encodes and decodes without loss."""

import inspect
import itertools
import json
import re
import sys

import numpy as np
import pytest
import torch
from embedded_models import MODELS, held_out_digits
from PIL import Image
from processes import MPIRUN, needs_mpirun
from processes import run as start
from script_runs import FOLDER, run

from guided_diffusion.inversion import decode, encode
from guided_diffusion.methods import Clipping, of_values
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.sampling import sample
from guided_diffusion.script_util import create_model
from guided_diffusion.solvers import BDIA, DDIM
from guided_diffusion.solvers.bdia import Before


def process(methods=None, clip=True, **diffusion):
    flags = DiffusionFlags(**{"noise_schedule": "cosine", "timestep_respacing": "20", **diffusion})
    return flags.create([Clipping(clip), *of_values(methods or {})])


def of_digits(methods=None, clip=True, **diffusion):
    return process(methods, clip, learn_sigma=True, **diffusion)


def wavy(x, t):
    """A network that no formula of a solver fits by chance."""
    return 0.9 * x + 0.1 * torch.sin(3 * x + t.float().reshape(-1, 1, 1, 1))


# ------------------------------------------------------------------------------------- the solver


@pytest.mark.parametrize("gamma", [1.0, 0.7])
@pytest.mark.parametrize("clip", [True, False])
def test_a_walk_is_the_recursion_of_the_paper(gamma, clip):
    """With the DDIM steps P and Q written out in float64 for the levels of the grid and the data."""
    made = process(clip=clip, noise_schedule="linear", timestep_respacing="7")
    levels = made.schedule.alpha_bar(torch.tensor([-1, *made.grid])).tolist()
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    walk = list(sample(made.denoiser(wavy), BDIA(made.schedule, gamma), made.grid, x))

    states = {7: x.double()}
    for i in range(7, 0, -1):
        t = torch.full((3,), made.grid[i - 1])
        a, now = levels[i], states[i]
        x0 = (now - (1 - a) ** 0.5 * wavy(now.float(), t)) / a**0.5
        x0 = x0.clamp(-1, 1) if clip else x0
        eps = (now - a**0.5 * x0) / (1 - a) ** 0.5
        steps = {j: levels[j] ** 0.5 * x0 + (1 - levels[j]) ** 0.5 * eps for j in (i - 1, i + 1) if j < 8}
        states[i - 1] = steps[i - 1] + (gamma * (states[i + 1] - steps[i + 1]) if i < 7 else 0)
    for record in walk:
        torch.testing.assert_close(
            record.x.double(), states[record.i], rtol=0, atol=2e-4 * states[record.i].abs().max()
        )


@pytest.mark.parametrize("shift", [{}, {"do_time_shift": True, "time_shift_variant": "paper", "window": 60}])
def test_gamma_0_is_ddim_to_the_bit(shift):
    made = process({"eps_scaler": "1.01", **shift}, timestep_respacing="12")
    x, denoise = torch.randn(4, 3, 4, 4), made.denoiser(wavy)
    walks = (made.sample_records(s, denoise, x) for s in (BDIA(made.schedule, 0.0), DDIM(made.schedule)))
    for ours, theirs in zip(*walks, strict=True):
        assert torch.equal(ours.x, theirs.x) and torch.equal(ours.t, theirs.t)


def test_each_sample_may_have_times_of_its_own():
    made = process(noise_schedule="linear", timestep_respacing="")
    solver, denoise = BDIA(made.schedule, 0.6), made.denoiser(wavy)
    x, times = torch.randn(3, 3, 4, 4), torch.tensor([[900, 500, 700], [600, 300, 650], [200, 450, 20], [-1, -1, 0]])

    def walk(x, times):
        state = None
        for t, s in itertools.pairwise(times):
            x, _, state = solver(denoise, x, t, s, state, None)
        return x

    alone = [walk(x[i : i + 1], times[:, i : i + 1]) for i in range(3)]
    torch.testing.assert_close(walk(x, times), torch.cat(alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", ["1", "2", "3"])
def test_few_steps_end_in_finite_images(steps):
    made = process(timestep_respacing=steps)
    records = list(made.sample_records(BDIA(made.schedule, 1.0), made.denoiser(wavy), torch.randn(2, 3, 4, 4)))
    assert len(records) == int(steps) and records[-1].x.isfinite().all()


# ------------------------------------------------------------------------------------- inversion

NET_SHIFT = {"do_time_shift": True, "time_shift_variant": "net", "window": 40, "cutoff": 200}


@pytest.fixture(scope="module")
def digits():
    """(network, float32 images [4, 1, 16, 16], labels [4]) of the embedded model and real digits."""
    saved = json.loads((MODELS / "digits16.json").read_text())
    model = create_model(**{name: saved[name] for name in inspect.signature(create_model).parameters if name in saved})
    model.load_state_dict(torch.load(MODELS / "digits16.pt", weights_only=True))
    images, labels = held_out_digits()
    return model.eval(), torch.from_numpy(images[:4]).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(labels[:4])


@pytest.mark.parametrize("methods", [{}, {"eps_scaler": "0.001,1.005"}, NET_SHIFT], ids=["plain", "scaled", "shifted"])
@pytest.mark.parametrize("clip", [True, False])
def test_digits_return_without_loss(digits, methods, clip):
    (model, images, labels), made = digits, of_digits(methods, clip)
    denoise, grid, solver = made.denoiser(model, {"y": labels}), made.grid, BDIA(made.schedule, gamma=1.0)
    x, before = encode(denoise, solver, made.schedule, grid, images)
    assert x.dtype == torch.float32 and x.std() > 0.7 and (x - images).abs().max() > 1
    assert before.t.tolist() == [grid[-2]] * 4
    assert (decode(denoise, solver, grid, x, before) - images).abs().max() < 1e-6
    assert methods != NET_SHIFT or made.tallies["time_shift"].values[1].any()


def test_another_batch_decodes_to_the_same_pictures(digits):
    """There the network rounds otherwise, and no longer every bit returns."""
    (model, images, labels), made = digits, of_digits()
    grid, solver = made.grid, BDIA(made.schedule, 1.0)
    x, before = encode(made.denoiser(model, {"y": labels}), solver, made.schedule, grid, images)
    alone = made.denoiser(model, {"y": labels[:1]})
    decoded = decode(alone, solver, grid, x[:1], before._replace(x=before.x[:1], t=before.t[:1]))
    assert (decoded - images[:1]).abs().max() < 0.5 / 127.5


def test_naive_inversion_is_far_off(digits):
    (model, images, labels), made = digits, of_digits()
    denoise, solver = made.denoiser(model, {"y": labels}), DDIM(made.schedule)
    x, _ = encode(denoise, solver, made.schedule, made.grid, images)
    *_, last = made.sample_records(solver, denoise, x)
    assert (last.x - images).abs().max() > 0.05


# ------------------------------------------------------------------------------------- the script

FLAGS = ["--num_samples", 5, "--batch_size", 2, "--timestep_respacing", 6]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images, labels = held_out_digits()
    np.savez(path, arr_0=images[:5], arr_1=labels[:5])
    return path


@pytest.fixture(scope="module")
def inverted(data, tmp_path_factory):
    """(folder, what was printed) of one run."""
    folder = tmp_path_factory.mktemp("inverted")
    inputs = ["--model_path", MODELS / "digits16.pt", "--data_dir", data]
    return folder, run("image_invert", *inputs, *FLAGS, "--edit_class", 3, "--out_dir", folder)


def arrays(path):
    with np.load(path) as npz:
        return dict(npz)


def test_the_script_returns_the_images_it_was_given(inverted, data):
    folder, printed = inverted
    given, returned, edits = (arrays(p) for p in (data, folder / "reconstructions.npz", folder / "edits.npz"))
    assert all(np.array_equal(given[name], returned[name]) for name in ("arr_0", "arr_1"))
    assert edits["arr_1"].tolist() == [3] * 5 and edits["arr_0"].dtype == np.uint8
    assert all((edit != image).any() for edit, image in zip(edits["arr_0"], given["arr_0"]))
    # there and back by BDIA, by DDIM, and the edit by DDIM; the step from the data asks at the first timestep too
    assert json.loads((folder / "grid.json").read_text())[-1] == -1
    assert f"network calls: {5 * 6 - 1} for each of 5 images" in printed
    exact, naive = re.findall(r"error at most (\S+), RMS (\S+) in \[-1, 1\], which is (\S+) and (\S+) grey", printed)
    assert float(exact[0]) < 1e-6 and float(naive[0]) > 0.05
    for largest, typical, *levels in (exact, naive):
        np.testing.assert_allclose(
            [float(v) for v in levels], [127.5 * float(largest), 127.5 * float(typical)], rtol=0.1
        )


def test_its_states_are_enough_to_decode_from(inverted, data, digits):
    saved = arrays(inverted[0] / "states.npz")
    assert saved["noisiest"].dtype == saved["before"].dtype == np.float32
    made = of_digits(timestep_respacing="6")
    grid = made.grid
    assert saved["timesteps"].tolist() == [grid[-1], grid[-2]]
    denoise = made.denoiser(digits[0], {"y": torch.from_numpy(saved["labels"])})
    state = (torch.from_numpy(saved["before"]), torch.full((5,), grid[-2]))
    images = decode(denoise, BDIA(made.schedule, 1.0), grid, torch.from_numpy(saved["noisiest"]), Before(*state))
    expected = arrays(data)["arr_0"].transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(images, expected, atol=0.5 / 127.5)


def test_the_picture_has_a_row_of_each(inverted, data):
    folder, _ = inverted
    picture = np.asarray(Image.open(folder / "inversion.png"))[::4, ::4]  # enlarged 4 times
    assert picture.shape == (3 * 17 - 1, 5 * 17 - 1)
    rows = [arrays(data), arrays(folder / "reconstructions.npz"), arrays(folder / "edits.npz")]
    for i, row in enumerate(rows):
        for j, image in enumerate(row["arr_0"]):
            assert np.array_equal(picture[17 * i : 17 * i + 16, 17 * j : 17 * j + 16], image[..., 0])


@needs_mpirun
def test_two_ranks_write_the_same_bytes(inverted, data, tmp_path):
    folder, printed = inverted
    inputs = ["--model_path", MODELS / "digits16.pt", "--data_dir", data, "--edit_class", 3]
    command = [FOLDER / "image_invert.py", *inputs, *FLAGS, "--out_dir", tmp_path]
    done = start(MPIRUN, "-n", 2, sys.executable, *command, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    for name in ("states.npz", "reconstructions.npz", "edits.npz", "inversion.png"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name
    trips = [line for line in printed.splitlines() if line.startswith("round trip")]
    assert len(trips) == 2 and all(line in done.stdout for line in trips)


def test_a_smaller_gamma_warns(data, tmp_path, capsys):
    inputs = ["--model_path", MODELS / "digits16.pt", "--data_dir", data, "--num_samples", 1]
    printed = run("image_invert", *inputs, "--gamma", 0.5, "--timestep_respacing", 6, "--out_dir", tmp_path)
    assert "--gamma 0.5 can enlarge" in printed + capsys.readouterr().err
    assert "BDIA with --gamma 0.5" in printed and not (tmp_path / "edits.npz").exists()
