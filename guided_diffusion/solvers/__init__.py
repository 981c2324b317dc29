"""Solvers: one file a family, `(denoise, x, t, s, state, noise) -> Step` between any two times.

t and s are [N] training timesteps, `noise(x)` draws standard normal noise like x, and `state` is
what the solver returned from its step before (None at first). What is true of a solver, and its flags, stand on
its class (see `Solver`).
"""

from functools import partial

from .bdia import BDIA
from .consistency import Consistency
from .ddim import DDIM
from .ddpm import DDPM
from .deis import DEIS
from .dpm_solver_pp import DPMSolverPP2S, DPMSolverPPMultistep, DPMSolverPPSDE
from .heun import Heun
from .pndm import PNDM
from .step import Solver
from .unipc import UniPC

__all__ = ["BDIA", "DDIM", "DDPM", "DEIS", "PNDM", "SOLVERS", "Heun", "Solver", "UniPC", "facts"]

# each is made of a NoiseSchedule, and of its options
SOLVERS = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "pndm_s": partial(PNDM, terms=2, warm_up="heun"),
    "pndm_f": partial(PNDM, terms=4, warm_up="runge_kutta"),
    "plms": partial(PNDM, terms=4, warm_up="heun"),
    "ipndm": partial(PNDM, terms=4, warm_up=""),
    "deis": DEIS,
    "dpmpp_1": partial(DPMSolverPPMultistep, terms=1),
    "dpmpp_2s": DPMSolverPP2S,
    "dpmpp_2m": partial(DPMSolverPPMultistep, terms=2),
    "dpmpp_3m": partial(DPMSolverPPMultistep, terms=3),
    "dpmpp_3m_exact": partial(DPMSolverPPMultistep, terms=3, second_difference=2),
    "dpmpp_sde_2m": DPMSolverPPSDE,
    "unipc": UniPC,
    "heun": Heun,
    "bdia": BDIA,
    "consistency": Consistency,
}


def facts(name):
    """The class behind a name in SOLVERS."""
    return getattr(SOLVERS[name], "func", SOLVERS[name])
