"""A step waits for no device: counted on the CPU, by running it on the fake tensors of a GPU that is not there.

On such tensors there are no values to read; whatever would read one, or copy between devices, is a failure here.
"""

import contextlib
import sys

import pytest
import sampled
import torch
from processes import slow
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from guided_diffusion import devices, logger
from guided_diffusion.conditioning.classes import Classes
from guided_diffusion.conditioning.masked import MASKS, Masked
from guided_diffusion.methods import STACK, of_values
from guided_diffusion.methods.time_shift import VARIANTS
from guided_diffusion.objectives import OBJECTIVES, ClassifierObjective
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.resample import SamplerFlags
from guided_diffusion.script_util import diffusion_of
from guided_diffusion.solvers import SOLVERS
from guided_diffusion.training.flags import TrainFlags
from guided_diffusion.training.loop import Loop
from guided_diffusion.training.precision import Precision

SHAPE = (4, 3, 8, 8)
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item")

# flags that turn a method on in sampling
ON = {
    "TimeShift": [
        {"do_time_shift": True, "window": 60, "cutoff": 0, "time_shift_variant": variant, **more}
        for variant in VARIANTS
        for more in ({}, {"time_shift_constant": 3})
    ],
    "EpsilonScaling": [{"eps_scaler": "1.01"}, {"eps_scaler": "0.001,1.002"}],
    "ClassifierFreeGuidance": [
        {"guidance_scale": scale, "guidance_interval": interval} for scale in (0.0, 2.0) for interval in ("", "0.3,5")
    ],
    "Latent": [{"latent_dim": 2}],
}
# what a network is told then, [N, ...] in part
TOLD = {"ClassifierFreeGuidance": {"y": ((), torch.long)}, "Latent": {"z": ((1000, 2), torch.float32)}}
# the method of training alone
TRAINED = "InputPerturbation"


@pytest.fixture(autouse=True)
def no_tables_of_other_tests():
    """What is kept on a GPU belongs to the fake mode that it was made in."""
    devices._copied.cache_clear()
    yield
    devices._copied.cache_clear()


class Watch(TorchDispatchMode):
    """Counts the operations within it, and fails at one that waits for a device or copies from one to another."""

    def __init__(self):
        super().__init__()
        self.counted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in WAITING, name
        result = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            ends = source.device.type, result.device.type
            assert ends[0] == ends[1], f"{name} from {ends[0]} to {ends[1]}"
        if not name.startswith("prim::"):
            self.counted.append(name)
        return result


def network(x, t, y=None, z=None):
    return torch.cat([x, x], dim=1)


def fake():
    return FakeTensorMode(allow_non_fake_inputs=True)


def walked(process, told=(), mode=None, watched=True):
    """The operations of each step, of which the network has one, on a GPU that is not there.

    :param told: {name: (sizes, dtype)} of what the network is told.
    :param mode: that of earlier batches.
    :param watched: whether a step that waits fails.
    """
    with mode or fake():
        x = torch.empty(SHAPE, device="cuda")
        told = dict(told).items()
        cond = {name: torch.zeros(len(x), *sizes, dtype=dtype, device="cuda") for name, (sizes, dtype) in told}
        records = process.sample_records(process.solver, process.denoiser(network, cond), x)
        counts = []
        while True:
            with Watch() if watched else contextlib.nullcontext() as watch:
                if next(records, None) is None:
                    return counts
            counts.append(watch and watch.counted)


@pytest.mark.parametrize("schedule", ["linear", *slow("cosine")])
@pytest.mark.parametrize("name", SOLVERS)
def test_no_solver_waits(name, schedule):
    walked(made(name, schedule))


def made(name, schedule="linear", methods=None, **more):
    flags = {"noise_schedule": schedule, "learn_sigma": True, "timestep_respacing": "10"}
    return sampled.process(name, diffusion=flags, methods=methods, **more)


# of one step, with noise, of several steps, of several calls a step
OFTEN = ["ddim", "ddpm", "dpmpp_2m", "heun"]


@pytest.mark.parametrize("name", [*OFTEN, *slow(*(name for name in SOLVERS if name not in OFTEN))])
@pytest.mark.parametrize("method", [method.__name__ for method in STACK if method.__name__ != TRAINED])
@pytest.mark.parametrize("schedule", ["cosine", *slow("linear")])
def test_no_method_makes_a_solver_wait(schedule, method, name):
    if method == "ClassifierGuidance":
        walked(made(name, schedule, guide=lambda x, t: -x))
    elif method in ("Clipping", "Thresholding"):
        walked(made(name, schedule, thresholding="dynamic"))
        walked(made(name, schedule, clip=False))
    else:
        refused = {
            "TimeShift": lambda flags: facts(name).fixed_ends and flags["time_shift_variant"] != "net",
            "Latent": lambda flags: not facts(name).published,
        }.get(method, lambda flags: False)
        taken = [methods for methods in ON[method] if not refused(methods)]
        if not taken:
            pytest.skip(f"{name} and {method} do not combine")
        for methods in taken:
            walked(made(name, schedule, methods), TOLD.get(method, ()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_pair_of_methods_makes_a_solver_wait(variant):
    """From the second batch on, when all tables are on the device: a scale that grows along moved times."""
    methods = {**ON["TimeShift"][0], "time_shift_variant": variant, "eps_scaler": "0.001,1.002", "guidance_scale": 2.0}
    process = made("ddim", "cosine", methods)
    mode = fake()
    for batch in range(2):
        walked(process, TOLD["ClassifierFreeGuidance"], mode, watched=batch > 0)


def facts(name):
    return made(name).solver


# those of ddpm look at the learned variance too
@pytest.mark.parametrize("name, most", [("ddim", 12), ("dpmpp_1", 12), ("dpmpp_2m", 15), ("ddpm", 24)])
def test_a_step_has_few_operations(name, most):
    """Of the loop, the denoiser stack and the solver, beside the one of the network."""
    for operations in walked(made(name))[1:]:
        assert len(operations) - 1 <= most, operations


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_no_kind_of_network_waits(prediction, rescaled):
    flags = DiffusionFlags(prediction=prediction, rescale_timesteps=rescaled, learn_sigma=True, timestep_respacing="5")
    process = flags.create((), sampled.SolverFlags(solver="ddim"))
    walked(process)


# -- training --------------------------------------------------------------------------------------


class Small(torch.nn.Module):
    """A network, or with classes a classifier, of one product, on a GPU."""

    takes = ("y",)

    def __init__(self, outputs, classes=0):
        super().__init__()
        self.weight, self.classes = torch.nn.Parameter(torch.empty(3, classes or outputs, device="cuda")), classes

    def forward(self, x, t, **told):
        out = (x.movedim(1, -1) + t.float().reshape(-1, 1, 1, 1)) @ self.weight
        return out.mean(dim=(1, 2)) if self.classes else out.movedim(-1, 1)


def objective(name, learned, methods):
    diffusion = diffusion_of(DiffusionFlags(learn_sigma=learned), of_values(methods))
    sampler = SamplerFlags().create(diffusion)
    return OBJECTIVES[name](diffusion, sampler) if name in OBJECTIVES else ClassifierObjective(diffusion, sampler)


def arrived(tensor, device):
    """What `devices.sent` gives, which cannot go to a GPU that is not there."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def backward(network, value):
    """Gradients of a scalar, in the shapes of the weights."""
    assert value.ndim == 0
    for p in network.parameters():
        p.grad = torch.ones_like(p) if p.grad is None else p.grad + 1


def steps_of(loop, count, monkeypatch):
    """Take steps on a GPU that is not there; from the second on none may wait."""
    # a graph needs the streams of a GPU that is there; what it runs are kernels alone
    monkeypatch.setattr(torch.Tensor, "backward", lambda value: backward(loop.model, value))
    for step in range(count):
        batch, extra = torch.randn(SHAPE), {"y": torch.zeros(SHAPE[0], dtype=torch.long)}
        with torch.no_grad(), Watch() if step else contextlib.nullcontext():
            loop.run_step(batch, extra)


@pytest.fixture
def sent_at_once(monkeypatch, tmp_path):
    """What is sent arrives; nothing reads the weights that a run begins with."""
    logger.configure(str(tmp_path), "log")
    monkeypatch.setattr(Precision, "param_norm", lambda self: 1.0)
    sent = devices.sent
    for module in list(sys.modules.values()):
        if vars(module).get("sent") is sent:
            monkeypatch.setattr(module, "sent", arrived)


CONDITIONINGS = {
    "classes": Classes(5),
    "dropped classes": Classes(5, dropout=0.5),
    "masked": Masked(list(MASKS), mirrors=True, dropout=0.5),
}


# those that train no other network and have no teacher
@pytest.mark.parametrize("name", ["diffusion", "classifier"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("methods", [{}, {"input_perturbation": 0.1}], ids=["", TRAINED])
@pytest.mark.parametrize(
    "more", [{}, {"microbatch": 3, "grad_clip": 1.0}, {"ema_warmup": True}], ids=["plain", "parts", "warmup"]
)
def test_no_training_step_waits(name, learned, methods, more, sent_at_once, monkeypatch):
    """From the second step on, when all tables are on the device; of what is sent there, nothing is waited for."""
    classes, loss = 5 if name == "classifier" else 0, objective(name, learned, methods)
    with fake():
        loop = Loop(
            model=Small(6 if learned else 3, classes),
            objective=loss,
            data=iter(()),
            flags=TrainFlags(log_interval=100, **more),
            resolved={},
        )
        steps_of(loop, 3, monkeypatch)


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_nothing_that_a_network_is_told_makes_a_step_wait(name, sent_at_once, monkeypatch):
    loss, told = objective("diffusion", False, {}), CONDITIONINGS[name].of_data
    # as the decomposition of grid_sample asks a GPU that is not there
    monkeypatch.setattr(torch.nn.functional, "grid_sample", lambda x, places, **how: x * places.mean())
    with fake():
        flags = TrainFlags(log_interval=100)
        made = {"model": Small(3), "objective": loss, "data": iter(()), "flags": flags, "resolved": {}}
        steps_of(Loop(**made, conditioning=lambda x, extra: told(x, extra["y"])), 3, monkeypatch)
