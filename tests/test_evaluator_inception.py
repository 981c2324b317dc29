"""The evaluator with Inception: the numbers that guided-diffusion's evaluator printed, and references of one's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import script_runs
import torch
from inception_recipe import graph_weights, torch_weights
from PIL import Image
from synthetic_features import DATA

from evaluations.activations import activations_of
from evaluations.batches import open_images
from evaluations.features import FeatureFlags
from guided_diffusion.image_datasets import center_crop_arr

FOLDER = Path(__file__).parents[1] / "evaluations"
PAIRS = json.loads((DATA / "golden_metrics.json").read_text())["pairs"]
# of TensorFlow's rounding, as measured over machines
RELATIVE, DECISIONS = 2e-5, 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A torch weight file of the golden network."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({name: torch.from_numpy(array) for name, array in torch_weights(graph_weights()).items()}, path)
    return path


def evaluate(weights, out, *arguments):
    words = ["--inception", weights, "--out_dir", out, "--json", out / "report.json"]
    printed = script_runs.run("evaluator", *arguments, *words, folder=FOLDER)
    return printed, json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Features of the golden images, so that they are computed once."""
    return tmp_path_factory.mktemp("features")


def expect(scores, golden):
    for name, key in (("inception_score", "inception_score"), ("fid", "fid"), ("sfid", "sfid")):
        assert scores[name] == pytest.approx(float(golden[key]), rel=RELATIVE), name
    for name, count in (("precision", golden["n_sample"]), ("recall", golden["n_ref"])):
        assert round(abs(scores[name] - float(golden[name])) * count) <= DECISIONS, name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_published_numbers(weights, cache, tmp_path):
    pair = [DATA / "pub32_ref.npz", DATA / "pub32_smp.npz"]
    printed, report = evaluate(weights, tmp_path, *pair, "--feature_cache", cache)
    expect(report["scores"], PAIRS["pub32"])
    titles = ["Inception Score: ", "FID: ", "sFID: ", "Precision: ", "Recall: "]
    assert [line for line in printed.splitlines() if line.startswith(tuple(titles))] == [
        title + str(value) for title, value in zip(titles, report["scores"].values())
    ]
    _, plain = evaluate(weights, tmp_path, *pair, "--feature_cache", cache, "--pr_distance", "fp32")
    assert plain["scores"]["precision"] == pytest.approx(0.354167, abs=DECISIONS / 384)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_published_numbers_of_a_reference_with_statistics(weights, cache, tmp_path):
    """The statistics are of the first 300 images and a ridge, so that they are not what arr_0 gives."""
    extractor = FeatureFlags(inception=str(weights), feature_cache=str(cache)).create()
    images = open_images(str(DATA / "pub32_ref.npz"), "reference")
    seen = [extractor(part) for _, part in images.batches(64, 0, 1)]
    stored = {}
    for ending, features, ridge in (("", [s.pool for s in seen], 0.01), ("_s", [s.spatial for s in seen], 0.05)):
        first = torch.cat(features).numpy()[:300]
        stored["mu" + ending] = first.mean(axis=0)
        stored["sigma" + ending] = np.cov(first, rowvar=False) + ridge * np.eye(first.shape[1])
    np.savez(tmp_path / "virtual.npz", arr_0=np.load(DATA / "pub32_ref.npz")["arr_0"], **stored)
    pair = [tmp_path / "virtual.npz", DATA / "pub32_smp.npz"]
    _, report = evaluate(weights, tmp_path, *pair, "--feature_cache", cache)
    expect(report["scores"], PAIRS["pub32_virtual"])
    assert report["reference"]["type"] == "npz of statistics and images"


@pytest.mark.slow
def test_a_reference_of_ones_own_data(weights, tmp_path):
    """It has what the published evaluator reads, of images as training sees them, and works here."""
    draws = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    pictures = [Image.fromarray(draws.integers(256, size=(50, 44, 3), dtype=np.uint8)) for _ in range(6)]
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    made = tmp_path / "ref.npz"
    words = ["--image_size", 16, "--out", made, "--num_images", 5, "--inception", weights, "--out_dir", tmp_path]
    script_runs.run("make_reference", folder, *words, folder=FOLDER)
    stored = np.load(made)
    crops = np.stack([center_crop_arr(picture, 16) for picture in pictures])
    kept = [int((crops == image).all(axis=(1, 2, 3)).argmax()) for image in stored["arr_0"]]
    assert np.array_equal(stored["arr_0"], crops[kept]) and kept == sorted(set(kept)) and len(kept) == 5
    assert stored["arr_0"].dtype == np.uint8
    shapes = {"mu": (2048,), "sigma": (2048, 2048), "mu_s": (2023,), "sigma_s": (2023, 2023)}
    assert {name: stored[name].shape for name in stored if name != "arr_0"} == shapes
    assert all(stored[name].dtype == np.float64 for name in shapes)

    np.savez(tmp_path / "crops.npz", crops)
    extractor = FeatureFlags(inception=str(weights)).create()
    pool, spatial = extractor(crops)
    assert np.allclose(stored["mu"], pool.double().mean(dim=0), rtol=1e-5)
    assert np.allclose(stored["sigma_s"], np.cov(spatial.numpy(), rowvar=False), atol=1e-5)

    _, report = evaluate(weights, tmp_path, made, tmp_path / "crops.npz", "--metrics", "fid,sfid,precision,recall")
    scores = report["scores"]
    assert scores["fid"] < 1e-3 and scores["sfid"] < 1e-3
    assert scores["recall"] == 1 and scores["precision"] >= 5 / 6  # all but the one that was not kept
    assert report["reference"]["type"] == "npz of statistics and images"


@pytest.mark.slow
def test_statistics_alone_need_no_images_of_the_reference(weights, tmp_path):
    stored = {"mu": np.zeros(2048), "sigma": np.eye(2048), "mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    np.savez(tmp_path / "statistics.npz", **stored)
    np.savez(tmp_path / "samples.npz", np.random.default_rng(0).integers(256, size=(3, 8, 8, 3), dtype=np.uint8))
    _, report = evaluate(weights, tmp_path, tmp_path / "statistics.npz", tmp_path / "samples.npz")
    images = open_images(str(tmp_path / "samples.npz"), "samples")
    found = activations_of(images, FeatureFlags(inception=str(weights)).create(), 64)
    for name, moments in (("fid", found.moments), ("sfid", found.spatial)):
        # the root of A times the identity is that of A
        expected = moments.mean.square().sum() + moments.covariance.trace() + len(moments.mean)
        expected -= 2 * torch.linalg.eigvalsh(moments.covariance)[-2:].sqrt().sum()
        assert report["scores"][name] == pytest.approx(float(expected), rel=1e-9)
    assert set(report["scores"]) == {"inception_score", "fid", "sfid"}
    assert any(note.startswith("Precision, Recall undefined") for note in report["notes"])
