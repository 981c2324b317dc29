"""The sampler that a network is meant for, where its training fixed one: what of it lies beside a checkpoint."""

from .. import logger
from ..errors import UserError
from ..flags import marked
from ..sampling import no_coupling
from .read import read_flags

SAMPLED_BY, TIMESTEPS = "sampled_by", "trained_timesteps"
# the solver that asks its network for more than a posterior mean
JUMPS = "consistency"


def meant_for(sampled_by, timesteps):
    """{key: value} to lie beside a checkpoint.

    :param sampled_by: {flag: value}; {} where any will do.
    :param timesteps: the training timesteps that the network has seen; None for all.
    """
    said = {SAMPLED_BY: sampled_by, TIMESTEPS: timesteps}
    return {key: value for key, value in said.items() if value}


def as_meant(parsed, path, log=True):
    """The Parsed flags, with those of the checkpoint's sampler that neither command line nor script has set.

    A script that has not all of them samples by something else, and takes none.

    :param log: whether to say so.
    """
    known, defaults, values = read_flags(path).get(SAMPLED_BY, {}), parsed.defaults(), parsed.values()
    if not known.keys() <= values.keys():
        return parsed
    spelt = {other for one, other in marked(parsed.groups, "spells").items() if one in parsed.given}
    free = values.keys() - parsed.given - spelt
    open_ones = {k: v for k, v in known.items() if k in free and values[k] == defaults[k]}
    if open_ones and log:
        logger.log(f"{path}: sampled by {in_words(open_ones)}, which it was trained for")
    return parsed.with_values(open_ones)


def in_words(sampled_by):
    """A sampler {flag: value} as a command line has it."""
    return " ".join(f"--{name} {value}" for name, value in sampled_by.items())


def does_jump(trained):
    """Whether a network jumps to the data, by the flags beside its checkpoint."""
    return trained.get(SAMPLED_BY, {}).get("solver") == JUMPS


def untrained(timesteps, trained):
    """Those of some timesteps, sorted, that a network has not seen, by the flags beside its checkpoint."""
    return sorted({*timesteps} - {*trained.get(TIMESTEPS, timesteps)})


def check_meant(process, trained, path):
    """Compare a Process that samples with what the network was trained for; the log says where it knows no times.

    :param trained: the flags beside the checkpoint at `path`.
    :raises UserError: if a method moves the times of one that knows few.
    """
    known, meant, jumps = trained.get(TIMESTEPS), trained.get(SAMPLED_BY, {}).get("solver"), does_jump(trained)
    if process.solver_name and (process.solver_name == JUMPS) != jumps:
        knows = "was trained" if jumps else "is not known to be trained"
        logger.warn(f"{path} {knows} to jump to the data, as --solver {JUMPS} does, and this is {process.solver_name}")
    elif process.solver_name and meant and process.solver_name != meant:
        logger.warn(f"{path} was trained for the steps of --solver {meant}, and this is {process.solver_name}")
    if not known:
        return
    if process.coupling is not no_coupling or process.clock is not None:
        raise UserError(
            f"{path} knows {len(known)} timesteps alone, and a method of this command line moves them; expected none"
        )
    if foreign := untrained(process.grid, trained):
        logger.warn(
            f"{path} was not trained at {len(foreign)} of the {len(process.grid)} timesteps of this grid, such as "
            f"{foreign[-1]}; it is meant for {in_words(trained.get(SAMPLED_BY, {}))}"
        )
