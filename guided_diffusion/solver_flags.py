"""From flags to a solver and the denoiser that it asks."""

from dataclasses import dataclass
from functools import partial

from .denoiser import ClippedDenoiser, dynamic_threshold
from .errors import UserError
from .flags import FRACTION, FlagGroup, Legal, flag
from .solvers import SOLVERS
from .solvers.unipc import VARIANTS

# option: the solvers that read it, as an argument of that name
READERS = {"eta": ("ddim",), "order": ("deis", "unipc"), "variant": ("unipc",), "gamma": ("bdia",)}

# solvers that divide by distances between the nodes of their steps
INTERPOLATING = ("deis", "dpmpp_2m", "dpmpp_3m", "dpmpp_3m_exact", "dpmpp_sde_2m", "unipc")


@dataclass
class SolverFlags(FlagGroup):
    """The solver, and the range of its predictions."""

    solver: str = flag("", "How a step is taken; empty is ddpm, or ddim with --use_ddim True.", choices=("", *SOLVERS))
    use_ddim: bool = flag(False, "The published spelling of --solver ddim.")
    eta: float = flag(0.0, "Noise of DDIM: 0 none, 1 that of DDPM with the small variance.", legal=FRACTION)
    order: int = flag(
        0,
        "Order as the papers count it: deis tAB1 to tAB3 (default 3), unipc 1 to 3 (default 2); 0 is the default.",
        legal=Legal("0 to 3", lambda value: 0 <= value <= 3),
    )
    variant: str = flag("bh2", "The function B(h) of unipc.", choices=VARIANTS)
    gamma: float = flag(
        0.5,
        "How far BDIA leans on its step before: 0 is DDIM, 1 is exactly invertible.",
        legal=FRACTION,
    )
    thresholding: str = flag(
        "static",
        "How --clip_denoised keeps predicted images in the pixel range: clamped, or each scaled by its own percentile.",
        choices=("static", "dynamic"),
    )
    threshold_percentile: float = flag(
        99.5,
        "Percentile of an image's absolute values that dynamic thresholding scales to 1.",
        legal=Legal("above 0, up to 100", lambda value: 0 < value <= 100),
    )

    def __post_init__(self):
        super().__post_init__()
        if self.use_ddim and self.solver not in ("", "ddim"):
            raise UserError(f"--use_ddim True contradicts --solver {self.solver}")

    def refuse_unread(self, given):
        """Refuse options that nothing would read.

        :param given: names of the flags that somebody set, if only to their default.
        """
        for option, solvers in READERS.items():
            if option in given and self.name not in solvers:
                value = getattr(self, option)
                raise UserError(f"--{option} {value} is read by --solver {' and '.join(solvers)} alone")
        if "threshold_percentile" in given and self.thresholding != "dynamic":
            raise UserError(
                f"--threshold_percentile {self.threshold_percentile} is read by --thresholding dynamic alone"
            )

    @property
    def name(self):
        """The solver's name in SOLVERS."""
        return self.solver or ("ddim" if self.use_ddim else "ddpm")

    def create(self, diffusion, model, clip_denoised=True, model_kwargs=None, cond_fn=None):
        """(solver, denoiser) of a process and its network: what `diffusion.sample_records` takes.

        Dynamic thresholding stands outermost, since guidance is what it is meant to bound; clipping stands
        inside guidance, as published.

        :param cond_fn: gradient for guidance, or None; DDPM is guided by its mean, all others by the score.
        :raises UserError: as `check`, and for an option that is set to something and not read.
        """
        options = (*READERS, "threshold_percentile")
        self.refuse_unread([name for name in options if getattr(self, name) != getattr(type(self), name)])
        self.check(diffusion, clip_denoised)
        if self.name == "ddpm":
            solver = diffusion.ddpm(cond_fn, model_kwargs)
            cond_fn = None
        else:
            given = {option: getattr(self, option) for option, solvers in READERS.items() if self.name in solvers}
            options = {option: value for option, value in given.items() if (option, value) != ("order", 0)}
            solver = SOLVERS[self.name](diffusion.schedule, **options)
        if self.thresholding == "static":
            return solver, diffusion.denoiser(model, clip_denoised, None, cond_fn, model_kwargs)
        denoise = diffusion.denoiser(model, False, None, cond_fn, model_kwargs)
        threshold = partial(dynamic_threshold, percentile=self.threshold_percentile)
        return solver, ClippedDenoiser(denoise, clip=False, denoised_fn=threshold)

    def check(self, diffusion, clip_denoised=True):
        """Refuse what a process and these flags exclude together.

        :raises UserError: for thresholding without clipping, and for a time shift that moves nodes where a solver
            needs them to stay, or to stay apart.
        """
        if self.thresholding == "dynamic" and not clip_denoised:
            raise UserError("--thresholding dynamic contradicts --clip_denoised False, which leaves predictions alone")
        shift = diffusion.time_shift
        if shift is not None and self.name == "bdia" and shift.variant != "net":
            raise UserError(
                f"--time_shift_variant {shift.variant} moves the ends of steps, between which --solver bdia measures "
                "the error of the step before; expected net"
            )
        if shift is None or shift.variant != "paper" or self.name not in INTERPOLATING:
            return
        if 3 * shift.reach > shift.smallest_gap:
            most = shift.smallest_gap // 3
            expected = (
                f"--time_shift_constant of at most {most}" if shift.constant else f"--window of at most {2 * most + 1}"
            )
            raise UserError(
                f"--time_shift_variant paper may move a step by {shift.reach} timesteps where the next is "
                f"{shift.smallest_gap} away, and --solver {self.name} divides by what remains; expected {expected}"
            )
