"""What a method is: its flags, and whichever of the seams it moves."""

from typing import ClassVar, NamedTuple

from ..flags import FlagGroup
from ..sampling import no_correction, no_coupling
from ..seams import Correction, Corruption, Coupling, Denoiser


class Proposal(NamedTuple):
    """Flags that measurements of a sampler suggest.

    :ivar name: in words.
    :ivar values: {flag: value}.
    :ivar numbers: {word: (number, its standard error)} behind them.
    :ivar near: it is a neighbour of another one, to be tried beside it.
    """

    name: str
    values: dict
    numbers: dict
    near: bool = False


class Method(FlagGroup):
    """A paper: its flags, and whichever of these arrows it moves. Each is the identity unless a method says otherwise.

    The first flag turns it on: at that flag's default the others say nothing.

    :cvar by_default: scripts take it without naming it; False: only scripts that list it do.
    :cvar columns: {column: (heading, format)} of `findings`, for tables.
    :cvar corrects_bias: it takes predictions for means of what is left open, and corrects their bias.
    :cvar words: {word: column} by which later lines of a comparison may refer to a finding, as {word NAME}.
    """

    by_default = True
    corrects_bias = False
    columns: ClassVar = {}
    words: ClassVar = {}

    def wrap(self, denoise: Denoiser, process) -> Denoiser:
        """The denoiser `(x_t, t, cond) -> Prediction` around `denoise`."""
        return denoise

    def couple(self, process) -> Coupling:
        """The coupling `(i, x, t, s) -> (t, s)` of sampling."""
        return no_coupling

    def clock(self, process):
        """`(x, t) -> t`, the time that the network is told in place of t; None tells it t."""
        return

    def correct(self, process) -> Correction:
        """The correction `(x, prediction, t, s) -> x` after each step."""
        return no_correction

    def corrupt(self, process) -> Corruption:
        """The corruption `(noise, t) -> (noise, t)` of training: what makes x_t; the network is told the first t."""
        return no_corruption

    def check(self, process, solver):
        """Validate the flags against a process.

        :param solver: the Solver; None where there is none, as in training and in the class API.
        :raises UserError: for what they exclude together.
        """

    def check_told(self, told, needs):
        """Validate the flags against what the network is told, before it is asked.

        :param told: {name: tensor [N, ...]}.
        :param needs: names that the network has no answer without.
        :raises UserError: if the method needs more, or asks without one of them.
        """

    def advice(self, process, trained):
        """Sentences that warn of what is allowed and hardly meant.

        :param trained: {flag: value} as the network was trained; {} where that is not known.
        """
        return ()

    @classmethod
    def remarks(cls, trained):
        """Sentences on how the network was trained, by its flags `trained`, where this method had a part in it."""
        return ()

    @property
    def measures(self):
        """Whether a run with these flags will have `findings`."""
        return False

    def findings(self, process):
        """{column: number, or None where it does not apply} of what the method did in the runs so far."""
        return dict.fromkeys(self.columns)

    def settled(self, measured):
        """The method as a line of a comparison means it, whose flags may be numbers that were measured before.

        :param measured: names of the flags that are such.
        """
        return self

    def propose(self, probe):
        """Proposals of its flags for the sampler that it is a method of, the best first.

        :param probe: `(values, *measures) -> Result` of evaluations.exposure.sampler: the sampler with {flag: value}
            changed, as those measures see it.
        """
        return ()

    def file_name(self):
        """What published scripts add to the name of a file of images that it moved."""
        return ""

    def report(self, process):
        """Lines for the end of a run."""
        return ()

    def suspect(self, process):
        """What of its flags may have thrown images beyond all numbers, in a sentence; "" for nothing."""
        return ""


def jackknife(left_out):
    """Standard errors [...] of statistics [shares, ...] that leave out one of equal shares of a sample each."""
    return ((len(left_out) - 1) * left_out.var(axis=0)) ** 0.5


def no_corruption(noise, t):
    """The corruption that leaves training alone."""
    return noise, t
