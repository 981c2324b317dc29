"""datasets/glyphs.py: letters of a font that matplotlib brings along, and fonts of colour made here."""

import io
import os
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import script_runs
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.sbixGlyph import Glyph
from fontTools.ttLib.tables.sbixStrike import Strike
from matplotlib.ft2font import FT2Font
from PIL import Image

from guided_diffusion.image_datasets import Images

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FONTS = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
SANS, SERIF = (os.path.join(FONTS, f"DejaVu{kind}.ttf") for kind in ("Sans", "Serif"))


@pytest.fixture
def glyphs(monkeypatch):
    monkeypatch.syspath_prepend(os.path.join(ROOT, "datasets"))
    import glyphs

    return glyphs


@pytest.fixture
def made(glyphs, tmp_path):
    """Run the command in this process; returns {arr_0, arr_1, classes}."""

    def make(*flags, font=SANS, name="set"):
        glyphs.main(["--font", *([font] if isinstance(font, str) else font), "--out_dir", str(tmp_path / name), *flags])
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as npz:
            return dict(npz)

    return make


def test_a_letter_looks_as_another_library_draws_it(made):
    letters = made("--classes", "A-Z", "--image_size", "48")
    assert letters["classes"].tolist() == [chr(c) for c in range(ord("A"), ord("Z") + 1)]
    assert letters["arr_1"].tolist() == list(range(26)) and letters["arr_0"].shape == (26, 48, 48, 3)
    font = FT2Font(SANS)
    font.set_size(200, 72)
    drawn = []
    for letter in letters["classes"]:
        font.clear()
        font.set_text(str(letter), 0)
        font.draw_glyphs_to_bitmap()
        ink = np.asarray(font.get_image())
        rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
        drawn.append(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    side = round(max(max(ink.shape) for ink in drawn) * 16 / 15)
    for image, ink in zip(letters["arr_0"], drawn):
        square = np.full((side, side), 255, np.uint8)
        top, left = ((side - length) // 2 for length in ink.shape)
        square[top : top + ink.shape[0], left : left + ink.shape[1]] = 255 - ink
        expected = np.asarray(Image.fromarray(square).resize((48, 48), Image.Resampling.LANCZOS))
        assert (image == image[..., :1]).all()
        assert np.abs(image[..., 0].astype(int) - expected).mean() < 3


KINDS = {
    "hearts": ("HEART", "LOVE"),
    "clocks": ("CLOCK", "WATCH"),
    "animal-faces": ("FACE", "MONKEY"),
    "hands": ("HAND", "FINGER", "FIST", "ARM", "LEG", "FOOT", "PALM", "THUMB", "SIGN", "NAIL", "BICEPS", "SELFIE"),
}


@pytest.mark.parametrize("name", KINDS)
def test_classes_are_what_unicode_calls_their_characters(glyphs, name):
    names = [unicodedata.name(c, "") for c in glyphs.characters(name)[name]]
    known = [n for n in names if n]
    assert len(known) > 20
    assert sum(any(word in n for word in KINDS[name]) for n in known) >= 0.9 * len(known)


def test_a_character_is_of_one_class_and_ranges_run_upwards(glyphs):
    found = glyphs.characters(",".join(glyphs.CLASSES))
    members = [c for part in found.values() for c in part]
    assert len(members) == len(set(members)) and all(found.values())


def test_splits_share_no_glyph_and_make_up_the_whole(made):
    flags = ("--classes", "U+0041-005A,hearts,3", "--variations", "2")
    whole, train = (made(*flags, "--split", split, name=split) for split in ("all", "train"))
    assert whole["classes"].tolist() == ["3", "U+0041-005A", "hearts"]
    heldout = made("--classes", "U+0041-005A", "--variations", "2", "--split", "heldout", name="heldout")
    letters = made("--classes", "U+0041-005A", "--variations", "2", name="letters")["arr_0"]
    places = np.arange(26) % 5 == 4
    assert np.array_equal(heldout["arr_0"], letters[np.repeat(places, 2)])
    assert len(train["arr_0"]) < len(whole["arr_0"])
    shown = {image.tobytes() for image in letters[np.repeat(~places, 2)]}
    assert not any(image.tobytes() in shown for image in heldout["arr_0"])


def centre(image):
    ink = 255 - image[..., 0].astype(float)
    return np.array([(ink.sum(axis) * np.arange(ink.shape[1 - axis])).sum() for axis in (0, 1)]) / ink.sum()


def test_variations_move_shrink_and_turn_a_little(made):
    images = made("--classes", "X", "--variations", "200", "--seed", "4")["arr_0"]
    plain = made("--classes", "X", name="plain")["arr_0"]
    assert np.array_equal(images[0], plain[0])
    assert len({image.tobytes() for image in images}) == 200
    shifts = np.array([centre(image) - centre(images[0]) for image in images])
    assert np.abs(shifts).max() <= 32 / 16 + 0.2 and np.abs(shifts.mean(0)).max() < 0.3 and shifts.std() > 0.5
    ink = (255 - images.astype(float)).sum((1, 2, 3))
    assert 0.6 < ink.min() / ink[0] < 0.72 and 0.93 < ink.max() / ink[0] < 1.02


def test_the_seed_decides_and_more_variations_are_added_behind(made):
    few, again, many, other = (
        made("--classes", "X,Y", "--variations", n, "--seed", seed, name=f"{n}-{seed}-{i}")["arr_0"]
        for i, (n, seed) in enumerate([("3", "1"), ("3", "1"), ("5", "1"), ("3", "2")])
    )
    assert np.array_equal(few, again) and not np.array_equal(few, other)
    assert np.array_equal(few[:3], many[:3]) and np.array_equal(few[3:], many[5:8])


def test_mirrored_letters_stand_only_where_they_are_asked_for(made):
    """What the variations of an L have on its two sides: only mirrored ones have their stem on the right."""
    plain, mirrored = (
        made("--classes", "L", "--variations", "60", *flags, name=str(flags)) for flags in ([], ["--mirror"])
    )

    def stems_right(images):
        ink = 255 - images["arr_0"][:, :12, :, 0].astype(float)  # above the foot
        places = (ink * np.arange(32)).sum((1, 2)) / ink.sum((1, 2))
        return (places > 16).mean()

    assert stems_right(plain) == 0 and 0.25 < stems_right(mirrored) < 0.75


def test_several_fonts_give_a_class_several_glyphs(made):
    both = made("--classes", "A-C", font=[SANS, SERIF, SANS])
    assert both["arr_1"].tolist() == [0, 0, 1, 1, 2, 2]


def test_characters_that_the_font_lacks_or_leaves_blank_are_passed_by(made):
    font = FT2Font(SANS)
    there = [c for c in range(0x20, 0x250) if c in font.get_charmap() and unicodedata.category(chr(c))[0] not in "ZC"]
    found = made("--classes", "U+0020-024F")["arr_0"]
    # and letters that look alike, such as a micro sign and a mu, are one glyph
    assert 0.9 * len(there) < len(found) <= len(there)
    assert (found.min((1, 2, 3)) < 128).all()


def square(*box):
    left, bottom, right, top = box
    pen = TTGlyphPen(None)
    pen.moveTo((left, bottom))
    for corner in ((left, top), (right, top), (right, bottom)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


def built(path, glyphs, **tables):
    """A font whose character "A" is the second of the glyphs."""
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(list(glyphs))
    font.setupCharacterMap({ord("A"): "A"})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics({name: (1000, glyph.coordinates[0][0]) for name, glyph in glyphs.items()})
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": "Made", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    if "layers" in tables:
        font.setupCOLR({"A": tables["layers"]}, version=0)
        font.setupCPAL([tables["palette"]])
    if "strike" in tables:
        font.font["sbix"] = newTable("sbix")
        strike = Strike(ppem=tables["strike"].width)
        png = io.BytesIO()
        tables["strike"].save(png, "PNG")
        for name in glyphs:
            data = png.getvalue() if name == "A" else None
            strike.glyphs[name] = Glyph(glyphName=name, graphicType="png " if data else None, imageData=data)
        font.font["sbix"].strikes[strike.ppem] = strike
    font.save(path)
    return str(path)


def layered(path):
    outlines = {".notdef": square(0, 0, 10, 10), "A": square(0, 0, 1000, 1000), "in": square(250, 250, 750, 750)}
    return built(path, outlines, layers=[("A", 0), ("in", 1)], palette=[(1, 0, 0, 1), (0, 0, 1, 1)])


def of_bitmaps(path):
    strike = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    strike.paste((0, 0, 255, 255), (16, 16, 48, 48))
    return built(path, {".notdef": square(0, 0, 10, 10), "A": square(0, 0, 1000, 1000)}, strike=strike)


@pytest.mark.parametrize("font", [layered, of_bitmaps])
def test_colours_of_a_font_are_kept(made, tmp_path, font):
    """A blue square in a red one, as layers (COLR) or as a bitmap (sbix)."""
    (image,) = made("--classes", "A", "--image_size", "64", font=font(tmp_path / "made.ttf"))["arr_0"]
    assert np.abs(image[32, 32].astype(int) - (0, 0, 255)).max() < 8
    assert np.abs(image[10, 32].astype(int) - (255, 0, 0)).max() < 8
    assert (image[0] == 255).all() and (image[:, -1] == 255).all()


def test_a_set_is_read_with_its_names(made, tmp_path):
    made("--classes", "smileys,hearts,A", "--variations", "2")
    for place in ("set", "set.npz"):
        dataset = Images(tmp_path / place, 32, class_cond=True, num_classes=3)
        assert [int(y) for y in np.unique(dataset.labels)] == [0, 1, 2]
    assert Images(tmp_path / "set", 32, class_cond=True).class_names == ["A", "hearts", "smileys"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--image_size", "0"], ["--image_size is 0", "1"]),
        (["--variations", "0"], ["--variations is 0"]),
        (["--seed", "-1"], ["--seed is -1"]),
        (["--classes", "unicorns"], ["--classes has 'unicorns'", "smileys"]),
        (["--classes", "A,,B"], ["--classes has ''"]),
        (["--classes", "A,B,A"], ["--classes has 'A' twice"]),
        (["--classes", "Z-A"], ["--classes has 'Z-A'"]),
        (["--classes", "M,U+0041-005A"], ["--classes", "'M'", "two classes"]),
        (["--classes", "U+005A-0041"], ["U+005A-0041", "without characters"]),
        (["--classes", "U+110000-110001"], ["U+110000-110001", "without characters"]),
        (["--classes", "U+4E00-4E10"], ["--font", "U+4E00-4E10"]),
        (["--classes", "A", "--split", "heldout"], ["--split heldout", "A"]),
        (["--font", "/nowhere.ttf"], ["--font /nowhere.ttf"]),
        (["--font", __file__], ["--font", "font file"]),
        (["--font", ROOT], ["--font", "font file"]),
    ],
)
def test_wrong_values_exit_with_two(tmp_path, capsys, flags, words):
    given = flags if "--font" in flags else ["--font", SANS, *flags]
    with pytest.raises(SystemExit) as ended:
        script_runs.run("glyphs", "--out_dir", tmp_path / "x", *given, folder=Path(ROOT, "datasets"))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said and len(said.strip().splitlines()) == 1
    assert all(word in said for word in words), said
    assert not (tmp_path / "x").exists()


def test_a_pipe_is_no_font(glyphs, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"--font .*pipe is no regular file"):
        glyphs.open_font(str(tmp_path / "pipe"))
