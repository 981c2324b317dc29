"""From the names of files and folders to numbers of classes."""

import csv
import io
import os
import re

import numpy as np

from .errors import UserError

SOURCES = ("auto", "prefix", "folder")


def as_text(names):
    """Names of classes as one text, in which commas separate them; those with a comma or a line's end are quoted."""
    line = io.StringIO(newline="")
    csv.writer(line).writerow(names)
    return line.getvalue().removesuffix("\r\n")


def of_text(text):
    """The names of `as_text`; [] of an empty text. A line's end separates as a comma does, but for one in quotes."""
    return [name for row in csv.reader(io.StringIO(text, newline="")) for name in row]


def names_of_files(data_dir, paths, source="auto"):
    """(the rule that was used, the name of the class of each path).

    :param source: "folder": the first sub-folder below data_dir, or below the one folder that holds all; "prefix": the
        file name up to its first "_"; "auto": "folder" if any image lies in a sub-folder, else "prefix".
    :raises UserError: naming the first file without a class.
    """
    if source not in SOURCES:
        raise UserError(f"--class_source is {source}, expected one of {', '.join(SOURCES)}")
    root = data_dir.rstrip("/" + os.sep)
    parts = [path[len(root) :].replace(os.sep, "/").strip("/").split("/") for path in paths]
    while len({p[0] for p in parts}) == 1 and _is_wrapper(parts):
        parts = [p[1:] for p in parts]
    chosen = source
    if source == "auto":
        chosen = "folder" if any(len(p) > 1 for p in parts) else "prefix"
    if chosen == "folder":
        other = ", or --class_source prefix" if source == "auto" else ""
        _all_or_refuse(paths, (len(p) > 1 for p in parts), f"to lie in the sub-folder of its class{other}")
        return "folder", [p[0] for p in parts]
    _all_or_refuse(paths, ("_" in p[-1] for p in parts), 'to be called <class>_<anything>, with a "_"')
    return "prefix", [p[-1].split("_")[0] for p in parts]


def _is_wrapper(parts):
    """Whether the one folder of all paths, split at "/", holds the classes: it has several folders, or nothing else."""
    inner = [p[1] for p in parts if len(p) > 2]
    return len(inner) == len(parts) or len(set(inner)) > 1


def _all_or_refuse(paths, fine, expected):
    for path, ok in zip(paths, fine):
        if not ok:
            raise UserError(f"{path} names no class; expected it {expected}")


def numbered(names, known=(), more=False, count=None, where=""):
    """The classes in the order of their numbers, and the number of each name.

    Without known classes the names are sorted: as numbers where all are whole numbers, else as text.

    :param names: the class of each image.
    :param known: the classes of a network, in the order of their numbers.
    :param more: whether others may follow them.
    :param count: of the classes of a network that knows no names: names that are numbers below it mean these.
    :param where: the flag and the data, for errors.
    :return: (a list of names, int64 [N]).
    :raises UserError: for a name that is not known.
    """
    found = sorted(set(names), key=_order(set(names)))
    if not known and count is not None and all(map(_is_number, found)) and max(map(int, found)) < count:
        known = [str(number) for number in range(count)]
        names = [str(int(name)) for name in names]
        found = sorted(set(names), key=int)
    new = [name for name in found if name not in set(known)]
    if known and new and not more:
        raise UserError(
            f"{where} has the class {new[0]}, which the checkpoint does not know; expected some of its "
            f"classes: {shown(known)}"
        )
    classes = [*known, *new]
    number = {name: place for place, name in enumerate(classes)}
    return classes, np.array([number[name] for name in names], dtype=np.int64)


def _order(names):
    return (lambda name: (int(name), name)) if all(map(_is_number, names)) else None


def _is_number(name):
    return re.fullmatch(r"[0-9]{1,18}", name) is not None


def mapping(classes, numbers=False):
    """The classes in words.

    :param numbers: whether to show the number of each; without it, only that of names that are another number.
    """
    parts = [
        f"{name}={place}" if numbers or (_is_number(name) and int(name) != place) else name
        for place, name in enumerate(classes)
    ]
    return " ".join(parts if len(parts) <= 10 else [*parts[:3], "...", parts[-1]])


def shown(names, most=10):
    """Names in words, some of them if there are many."""
    return ", ".join(names if len(names) <= most else [*names[: most - 1], f"and {len(names) - most + 1} more"])


def labels_of_array(path, labels, names, count):
    """(int64 labels [N], class names) of arr_1 and `classes`.

    :param count: N.
    :raises UserError: for labels that are none.
    """
    if labels is None:
        raise UserError(f"--data_dir {path} has no arr_1 with the labels")
    expect_labels(labels, count, f"--data_dir {path}")
    if labels.min() < 0:
        raise UserError(
            f"--data_dir {path}: arr_1 has the label {labels.min()}, expected labels in 0..n-1 where n is --num_classes"
        )
    names = [str(n) for n in range(int(labels.max()) + 1)] if names is None else names
    if labels.max() >= len(names):
        raise UserError(
            f"--data_dir {path}: arr_1 has the label {labels.max()}, and `classes` names {len(names)} classes; "
            f"expected labels in 0..{len(names) - 1}"
        )
    return labels.astype(np.int64), names


def expect_labels(labels, count, where):
    """Validate that the array arr_1 has an integer for each of `count` images.

    :param where: the flag and path, for errors.
    """
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise UserError(f"{where}: arr_1 is {labels.dtype} {list(labels.shape)}, expected integers [{count}]")


def renumbered(labels, count, named, known, where):
    """Labels [N] of named classes as the numbers of these names among the known; as they are where either has none.

    :param count: N.
    :param where: the flag and path of the labels, for errors.
    :raises UserError: for what is no label for each, labels without a name, and names that are not known.
    """
    if labels is None:
        return labels
    expect_labels(labels, count, where)
    if not named or not known:
        return labels
    if not ((labels >= 0) & (labels < len(named))).all():
        raise UserError(f"{where} has labels beyond the {len(named)} classes that it names")
    there = [named[label] for label in labels]
    if unknown := sorted(set(there) - set(known)):
        raise UserError(f"{where} has the class {unknown[0]}; expected those of the network: {shown(known)}")
    return np.array([known.index(name) for name in there], dtype=np.int64)


def chosen(text, count, names=(), flag="classes"):
    """The classes [K] of a list such as "flower,3": names, or numbers where no class has that name.

    :param count: of the classes.
    :param names: of the classes, in the order of their numbers; () where they have none.
    :raises UserError: for one that there is not.
    """
    found = []
    for part in of_text(text):
        word = part.strip()
        if word in names:
            found.append(names.index(word))
        elif re.fullmatch(r"-?[0-9]{1,18}", word):
            found.append(int(word))
            if not 0 <= found[-1] < count:
                raise UserError(f"--{flag} has {word}; expected 0 to {count - 1}" + _or_names(names))
        elif word:
            raise UserError(f"--{flag} is {text!r}; expected whole numbers with commas between" + _or_names(names))
    return found


def _or_names(names):
    return f", or names: {shown(list(names))}" if names else ""
