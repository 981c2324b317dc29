"""Methods: one paper a file, with its flags and whichever seams it moves.

The table decides what scripts take, and the order in which methods act: denoisers are wrapped innermost first,
couplings, corrections and corruptions follow each other.
"""

from dataclasses import replace

from ..errors import UserError
from ..flags import flags_of, marked
from .classifier_free_guidance import ClassifierFreeGuidance
from .classifier_guidance import ClassifierGuidance
from .clipping import Clipping, Thresholding
from .epsilon_scaling import EpsilonScaling
from .input_perturbation import InputPerturbation
from .latent import Latent
from .method import Method
from .time_shift import TimeShift

STACK: list[type[Method]] = [
    InputPerturbation,
    Latent,
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


def at_defaults(values):
    """The methods of sampling as they are where no flag is given.

    :param values: {flag: value} of the network, which decides flags that a method shares with it.
    """
    kinds = {method: marked([method], "shared") for method in of_sampling()}
    return [kind(**{name: values[name] for name in shared if name in values}) for kind, shared in kinds.items()]


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


def guided(parsed, classifier):
    """The methods of a command line that ask a classifier, with the network that it is."""
    return [replace(method, classifier=classifier) for method in chosen(parsed) if not method.by_default]


def of_class_api():
    """The methods whose flags clients of the class API give: no classifier is named, and its loops are told to clip."""
    return [method for method in STACK if method.by_default and method is not Clipping]


def of_values(values):
    """The methods that {flag: value} speaks of, of those that need no classifier.

    :param values: by the names of flags, or their aliases.
    :raises TypeError: for a flag that none of them has.
    :raises UserError: for a flag and its alias with two values.
    """
    made, unknown = [], set(values)
    for method in (method for method in STACK if method.by_default):
        given = {}
        for field in flags_of(method):
            for name in spellings(field):
                if name in values:
                    if given.setdefault(field.name, values[name]) != values[name]:
                        raise UserError(f"--{name} {values[name]} contradicts --{field.name} {given[field.name]}")
                    unknown.discard(name)
        if given:
            made.append(method(**given))
    if unknown:
        raise TypeError(f"unexpected argument {min(unknown)!r}")
    return made


def switched_on(values, own=()):
    """{flag: value} that a client's command line says of methods of the class API, without what is at its default.

    A method is on where its first flag is neither at its default nor false.

    :param values: {name: value} of the whole command line.
    :param own: names of those that mean methods for certain; of others only flags of releases do.
    :raises UserError: for one of `own` whose method is off.
    """
    found = {}
    for method in of_class_api():
        fields = flags_of(method)
        told = {
            name: values[name]
            for field in fields
            for name in spellings(field)
            if name in values
            and (name in own or field.metadata["marks"]["released"])
            and not _equal(values[name], field.default)
        }
        if any(told.get(name) for name in spellings(fields[0])):
            found |= told
        elif told.keys() & set(own):
            name = min(told.keys() & set(own))
            raise UserError(f"--{name} {told[name]} does nothing without --{fields[0].name}")
    return found


def spellings(field):
    """The names of a flag: its own and its aliases."""
    return (field.name, *field.metadata["aliases"])


def _equal(value, default):
    try:
        return float(value) == float(default)
    except (TypeError, ValueError):
        return value == default


def uncoupled(parsed):
    """The Parsed flags of the same sampler without methods that move its times."""
    still = {method: method() for method in STACK if _moves(method, "couple") or _moves(method, "clock")}
    return replace(parsed, groups={group: still.get(group, made) for group, made in parsed.groups.items()})


def settled(parsed, measured):
    """The Parsed flags of a line of a comparison as its methods mean them; see `Method.settled`."""
    groups = {group: made.settled(measured) if group in STACK else made for group, made in parsed.groups.items()}
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
