"""ADM diffusion models, in which exposure-bias methods, solvers and launchers compose.

Seven seams carry everything (seams.py types those that are functions). A *denoiser* `(x_t, t, cond) -> Prediction`
may be wrapped by another denoiser: clipping, guidance, epsilon scaling. A *coupling* `(i, x, t, s) -> (t, s)` may move
the times of one step. A *solver* `(denoise, x, t, s, state, noise) -> Step` goes from t to s. A *correction*
`(x, prediction, t, s) -> x` may pull the new state back. A *corruption* `(noise, t) -> (noise, t)` acts in training
only. An *objective* `(model, x, cond) -> Loss` is what training minimises. A *conditioning* says what the network is
told beside x_t and t. A method is one file with its flags and whichever of these it moves, and one line in
methods.STACK. Times are training timesteps 0..T-1; -1 is the data and T is pure noise.

What the scripts do is there in Python as `load`, `evaluate`, `exposure_bias` and `tune` (api.py), which are read when
they are asked for: a module of the package that is imported by itself loads nothing of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Encoded, Model, Tuned, evaluate, exposure_bias, load, tune
    from .errors import UserError

__all__ = ["Encoded", "Model", "Tuned", "UserError", "evaluate", "exposure_bias", "load", "tune"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(".errors" if name == "UserError" else ".api", __name__)
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
