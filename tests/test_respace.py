"""Which timesteps are kept."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from guided_diffusion.errors import UserError
from guided_diffusion.gaussian_diffusion import LossType, ModelMeanType, ModelVarType
from guided_diffusion.respace import SpacedDiffusion, space_timesteps
from guided_diffusion.schedule import get_named_beta_schedule

GOLDEN = np.load(Path(__file__).parent / "golden" / "diffusion_base.npz")


@pytest.mark.parametrize(
    "steps, spec, kept",
    [
        (10, "1", [0]),
        (10, "2", [0, 9]),
        (10, "3", [0, 4, 9]),  # 4.5 rounds to even
        (10, "5", [0, 2, 4, 7, 9]),
        (10, "10", range(10)),
        (10, "2,3", [0, 4, 5, 7, 9]),
        (11, "2,2", [0, 5, 6, 10]),  # the first sections take the remainder
        (11, [1, 1, 3], [0, 4, 8, 9, 10]),
        (10, "ddim10", range(10)),
        (10, "ddim5", [0, 2, 4, 6, 8]),
        (10, "ddim4", [0, 3, 6, 9]),
        (10, "ddim2", [0, 5]),  # of the strides 5 to 9 the smallest
        (1000, "ddim25", range(0, 1000, 40)),
        (1000, "ddim100", range(0, 1000, 10)),
        (1, "1", [0]),
    ],
)
def test_sets_counted_by_hand(steps, spec, kept):
    assert space_timesteps(steps, spec) == set(kept)


@pytest.mark.parametrize("steps", [21, 100, 199, 1000, 4000])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, 21])
def test_one_section_is_spread_evenly_with_both_ends(steps, count):
    kept = sorted(space_timesteps(steps, [count]))
    assert len(kept) == count and kept[0] == 0
    if count > 1:
        assert kept[-1] == steps - 1
        exact = [Fraction(k * (steps - 1), count - 1) for k in range(count)]
        assert all(abs(k - e) <= Fraction(1, 2) + Fraction(1, 10**6) for k, e in zip(kept, exact))


@pytest.mark.parametrize("steps", [21, 50, 199, 1000])
@pytest.mark.parametrize("counts", [[2, 3], [5, 1, 4], [3, 3, 3, 3]])
def test_sections_are_spaced_each_for_itself(steps, counts):
    joined, start = set(), 0
    for part, count in zip(np.array_split(np.arange(steps), len(counts)), counts):
        joined |= {start + k for k in space_timesteps(len(part), [count])}
        start += len(part)
    spec = ",".join(map(str, counts))
    assert space_timesteps(steps, spec) == space_timesteps(steps, counts) == joined
    assert len(joined) == sum(counts)


@pytest.mark.parametrize("steps", [21, 100, 1000])
def test_ddim_spacing_is_the_smallest_stride_or_an_error(steps):
    strides = {}
    for stride in range(1, steps):
        strides.setdefault(-(-steps // stride), stride)
    for count in range(steps + 2):
        if count in strides:
            assert space_timesteps(steps, f"ddim{count}") == set(range(0, steps, strides[count]))
        else:
            with pytest.raises(UserError, match=f"--timestep_respacing ddim{count} .*nearest: ddim"):
                space_timesteps(steps, f"ddim{count}")


def test_one_timestep_has_one_stride():
    assert space_timesteps(1, "ddim1") == {0}


@pytest.mark.parametrize(
    "spec, words",
    [
        ("ddim300", "nearest: ddim250 or ddim334"),
        ("ddim1001", "nearest: ddim1000"),
        ("ddim", "'ddim'; expected a number of steps after ddim"),
        ("ddim7x", "'ddim7x'; expected a number of steps after ddim"),
        ("ddim²", "'ddim²'; expected a number of steps after ddim"),
        ("ddim" + "9" * 5000, "expected a number of steps after ddim"),
        ("1001", "1001 steps of a section of 1000 timesteps; expected 1 to 1000"),
        ("0", "0 steps .*; expected 1 to 1000"),
        ("10,-3", "-3 steps of a section of 500"),
        ("1," * 1000 + "1", "1001 sections of 1000 timesteps; expected at most as many"),
        ([400, 1, 1], "400 steps of a section of 334"),
        ("ten", "'ten'; expected numbers such as"),
        ("10,,3", "expected numbers such as"),
    ],
)
def test_errors_name_the_nearest_that_can_be_had(spec, words):
    with pytest.raises(UserError, match=f"^--timestep_respacing .*{words}"):
        space_timesteps(1000, spec)


@pytest.mark.parametrize(
    "case, steps, spec",
    [
        ("linear_small", 1000, "20"),
        ("cosine_learned", 1000, "ddim10"),
        ("cosine_learned_rescaled_mse", 1000, "10,5,5"),
        ("linear_kl_rescaled_t", 1000, "25"),
        ("sigma_small_predict_xstart", 500, "ddim25"),
    ],
)
def test_published_rounding(case, steps, spec):
    assert sorted(space_timesteps(steps, spec)) == GOLDEN[f"{case}.timestep_map"].tolist()


def test_spaced_diffusion_keeps_the_levels_of_its_steps():
    betas = get_named_beta_schedule("cosine", 100)
    d = SpacedDiffusion(
        [99, 3, 50],
        betas=betas,
        model_mean_type=ModelMeanType.EPSILON,
        model_var_type=ModelVarType.FIXED_SMALL,
        loss_type=LossType.MSE,
    )
    assert d.timestep_map == [3, 50, 99] and d.num_timesteps == 3
    assert d.original_num_steps == 100 and d.use_timesteps == {3, 50, 99}
    np.testing.assert_allclose(np.cumprod(1 - d.betas), np.cumprod(1 - betas)[[3, 50, 99]], rtol=1e-9)
