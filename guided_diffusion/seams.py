"""The seams that are functions, as types: whatever has one of these shapes can stand there.

The other three have a base class, which says what is true of one by default: solvers.step.Solver,
objectives.objective.Objective and conditioning.conditioning.Conditioning.

x is [N, C, ...]; t and s are [N], training timesteps 0..T-1, where -1 is the data; cond is {name: tensor [N, ...]}.
"""

from typing import Protocol

from torch import Tensor

from .denoiser import Prediction

Cond = dict[str, Tensor]


class Denoiser(Protocol):
    """What a network says of x_t. A wrapper takes one and is one."""

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction: ...


class Coupling(Protocol):
    """Moves the times of kept step i before it is taken."""

    def __call__(self, i: int, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]: ...


class Correction(Protocol):
    """Pulls the new state back, once after each step."""

    def __call__(self, x: Tensor, prediction: Prediction, t: Tensor, s: Tensor) -> Tensor: ...


class Corruption(Protocol):
    """In training: the noise and the level that make x_t; the network is told the first t."""

    def __call__(self, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]: ...
