"""The glyphs of a font as a data set: emoji in colour, or letters, each drawn as often as wanted.

    python datasets/glyphs.py --font NotoColorEmoji.ttf --out_dir data/emoji --classes smileys,hearts --variations 30
    python datasets/glyphs.py --font DejaVuSans.ttf DejaVuSerif.ttf --out_dir data/letters --classes A-Z --variations 99

A glyph stands in the middle of a white square, and the largest glyph of the set fills it but for a margin. With
--variations each is drawn in that many ways: moved, shrunk and turned a little, as --seed decides. Every fifth glyph
of a class is held out, with all its variations. Characters that a font lacks, that are blank, or that look like
one before them are passed by. Colour bitmaps (CBDT, sbix) and layers (COLR) need nothing beyond Pillow.
"""

import itertools
import os
import re
import sys

import numpy as np
import writer
from PIL import Image, ImageDraw, ImageFont

from guided_diffusion.flags import IMAGES

# the characters of a class, in hexadecimal; one that stands in several classes belongs to the first
CLASSES = {
    "smileys": "2639-263A 1F600-1F637 1F641-1F644 1F910-1F917 1F920-1F925 1F927-1F92F 1F970-1F976 1F978-1F97A 1F9D0 "
    "1FAE0-1FAE5 1FAE8",
    "animal-faces": "1F42D-1F432 1F434-1F43C 1F638-1F640 1F648-1F64A 1F981 1F984 1F98A 1F992-1F993 1F99D 1FACE",
    "hearts": "2665 2763-2764 1F48C 1F493-1F49F 1F5A4 1F90D-1F90E 1F9E1 1FA75-1FA77",
    "clocks": "231A 23F0-23F2 1F550-1F567 1F570",
    "fruit": "1F330 1F336 1F33D 1F345-1F353 1F951-1F952 1F954-1F955 1F95D 1F965-1F966 1F96C-1F96D 1F9C4-1F9C5 "
    "1FAD0-1FAD2",
    "food": "2615 1F32D-1F32F 1F354-1F37F 1F382 1F942-1F943 1F950-1F96F 1F9C0-1F9CB 1FAD3-1FADB",
    "plants": "2618 1F331-1F344 1F38B 1F38D 1F490 1F4AE 1F940 1FAB4 1FAB7-1FABB",
    "animals": "1F400-1F43F 1F54A 1F577-1F578 1F980-1F9AE 1FAB0-1FABF 1FACF",
    "hands": "261D 270A-270D 1F446-1F450 1F485 1F4AA 1F590 1F595-1F596 1F64C 1F64F 1F90C 1F90F 1F918-1F91F 1F932-1F933 "
    "1F9B5-1F9B6 1FAF0-1FAF8",
    "people": "26F9 1F385 1F3C2-1F3C4 1F3C7 1F3CA-1F3CC 1F440-1F445 1F464-1F487 1F48F 1F491 1F574-1F575 1F57A "
    "1F645-1F64E 1F6A3 1F6B4-1F6B6 1F6C0 1F6CC 1F926-1F93E 1F977 1F9B8-1F9B9 1F9CD-1F9DF 1FAC3-1FAC5",
    "transport": "2693 26F5 26FD 2708 1F680-1F6A8 1F6B2 1F6DE-1F6DF 1F6E4-1F6FC 1F9BC-1F9BD",
    "places": "26E9-26F4 26FA 1F301 1F303-1F309 1F3A0-1F3A2 1F3AA 1F3D4-1F3F0 1F54B-1F54D 1F5FA-1F5FF 1F6D5-1F6D6",
    "sky": "2600-2604 2614 26A1 26C4-26C8 2744 2B50 1F300-1F321 1F324-1F32C 1F4A7 1F525 1FA90",
    "activities": "26BD-26BE 26F3 26F7-26F8 1F004 1F0CF 1F380-1F3D3 1F52E 1F579 1F93F 1F941 1F945-1F94F 1F9E9 "
    "1FA80-1FA88",
    "objects": "2328 260E 2692-2699 26B0-26B1 26CF 2702 2709 270F 2712 1F451-1F463 1F488-1F48E 1F4A1-1F4FF 1F50A-1F517 "
    "1F526-1F52D 1F56F 1F576 1F587-1F58D 1F5A5-1F5F3 1F6AA-1F6AC 1F6BD-1F6D2 1F6DC-1F6E2 1F97B-1F97F 1F9AF-1F9FF "
    "1FA70-1FAC2",
    "symbols": "A9 AE 203C-2BFF 3030-303D 3297-3299 1F100-1F2FF 1F300-1FAFF",
}
EXPECTED = (
    f"expected names ({', '.join(CLASSES)}), ranges such as U+2190-21FF, "
    "or characters that are a class each, such as A-Z"
)
HELD_OUT = 5  # every fifth glyph
MARGIN = 1 / 16  # of the square, on both sides together
# at most: part of the square, where there is room; part of the glyph; degrees
SHIFT, SHRINK, TURN = 1 / 16, 0.2, 15
SCALABLE = 256  # pixels of an em, where the font has any size
ABSENT = "\U0010ffff"  # no character, for which a font draws what it draws for those it lacks


def make(args):
    """(uint8 [N, image_size, image_size, 3], labels [N], names of the classes) of the split."""
    for flag in ("image_size", "variations"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag} is {getattr(args, flag)}, expected at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}, expected at least 0")
    asked = characters(args.classes) if args.classes else characters(",".join(CLASSES))
    fonts = [open_font(path) for path in args.font]
    glyphs = {}
    for name, members in asked.items():
        drawn = {picture.tobytes(): picture for font in fonts for picture in drawings(font, members)}
        glyphs[name] = list(drawn.values())
    missing = sorted(name for name, found in glyphs.items() if not found)
    if args.classes and missing:
        raise ValueError(f"--font {' '.join(args.font)} has no glyph of --classes {missing[0]}, expected one at least")
    glyphs = {name: found for name, found in glyphs.items() if found}
    if not glyphs:
        raise ValueError(
            f"--font {' '.join(args.font)} has no glyph of any class; --classes chooses others: {EXPECTED}"
        )

    writer.expect_memory(args.variations * sum(map(len, glyphs.values())), args.image_size)
    side = max(max(glyph.size) for found in glyphs.values() for glyph in found)
    images, labels = [], []
    for label, name in enumerate(sorted(glyphs)):  # in the order of the names, as a folder of the files is read
        found = list(enumerate(glyphs[name]))
        chosen = [(place, glyph) for place, glyph in found if in_split(place, args.split)]
        if not chosen:
            raise ValueError(
                f"--split heldout has no glyph of --classes {name}, which has {len(found)}: every fifth is held out"
            )
        for place, glyph in chosen:
            rng = np.random.default_rng([args.seed, ord(min(asked[name])), place])
            square = on_white(glyph, side)
            for number in range(args.variations):
                images.append(varied(square, args.image_size, rng if number else None, args.mirror))
                labels.append(label)
    return np.stack(images), labels, sorted(glyphs)


def characters(text):
    """{class: characters} of --classes.

    :raises ValueError: for what names no class.
    """
    found, parts = {}, text.split(",")
    if len(set(parts)) < len(parts):
        raise ValueError(f"--classes has {max(parts, key=parts.count)!r} twice, expected each class once")
    for part in parts:
        if part in CLASSES:
            found[part] = members_of(part)
        elif re.fullmatch(r"U\+[0-9A-Fa-f]{2,6}(-[0-9A-Fa-f]{2,6})?", part):
            found[part] = in_ranges(part[2:])
        elif len(part) == 1:
            found[name_of(part)] = [part]
        elif len(part) == 3 and part[1] == "-" and part[0] <= part[2]:
            found |= {name_of(chr(code)): [chr(code)] for code in range(ord(part[0]), ord(part[2]) + 1)}
        else:
            raise ValueError(f"--classes has {part!r}, {EXPECTED}")
    if empty := [part for part, members in found.items() if not members]:
        raise ValueError(f"--classes has {empty[0]!r}, a range without characters")
    members = [c for part in found.values() for c in part]
    if len(set(members)) < len(members):
        twice = next(c for c in members if members.count(c) > 1)
        raise ValueError(f"--classes has {twice!r} in two classes, expected it in one")
    return found


def members_of(name):
    """The characters of a class of the table."""
    above = itertools.takewhile(lambda other: other != name, CLASSES)
    taken = {c for other in above for c in in_ranges(CLASSES[other])}
    return [c for c in in_ranges(CLASSES[name]) if c not in taken]


def in_ranges(text):
    """The characters of "2615 1F32D-1F330"."""
    ends = [[int(end, 16) for end in part.split("-")] for part in text.split()]
    return [chr(code) for end in ends for code in range(end[0], min(end[-1], sys.maxunicode) + 1)]


def name_of(character):
    """What a class of one character is called: itself, if that can begin a file name."""
    return character if character.isalnum() else f"U+{ord(character):04X}"


def open_font(path):
    """The font of a file: scalable, or the largest of its bitmaps.

    :raises ValueError: if it is none.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"--font {path} is no regular file, expected a font file that FreeType reads")
    reasons = set()
    for pixels in range(SCALABLE, 7, -1):  # a font of bitmaps has its own sizes alone
        try:
            return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            reasons.add(str(error))
    raise ValueError(f"--font {path} cannot be opened, expected a font file that FreeType reads ({min(reasons)})")


def drawings(font, members):
    """The pictures (RGBA, cropped) of those characters that the font has."""
    absent = drawn(font, ABSENT)
    for character in members:
        picture = drawn(font, character)
        if picture and not (absent and picture.tobytes() == absent.tobytes()):
            yield picture


def drawn(font, character):
    """One character as RGBA, cropped to what is seen of it; None if nothing is."""
    left, top, right, bottom = font.getbbox(character)
    size = (int(right - left), int(bottom - top))
    if 0 in size:
        return None
    picture = Image.new("RGBA", size)
    ImageDraw.Draw(picture).text((-left, -top), character, font=font, fill="black", embedded_color=True)
    return picture.crop(picture.getchannel("A").getbbox()) if picture.getchannel("A").getbbox() else None


def on_white(glyph, side):
    """The glyph in the middle of a white RGB square that holds the largest, of that side, and a margin."""
    width = round(side / (1 - MARGIN))
    square = Image.new("RGB", (width, width), "white")
    square.paste(glyph, ((width - glyph.width) // 2, (width - glyph.height) // 2), glyph)
    return square


def varied(square, size, rng, mirror):
    """uint8 [size, size, 3] of the square as it is or, with an rng, moved, shrunk and turned, perhaps mirrored."""
    if rng is not None:
        scale = 1 - rng.uniform(0, SHRINK)
        room = (1 - scale * (1 - MARGIN)) / 2
        right, down = rng.uniform(-1, 1, 2) * min(SHIFT, room) * square.width
        angle = np.deg2rad(rng.uniform(-TURN, TURN))
        flip = -1 if mirror and rng.random() < 0.5 else 1
        # from a place in the result to one in the square, both counted from the middle
        cos, sin, middle = np.cos(angle) / scale, np.sin(angle) / scale, square.width / 2
        x, y = -middle - right, -middle - down
        matrix = (
            flip * cos, flip * sin, flip * (cos * x + sin * y) + middle,
            -sin, cos, -sin * x + cos * y + middle,
        )  # fmt: skip
        square = square.transform(
            square.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor="white"
        )
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def in_split(place, split):
    """Whether the glyph at this place of its class belongs to the split."""
    return split == "all" or (place % HELD_OUT == HELD_OUT - 1) == (split == "heldout")


def main(argv=None):
    parser = writer.parser(
        "Draw the glyphs of fonts as labelled images; heldout is every fifth glyph of a class.",
        out_dir="data/glyphs",
        image_size=32,
        splits=["all", "train", "heldout"],
    )
    parser.add_argument("--font", nargs="+", required=True, help="font files, such as .ttf and .otf")
    parser.add_argument("--classes", default="", help=f"all that the font has of the first kind, or a list; {EXPECTED}")
    parser.add_argument(
        "--variations", type=writer.up_to(IMAGES), default=1, help="images of a glyph, of which the first is as it is"
    )
    parser.add_argument("--mirror", action="store_true", help="mirror half of the variations")
    parser.add_argument("--seed", type=writer.up_to(2**63 - 1), default=0, help="decides the variations; 0 or more")
    writer.run(make, parser.parse_args(argv))


if __name__ == "__main__":
    main()
