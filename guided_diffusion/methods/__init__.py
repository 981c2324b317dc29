"""Methods: one paper a file, with its flags and whichever seams it moves.

The table decides what scripts take, and the order in which methods act: denoisers are wrapped innermost first,
couplings, corrections and corruptions follow each other.
"""

from .classifier_free_guidance import ClassifierFreeGuidance
from .classifier_guidance import ClassifierGuidance
from .clipping import Clipping, Thresholding
from .epsilon_scaling import EpsilonScaling
from .input_perturbation import InputPerturbation
from .method import Method
from .time_shift import TimeShift

STACK = (
    InputPerturbation,
    TimeShift,
    EpsilonScaling,
    ClassifierFreeGuidance,
    Clipping,
    ClassifierGuidance,
    Thresholding,
)


def of_sampling():
    """The methods that sampling scripts take: those that move more than training, unless they wait to be named."""
    return [method for method in STACK if method.by_default and not _trains_alone(method)]


def of_training():
    """The methods that training scripts take: those that corrupt."""
    return [method for method in STACK if _moves(method, "corrupt")]


def chosen(parsed):
    """The methods of a command line, in the order of the table.

    :param parsed: a flags.Parsed.
    """
    return [parsed[method] for method in STACK if method in parsed.groups]


def _moves(method, arrow):
    return getattr(method, arrow) is not getattr(Method, arrow)


def _trains_alone(method):
    return not any(_moves(method, arrow) for arrow in ("wrap", "couple", "clock", "correct"))
