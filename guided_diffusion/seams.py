"""The seven seams, as types: whatever has one of these shapes can stand there.

x is [N, C, ...]; t and s are [N], training timesteps 0..T-1, where -1 is the data; cond is {name: tensor [N, ...]}.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from .denoiser import Prediction

Cond = dict[str, Tensor]


class Denoiser(Protocol):
    """What a network says of x_t. A wrapper takes one and is one."""

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction: ...


class Coupling(Protocol):
    """Moves the times of kept step i before it is taken."""

    def __call__(self, i: int, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]: ...


class Solver(Protocol):
    """Goes from t to s; `state` is what it returned before, None at first, and `noise(x)` draws like x."""

    order: int

    def __call__(
        self,
        denoise: Callable[[Tensor, Tensor], Prediction],
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: Any,
        noise: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Prediction, Any]: ...


class Correction(Protocol):
    """Pulls the new state back, once after each step."""

    def __call__(self, x: Tensor, prediction: Prediction, t: Tensor, s: Tensor) -> Tensor: ...


class Corruption(Protocol):
    """In training: the noise and the level that make x_t; the network is told the first t."""

    def __call__(self, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]: ...


class Objective(Protocol):
    """What training minimises."""

    num_timesteps: int

    def __call__(self, model: nn.Module, x: Tensor, cond: Cond) -> tuple[Tensor, dict[str, Tensor], Tensor]: ...

    def begin(self, model: nn.Module) -> None: ...

    def set_rate(self, share: float) -> None: ...

    def stepped(self, model: nn.Module) -> None: ...

    def logged(self) -> dict[str, float]: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class Conditioning(Protocol):
    """What the network is told beside x_t and t, in training, in sampling, and left out for guidance."""

    def of_data(self, x: Tensor, labels: Tensor | None) -> Cond: ...

    def of_indices(self, noise: Any, indices: list[int]) -> Cond: ...

    def dropped(self, cond: Cond) -> Cond: ...
