"""What super_res_sample enlarges: an image, a folder, a zip, an npz or a run, all of them the same pixels."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from script_runs import run, train_super_res

from guided_diffusion.base_samples import located, open_base
from guided_diffusion.errors import UserError

SIZE, NAMES = 8, ["ant", "bee", "cat"]


@pytest.fixture
def place(tmp_path):
    """The same three small images in every form."""
    images = np.random.default_rng(0).integers(256, size=(3, SIZE, SIZE, 3), dtype=np.uint8)
    for folder in ("folder", "run", "deep/bee", "deep/cat", "deep/ant"):
        (tmp_path / folder).mkdir(parents=True)
    for number, (name, image) in enumerate(zip(NAMES, images)):
        for path in (f"folder/{name}_{number}.png", f"deep/{name}/{number}.png"):
            Image.fromarray(image).save(tmp_path / path)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (tmp_path / "folder").iterdir():
            archive.write(path, path.name)
    for path in ("all.npz", "run/samples_3x8x8x3.npz"):
        np.savez(tmp_path / path, arr_0=images, arr_1=np.arange(3), classes=np.array(NAMES))
    (tmp_path / "run" / "flags.json").write_text("{}")
    return tmp_path, images


@pytest.mark.parametrize("name", ["folder", "deep", "all.zip", "all.npz", "run"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
@pytest.mark.parametrize("classes", [True, False])
def test_every_form_gives_the_same_images(place, name, order, classes):
    folder, images = place
    names = [NAMES[i] for i in order]
    told = (3, 3, names) if classes else (0, 3, ())
    base, labels = open_base(located(str(folder / name)), SIZE, *told)
    assert np.array_equal(((base + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy(), images)
    assert (labels is None) is not classes
    assert not classes or [names[label] for label in labels] == NAMES


@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_an_image_alone(tmp_path, mode, channels):
    Image.new(mode, (SIZE, SIZE), tuple(range(10, 10 + channels)) if channels > 1 else 10).save(tmp_path / "bee_1.png")
    base, labels = open_base(str(tmp_path / "bee_1.png"), SIZE, 3, channels, NAMES)
    assert base.shape == (1, channels, SIZE, SIZE) and labels.tolist() == [1]
    assert ((base[0, :, 0, 0] + 1) * 127.5).round().tolist() == list(range(10, 10 + channels))


@pytest.mark.parametrize("shape", [(8, 9), (9, 8), (4, 4), (16, 16)])
@pytest.mark.parametrize("form", ["folder", "all.zip", "all.npz", "alone.png"])
def test_a_size_that_does_not_fit_is_named(place, shape, form):
    folder, _ = place
    odd = Image.new("RGB", shape[::-1])
    if form == "all.npz":
        np.savez(folder / form, arr_0=np.asarray(odd)[None])
    else:
        odd.save(folder / ("alone.png" if form == "alone.png" else "folder/bee_9.png"))
    if form == "all.zip":
        with zipfile.ZipFile(folder / form, "a") as archive:
            archive.write(folder / "folder" / "bee_9.png", "bee_9.png")
    with pytest.raises(UserError, match=f"--base_samples .* {shape[0]}x{shape[1]}; --small_size is {SIZE}"):
        open_base(str(folder / form), SIZE, 0)


@pytest.mark.parametrize("labels", [np.ones(1, int), np.array([0.9, 0.9, 1]), np.zeros((3, 1), int)])
def test_labels_that_are_no_number_for_each_image_are_refused(tmp_path, labels):
    np.savez(tmp_path / "in.npz", np.zeros((3, SIZE, SIZE, 3), np.uint8), labels)
    with pytest.raises(UserError, match=r"--base_samples .*in.npz: arr_1 is .*, expected integers \[3\]"):
        open_base(str(tmp_path / "in.npz"), SIZE, 2)


def test_a_run_without_one_npz_is_refused(place):
    folder, _ = place
    (folder / "run" / "more.npz").write_bytes(b"")
    with pytest.raises(UserError, match="holds more.npz, samples_3x8x8x3.npz; expected one npz"):
        located(str(folder / "run"))


def test_a_folder_is_enlarged_and_another_content_is_another_run(place):
    folder, _ = place
    model = train_super_res(folder / "deep", folder / "model", "--image_channels", 3)
    words = ["super_res_sample", "--model_path", model, "--num_samples", 3, "--timestep_respacing", 1]
    made = []
    for form in ("folder", "run"):
        run(*words, "--base_samples", folder / form, "--out_dir", folder / f"out_{form}")
        with np.load(folder / f"out_{form}" / "samples_3x16x16x3.npz") as npz:
            made.append(npz["arr_0"])
    assert np.array_equal(*made)
    Image.new("RGB", (SIZE, SIZE)).save(folder / "folder" / "ant_0.png")
    with pytest.raises(SystemExit) as end:
        run(*words, "--base_samples", folder / "folder", "--out_dir", folder / "out_folder")
    assert end.value.code == 2


def test_an_unknown_class_is_of_the_flag_that_named_the_images(place):
    with pytest.raises(UserError, match="^--base_samples .*folder has the class ant, which the checkpoint does not"):
        open_base(str(place[0] / "folder"), SIZE, 2, 3, ["bee", "cat"])


@pytest.mark.parametrize(
    "name, form", [("x.npz", "array"), ("x.png", "array"), ("x", "array"), ("x.tif", "picture"), ("x", "picture")]
)
def test_what_lies_there_decides_and_not_its_name(tmp_path, name, form):
    pixels = np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
    path = tmp_path / name
    with path.open("wb") as file:
        if form == "array":
            np.savez(file, arr_0=pixels[None])
        else:
            Image.fromarray(pixels).save(file, "PNG")
    images, _ = open_base(str(path), SIZE, 0)
    assert torch.equal(images[0], torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1)
