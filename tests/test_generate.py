"""Sampling by index."""

import numpy as np
import pytest
import sampled
import torch
from scipy.stats import kstest
from torch import nn

from guided_diffusion import generate as module
from guided_diffusion.conditioning import Classes
from guided_diffusion.conditioning.classes import chosen_classes
from guided_diffusion.errors import UserError
from guided_diffusion.generate import (
    IndexedNoise,
    SampleFlags,
    as_arrays,
    by_index,
    preview_sampler,
)
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.script_util import create_gaussian_diffusion
from guided_diffusion.solvers import SOLVERS
from guided_diffusion.solvers.flags import SolverFlags

SHAPE = (3, 4, 4)


def network(x, t, y=None):
    shift = 0 if y is None else y.float().reshape(-1, 1, 1, 1) / 10
    return 0.5 * x + 0.1 * torch.sin(3 * x + t.float().reshape(-1, 1, 1, 1)) + shift


def three_draws(seed, indices):
    noise = IndexedNoise(seed, indices)
    return noise.label(10), noise.normal(*SHAPE), noise(torch.zeros(len(indices), 2, 5))


@pytest.mark.parametrize("batches", [[range(7)], [range(3), range(3, 7)], [[6, 2, 0], [5], [1, 4, 3]]])
def test_noise_belongs_to_the_index_whatever_the_batch(batches):
    whole = three_draws(5, range(7))
    for batch in batches:
        for drawn, expected in zip(three_draws(5, batch), whole):
            assert torch.equal(drawn, expected[list(batch)])


def test_noise_is_normal_and_every_seed_and_index_has_its_own():
    draws = [IndexedNoise(seed, range(50)).normal(40) for seed in (0, 1, 2**40)]
    draws.append(IndexedNoise(0, range(50, 100)).normal(40))
    values = torch.stack(draws).reshape(-1, 40)
    assert len({tuple(row.tolist()) for row in values}) == 200
    assert kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(values.numpy()) - np.eye(200)).max() < 0.75


def test_noise_takes_the_kind_of_x():
    x = torch.zeros(2, 3, dtype=torch.float64)
    drawn = IndexedNoise(0, range(2))(x)
    assert drawn.dtype == torch.float64
    assert torch.equal(drawn.float(), IndexedNoise(0, range(2)).normal(3))


def test_labels_are_uniform_or_in_turn():
    counts = IndexedNoise(0, range(2000)).label(5).bincount(minlength=5)
    assert ((counts - 400).abs() < 5 * (2000 * 0.2 * 0.8) ** 0.5).all()
    assert Classes(10, [3, 7, 1]).of_indices(None, range(5, 9))["y"].tolist() == [1, 3, 7, 1]
    assert torch.equal(Classes(10).of_indices(IndexedNoise(3, [4, 8]), [4, 8])["y"], IndexedNoise(3, [4, 8]).label(10))


def test_chosen_classes():
    assert chosen_classes("3,7", 8) == [3, 7] and chosen_classes("", 8) == []
    for text, word in (("8", "--classes has 8; expected 0 to 7"), ("3,-1", "has -1"), ("a", "--classes is 'a'")):
        with pytest.raises(UserError, match=word):
            chosen_classes(text, 8)


@pytest.mark.parametrize("solver", [{}, {"solver": "ddim"}, {"solver": "ddim", "eta": 0.5}])
def test_images_do_not_depend_on_their_batch(solver):
    process = sampled.process(**solver, diffusion={"timestep_respacing": "5", "sigma_small": True})

    def images(indices):
        noise = IndexedNoise(1, indices)
        return sampled.batch(process, network, noise, SHAPE, Classes(10).of_indices(noise, indices))

    whole = images(range(5))
    parts = torch.cat([images(range(2)), images([2]), images(range(3, 5))])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver, loop", [("ddpm", "p_sample_loop"), ("ddim", "ddim_sample_loop")])
@pytest.mark.parametrize("cond_fn", [None, lambda x, t, **_: -x])
def test_images_are_those_of_the_published_loops(solver, loop, cond_fn, monkeypatch):
    """Given the same noise, and guided as the published samplers are: by the mean, or by the score."""
    process = sampled.process(solver, guide=cond_fn, diffusion={"timestep_respacing": "5"})
    made = sampled.batch(process, network, IndexedNoise(1, range(2)), SHAPE)
    diffusion = create_gaussian_diffusion(timestep_respacing="5")
    noise = IndexedNoise(1, range(2))
    start = noise.normal(*SHAPE)
    monkeypatch.setattr(torch, "randn_like", noise)
    expected = getattr(diffusion, loop)(network, start.shape, noise=start, cond_fn=cond_fn)
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("count", [1, 4, 5, 7, 12])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_exactly_the_images_asked_for_in_order(count, batch_size, ranks, monkeypatch):
    """Ranks in lock step: each round, rank 0 gathers what every rank would have made of its batch."""
    batches = [list(range(i, min(i + batch_size, count))) for i in range(0, count, batch_size)]
    rounds = iter(range(0, len(batches), ranks))

    def make_batch(indices):
        return {"arr_0": np.array(indices) ** 2, "arr_1": -np.array(indices)}

    def gather_object(mine):
        first = next(rounds)
        others = [make_batch(b) for b in batches[first + 1 : first + ranks]]
        return [mine, *others, *[None] * (ranks - 1 - len(others))]

    monkeypatch.setattr(module.dist_util, "world_size", lambda: ranks)
    monkeypatch.setattr(module.dist_util, "gather_object", gather_object)
    made = by_index(SampleFlags(num_samples=count, batch_size=batch_size), make_batch)
    assert made["arr_0"].tolist() == [i**2 for i in range(count)]
    assert made["arr_1"].tolist() == [-i for i in range(count)]


class Toy(nn.Module):
    shape = SHAPE

    def forward(self, x, t, y):
        return network(x, t, y)


@pytest.mark.parametrize("steps", [7, 1000])
def test_previews_repeat_and_are_ddim_in_at_most_25_steps(steps):
    process = DiffusionFlags(noise_schedule="cosine", diffusion_steps=steps)
    y = torch.tensor([1, 5])
    preview = preview_sampler(process, 2, {"y": y})
    images = preview(Toy())
    assert np.array_equal(images, preview(Toy()))
    diffusion = create_gaussian_diffusion(noise_schedule="cosine", steps=steps, timestep_respacing=str(min(25, steps)))
    start = IndexedNoise(0, range(2)).normal(*SHAPE)
    expected = diffusion.ddim_sample_loop(network, start.shape, noise=start, model_kwargs={"y": y})
    np.testing.assert_allclose(images, as_arrays(expected)["arr_0"], atol=1)


@pytest.mark.parametrize(
    "make, flag",
    [
        (lambda: SampleFlags(num_samples=0), "num_samples"),
        (lambda: SampleFlags(batch_size=0), "batch_size"),
        (lambda: SampleFlags(seed=-1), "seed"),
        (lambda: SolverFlags(solver="ddpm", use_ddim=True), "use_ddim"),
        (lambda: SolverFlags(use_ddim=True, eta=1.5), "eta"),
    ],
)
def test_impossible_values_name_the_flag(make, flag):
    with pytest.raises(UserError, match=f"--{flag}"):
        make()


def test_the_published_spelling_chooses_ddim():
    assert [SolverFlags().name, SolverFlags(use_ddim=True).name, SolverFlags(solver="ddim").name] == [
        "ddpm",
        "ddim",
        "ddim",
    ]


SHIFTED = {"do_time_shift": True, "window": 60, "cutoff": 0, "time_shift_variant": "net"}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("methods", [{}, SHIFTED, {"eps_scaler": "0.001,1.002"}], ids=["plain", "shifted", "scaled"])
def test_the_loop_adds_no_bit_by_the_batch(solver, methods):
    """With a network of one product by pixel; images of odd sizes, whose ends other instructions compute."""
    made = sampled.process(solver, diffusion={"timestep_respacing": "6"}, methods=methods)

    def images(indices):
        return sampled.batch(made, lambda x, t: 0.7 * x, IndexedNoise(1, indices), (3, 5, 5))

    whole = images(range(5))
    assert torch.equal(torch.cat([images([0]), images([1, 2]), images([3, 4])]), whole)
