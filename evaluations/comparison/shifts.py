"""All that a comparison knows of Time Shift: what a row says of its searches, and the control of a search."""

from guided_diffusion import dist_util, flags
from guided_diffusion.methods.time_shift import ShiftStatistics
from guided_diffusion.script_util import TimeShiftFlags

# {column of the csv: (heading, format)} of what a row has found; None in a row where nothing was shifted, or searched
COLUMNS = {"mean_shift": ("mean shift", "+.1f"), "edge": ("searches at an edge", ".0%")}
PLACEHOLDER = "{shift NAME} of a time-shift line above"


def without(parsed):
    """The same sampler without time shift."""
    return flags.Parsed({**parsed.groups, TimeShiftFlags: TimeShiftFlags()}, parsed.given, parsed.absent)


def settled(parsed):
    """A sampler as its line means it: the control of a search that moved nothing is without time shift."""
    if "time_shift_constant" in parsed.given and not parsed[TimeShiftFlags].time_shift_constant:
        return without(parsed)  # the flag's 0 would search
    return parsed


def known(parsed, row=None):
    """{word: number} that {word NAME} stands for in later lines.

    :param row: of the sampler; without one, as nothing is measured yet, a shift is taken for 1.
    """
    if not parsed[TimeShiftFlags].do_time_shift:
        return {}
    # a search that moved nothing has a control that moves nothing
    return {"shift": 1 if row is None else row.findings["mean_shift"] or 0}


def observe(diffusion):
    """Count the searches of a process from now on."""
    if diffusion.time_shift is not None:
        diffusion.time_shift.observe = ShiftStatistics(diffusion.schedule.num_timesteps, dist_util.dev())


def findings(diffusion):
    """What the COLUMNS say of all ranks, which call this together."""
    shift, found = diffusion.time_shift, dict.fromkeys(COLUMNS)
    if shift is None:
        return found
    dist_util.all_reduce_sum(shift.observe.totals)
    searches, moved, at_edge = shift.observe.totals.sum(dim=1).tolist()
    if searches:
        found["mean_shift"] = moved / searches
        found["edge"] = None if shift.constant else at_edge / searches
    return found
