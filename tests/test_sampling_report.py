"""What a sampling run says of its grid and of its network calls."""

import json
from pathlib import Path

import pytest
import script_runs

MODEL = Path(__file__).parents[1] / "models" / "digits16.pt"


@pytest.mark.parametrize(
    "flags, grid, calls",
    [
        # one fewer than 2 N - 1: the step from the noisiest cosine timestep is plain
        ("--solver heun --spacing quad --timestep_respacing 4", [999, 562, 249, 62, -1], 6),
        ("--solver unipc --spacing uniform --timestep_respacing 2", [999, 499, -1], 2),
    ],
)
def test_the_grid_is_saved_and_the_calls_are_counted(flags, grid, calls, tmp_path):
    given = ["--model_path", MODEL, "--num_samples", 3, "--batch_size", 2, "--out_dir", tmp_path, *flags.split()]
    printed = script_runs.run("image_sample", *given)
    assert f"{len(grid) - 1} steps by way of the timesteps: {' '.join(map(str, grid))}" in printed
    assert json.loads((tmp_path / "grid.json").read_text()) == grid
    assert f"network calls: {calls} for each of 3 images" in printed


def test_a_long_grid_is_abbreviated_in_print_alone(tmp_path):
    printed = script_runs.run(
        "image_sample", "--model_path", MODEL, "--num_samples", 1, "--out_dir", tmp_path, "--timestep_respacing", 80
    )
    assert "80 steps by way of the timesteps: 999 986 974 961 948 ... 38 25 13 0 -1" in printed
    assert len(json.loads((tmp_path / "grid.json").read_text())) == 81
