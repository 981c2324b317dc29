"""Class labels: of the data in training, chosen or drawn in sampling; -1 stands for no class."""

from dataclasses import dataclass

import torch

from ..devices import sent
from ..errors import UserError
from ..flags import BELOW_ONE, IMAGES, FlagGroup, at_least, flag
from ..image_labels import chosen, of_text, shown
from ..networks import ClassifierFlags, UNetFlags
from .conditioning import Conditioning


@dataclass
class ClassFlags(FlagGroup):
    """Classes of the images."""

    classes: str = flag(
        "",
        "Classes to sample, such as flower,3, in turn over the images; empty draws them at random.",
        essential="classes",
    )
    per_class: int = flag(
        0,
        "Images of each of --classes, or of every class, in place of --num_samples; 0 is off.",
        legal=at_least(0, IMAGES),
        idle=True,
    )


@dataclass
class ClassDropoutFlags(FlagGroup):
    """Training without classes."""

    class_dropout: float = flag(
        0.0,
        "Share of the images whose class is not told, as classifier-free guidance needs; 0 tells all.",
        legal=BELOW_ONE,
        lasting=True,
        needs="class_cond",
    )


class Classes(Conditioning):
    """`y`, the class label.

    :param num_classes: K of the network.
    :param chosen: labels that sampling takes in turn; empty draws them.
    :param dropout: probability that training tells no class (Ho & Salimans 2022, algorithm 1).
    """

    training = (ClassDropoutFlags,)
    sampling = (ClassFlags,)
    network = UNetFlags
    left_out_by = "class_dropout"

    def __init__(self, num_classes, chosen=(), dropout=0.0):
        self.num_classes = num_classes
        self.chosen = list(chosen)
        self.dropout = dropout

    @classmethod
    def of_training(cls, parsed):
        if UNetFlags not in parsed.groups:  # a classifier is asked for the class, not told it
            return cls(parsed[ClassifierFlags].num_classes)
        unet = parsed[UNetFlags]
        return cls(unet.num_classes, dropout=parsed[ClassDropoutFlags].class_dropout) if unet.class_cond else None

    @classmethod
    def of_sampling(cls, parsed):
        count = class_count(parsed)
        if count is None or ClassFlags not in parsed.groups:
            return None
        return cls(count, chosen_classes(parsed[ClassFlags].classes, count))  # see with_classes_counted

    def of_data(self, x, labels):
        if self.dropout == 0:
            return {"y": labels}
        told = sent(torch.rand(len(labels)) >= self.dropout, labels.device)
        return {"y": labels.where(told, -1)}

    def shown(self, count, x, labels):
        return {"y": torch.arange(count) % self.num_classes if labels is None else labels}

    def of_indices(self, noise, indices):
        if not self.chosen:
            return {"y": noise.label(self.num_classes)}
        return {"y": torch.tensor([self.chosen[i % len(self.chosen)] for i in indices])}

    @staticmethod
    def dropped(cond):
        return {"y": torch.full_like(cond["y"], -1)} if "y" in cond else {}


def class_count(parsed):
    """How many classes a sampling run knows: those of its guiding classifier or its network; None for none."""
    if ClassifierFlags in parsed.groups:
        return parsed[ClassifierFlags].num_classes
    unet = parsed[UNetFlags]
    return unet.num_classes if unet.class_cond else None


def class_names(parsed):
    """The names of the classes that `class_count` counts, by their numbers; [] where they are not known."""
    return of_text(parsed.values().get("class_names", ""))


def chosen_classes(text, num_classes, names=()):
    """The classes [K] of "flower,3": names, or numbers; empty for all.

    :param names: of the classes, by their numbers.
    :raises UserError: for one outside 0..num_classes-1, and for a name that is not known.
    """
    return chosen(text, num_classes, list(names))


def with_classes_counted(parsed):
    """The resolved Parsed flags of a sampling run: --classes in numbers, and --per_class spelt out as --num_samples.

    :raises UserError: for classes where the network has none, and for numbers that contradict each other.
    """
    flags, num_classes = parsed[ClassFlags], class_count(parsed)
    if num_classes is None and (flags.classes or flags.per_class):
        raise UserError(
            f"--{'classes' if flags.classes else 'per_class'} has no meaning for --model_path "
            f"{parsed.values()['model_path']}, which has no classes"
        )
    if num_classes is None:
        return parsed
    classes = chosen_classes(flags.classes, num_classes, class_names(parsed))
    values, count = {"classes": ",".join(map(str, classes))}, flags.per_class
    if count:
        classes = classes or range(num_classes)
        total, told = count * len(classes), parsed.values()["num_samples"]
        if "num_samples" in parsed.given and told != total:
            raise UserError(
                f"--num_samples {told} contradicts --per_class {count}, which makes {total}; leave one of them out"
            )
        values = {"num_samples": total, "classes": ",".join(map(str, classes))}
    return parsed.with_values(values)


def advice(parsed):
    """Sentences that warn of classes that a sampling run draws and its network was not trained on.

    :param parsed: as `with_classes_counted` returned it.
    """
    names, count = class_names(parsed), class_count(parsed)
    drawn = chosen_classes(parsed[ClassFlags].classes, count) if count else ()
    if names and count and max(drawn or range(count)) >= len(names):
        yield (
            f"{parsed.values()['model_path']} was trained on {len(names)} of its {count} classes, {shown(names)}: "
            "others mean nothing to it; --classes chooses some"
        )
