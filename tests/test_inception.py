"""The Inception network against TensorFlow's outputs, both weight files, and where weights come from."""

import copy
import hashlib
import http.server
import os
import sys
import threading

import inception_recipe
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_writer import frozen_graph, node

from evaluations import frozen_graph as reader
from evaluations import inception, inception_weights
from evaluations.features import FeatureFlags
from evaluations.inception_weights import PUBLISHED, Published
from guided_diffusion import logger
from guided_diffusion.errors import UserError

GOLDEN = np.load(inception_recipe.DATA / "golden_features_101.npz")
# pictures of a size that the goldens have: 25 images with probabilities, and 2 that are not square
COUNTS = {32: 8, 64: 8, 128: 4, 256: 2, 299: 1, 512: 2}


@pytest.fixture(scope="module")
def weights():
    """{node of the graph: array} of the golden network."""
    return inception_recipe.graph_weights()


@pytest.fixture(scope="module")
def torch_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    state = inception_recipe.torch_weights(weights)
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def loaded(torch_file):
    """(network, hash)."""
    return inception_weights.load(torch_file)


@pytest.fixture(scope="module")
def network(loaded):
    return loaded[0]


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without weights; returns its folder of downloads."""
    monkeypatch.delenv("INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for folder in ("here", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "torch" / "hub" / "checkpoints"


def pictures(size):
    return torch.from_numpy(inception_recipe.pictures(COUNTS[size], size))


def relative(found, name):
    """Largest difference from a golden, as a share of its largest value."""
    return np.abs(found.numpy() - GOLDEN[name]).max() / np.abs(GOLDEN[name]).max()


# -- the network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", COUNTS)
def test_the_resize_is_tensorflows_to_the_bit(size):
    found = inception.resize(pictures(size)[:1])[0].permute(1, 2, 0)
    assert np.array_equal(found[::23, ::19].numpy(), GOLDEN[f"resize{size}_rows"])
    if size == 299:
        assert torch.equal(found, pictures(size)[0].float())


@pytest.mark.parametrize("size", COUNTS)
def test_features_and_probabilities_are_tensorflows(network, size):
    pool, spatial = network(pictures(size))
    assert pool.shape == (COUNTS[size], 2048) and spatial.shape == (COUNTS[size], 2023)
    assert relative(pool, f"p{size}_pool") < 1e-4 and relative(spatial, f"p{size}_spatial") < 1e-4
    probabilities = (pool @ network.fc.weight.T).softmax(dim=1).detach().numpy()
    assert np.abs(probabilities - GOLDEN[f"p{size}_softmax"]).max() < 5e-4


def test_images_need_not_be_square(network):
    pool, spatial = network(torch.from_numpy(inception_recipe.pictures(2, 80)[:, :48]))
    assert relative(pool, "p48x80_pool") < 1e-4 and relative(spatial, "p48x80_spatial") < 1e-4


@pytest.mark.parametrize("size", [32, 64, 299])
def test_the_folded_network_is_tensorflows(network, size):
    folded = copy.deepcopy(network).fold()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    pool, spatial = folded(pictures(size))
    assert relative(pool, f"p{size}_pool") < 1e-4 and relative(spatial, f"p{size}_spatial") < 1e-4


def test_the_flag_gives_the_same_features(network, torch_file, tmp_path):
    flags = {"inception": str(torch_file), "feature_cache": str(tmp_path / "cache")}
    extract = FeatureFlags(**flags).create()
    assert extract.inception and torch.equal(extract.weights, network.fc.weight.T)
    assert extract.facts == {"name": "inception", "sha256": inception_recipe.DIGEST, "dtype": "fp32"}
    images = pictures(32)[:2]
    expected = copy.deepcopy(network).fold()(images)
    for mine, unfolded in zip(expected, network(images)):
        assert not torch.equal(mine, unfolded)
    for _ in range(2):  # computed, then kept
        found = extract(images.numpy())
        assert torch.equal(found.pool, expected[0]) and torch.equal(found.spatial, expected[1])
    (kept,) = (tmp_path / "cache").iterdir()
    assert set(np.load(kept)) == {"pool", "spatial"}
    half = FeatureFlags(**flags, feature_dtype="bf16").create()(images)
    assert half.pool.dtype == half.spatial.dtype == torch.float32
    error = (half.pool - expected[0]).square().mean() / expected[0].square().mean()
    assert 1e-3 < error.sqrt() < 0.05


def test_every_layer_is_tensorflows(network):
    """Mean, deviation and range of all 94 layers, of one picture."""
    seen, handles = {}, []

    def keep(scope):
        return lambda module, inputs, output: seen.update({scope: output.double()})

    for scope, (module, _) in reader.scopes().items():
        if module:
            handles.append(network.get_submodule(module).register_forward_hook(keep(scope)))
    try:
        network(pictures(32)[:1])
    finally:
        for handle in handles:
            handle.remove()
    golden = dict(zip(GOLDEN["trace_names"].tolist(), GOLDEN["trace_stats"]))
    assert len(seen) == 94 and seen.keys() <= golden.keys()
    for scope, x in seen.items():
        found = [x.mean(), x.std(correction=0), x.min(), x.max()]
        np.testing.assert_allclose(found, golden[scope], atol=3e-5 * golden[scope][3], err_msg=scope)


def _half_pixels(images):
    return F.interpolate(images.permute(0, 3, 1, 2).float(), (299, 299), mode="bilinear")


def _aligned_corners(images):
    return F.interpolate(images.permute(0, 3, 1, 2).float(), (299, 299), mode="bilinear", align_corners=True)


RESIZE, AVERAGE = inception.resize, F.avg_pool2d


def _pool_of(name, pool):
    def change(patch, network):
        block = network.get_submodule(name)
        *others, (_, conv) = block.branches
        patch.setattr(block, "branches", [*others, [pool, conv]])

    return change


def _epsilon(patch, network):
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            patch.setattr(module, "eps", 1e-5)


MISTAKES = {
    "half-pixel resize": lambda patch, _: patch.setattr(inception, "resize", _half_pixels),
    "aligned corners": lambda patch, _: patch.setattr(inception, "resize", _aligned_corners),
    "127.5 in place of 128": lambda patch, _: patch.setattr(inception, "resize", lambda x: RESIZE(x) + 0.5),
    "blue first": lambda patch, _: patch.setattr(inception, "resize", lambda x: RESIZE(x.flip(3))),
    "epsilon 1e-5": _epsilon,
    "average that counts padding": lambda patch, _: patch.setattr(
        F, "avg_pool2d", lambda x, *args, **kwargs: AVERAGE(x, *args, **kwargs | {"count_include_pad": True})
    ),
    "average in the last block": _pool_of("Mixed_7c", inception.avg_same),
    "max in the last but one": _pool_of("Mixed_7b", inception.max_same),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_goldens_would_show_a_mistake(network, mistake, monkeypatch):
    """Each of these is made somewhere in public code."""
    MISTAKES[mistake](monkeypatch, network)
    pool, _ = network(pictures(32)[:1])
    golden = GOLDEN["p32_pool"][:1]
    assert np.sqrt(np.square(pool.numpy() - golden).mean() / np.square(golden).mean()) > 0.01


def test_the_order_of_spatial_features_matters():
    golden = GOLDEN["p32_spatial"]
    other = golden.reshape(-1, 17, 17, 7).transpose(0, 3, 1, 2).reshape(golden.shape)
    assert np.abs(golden - other).max() > 0.1 * golden.max()


# -- the two weight files ------------------------------------------------------------------------------


def test_the_recipe_makes_the_published_network(loaded):
    assert loaded[1] == inception_recipe.DIGEST


@pytest.mark.parametrize("listed", [False, True])
def test_the_graph_gives_the_same_features_to_the_bit(weights, loaded, listed, tmp_path):
    network, sha256 = loaded
    path = tmp_path / "classify_image_graph_def.pb"
    path.write_bytes(frozen_graph(weights, listed=listed))
    other, other_sha256 = inception_weights.load(path)
    assert other_sha256 == sha256
    for mine, theirs in zip(network.state_dict().values(), other.state_dict().values()):
        assert torch.equal(mine, theirs)
    images = pictures(32)[:1]
    assert all(torch.equal(a, b) for a, b in zip(network(images), other(images)))


def test_a_graph_that_does_not_scale_has_gammas_of_one(weights):
    state = reader.read(frozen_graph(weights, scale=False), "graph.pb")
    gammas = [value for name, value in state.items() if name.endswith("bn.weight")]
    assert len(gammas) == 94 and all((gamma == 1).all() for gamma in gammas)


def test_a_number_stands_for_all_that_follow(weights):
    """As TensorFlow writes constants whose values are equal."""
    ones = {name: np.ones_like(array) if name.endswith("gamma") else array for name, array in weights.items()}
    data = frozen_graph(ones, listed=True)
    assert len(data) < len(frozen_graph(weights, listed=True))
    assert torch.equal(reader.read(data, "graph.pb")["Mixed_7c.branch_pool.bn.weight"], torch.ones(192))


def test_batches_tracked_may_be_there(torch_file, loaded, tmp_path):
    state = torch.load(torch_file, weights_only=True)
    state |= {name: value for name, value in loaded[0].state_dict().items() if name.endswith("num_batches_tracked")}
    assert len(state) == 472 + 94
    torch.save(state, tmp_path / "tracked.pth")
    assert inception_weights.load(tmp_path / "tracked.pth")[1] == loaded[1]


def refusal(path):
    with pytest.raises(UserError) as caught:
        inception_weights.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence
    return sentence


def without(weights, name):
    return {k: v for k, v in weights.items() if k != name}


GRAPHS = {
    "it has no node mixed_3/conv/batchnorm/beta": lambda w: frozen_graph(without(w, "mixed_3/conv/batchnorm/beta")),
    "1 of its convolutions and pools differ, such as conv_5/Conv2D": lambda w: (
        frozen_graph(w) + node("conv_5/Conv2D", "Conv2D")
    ),
    "differ, such as mixed_9/tower_2/pool": lambda w: frozen_graph(w) + node("mixed_9/tower_2/pool", "MaxPool"),
    "the epsilon of conv/batchnorm is 1e-05, not 0.001": lambda w: frozen_graph(w, epsilon=1e-5),
    "Sub/y is 127.5, not 128": lambda w: frozen_graph(w, half=127.5),
    "fc.weight is (1001, 2048), not (1008, 2048)": lambda w: frozen_graph(
        w | {"softmax/weights": w["softmax/weights"][:, :1001]}
    ),
    "neither a torch file nor a frozen TensorFlow graph": lambda w: b"\xffhello",
    "or are truncated": lambda w: frozen_graph(w)[:1000],
    "108 of its convolutions and pools differ": lambda w: b"",
}


@pytest.mark.parametrize("reason", GRAPHS)
def test_another_graph_is_refused(weights, reason, tmp_path):
    path = tmp_path / "graph.pb"
    path.write_bytes(GRAPHS[reason](weights))
    assert reason in refusal(path)


STATES = {
    "it lacks fc.bias": lambda state: state.pop("fc.bias"),
    "it has beyond that AuxLogits.fc.bias": lambda state: state.update({"AuxLogits.fc.bias": torch.zeros(1000)}),
    "fc.weight is (1000, 2048), not (1008, 2048)": lambda state: state.update({"fc.weight": torch.zeros(1000, 2048)}),
}


@pytest.mark.parametrize("reason", STATES)
def test_another_state_dict_is_refused(torch_file, reason, tmp_path):
    state = torch.load(torch_file, weights_only=True)
    STATES[reason](state)
    torch.save(state, tmp_path / "other.pth")
    assert reason in refusal(tmp_path / "other.pth")


def test_without_tensorboard_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.graph_pb2", None)
    with pytest.raises(UserError, match="needs tensorboard.*pip install tensorboard"):
        reader.read(b"", "graph.pb")


def test_weights_that_are_not_the_published_ones_are_warned_of(torch_file, tmp_path, monkeypatch):
    with logger.scoped_configure(str(tmp_path), ["log"]):
        inception_weights.load(torch_file)
        text = (tmp_path / "log.txt").read_text()
        assert text.count("warning: ") == 1 and "numbers compare only with others of these" in text.splitlines()[-1]
        sha256 = hashlib.sha256(torch_file.read_bytes()).hexdigest()
        monkeypatch.setattr(inception_weights, "PUBLISHED", [Published("", "", sha256)])
        inception_weights.load(torch_file)
        assert (tmp_path / "log.txt").read_text() == text


# -- where weights come from ---------------------------------------------------------------------------


def test_the_published_name_carries_its_checksum():
    assert {file.sha256[:8] for file in PUBLISHED if file.name.endswith(".pth")} == {"6726825d"}
    assert all(f"-{file.sha256[:8]}.pth" in file.name for file in PUBLISHED if file.name.endswith(".pth"))
    assert all(len(file.sha256) == 64 and file.address.endswith("/" + file.name) for file in PUBLISHED)


def test_the_flag_wins_then_the_environment_then_the_folders(nowhere, tmp_path, monkeypatch):
    nowhere.mkdir(parents=True)
    given, named, kept = tmp_path / "given", tmp_path / "named", nowhere / PUBLISHED[1].name
    here, temporary = tmp_path / "here" / PUBLISHED[-1].name, tmp_path / "temporary" / PUBLISHED[-1].name
    for path in (given, named, kept, here, temporary):
        path.touch()
    monkeypatch.setenv("INCEPTION_WEIGHTS", str(named))
    assert inception_weights.find(str(given)) == str(given)
    assert inception_weights.find() == str(named)
    monkeypatch.delenv("INCEPTION_WEIGHTS")
    for path in (kept, here, temporary):
        assert os.path.samefile(inception_weights.find(), path)
        path.unlink()


@pytest.mark.parametrize("source", ["--inception", "$INCEPTION_WEIGHTS"])
def test_a_path_that_is_not_there_is_named(nowhere, source, tmp_path, monkeypatch):
    path = str(tmp_path / "absent.pth")
    monkeypatch.setenv("INCEPTION_WEIGHTS", path)
    with pytest.raises(UserError) as caught:
        inception_weights.find(path if source == "--inception" else "")
    assert str(caught.value).startswith(f"{source} {path} is not a file; expected {PUBLISHED[0].name}")


@pytest.fixture
def served(tmp_path):
    """(a folder, its address) that a server on this machine gives out."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


CONTENT = b"weights" * 100_000


def published(address, name="weights.pth", content=CONTENT):
    return Published(name, f"{address}/{name}", hashlib.sha256(content).hexdigest())


def test_a_download_is_kept_and_found_again(nowhere, served, monkeypatch, capfd):
    folder, address = served
    (folder / "weights.pth").write_bytes(CONTENT)
    # the first address does not have it
    monkeypatch.setattr(inception_weights, "PUBLISHED", [published(address, "absent.pth"), published(address)])
    path = inception_weights.find()
    assert path == str(nowhere / "weights.pth") and (nowhere / "weights.pth").read_bytes() == CONTENT
    assert "weights.pth: 100%" in capfd.readouterr().err
    (folder / "weights.pth").unlink()
    assert inception_weights.find() == path


def test_a_download_of_another_checksum_is_not_kept(nowhere, served, monkeypatch):
    folder, address = served
    (folder / "weights.pth").write_bytes(CONTENT[:-1])
    monkeypatch.setattr(inception_weights, "PUBLISHED", [published(address)])
    with pytest.raises(UserError, match="downloading failed .*sha256") as caught:
        inception_weights.find()
    assert "\n" not in str(caught.value) and list(nowhere.iterdir()) == []


def test_without_a_network_one_sentence_says_which_file_to_put_where(nowhere, monkeypatch):
    monkeypatch.setattr(inception_weights, "PUBLISHED", [published("http://127.0.0.1:9")])
    with pytest.raises(UserError) as caught:
        inception_weights.find()
    sentence = str(caught.value)
    assert f"put http://127.0.0.1:9/weights.pth into {nowhere}" in sentence and "--inception" in sentence
    assert "\n" not in sentence and list(nowhere.iterdir()) == []
