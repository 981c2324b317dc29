"""Features of a classifier and of TorchScript, the flag that chooses them, and their cache."""

import hashlib
import warnings

import numpy as np
import pytest
import torch
from embedded_models import CLASSIFIER, held_out_digits, says

from evaluations.features import ClassifierFeatures, Extractor, FeatureFlags
from guided_diffusion.errors import UserError
from guided_diffusion.unet import EncoderUNetModel

IMAGES = np.random.default_rng(0).integers(256, size=(5, 8, 6, 3), dtype=np.uint8)


class Means(torch.nn.Module):
    """A network for images of 8x6 that returns their means, [N, 3, 1, 1]."""

    def forward(self, x):
        assert x.shape[2] == 8 and x.shape[3] == 6, "expected 8x6"
        return x.mean(dim=(2, 3), keepdim=True)


class Total(torch.nn.Module):
    def forward(self, x):
        return x.sum()


def save(network, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), str(path))
    return path


@pytest.fixture
def means(tmp_path):
    return save(Means(), tmp_path / "means.pt")


def refusal(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_classifiers_features_are_what_it_decides_by():
    images, _ = held_out_digits()
    extract = FeatureFlags(features=f"classifier:{CLASSIFIER}").create()
    features = extract(images[:50])
    assert features.pool.dtype == torch.float32 and len(features.pool) == 50 and features.spatial is None
    sha256 = hashlib.sha256(CLASSIFIER.read_bytes()).hexdigest()
    assert extract.facts == {"name": f"classifier:{CLASSIFIER}", "sha256": sha256, "dtype": "fp32"}
    assert extract.weights is None and not extract.inception
    # the last layer alone turns them into what the classifier says
    state = torch.load(CLASSIFIER, weights_only=True)
    weight, bias = (state[f"out.2.c_proj.{name}"] for name in ("weight", "bias"))
    tokens = features.pool.unflatten(1, (weight.shape[1], -1))[:, :, 0]
    assert np.array_equal((tokens @ weight[:, :, 0].T + bias).argmax(dim=1).numpy(), says(images[:50]))


def test_a_classifier_in_bfloat16_is_close_and_another():
    images, _ = held_out_digits()
    full, half = (
        FeatureFlags(features=f"classifier:{CLASSIFIER}", feature_dtype=dtype).create()(images[:20]).pool
        for dtype in ("fp32", "bf16")
    )
    error = ((half - full).square().mean() / full.square().mean()).sqrt()
    assert half.dtype == torch.float32 and 1e-4 < error < 0.1


def test_torchscript_is_given_colours_of_0_to_1(means):
    extract = FeatureFlags(trust_code=True, features=f"torchscript:{means}").create()
    found = extract(IMAGES)
    np.testing.assert_allclose(found.pool.numpy(), IMAGES.mean(axis=(1, 2)) / 255, rtol=1e-6)
    assert found.spatial is None and extract.facts["sha256"] == hashlib.sha256(means.read_bytes()).hexdigest()


def test_images_of_another_size_are_one_sentence(means):
    classifier = FeatureFlags(features=f"classifier:{CLASSIFIER}").create()
    sentence = f"--features classifier:{CLASSIFIER} takes images of 16x16; these are 8x6"
    assert refusal(classifier, IMAGES[..., :1]) == sentence
    script = FeatureFlags(trust_code=True, features=f"torchscript:{means}").create()
    sentence = refusal(script, IMAGES.swapaxes(1, 2))
    assert sentence.startswith(f"--features torchscript:{means} fails on images (5, 3, 6, 8)")
    assert sentence.endswith("expected 8x6")


def test_images_have_to_be_uint8(means):
    with pytest.raises(ValueError, match="float32; expected uint8"):
        FeatureFlags(trust_code=True, features=f"torchscript:{means}").create()(IMAGES.astype(np.float32))


def test_grey_is_repeated_where_a_network_takes_colours(means):
    extract = FeatureFlags(trust_code=True, features=f"torchscript:{means}").create()
    grey = IMAGES[..., :1]
    assert torch.equal(extract(grey).pool, extract(np.repeat(grey, 3, axis=3)).pool)
    assert extract.repeats(1) and not extract.repeats(3) and not extract.repeats(4)


def test_a_fourth_channel_is_refused_where_nothing_takes_it(means):
    for name, channels in ((f"classifier:{CLASSIFIER}", 1), (f"torchscript:{means}", 3)):
        sentence = refusal(FeatureFlags(features=name, trust_code=True).create(), np.zeros((2, 16, 16, 4), np.uint8))
        assert sentence == f"--features {name} takes images of {channels} channel{'s' * (channels > 1)}; these have 4"


@pytest.mark.parametrize("channels", [1, 4])
def test_a_classifier_of_other_channels_is_given_them(channels):
    torch.manual_seed(0)
    classifier = EncoderUNetModel(8, channels, 32, 3, 1, (), channel_mult=(1,)).eval()
    features = ClassifierFeatures(classifier)
    facts = {"name": "classifier:other.pt", "dtype": "fp32"}
    extract = Extractor(facts, lambda x: (features(x),), torch.device("cpu"), channels=classifier.in_channels)
    images = np.random.default_rng(0).integers(256, size=(3, 8, 8, channels), dtype=np.uint8)
    seen = []
    classifier.input_blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert len(extract(images).pool) == 3
    np.testing.assert_allclose(seen[0].permute(0, 2, 3, 1), images / 127.5 - 1, atol=1e-6)
    plural = "s" * (channels > 1)
    expected = f"--features classifier:other.pt takes images of {channels} channel{plural}; these have 3"
    assert refusal(extract, IMAGES) == expected and not extract.repeats(1)


def test_torchscript_has_to_return_rows(tmp_path):
    extract = FeatureFlags(trust_code=True, features=f"torchscript:{save(Total(), tmp_path / 'total.pt')}").create()
    assert "does not return one row of features for each of 5 images" in refusal(extract, IMAGES)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {"features": "dino"},
            "--features is 'dino'; expected inception, classifier:PATH, dinov2:PATH, clip:PATH or torchscript:PATH",
        ),
        ({"features": "classifier:"}, "--features is 'classifier:'; expected inception"),
        ({"features": "torchscript:absent.pt"}, "--features torchscript:absent.pt: there is no file absent.pt"),
        ({"features": f"torchscript:{__file__}"}, "is code that would run here; expected --trust_code True"),
        ({"features": f"torchscript:{__file__}", "trust_code": True}, "is not what torch.jit.save writes"),
        ({"features": f"classifier:{__file__}"}, "--features"),
        ({"features": f"classifier:{CLASSIFIER}", "inception": "x.pth"}, "--inception x.pth is given, but --features"),
        ({"inception": "absent.pth"}, "--inception absent.pth is not a file"),
    ],
)
def test_a_flag_that_names_no_network_is_one_sentence(flags, expected):
    assert expected in refusal(FeatureFlags(**flags).create)


# -- the cache -----------------------------------------------------------------------------------------


@pytest.fixture
def cached(means, tmp_path):
    """(an Extractor that keeps features, its folder)."""
    folder = tmp_path / "cache"
    return FeatureFlags(trust_code=True, features=f"torchscript:{means}", feature_cache=str(folder)).create(), folder


def test_features_are_kept_for_the_next_run(cached):
    extract, folder = cached
    computed = extract(IMAGES).pool
    (path,) = folder.iterdir()
    assert torch.equal(extract(IMAGES).pool, computed)
    np.savez(path, pool=np.zeros((5, 3), np.float32))
    assert extract(IMAGES).pool.count_nonzero() == 0  # so it was read


def test_features_are_kept_by_content(cached, means, tmp_path):
    extract, folder = cached
    other = IMAGES.copy()
    other[4, 7, 5, 2] ^= 1
    assert not torch.equal(extract(IMAGES).pool, extract(other).pool)
    assert len(list(folder.iterdir())) == 2
    flags = {"feature_cache": str(folder)}
    FeatureFlags(trust_code=True, features=f"torchscript:{means}", feature_dtype="bf16", **flags).create()(IMAGES)
    assert len(list(folder.iterdir())) == 3
    FeatureFlags(
        trust_code=True, features=f"torchscript:{save(torch.nn.Flatten(), tmp_path / 'flat.pt')}", **flags
    ).create()(IMAGES)
    assert len(list(folder.iterdir())) == 4
    # the same weights under another name
    FeatureFlags(trust_code=True, features=f"torchscript:{means.rename(tmp_path / 'moved.pt')}", **flags).create()(
        IMAGES
    )
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04damaged"])
def test_a_damaged_file_is_made_anew(cached, content):
    extract, folder = cached
    computed = extract(IMAGES).pool
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(content or whole[: len(whole) // 2])
    assert torch.equal(extract(IMAGES).pool, computed)
    assert torch.equal(torch.from_numpy(np.load(path)["pool"]), computed)


def test_a_folder_in_place_of_a_classifier_is_of_its_flag(tmp_path):
    with pytest.raises(UserError, match=f"^--features {tmp_path} has no config.json"):
        FeatureFlags(features=f"classifier:{tmp_path}").create()
