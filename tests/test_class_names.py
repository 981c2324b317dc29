"""Names of classes beside a checkpoint, in every script that reads one: a folder's classes are those of their names."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_runs import CLASSIFIER, NETWORK, PROCESS, TRAINING, run, train, train_diffusion

from evaluations.classifier_accuracy import predictions
from guided_diffusion import checkpoints
from guided_diffusion.errors import NotFinite
from guided_diffusion.image_labels import of_text

FEW = ["--num_samples", 4, "--batch_size", 4, "--timestep_respacing", 4]
COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200), "dog": (150, 150, 30)}
TWO = [flag for flag in TRAINING if flag not in ("--iterations", "2")]  # steps are given where they matter


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(folder, *names, count=3):
    """A folder with a sub-folder of each class."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(50, size=(16, 16, 3)) + np.array(COLOURS[name])
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def data(place):
    return draw(place / "data", "ant", "bee", "cat")


@pytest.fixture(scope="module")
def conditional(place, data):
    return train_diffusion(data, place / "run", "--class_cond", True)


@pytest.fixture(scope="module")
def classifier(place, data):
    flags = [flag for flag in CLASSIFIER if flag not in ("--num_classes", "3")]
    return train("classifier_train", data, place / "classifier", *flags)


def beside(path):
    return json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("which", ["conditional", "classifier"])
def test_the_number_and_names_of_classes_are_those_of_the_data(which, request):
    saved = beside(request.getfixturevalue(which))
    assert saved["num_classes"] == 3 and of_text(saved["class_names"]) == ["ant", "bee", "cat"]
    assert saved["data"]["images"] == 9 and re.fullmatch("[0-9a-f]{16}", saved["data"]["digest"])


def test_more_classes_than_the_data_have_are_said(place, data, capsys):
    flags = ["--class_cond", True, "--num_classes", 5, "--dry_run", True]
    said = run("image_train", "--data_dir", data, "--out_dir", place / "dry", *TRAINING, *PROCESS, *NETWORK, *flags)
    assert "--num_classes is 5, of which the data have 3" in said + capsys.readouterr().err


def bound(model, data, out_dir, *flags):
    said = run("image_nll", "--model_path", model, "--data_dir", data, "--out_dir", out_dir, *FEW, *flags)
    return re.search(r"images: ([\d.]+) \+-", said)[1], said


def test_a_folder_of_one_class_is_scored_as_that_class(place, conditional, tmp_path, capsys):
    """As an npz with its number is, and not as class 0."""
    # weights as they are drawn know no classes: give the embedding something to say
    apart = tmp_path / "apart.pt"
    state = torch.load(conditional)
    state["label_emb.weight"] = torch.randn(state["label_emb.weight"].shape, generator=torch.Generator().manual_seed(1))
    state["out.2.weight"] = torch.randn(state["out.2.weight"].shape, generator=torch.Generator().manual_seed(2)) / 9
    checkpoints.write(str(apart), state, beside(conditional))
    folder = draw(tmp_path / "one", "cat")
    pixels = np.stack([np.asarray(Image.open(folder / "cat" / f"{i}.png")) for i in range(3)])
    found, said = bound(apart, folder, tmp_path / "a")
    scores = {}
    for label in range(3):
        np.savez(tmp_path / "x.npz", pixels, np.full(3, label))
        scores[label] = bound(apart, tmp_path / "x.npz", tmp_path / f"b{label}")[0]
    assert found == scores[2] and len(set(scores.values())) == 3
    assert "no image of 2 of the 3 classes: ant, bee" in said + capsys.readouterr().err


@pytest.mark.parametrize("script", ["image_nll", "image_invert", "image_train", "classifier_train"])
def test_an_unknown_class_is_refused(place, conditional, classifier, tmp_path, script, capsys):
    folder = draw(tmp_path / "more", "ant", "bee", "cat", "dog")
    flags = ["--data_dir", folder, "--out_dir", tmp_path / "out"]
    if script.endswith("train"):
        source = conditional if script == "image_train" else classifier
        flags += ["--resume_checkpoint", source, "--iterations", 3, *TWO]
    else:
        flags += ["--model_path", conditional, *FEW]
    with pytest.raises(SystemExit) as ended:
        run(script, *flags)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and "the class dog" in error and "ant, bee, cat" in error


def test_resuming_without_a_class_keeps_the_numbers(place, conditional, tmp_path, capsys):
    fewer = draw(tmp_path / "fewer", "bee", "cat")
    flags = ["--resume_checkpoint", conditional, "--iterations", 3, *TWO]
    said = run("image_train", "--data_dir", fewer, "--out_dir", tmp_path / "out", *flags) + capsys.readouterr().err
    saved = beside(tmp_path / "out" / "model000003.pt")
    assert saved["num_classes"] == 3 and saved["class_names"] == "ant,bee,cat"
    assert "no image of 1 of the 3 classes: ant" in said and "6 images, and it had 9" in said


@pytest.mark.parametrize("change", ["none", "added", "replaced"])
def test_resuming_with_other_images_is_said(place, data, conditional, tmp_path, change, capsys):
    folder = shutil.copytree(data, tmp_path / "data")
    if change == "added":
        shutil.copy(folder / "ant" / "0.png", folder / "ant" / "9.png")
    elif change == "replaced":
        Image.new("RGB", (16, 16)).save(folder / "ant" / "0.png")
    flags = ["--resume_checkpoint", conditional, "--iterations", 3, *TWO, "--dry_run", True]
    said = run("image_train", "--data_dir", folder, "--out_dir", tmp_path / "out", *flags) + capsys.readouterr().err
    words = {"added": "10 images, and it had 9", "replaced": "not the same"}
    assert ("is not what --resume_checkpoint was trained on" in said) == (change != "none")
    assert words.get(change, "") in said


@pytest.mark.parametrize(
    "names, expected", [(("bee", "dog"), "ant,bee,cat,dog"), (("cat",), "ant,bee,cat"), (("dog",), "ant,bee,cat,dog")]
)
def test_a_run_from_other_weights_adds_its_classes_behind(place, conditional, tmp_path, names, expected, capsys):
    folder = draw(tmp_path / "data", *names)
    run("image_train", "--data_dir", folder, "--out_dir", tmp_path / "out", "--init_from", conditional, *TRAINING)
    saved = beside(tmp_path / "out" / "model000002.pt")
    assert saved["class_names"] == expected and saved["num_classes"] == len(expected.split(","))


def test_held_out_classes_are_mapped_by_name(place, data, tmp_path):
    """A validation folder of two classes: their losses are those of an npz with the numbers of the training data."""
    part = draw(tmp_path / "val", "bee", "cat")
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(part.rglob("*.png"))])
    np.savez(tmp_path / "val.npz", pixels, np.repeat([1, 2], 3))
    losses = []
    for val in (part, tmp_path / "val.npz"):
        flags = [*CLASSIFIER, "--val_data_dir", val, "--eval_interval", 1]
        train("classifier_train", data, tmp_path / f"out{len(losses)}", *flags)
        rows = (tmp_path / f"out{len(losses)}" / "progress.json").read_text().splitlines()
        losses.append([json.loads(row)["val_loss"] for row in rows if "val_loss" in row])
    assert losses[0] == losses[1] and losses[0]


def test_samples_are_asked_for_and_named_by_class(place, conditional, tmp_path):
    run("image_sample", "--model_path", conditional, "--out_dir", tmp_path, *FEW, "--classes", "cat,0")
    with np.load(tmp_path / "samples_4x16x16x3.npz") as npz:
        assert npz["arr_1"].tolist() == [2, 0, 2, 0] and sorted(npz.files) == ["arr_0", "arr_1"]
        images = npz["arr_0"]
    assert json.loads((tmp_path / "samples_4x16x16x3.json").read_text()) == {"classes": ["ant", "bee", "cat"]}
    with Image.open(tmp_path / "samples_4x16x16x3.png") as picture:
        shown = np.asarray(picture)
    assert shown.shape == (2 * (64 + 12) + 1, 129, 3)  # with a line of text below each
    assert np.array_equal(shown[:64:4, :64:4], images[0])
    captions = [shown[64:76, :64], shown[64:76, 65:], shown[141:153, :64]]
    assert np.array_equal(captions[0], captions[2]) and not np.array_equal(captions[0], captions[1])


def test_the_accuracy_of_a_classifier_is_by_name(place, conditional, classifier, tmp_path):
    from script_runs import FOLDER

    rng = np.random.default_rng(0)
    images, names = rng.integers(256, size=(9, 16, 16, 3), dtype=np.uint8), np.array(["cat", "ant", "bee"])
    labels = np.arange(9) % 3
    np.savez(tmp_path / "named.npz", images, labels, classes=names)
    np.savez(tmp_path / "numbers.npz", images, np.array([2, 0, 1])[labels])
    counts = []
    for name in ("named", "numbers"):
        said = run(
            "classifier_accuracy",
            *("--samples", tmp_path / f"{name}.npz", "--classifier_path", classifier, "--out_dir", tmp_path / name),
            folder=FOLDER.parent / "evaluations",
        )
        counts.append(re.findall(r"class \d \w+: \d of 3", said))
    assert counts[0] == counts[1] and len(counts[0]) == 3


@pytest.mark.parametrize(
    "labels, sentence",
    [
        (np.array([0, 1, 50]), "labels outside 0..2, the classes of the classifier"),
        (np.array([0, -1, 1]), "labels outside 0..2"),
        (np.zeros(2, int), r"arr_1 is int64 \[2\], expected integers \[3\]"),
        (np.zeros((3, 1), int), r"arr_1 is int64 \[3, 1\], expected"),
        (np.array([0.9, 1.0, 2.0]), r"arr_1 is float64 \[3\], expected"),
    ],
)
def test_labels_that_the_classifier_cannot_have_are_refused(classifier, tmp_path, capsys, labels, sentence):
    from script_runs import FOLDER

    np.savez(tmp_path / "in.npz", np.zeros((3, 16, 16, 3), np.uint8), labels)
    words = ["--samples", tmp_path / "in.npz", "--classifier_path", classifier, "--out_dir", tmp_path / "out"]
    with pytest.raises(SystemExit):
        run("classifier_accuracy", *words, folder=FOLDER.parent / "evaluations")
    assert re.search(f"--samples .*{sentence}", capsys.readouterr().err)


@pytest.mark.parametrize("names, sentence", [("a,b,c,d", "4 names"), ("a,a,b", "a twice")])
def test_names_that_a_checkpoint_cannot_have_are_refused(conditional, tmp_path, capsys, names, sentence):
    for ending in (".pt", ".json"):
        (tmp_path / "model").with_suffix(ending).write_bytes(Path(conditional).with_suffix(ending).read_bytes())
    flags = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**flags, "class_names": names}))
    with pytest.raises(SystemExit):
        run("image_sample", "--model_path", tmp_path / "model.pt", "--out_dir", tmp_path / "out", *FEW)
    assert f"--class_names has {sentence}" in capsys.readouterr().err


def test_an_edit_is_asked_for_by_name(place, data, conditional, tmp_path):
    made = []
    for edit in ("bee", "1"):
        flags = ["--model_path", conditional, "--data_dir", data, "--out_dir", tmp_path / edit, *FEW]
        run("image_invert", *flags, "--edit_class", edit)
        with np.load(tmp_path / edit / "edits.npz") as npz:
            made.append(npz["arr_0"])
            assert npz["arr_1"].tolist() == [1] * 4
    assert np.array_equal(*made)


def test_guidance_by_a_classifier_of_classes_in_another_order_is_refused(
    place, conditional, classifier, tmp_path, capsys
):
    other = tmp_path / "other.pt"
    checkpoints.write(str(other), torch.load(classifier), beside(classifier) | {"class_names": "cat,bee,ant"})
    flags = ["--model_path", conditional, "--out_dir", tmp_path / "out", *FEW]
    run("classifier_sample", *flags, "--classifier_path", classifier)
    with pytest.raises(SystemExit):
        run("classifier_sample", *flags, "--classifier_path", other)
    assert "class_names" in capsys.readouterr().err


def test_a_second_run_in_the_folder_of_another_is_refused(place, data, conditional, capsys):
    before = {path.name: path.read_bytes() for path in conditional.parent.iterdir() if path.suffix in (".pt", ".json")}
    with pytest.raises(SystemExit) as ended:
        train_diffusion(data, conditional.parent, "--class_cond", True)
    assert ended.value.code == 2 and "checkpoints of another run" in capsys.readouterr().err
    after = {path.name: path.read_bytes() for path in conditional.parent.iterdir() if path.name in before}
    assert {k: v for k, v in before.items() if k.startswith(("model", "opt", "ema", "manifest", "state"))} == {
        k: v for k, v in after.items() if k.startswith(("model", "opt", "ema", "manifest", "state"))
    }


def test_drawing_classes_that_were_never_trained_is_warned_of(data, tmp_path):
    words = ["--class_cond", True, "--num_classes", 9, "--learn_sigma", True]
    model = train_diffusion(data, tmp_path / "run", *words)
    names = len(of_text(json.loads(Path(model).with_suffix(".json").read_text())["class_names"]))
    for classes, warned in (("", True), ("0,8", True), ("ant", False), (",".join(map(str, range(names))), False)):
        chosen = ["--classes", classes] if classes else []
        said = run("image_sample", "--model_path", model, *FEW, *chosen, "--out_dir", tmp_path / f"out{classes}")
        assert (f"was trained on {names} of its 9 classes" in said) == warned, classes


@pytest.mark.parametrize("bad", [1, 4])
def test_a_classifier_that_says_no_numbers_is_refused(bad):
    def classifier(x, t):
        logits = x.mean(dim=(2, 3))
        logits[:bad] = float("inf")
        return logits

    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8).permute(0, 2, 3, 1)
    with pytest.raises(NotFinite, match=f"--classifier_path says of {bad} of 4 images what is no finite number"):
        predictions(classifier, images, 4)
