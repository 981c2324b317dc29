"""--features dinov2:PATH and clip:PATH against transformers' own, and CMMD against the formula of its paper."""

import json
import shutil

import numpy as np
import pytest
import script_runs
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from evaluations.cmmd import cmmd
from evaluations.features import FeatureFlags
from guided_diffusion.errors import UserError

transformers = pytest.importorskip("transformers")
IMAGES = np.random.default_rng(0).integers(256, size=(3, 20, 28, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: folder} of tiny random models."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    dino = transformers.Dinov2Model(transformers.Dinov2Config(image_size=56, **small))
    config = transformers.CLIPVisionConfig(image_size=42, intermediate_size=32, projection_dim=8, **small)
    clip = transformers.CLIPVisionModelWithProjection(config)
    place = tmp_path_factory.mktemp("vision")
    for name, model in (("dinov2", dino), ("clip", clip)):
        model.save_pretrained(place / name)
    return {name: str(place / name) for name in ("dinov2", "clip")}


def features_of(folders, name, **flags):
    return FeatureFlags(features=f"{name}:{folders[name]}", **flags).create()


@torch.no_grad()
def test_dinov2_is_given_squares_resized_as_pillow_does(folders):
    extract = features_of(folders, "dinov2")
    resized = [Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in IMAGES]
    processor = transformers.BitImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    pixels = processor(resized, return_tensors="pt")["pixel_values"]
    tokens = transformers.Dinov2Model.from_pretrained(folders["dinov2"]).eval()(pixels).last_hidden_state
    found = extract(IMAGES).pool
    assert found.shape == (3, 16)
    torch.testing.assert_close(found, tokens[:, 0], rtol=0, atol=5e-3)  # Pillow rounds to whole levels
    assert (found - tokens[:, 1]).abs().max() > 0.1


@torch.no_grad()
def test_clip_is_given_squares_of_its_own_size(folders):
    extract = features_of(folders, "clip")
    x = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).double() / 255
    x = torch.nn.functional.interpolate(x, size=(42, 42), mode="bicubic").clip(0, 1)
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    pixels = processor(list(x), return_tensors="pt")["pixel_values"].float()
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(folders["clip"]).eval()
    torch.testing.assert_close(extract(IMAGES).pool, model(pixels).image_embeds, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, other", [("dinov2", "clip"), ("clip", "dinov2")])
def test_a_folder_of_another_model_is_refused(folders, tmp_path, name, other):
    with pytest.raises(UserError, match=f"is a folder of {other}.*; expected one of {name}"):
        FeatureFlags(features=f"{name}:{folders[other]}").create()
    with pytest.raises(UserError, match="is no folder that transformers saved"):
        FeatureFlags(features=f"{name}:{tmp_path}").create()


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_weights_that_lack_some_are_refused(folders, tmp_path, name):
    """And none is drawn in their place."""
    shutil.copytree(folders[name], tmp_path / "lacking")
    file = tmp_path / "lacking" / "model.safetensors"
    state = load_file(file)
    del state[next(key for key in state if "layernorm" in key or "norm1" in key or "layer_norm1" in key)]
    save_file(state, file)
    with pytest.raises(UserError, match="lacks 1 of the weights of a"):
        FeatureFlags(features=f"{name}:{tmp_path / 'lacking'}").create()
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"--features {name}:.* cannot be loaded as"):
        FeatureFlags(features=f"{name}:{tmp_path / 'lacking'}").create()


def test_clip_without_its_projection_is_refused(folders, tmp_path):
    transformers.CLIPVisionModelWithProjection.from_pretrained(folders["clip"]).vision_model.save_pretrained(tmp_path)
    shutil.copy(f"{folders['clip']}/config.json", tmp_path)
    with pytest.raises(UserError, match="lacks .* of the weights of a CLIPVisionModelWithProjection"):
        FeatureFlags(features=f"clip:{tmp_path}").create()


def test_code_in_a_folder_is_not_run(folders, tmp_path, monkeypatch):
    """Nor is anybody asked whether it may."""
    shutil.copytree(folders["dinov2"], tmp_path / "evil")
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((tmp_path / "evil" / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "evil" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("somebody is asked"))
    with pytest.raises(UserError, match="is no folder that transformers saved"):
        FeatureFlags(features=f"dinov2:{tmp_path / 'evil'}").create()
    assert not (tmp_path / "ran").exists()


def test_grey_images_and_facts(folders):
    extract = features_of(folders, "clip")
    grey = IMAGES[..., :1]
    torch.testing.assert_close(extract(grey).pool, extract(np.repeat(grey, 3, 3)).pool)
    assert len(extract.facts["sha256"]) == 64


@pytest.mark.parametrize("counts", [(1, 1), (5, 3), (40, 60)])
def test_cmmd_is_the_sum_over_all_pairs(counts):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(counts[0], 6)), rng.normal(size=(counts[1], 6)) + 0.5
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))

    def mean(p, q):
        return np.mean([[np.exp(-((u - v) ** 2).sum() / (2 * 10**2)) for v in q] for u in p])

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    found = cmmd(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-9)
    assert cmmd(torch.from_numpy(x), torch.from_numpy(x)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_the_evaluator_has_them_beside_each_other(folders, tmp_path, name):
    for path, seed in (("reference.npz", 0), ("samples.npz", 1)):
        images = np.random.default_rng(seed).integers(256, size=(12, 16, 16, 3), dtype=np.uint8)
        np.savez(tmp_path / path, arr_0=images)
    features = ["--features", f"{name}:{folders[name]}", "--metrics", "frechet_distance,cmmd"]
    words = [tmp_path / "reference.npz", tmp_path / "samples.npz", *features, "--json", tmp_path / "found.json"]
    said = script_runs.run(
        "evaluator", *words, "--out_dir", tmp_path / "out", folder=script_runs.FOLDER.parent / "evaluations"
    )
    assert "Frechet distance" in said and "CMMD" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert name in json.dumps(found)
