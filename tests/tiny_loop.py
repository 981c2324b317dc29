"""A training loop of three weights, small enough to be computed by hand, and what a run leaves on disk."""

import csv

import torch

from guided_diffusion import logger
from guided_diffusion.objectives import Loss, Objective
from guided_diffusion.training.flags import TrainFlags
from guided_diffusion.training.loop import Loop

NAN, INF = float("nan"), float("inf")
START = [1.5, -2.0, 0.5]


def half_square(model, batch, cond):
    """y^2 / 2 of y = w x, whose gradient is y x."""
    loss = model(batch)[:, 0].float().square() / 2
    return loss, {"loss": loss}, torch.zeros(len(batch), dtype=torch.long)


def plain_sum(model, batch, cond):
    """The sum of the weights: each has the gradient 1, for which Adam's step is the learning rate."""
    loss = sum(p.sum() for p in model.parameters()).expand(len(batch))
    return loss, {"loss": loss}, torch.zeros(len(batch), dtype=torch.long)


def poisoned(objective, factors):
    """The objective times factors[step], which may not be finite."""
    steps = iter(factors)

    def call(model, batch, cond):
        loss, terms, t = objective(model, batch, cond)
        return loss * next(steps), terms, t

    return call


class ByFunction(Objective):
    """The objective `(model, batch, cond) -> (loss [N], terms, t [N])` as a class."""

    num_timesteps = 4

    def __init__(self, function):
        self.function = function

    def __call__(self, model, x, cond):
        return Loss(*self.function(model, x, cond))


def tiny(folder, objective, rows=((1.0, 0.0, 0.0),), dtype=torch.float32, preview=None, **flags):
    """(the Loop of w = START, [w after each step])."""
    logger.configure(str(folder), "csv,log")
    model = torch.nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([START]))
    seen = []
    loop = Loop(
        model=model,
        objective=ByFunction(objective),
        data=iter(lambda: (torch.tensor(rows), {}), None),
        flags=TrainFlags(**{"lr": 0.1, "log_interval": 1, **flags}),
        resolved={"num_channels": 3},
        dtype=dtype,
        preview=preview,
        after_step=lambda loop: seen.append(model.weight.detach()[0].clone()),
    )
    return loop, seen


def rows(folder):
    """The rows of progress.csv, numbers where there are numbers."""
    with open(folder / "progress.csv") as file:
        return [{k: _number(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def weights(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b, same=torch.equal):
    """Nested dicts and lists of tensors and numbers are equal, tensors bit for bit or as `same` has it."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key], same)
    elif isinstance(a, list):
        assert len(a) == len(b)
        for pair in zip(a, b):
            assert_same(*pair, same)
    else:
        assert same(a, b) if isinstance(a, torch.Tensor) else a == b
