"""From flags to a solver and the denoiser that it asks."""

from dataclasses import dataclass

from .errors import UserError
from .flags import FRACTION, FlagGroup, flag
from .solvers import SOLVERS

# option: the solvers that read it, as an argument of that name
READERS = {"eta": ("ddim",)}


@dataclass
class SolverFlags(FlagGroup):
    """The solver."""

    solver: str = flag("", "How a step is taken; empty is ddpm, or ddim with --use_ddim True.", choices=("", *SOLVERS))
    use_ddim: bool = flag(False, "The published spelling of --solver ddim.")
    eta: float = flag(0.0, "Noise of DDIM: 0 none, 1 that of DDPM with the small variance.", legal=FRACTION)

    def __post_init__(self):
        super().__post_init__()
        if self.use_ddim and self.solver not in ("", "ddim"):
            raise UserError(f"--use_ddim True contradicts --solver {self.solver}")
        for option, solvers in READERS.items():
            value = getattr(self, option)
            if value != getattr(type(self), option) and self.name not in solvers:
                raise UserError(f"--{option} {value} is read by --solver {' and '.join(solvers)} alone")

    @property
    def name(self):
        """The solver's name in SOLVERS."""
        return self.solver or ("ddim" if self.use_ddim else "ddpm")

    def create(self, diffusion, model, clip_denoised=True, model_kwargs=None, cond_fn=None):
        """(solver, denoiser) of a process and its network: what `diffusion.sample_records` takes.

        :param cond_fn: gradient for guidance, or None; DDPM is guided by its mean, all others by the score.
        """
        if self.name == "ddpm":
            solver = diffusion.ddpm(cond_fn, model_kwargs)
            cond_fn = None
        else:
            options = {option: getattr(self, option) for option, solvers in READERS.items() if self.name in solvers}
            solver = SOLVERS[self.name](diffusion.schedule, **options)
        return solver, diffusion.denoiser(model, clip_denoised, None, cond_fn, model_kwargs)
