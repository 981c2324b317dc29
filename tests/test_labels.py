"""From names of files and folders to numbers of classes: what counts as data, how names are numbered and mapped."""

import itertools
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from guided_diffusion import image_labels
from guided_diffusion.conditioning.classes import chosen_classes
from guided_diffusion.errors import UserError, told_of
from guided_diffusion.image_arrays import read_arrays
from guided_diffusion.image_datasets import Images
from guided_diffusion.image_files import list_image_files

SIZE = 4


def save(path, value=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIZE, SIZE, 3), value, np.uint8)).save(path, **options)


def zipped(folder, target):
    with zipfile.ZipFile(target, "w") as archive:
        for root, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(root, name)
                archive.write(path, os.path.relpath(path, folder))
    return target


@pytest.fixture(params=["folder", "zip"])
def placed(request, tmp_path):
    """Put the images {name: value} in a folder or in a zip of one; returns its path."""

    def place(names, others=()):
        for value, name in enumerate(names):
            save(tmp_path / "data" / name, value)
        for name in others:
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).write_bytes(b"\0\5\26\7 no image")
        return tmp_path / "data" if request.param == "folder" else zipped(tmp_path / "data", tmp_path / "data.zip")

    return place


# ---- what is data ----

HIDDEN = [
    "._a.png",
    "cat/._a.png",
    ".ipynb_checkpoints/a.png",
    "cat/.ipynb_checkpoints/a-checkpoint.png",
    ".thumbnails/x/a.jpg",
    "__MACOSX/cat/._a.png",
    "__MACOSX/x.png",
    ".DS_Store",
]


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_names_are_no_data(placed, name):
    """They are broken images here: whoever counts them meets them, or has a class too many."""
    data = placed(["cat/a.png", "dog/b.png"], [name])
    dataset = Images(data, SIZE, class_cond=True)
    assert len(dataset) == 2 and dataset.class_names == ["cat", "dog"] and not dataset.passed
    assert [os.path.basename(path) for path in list_image_files(str(data))] == ["a.png", "b.png"]


def test_a_hidden_place_itself_may_be_named(tmp_path):
    save(tmp_path / ".cache" / "a.png")
    assert len(Images(tmp_path / ".cache", SIZE)) == 1


def test_what_is_not_read_is_counted_and_said(placed):
    data = placed(["a.png", "b.png"], ["c.tif", "d.TIF", "e.ppm", "notes"])
    (said,) = Images(data, SIZE).remarks()
    assert all(word in said for word in ("1 .ppm", "2 .tif", "1 without extension", "jpeg"))


def test_a_place_of_other_formats_alone_says_which(placed):
    with pytest.raises(UserError, match="no image.*jpeg.*2 .tif"):
        Images(placed([], ["a.tif", "b.tif"]), SIZE)


# ---- which classes there are ----

LAYOUTS = {
    "folders": (["cat/1.png", "dog/2.png"], ["cat", "dog"]),
    "prefixes": (["cat_1.png", "dog_2.png"], ["cat", "dog"]),
    "deeper folders": (["cat/x/1.png", "dog/2.png"], ["cat", "dog"]),
    "a wrapper": (["set/cat/1.png", "set/dog/2.png"], ["cat", "dog"]),
    "two wrappers": (["a/b/cat/1.png", "a/b/dog/2.png"], ["cat", "dog"]),
    "folders with prefixes": (["cat/IMG_1.png", "dog/IMG_2.png"], ["cat", "dog"]),
    "one class": (["cat/1.png", "cat/2.png"], ["cat"]),
    "one class with a folder of its own": (["cat/1.png", "cat/more/2.png"], ["cat"]),
    "a wrapper of prefixes": (["set/cat_1.png", "set/dog_2.png"], ["set"]),
    "numbers": ([f"{n}/1.png" for n in (0, 1, 2, 9, 10, 11)], ["0", "1", "2", "9", "10", "11"]),
    "numbers as prefixes": ([f"{n}_1.png" for n in (0, 1, 2, 10)], ["0", "1", "2", "10"]),
    "numbers with zeros": (["007/1.png", "08/2.png", "9/3.png"], ["007", "08", "9"]),
    "numbers and words": (["1/1.png", "10/2.png", "2x/3.png"], ["1", "10", "2x"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_classes_of_a_layout(placed, name):
    paths, expected = LAYOUTS[name]
    dataset = Images(placed(paths), SIZE, class_cond=True)
    assert dataset.class_names == expected
    for place in range(len(dataset)):  # each image has the class that its path says
        assert dataset.class_names[dataset.labels[place]] in dataset.images[place]


@pytest.mark.parametrize("stray", ["preview.png", "x_1.png"])
@pytest.mark.parametrize("wrapper", ["", "data/", "a/b/"])
def test_a_stray_file_beside_folders_is_named(placed, wrapper, stray):
    data = placed([f"{wrapper}{name}" for name in ("cat/IMG_0.png", "dog/IMG_0.png", stray)])
    with pytest.raises(UserError, match=f"{stray} names no class.*sub-folder.*--class_source prefix"):
        Images(data, SIZE, class_cond=True)
    assert len(Images(data, SIZE)) == 3


def test_the_mapping_of_numbers_that_are_others_is_said():
    assert image_labels.mapping(["5", "7"]) == "5=0 7=1" and image_labels.mapping(["0", "1"]) == "0 1"
    assert image_labels.mapping(["cat"], numbers=True) == "cat=0"


# ---- names that a network knows ----


def labels_by_name(dataset):
    return {name: int(n) for n, name in enumerate(dataset.class_names) if n in set(dataset.labels.tolist())}


@pytest.mark.parametrize("there", [c for n in (1, 2, 3) for c in itertools.combinations(["cat", "dog", "fox"], n)])
def test_any_part_of_the_known_classes_keeps_their_numbers(placed, there):
    known = ["fox", "cat", "dog"]
    dataset = Images(placed([f"{name}/1.png" for name in there]), SIZE, class_cond=True, known=known, num_classes=3)
    assert labels_by_name(dataset) == {name: known.index(name) for name in there}
    said = " ".join(dataset.remarks())
    assert all((name in said) == (name not in there) for name in known)


def test_an_unknown_class_is_refused_or_follows_the_known(placed):
    data = placed(["ant/1.png", "cat/1.png"])
    with pytest.raises(UserError, match="the class ant.*cat, dog"):
        Images(data, SIZE, class_cond=True, known=["cat", "dog"])
    more = Images(data, SIZE, class_cond=True, known=["cat", "dog"], more=True)
    assert more.class_names == ["cat", "dog", "ant"] and labels_by_name(more) == {"cat": 0, "ant": 2}


@pytest.mark.parametrize(
    "names, count, expected",
    [
        (["7"], 10, {"7": 7}),
        (["3", "12"], 20, {"3": 3, "12": 12}),
        (["07"], 10, {"7": 7}),
        (["10"], 10, {"10": 0}),  # beyond: it cannot mean the number
        (["7", "x"], 10, {"7": 0, "x": 1}),
    ],
)
def test_numbers_mean_the_classes_of_a_network_without_names(placed, names, count, expected):
    data = placed([f"{name}_1.png" for name in names])
    told = dict(class_cond=True, num_classes=count)
    assert labels_by_name(Images(data, SIZE, numbers=True, **told)) == expected
    in_order = {name: n for n, name in enumerate(names)}
    assert labels_by_name(Images(data, SIZE, **told)) == in_order  # in training they are names


@pytest.mark.parametrize("beside", [False, True])
def test_names_of_an_array_decide_what_its_labels_mean(tmp_path, beside):
    arrays = [np.zeros((3, SIZE, SIZE, 3), np.uint8), np.array([0, 1, 0])]
    if beside:
        (tmp_path / "x.json").write_text('{"classes": ["dog", "cat"]}')
        np.savez(tmp_path / "x.npz", *arrays)
    else:
        np.savez(tmp_path / "x.npz", *arrays, classes=["dog", "cat"])
    dataset = Images(tmp_path / "x.npz", SIZE, class_cond=True, known=["ant", "cat", "dog"])
    assert dataset.labels.tolist() == [2, 1, 2]
    with pytest.raises(UserError, match="the class dog"):
        Images(tmp_path / "x.npz", SIZE, class_cond=True, known=["ant", "cat"])


def test_labels_without_names_are_numbers_of_the_network(tmp_path):
    np.savez(tmp_path / "x.npz", np.zeros((2, SIZE, SIZE, 3), np.uint8), np.array([2, 0]))
    dataset = Images(tmp_path / "x.npz", SIZE, class_cond=True, known=["ant", "cat", "dog"], num_classes=3)
    assert dataset.labels.tolist() == [2, 0] and dataset.class_names == ["ant", "cat", "dog"]


@pytest.mark.parametrize(
    "classes, words", [(["a"], ["label 1", "names 1"]), ([1, 2], ["classes is int64"]), ([["a", "b"]], ["[1, 2]"])]
)
def test_names_that_are_none_are_refused(tmp_path, classes, words):
    np.savez(tmp_path / "x.npz", np.zeros((2, SIZE, SIZE, 3), np.uint8), np.array([0, 1]), classes=classes)
    with pytest.raises(UserError) as caught:
        Images(tmp_path / "x.npz", SIZE, class_cond=True)
    assert all(word in str(caught.value) for word in words)


# ---- text ----


@pytest.mark.parametrize(
    "names", [[], ["a"], ["cat", "dog"], ["tench, Tinca tinca", 'the "great"', "x"], [" a ", "ä"], ["1", "0"]]
)
def test_names_survive_as_text(names):
    assert image_labels.of_text(image_labels.as_text(names)) == names


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("flower,3", [1, 3]),
        ("3, flower", [3, 1]),
        ("7,2", [2, 2]),  # a name comes before a number
        ('"tench, Tinca",0', [3, 0]),
    ],
)
def test_classes_are_chosen_by_name_or_number(text, expected):
    assert chosen_classes(text, 5, ["tree", "flower", "7", "tench, Tinca"]) == expected


@pytest.mark.parametrize("text, words", [("flwer", ["'flwer'", "flower"]), ("5", ["has 5", "0 to 4"]), ("-1", ["-1"])])
def test_what_is_no_class_is_refused(text, words):
    with pytest.raises(UserError) as caught:
        chosen_classes(text, 5, ["tree", "flower"])
    assert all(word in str(caught.value) for word in words)


# ---- what tells data apart ----


def test_facts_tell_images_added_removed_renamed_and_changed(tmp_path):
    def facts():
        return Images(tmp_path / "d", SIZE).facts()

    for name in ("a/1.png", "a/2.png", "b/1.png"):
        save(tmp_path / "d" / name)
    seen = [facts()]
    assert facts() == seen[0]
    save(tmp_path / "d" / "b" / "2.png")
    seen.append(facts())
    os.rename(tmp_path / "d" / "b", tmp_path / "d" / "c")
    seen.append(facts())
    os.remove(tmp_path / "d" / "a" / "1.png")
    seen.append(facts())
    Image.fromarray(np.random.default_rng(0).integers(256, size=(9, 9, 3), dtype=np.uint8)).save(
        tmp_path / "d" / "a" / "2.png"
    )
    seen.append(facts())
    assert len({tuple(f.items()) for f in seen}) == 5
    os.rename(tmp_path / "d", tmp_path / "elsewhere")
    assert Images(tmp_path / "elsewhere", SIZE).facts() == seen[-1]


# -- names and labels that others wrote --------------------------------------------------------------


@pytest.mark.parametrize("names", [["a", "b"], ["a,b", 'c"d', " e "], ["a\nb", "c\r\nd"], ["1", "\u00e9"]])
def test_names_return_from_their_text(names):
    assert image_labels.of_text(image_labels.as_text(names)) == names


def test_lines_separate_as_commas_do():
    assert chosen_classes("3\n7\n1,2", 10) == [3, 7, 1, 2]


@pytest.mark.parametrize("text", ["9" * 5000, "-" + "1" * 5000, "10", "3;7"])
def test_classes_that_there_are_not(text):
    with pytest.raises(UserError, match="^--classes "):
        chosen_classes(text, 10)


@pytest.mark.parametrize(
    "labels", [np.zeros(3), np.zeros(2, int), np.zeros((3, 1), int), np.eye(3, dtype=int), np.array(["a"] * 3)]
)
def test_labels_that_are_no_number_for_each_image(labels):
    for named, known in (([], []), (["a"], ["a"])):
        with pytest.raises(UserError, match=r"--samples x: arr_1 is .*, expected integers \[3\]"):
            image_labels.renumbered(labels, 3, named, known, "--samples x")


def test_names_that_are_given_twice_are_refused(tmp_path):
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=np.arange(2), classes=np.array(["b", "b"]))
    with pytest.raises(UserError, match=r"a.npz names the class b twice"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content, damaged", [('{"x": 1}\n{"y": 2}\n', False), ("text", False), ('{"classes": [', True)]
)
def test_a_file_of_others_beside_an_array_is_passed_by(tmp_path, content, damaged):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, SIZE, SIZE, 3), np.uint8))
    (tmp_path / "a.json").write_text(content)
    if damaged:
        with pytest.raises(UserError, match=r"a.json is not valid JSON"):
            read_arrays(tmp_path / "a.npz")
    else:
        assert read_arrays(tmp_path / "a.npz")[2] is None


def test_backslashes_in_a_zip_separate_folders(tmp_path):
    for name in ("cat/1.png", "dog/2.png"):
        save(tmp_path / "data" / name)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("cat/1.png", "dog/2.png"):
            info = zipfile.ZipInfo(name)
            info.filename = "data\\" + name.replace("/", "\\")
            archive.writestr(info, (tmp_path / "data" / name).read_bytes())
        info = zipfile.ZipInfo("3.png")
        info.filename = ".hidden\\3.png"
        archive.writestr(info, b"")
    data = Images(tmp_path / "all.zip", SIZE, class_cond=True)
    assert len(data) == 2 and data.class_names == ["cat", "dog"] and data[1][0].shape == (3, SIZE, SIZE)


def test_two_files_of_one_name_in_a_zip_are_refused(tmp_path):
    save(tmp_path / "1.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            archive.write(tmp_path / "1.png", "1.png")
    with pytest.raises(UserError, match="all.zip has two files called 1.png"):
        list_image_files(str(tmp_path / "all.zip"))


def test_links_to_a_folder_above_are_not_followed(tmp_path):
    save(tmp_path / "data" / "1.png")
    (tmp_path / "data" / "self").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    save(tmp_path / "other" / "2.png")
    found = list_image_files(str(tmp_path / "data"))
    assert sorted(os.path.basename(path) for path in found) == ["1.png", "2.png"]


@pytest.mark.parametrize("flag", ["val_data_dir", "reference_dir"])
def test_an_error_is_of_the_flag_that_was_given(flag):
    with pytest.raises(UserError, match=f"^--{flag} nowhere is not there"), told_of(flag, "data_dir"):
        Images("nowhere", SIZE)
    with pytest.raises(UserError, match="^--data_dir nowhere is not there"), told_of("data_dir", "data_dir"):
        Images("nowhere", SIZE)
