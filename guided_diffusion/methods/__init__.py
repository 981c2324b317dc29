"""Methods: one paper a file, with its flags and whichever seams it moves.

The table decides what scripts take, and the order in which methods act: denoisers are wrapped innermost first,
couplings, corrections and corruptions follow each other.
"""

from dataclasses import replace

from ..flags import flags_of
from .classifier_free_guidance import ClassifierFreeGuidance
from .classifier_guidance import ClassifierGuidance
from .clipping import Clipping, Thresholding
from .epsilon_scaling import EpsilonScaling
from .input_perturbation import InputPerturbation
from .method import Method
from .time_shift import TimeShift

STACK = [
    InputPerturbation,
    TimeShift,
    EpsilonScaling,
    ClassifierFreeGuidance,
    Clipping,
    ClassifierGuidance,
    Thresholding,
]


def of_sampling():
    """The methods that sampling scripts take: those that move more than training, unless they wait to be named."""
    return [method for method in STACK if method.by_default and not _trains_alone(method)]


def of_training():
    """The methods that training scripts take: those that corrupt."""
    return [method for method in STACK if _moves(method, "corrupt")]


def place(method):
    """Where a Method object stands in the table, by its class or the base that is there; behind it, if neither is."""
    return next((i for i, kind in enumerate(STACK) if isinstance(method, kind)), len(STACK))


def chosen(parsed):
    """The methods of a command line, in the order of the table.

    :param parsed: a flags.Parsed.
    """
    return [parsed[method] for method in STACK if method in parsed.groups]


def of_values(values):
    """The methods that {flag: value} speaks of, of those that need no classifier.

    :raises TypeError: for a flag that none of them has.
    """
    made, unknown = [], set(values)
    for method in STACK:
        given = {field.name: values[field.name] for field in flags_of(method) if field.name in values}
        if given and method.by_default:
            made.append(method(**given))
            unknown -= given.keys()
    if unknown:
        raise TypeError(f"unexpected argument {sorted(unknown)[0]!r}")
    return made


def uncoupled(parsed):
    """The Parsed flags of the same sampler without methods that move its times."""
    still = {method: method() for method in STACK if _moves(method, "couple") or _moves(method, "clock")}
    return replace(parsed, groups={group: still.get(group, made) for group, made in parsed.groups.items()})


def settled(parsed):
    """The Parsed flags of a line of a comparison as its methods mean them; see `Method.settled`."""
    groups = {group: made.settled(parsed.given) if group in STACK else made for group, made in parsed.groups.items()}
    return replace(parsed, groups=groups)


def columns():
    """{column: (heading, format)} of what all methods may find."""
    return {column: shown for method in STACK for column, shown in method.columns.items()}


def words():
    """The words by which a later line of a comparison may refer to findings."""
    return [word for method in STACK for word in method.words]


def _moves(method, arrow):
    return getattr(method, arrow) is not getattr(Method, arrow)


def _trains_alone(method):
    return not any(_moves(method, arrow) for arrow in ("wrap", "couple", "clock", "correct"))
