"""From flags to a solver: the choice of one, and the options that the solvers declare."""

from dataclasses import dataclass, fields, make_dataclass

from ..errors import UserError
from ..flags import FlagGroup, flag, may_be_known
from . import SOLVERS, facts


@dataclass
class _Choice(FlagGroup):
    """The solver."""

    solver: str = flag(
        "",
        "How a step is taken; empty is ddpm, or ddim with --use_ddim True.",
        choices=("", *SOLVERS),
        essential="solver",
    )
    use_ddim: bool = flag(False, "The published spelling of --solver ddim.", spells="solver")

    def __post_init__(self):
        super().__post_init__()
        if self.use_ddim and self.solver not in ("", "ddim"):
            raise UserError(f"--use_ddim True contradicts --solver {self.solver}")

    @property
    def name(self):
        """The solver's name in SOLVERS."""
        return self.solver or ("ddim" if self.use_ddim else "ddpm")

    def refuse_unread(self, given):
        if may_be_known("solver", given) and "use_ddim" not in given:
            return
        for option, readers in READERS.items():
            if option in given and self.name not in readers:
                value = getattr(self, option)
                raise UserError(f"--{option} {value} is read by --solver {' and '.join(readers)} alone")

    def create(self, process):
        """The Solver of these flags for a Process."""
        kind = facts(self.name)
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name in kind.options}
        chosen = {name: value for name, value in own.items() if value != getattr(type(self), name)}
        taken = {name: getattr(process, name) for name in kind.takes}
        return SOLVERS[self.name](process.schedule, **taken, **chosen)


def _readers():
    """{option: names of the solvers that read it}."""
    readers = {}
    for name in SOLVERS:
        for option in facts(name).options:
            readers.setdefault(option, []).append(name)
    return readers


def _option(name):
    """The flag of an option; where several solvers read it, each says in the help what it means to it."""
    declared = {solver: facts(solver).options[name] for solver in READERS[name]}
    first = next(iter(declared.values())).metadata
    if len(declared) == 1:
        help = first["help"]
    else:
        helps = (f"{solver}: {field.metadata['help'].rstrip('.')}" for solver, field in declared.items())
        help = "; ".join(helps) + "."
    default = next(iter(declared.values())).default
    for solver, field in declared.items():
        if field.default != default or any(field.metadata[key] != first[key] for key in first if key != "help"):
            raise TypeError(f"{next(iter(declared))} and {solver} declare --{name} otherwise than each other")
    return flag(default, help, first["choices"], first["aliases"], first["legal"], **first["marks"])


READERS = _readers()
SolverFlags = make_dataclass(
    "SolverFlags",
    [(name, type(_option(name).default), _option(name)) for name in READERS],
    bases=(_Choice,),
    namespace={"__doc__": _Choice.__doc__},
)
