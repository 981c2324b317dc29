"""What a command line and a checkpoint say together."""

from .. import logger
from ..errors import UserError
from ..flags import flags_of, marked
from ..networks import NETWORKS
from ..networks.levels import attention_rates, channel_multipliers
from ..process import DiffusionFlags, NoisingFlags
from .read import KEYED, peek, read_flags, sidecar_path


def resolve(
    parsed,
    path,
    network,
    *,
    override=False,
    flag="model_path",
    fixed=frozenset(),
    free=frozenset(),
    lasting=frozenset(),
    log=True,
):
    """The Parsed flags of a run that uses a checkpoint: what was given, else what the checkpoint says.

    The flags beside the checkpoint speak for it; without those, its shapes do.

    :param parsed: the command line.
    :param path: of the checkpoint.
    :param network: the Network it has to be.
    :param override: let given flags win over those beside the checkpoint.
    :param flag: that names the checkpoint.
    :param fixed: flags that count as given though the command line left them out.
    :param free: flags that may contradict the checkpoint, beside those that are marked so.
    :param lasting: flags that the checkpoint decides too, though they do not describe its network; free as well.
    :param log: whether to say where the flags are from, and warn of what is assumed.
    :raises UserError: at most ten lines, for a given flag that contradicts the checkpoint.
    """
    if not path:
        raise UserError(f"--{flag} is not given; expected the path of a checkpoint (.pt)")
    values, names = parsed.values(), described(network) | lasting
    given = {k: values[k] for k in (parsed.given | fixed) & names if k in values}
    beside = read_flags(path)
    found = _marked_by(beside)
    if found not in (None, network):
        raise UserError(f"--{flag} {path} is {found.what}, by {sidecar_path(path)}; expected {network.what}")
    known = {k: v for k, v in beside.items() if k in names}
    _check_types(known, values, path)
    source = sidecar_path(path) if known else "its tensors"
    if found:
        known = {**_unsaid(known, network, path), **known}
    elif not known:
        known = _revealed(path, network, given, flag, key_for(flag, values))
    assumed = [
        k for k in marked(_groups(network), "hidden") if k in values and k not in {*given, *(known if beside else ())}
    ]
    conflicts = _conflicts(given, known, network, parsed.marked("free") | free | lasting)
    if conflicts and not (override and source == sidecar_path(path)):
        hint = "; --override True insists" if source == sidecar_path(path) and "override" in values else ""
        shown = conflicts[:7] + ([f"  and {len(conflicts) - 7} more"] if len(conflicts) > 7 else [])
        raise UserError(
            "\n".join([f"--{flag} {path} is another network than the flags say (by {source}{hint}):", *shown])
        )
    if log:
        logger.log(f"{path}: flags by {source}")
    if log and assumed:
        shown = " ".join(f"--{k} {values[k]}" for k in assumed)
        logger.warn(f"tensors do not show everything; assumed {shown}: give what its authors state")
    for one, other in marked(parsed.groups, "spells").items():
        if any(k in given and k in known and given[k] != known[k] for k in (one, other)):
            known = {k: v for k, v in known.items() if k not in (one, other)}
    try:
        return parsed.with_values({**known, **given})
    except UserError as error:
        parsed.with_values(given)  # where these are wrong, they are named
        raise UserError(f"{path}, by {source}: {error}") from error


def resumed(parsed, path, network):
    """The Parsed flags of a training run that goes on from `path`, or as they are where that is empty.

    Lasting flags go on too, unless the command line gives others.
    """
    if not path:
        return parsed
    return resolve(parsed, path, network, flag="resume_checkpoint", lasting=parsed.marked("lasting"))


def initialise(parsed, path, network):
    """The Parsed flags of a training run that takes its first weights from `path`, or as they are where that is empty.

    It may have other classes than the checkpoint, and predict something else.
    """
    free = parsed.marked("classes") | parsed.marked("relearnt")
    return resolve(parsed, path, network, flag="init_from", free=free) if path else parsed


def recognised(path, flag):
    """The Network that a checkpoint is, by the flags beside it or else by its shapes.

    :raises UserError: if it is none of NETWORKS.
    """
    found = _marked_by(read_flags(path)) or _fitting(peek(path, flag))
    if found is None:
        known = ", ".join(network.what for network in NETWORKS.values())
        raise UserError(f"--{flag} {path} is no network that is known, by its tensors; expected one of: {known}")
    return found


def key_for(flag, values):
    """The --checkpoint_key that a command line has for the checkpoint of a flag: that of a classifier has none."""
    return values.get("checkpoint_key", "") if flag in KEYED else ""


def described(network):
    """Names of the flags that describe a Network, those of its process included."""
    names = {field.name for group in _groups(network) for field in flags_of(group)}
    if network.process == "noising":
        names |= noising()
    return names - {"image_size"} | {network.size_flag}


def noising():
    """Names of the flags that say how a process noises images, and what time a network is told."""
    return set(marked([DiffusionFlags], "noising"))


def process_groups(network):
    """The flag group of the process that a Network knows, if any, in a tuple."""
    return {"all": (DiffusionFlags,), "noising": (NoisingFlags,), "none": ()}[network.process]


def _groups(network):
    """The flag groups that are wholly about a Network."""
    return (DiffusionFlags, *network.groups) if network.process == "all" else network.groups


def _marked_by(beside):
    """The Network whose flags lie beside a checkpoint, None if they are of none."""
    return next((network for network in NETWORKS.values() if network.mark in beside), None)


def _fitting(state):
    """The Network that a state dict is of, None if it is of none."""
    return next((network for network in NETWORKS.values() if _read_shapes(network, state)), None)


def _read_shapes(network, state, size=None):
    """The flags that shapes reveal of a Network, None where they are not its."""
    try:
        return network.reveal(state, size)
    except (LookupError, ValueError, ZeroDivisionError):
        return None


def _revealed(path, network, given, flag, key):
    state, size = peek(path, flag, key), given.get(network.size_flag)
    known = _read_shapes(network, state, size)
    if known is None:
        other = _fitting(state)
        reason = f"are those of {other.what}" if other else "have other names"
        raise UserError(f"--{flag} {path} is not {network.what}: its tensors {reason}")
    if size in network.defaults and not given.get(network.mult_flag):
        # the multipliers of another published size tell that size
        mult = channel_multipliers(known[network.mult_flag], size)
        if mult != network.defaults[size] and "image_size" in (other := network.reveal(state, None)):
            known = other
    if "image_size" not in known:
        raise UserError(f"--{flag} {path} does not tell its image size: give --{network.size_flag}")
    known[network.size_flag] = known.pop("image_size")
    return {k: v for k, v in known.items() if k in described(network)}


def _unsaid(known, network, path):
    """{flag: value} of the hidden flags that the flags beside a checkpoint lack, as those of an older version do.

    They were not there to be set, so each is its default, or what another spelling of it says.
    """
    made = {}
    try:
        for group in (*network.groups, *process_groups(network)):
            whole = group(**{field.name: known[field.name] for field in flags_of(group) if field.name in known})
            lacking = marked([group], "hidden").keys() & described(network) - known.keys()
            made |= {name: getattr(whole, name) for name in lacking}
    except UserError as error:
        raise UserError(f"{sidecar_path(path)}: {error}") from error
    return made


def _check_types(known, values, path):
    for name, value in known.items():
        wanted = type(values.get(name, value))
        if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
            raise UserError(f"{sidecar_path(path)} has {value!r} for {name}; expected a value such as {values[name]!r}")


def _conflicts(given, known, network, free):
    """One line for each given flag that contradicts the known ones."""
    return [
        f"  --{k} is {given[k]!r}, the checkpoint has {known[k]!r}"
        for k in sorted(given)
        if k in known and k not in free and not _same(k, given, known, network)
    ]


def _same(name, given, known, network):
    either = {**given, **known}
    size = either.get(network.size_flag)
    if size and name == network.mult_flag:
        one, other = (channel_multipliers(flags[name], size, network.defaults) for flags in (given, known))
        return one == other
    if size and name.endswith("attention_resolutions"):
        levels = len(channel_multipliers(either.get(network.mult_flag, ""), size, network.defaults))
        one, other = (set(attention_rates(flags[name], size, name)) for flags in (given, known))
        # a size that no level has adds no attention
        return (one ^ other).isdisjoint(2**level for level in range(levels))
    return given[name] == known[name]
