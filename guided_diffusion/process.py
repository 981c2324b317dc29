"""A diffusion process: schedule, grid, solver, and the seams that its methods move, folded into one."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch

from . import methods as table
from .denoiser import ModelMeanType, ModelVarType, NetworkDenoiser, bound, refuse_untaken
from .errors import UserError
from .flags import STEPS, FlagGroup, at_least, flag
from .learned_variance import outside
from .methods.method import no_corruption
from .sampling import chain, chain_at, no_correction, no_coupling, sample
from .schedule import SCHEDULES, NoiseSchedule, get_named_beta_schedule, rescale_zero_terminal_snr
from .solvers.ddpm import floor_of
from .solvers.flags import SolverFlags
from .spacing import SPACINGS, space_timesteps, spaced

OUTSIDE = "learned variances outside their interval"
# share of them at a timestep from which on a run says it
TO_SAY = 0.01

PREDICTIONS = {"eps": ModelMeanType.EPSILON, "x0": ModelMeanType.START_X, "v": ModelMeanType.VELOCITY}


@dataclass
class DiffusionFlags(FlagGroup):
    """The diffusion process."""

    learn_sigma: bool = flag(False, "The network learns the variance too, with twice the output channels.")
    diffusion_steps: int = flag(
        1000, "Number of training timesteps T.", legal=at_least(1, STEPS), hidden=True, noising=True
    )
    noise_schedule: str = flag(
        "linear", "How the noise grows over the timesteps.", choices=SCHEDULES, hidden=True, noising=True
    )
    rescale_zero_terminal_snr: bool = flag(
        False,
        "Rescale the schedule so that its last timestep is pure noise; for --prediction x0 and v.",
        hidden=True,
        noising=True,
    )
    timestep_respacing: str = flag(
        "",
        "Timesteps to keep: a count, counts per section such as 10,15,20, or ddimN; empty keeps all.",
        free=True,
        essential="model_path",
    )
    use_kl: bool = flag(
        False, "Train on the variational bound instead of the mean squared error.", free=True, idle=True
    )
    prediction: str = flag(
        "eps",
        "What the network predicts: the noise, the clean image, or the velocity.",
        choices=tuple(PREDICTIONS),
        hidden=True,
        relearnt=True,
    )
    predict_xstart: bool = flag(False, "The published spelling of --prediction x0.", spells="prediction", relearnt=True)
    rescale_timesteps: bool = flag(False, "The network sees timesteps scaled to 0..1000.", hidden=True, noising=True)
    rescale_learned_sigmas: bool = flag(
        False,
        "Weigh the bound by T / 1000 as published for learned variances.",
        free=True,
        idle=True,
        needs="learn_sigma",
    )
    sigma_small: bool = flag(False, "The fixed variance is the posterior's, not beta; for networks that learn none.")
    clip_variance: bool = flag(
        False,
        "Hold the learned variance between the posterior's and beta, which nothing does as published.",
        free=True,
        needs="learn_sigma",
    )
    # betas [T] of a network of others, where no name of a schedule says them
    table: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if self.sigma_small and self.learn_sigma:
            raise UserError("--sigma_small True chooses a fixed variance, which --learn_sigma True does not use")
        if self.predict_xstart and self.prediction == "v":
            raise UserError("--predict_xstart True contradicts --prediction v; expected one of them")
        if self.predict_xstart:
            self.prediction = "x0"
        self.predict_xstart = self.prediction == "x0"
        self.check_prediction()

    def refuse_unread(self, given):
        told = [given.get(name) for name in ("predict_xstart", "prediction")]
        if None not in told and told[0] != (told[1] == "x0"):
            raise UserError(f"--predict_xstart {told[0]} contradicts --prediction {told[1]}; expected one of them")

    def check_prediction(self):
        """Validate that what the network predicts tells the image at every timestep."""
        if self.rescale_zero_terminal_snr and self.prediction == "eps":
            raise UserError(
                "--rescale_zero_terminal_snr True begins at pure noise, where --prediction eps tells nothing of the "
                "image; expected --prediction v or x0"
            )

    @property
    def betas(self):
        """[T] in float64."""
        if self.table is not None:
            return self.table
        betas = get_named_beta_schedule(self.noise_schedule, self.diffusion_steps)
        return rescale_zero_terminal_snr(betas) if self.rescale_zero_terminal_snr else betas

    @property
    def mean_type(self):
        """The ModelMeanType of the network."""
        return PREDICTIONS[self.prediction]

    @property
    def var_type(self):
        """The ModelVarType of the network."""
        if self.learn_sigma:
            return ModelVarType.LEARNED_RANGE
        return ModelVarType.FIXED_SMALL if self.sigma_small else ModelVarType.FIXED_LARGE

    def create(self, methods=(), solver=None, spacing=None):
        """The Process of these flags.

        :param methods: Method objects, in any order.
        :param solver: SolverFlags; None in training.
        :param spacing: SpacingFlags; None has the published spacing.
        :raises UserError: for flags that exclude each other.
        """
        schedule = NoiseSchedule(self.betas)
        grid = (spacing or SpacingFlags()).grid(schedule, self.timestep_respacing)
        return Process(
            schedule,
            grid,
            mean_type=self.mean_type,
            var_type=self.var_type,
            rescale_timesteps=self.rescale_timesteps,
            clip_variance=self.clip_variance,
            methods=methods,
            solver=solver,
        )


@dataclass
class NoisingFlags(DiffusionFlags):
    """The diffusion process, as a classifier of noisy images knows it: it predicts nothing."""

    def check_prediction(self):
        pass


@dataclass
class SpacingFlags(FlagGroup):
    """The sampling grid."""

    spacing: str = flag(
        "published",
        "How the steps that --timestep_respacing counts are spread; published also reads its other forms.",
        choices=("published", *SPACINGS),
    )

    def grid(self, schedule, respacing=""):
        """The kept training timesteps, increasing; an empty `respacing` keeps all."""
        if self.spacing == "published":
            total = schedule.num_timesteps
            return sorted(space_timesteps(total, respacing or [total]))
        return spaced(self.spacing, schedule, respacing)


def of_flags(parsed, *methods):
    """The Process of a command line, with the methods, the solver and the spacing that it has.

    :param parsed: a flags.Parsed.
    :param methods: Method objects in place of those that the command line made.
    """
    given = {type(method): method for method in table.chosen(parsed)} | {type(method): method for method in methods}
    groups = parsed.groups
    return parsed[DiffusionFlags].create(given.values(), groups.get(SolverFlags), groups.get(SpacingFlags))


class Tally:
    """Sums over a run, on the device of what is counted.

    :ivar values: [rows, columns].
    :ivar repeats: how many samples at the end of a batch repeat earlier ones; they are not counted.
    """

    def __init__(self, rows, columns):
        self.values = torch.zeros(rows, columns)
        self.repeats = 0

    def add(self, columns, values):
        """Add values [rows, N] at the indices `columns` [N]."""
        if self.repeats:
            count = len(columns) - self.repeats
            columns, values = columns.narrow(0, 0, count), values.narrow(1, 0, count)
        self.values = self.values.to(columns.device)
        self.values.index_add_(1, columns, values.to(self.values))


class Process:
    """A diffusion process over a grid of training timesteps, and what methods make of its seams.

    :param schedule: the NoiseSchedule of training.
    :param grid: the kept training timesteps, increasing; default all.
    :param mean_type: what the network's output means (ModelMeanType).
    :param var_type: where the variance comes from (ModelVarType).
    :param rescale_timesteps: networks see times scaled to 0..1000, as floats.
    :param clip_variance: hold learned variances in their interval.
    :param methods: Method objects, at most one of a class; they act in the order of methods.STACK, a subclass where its
        base does, and those that are not in it after all others.
    :param solver: SolverFlags; None in training.
    :ivar solver: the Solver, or None.
    :ivar solver_name: its name in SOLVERS, or "".
    :ivar coupling: `(i, x, t, s) -> (t, s)`.
    :ivar correction: `(x, prediction, t, s) -> x`.
    :ivar corruption: `(noise, t) -> (noise, t)`.
    :ivar clock: `(x, t) -> t`, the time that the network is told; None tells it t.
    :ivar tallies: {name: Tally} of what methods counted; a job adds up those of its ranks.
    :ivar network_calls: calls of the network by denoisers of this process, one for each sample of a batch.
    :ivar images_begun: images that `sample_records` has begun.
    :raises UserError: for what the methods, the solver and the grid exclude together.
    """

    def __init__(
        self,
        schedule,
        grid=None,
        *,
        mean_type=ModelMeanType.EPSILON,
        var_type=ModelVarType.FIXED_LARGE,
        rescale_timesteps=False,
        clip_variance=False,
        methods=(),
        solver=None,
    ):
        self.schedule = schedule
        self.grid = list(range(schedule.num_timesteps)) if grid is None else list(grid)
        self.mean_type = mean_type
        self.var_type = var_type
        self.rescale_timesteps = rescale_timesteps
        self.clip_variance = clip_variance
        self.variance_floor = floor_of(schedule, self.grid)
        self.methods = sorted(methods, key=table.place)
        kinds = [type(method) for method in self.methods]
        if twice := [kind.__name__ for kind in set(kinds) if kinds.count(kind) > 1]:
            raise UserError(f"methods has more than one {twice[0]}; expected at most one of a class")
        self.tallies = {}
        self.network_calls = self.images_begun = 0
        self.solver = solver and solver.create(self)
        self.solver_name = solver.name if solver else ""
        for method in self.methods:
            method.check(self, self.solver)
        self.coupling = chain([method.couple(self) for method in self.methods], no_coupling)
        self.correction = chain_at(0, [method.correct(self) for method in self.methods], no_correction)
        self.corruption = chain([method.corrupt(self) for method in self.methods], no_corruption)
        self.clock = chain_at(1, [method.clock(self) for method in self.methods], None)

    def method(self, kind):
        """The method of a class, at its defaults where the process has none."""
        return next((method for method in self.methods if isinstance(method, kind)), None) or kind()

    def bare(self):
        """The same process without its methods and without a solver."""
        return Process(
            self.schedule,
            self.grid,
            mean_type=self.mean_type,
            var_type=self.var_type,
            rescale_timesteps=self.rescale_timesteps,
            clip_variance=self.clip_variance,
        )

    def tally(self, name, rows, columns):
        """The Tally of a name, made where it is not there yet."""
        return self.tallies.setdefault(name, Tally(rows, columns))

    @contextlib.contextmanager
    def repeating(self, count):
        """Within it the last `count` samples of a batch are others of it again, which tallies of images leave out."""
        for tally in self.tallies.values():
            tally.repeats = count
        try:
            yield
        finally:
            for tally in self.tallies.values():
                tally.repeats = 0

    def adapter(self, model, takes=None):
        """The NetworkDenoiser of a network; a NetworkDenoiser passes unchanged.

        :param takes: names of what it is told beside x and t; None tells it all there is.
        """
        if isinstance(model, NetworkDenoiser):
            return model
        previous = None
        if self.mean_type is ModelMeanType.PREVIOUS_X:
            previous = torch.full((self.schedule.num_timesteps,), -1)
            previous[self.grid] = torch.tensor([-1, *self.grid[:-1]])
        return NetworkDenoiser(
            model,
            self.schedule,
            self.mean_type,
            self.var_type,
            self.rescale_timesteps,
            previous,
            self.clock,
            takes,
            self.clip_variance,
        )

    def wrapped(self, denoise):
        """The stack of denoisers `(x_t, t, cond) -> Prediction` that the methods make around one."""
        for method in self.methods:
            denoise = method.wrap(denoise, self)
        return denoise

    def counted(self, denoise):
        """The denoiser, with its calls counted, and the variances outside their interval that the solver reads."""
        reads = self.solver is not None and self.solver.reads_variance
        reads = reads and self.var_type is ModelVarType.LEARNED_RANGE and not self.clip_variance
        tally = self.tally(OUTSIDE, 2, self.schedule.num_timesteps) if reads else None

        def counted(x, t, cond):
            self.network_calls += x.shape[0]
            prediction = denoise(x, t, cond)
            if tally is not None:
                share = outside(prediction.variance)
                tally.add(t.long(), torch.stack([share, torch.ones_like(share)]))
            return prediction

        return counted

    def report(self):
        """Lines for the end of a run: of learned variances outside their interval, and of the methods."""
        return [*self._report_of_variances(), *(line for method in self.methods for line in method.report(self))]

    def suspects(self):
        """Sentences on what may have thrown images beyond all numbers."""
        return [*self._report_of_variances(), *filter(None, (method.suspect(self) for method in self.methods))]

    def _report_of_variances(self):
        if OUTSIDE not in self.tallies:
            return
        shares = (self.tallies[OUTSIDE].values[0] / self.tallies[OUTSIDE].values[1]).nan_to_num(0.0)
        shares[self.grid[0]] = 0  # the step to the data draws no noise
        worst = int(shares.argmax())
        if shares[worst] >= TO_SAY:
            step = len(self.grid) - sum(t < worst for t in self.grid)
            yield (
                f"learned variances outside their interval by more than its width: {100 * shares[worst]:.0f} % at "
                f"timestep {worst} (step {step} of {len(self.grid)}), the most of all; --clip_variance True holds them "
                "inside"
            )

    def denoiser(self, model, cond=None):
        """The finished stack `(x_t, t) -> Prediction` of a network.

        :param model: names in its `needs`, where it has that, are what it has no answer without.
        :param cond: {name: tensor [N, ...]} of what it is told; a class that a network does not say it `takes` is
            for guidance by a classifier alone.
        :raises UserError: for anything else that it does not take, and what a method misses.
        """
        cond, takes = cond or {}, getattr(model, "takes", None)
        refuse_untaken(cond, takes)
        told = cond if takes is None else {name: cond[name] for name in takes if name in cond}
        for method in self.methods:
            method.check_told(told, getattr(model, "needs", ()))
        return bound(self.wrapped(self.counted(self.adapter(model, takes))), cond)

    def sample_records(self, solver, denoise, x, noise=torch.randn_like):
        """The records of `sampling.sample` over the grid, coupled and corrected by the methods, without gradients.

        :param solver: `(denoise, x, t, s, state, noise) -> Step`.
        :param denoise: `(x, t) -> Prediction`.
        :param x: [N, C, ...] the start.
        :param noise: draws noise like x.
        """
        self.images_begun += x.shape[0]
        # now, so that no step waits for a copy
        self.schedule.table(x.device)
        for tally in self.tallies.values():
            tally.values = tally.values.to(x.device)
        return _without_gradients(sample(denoise, solver, self.grid, x, noise, self.coupling, self.correction))


def _without_gradients(records):
    """Computes each record under no_grad, which must not stay on while the caller holds it."""
    while True:
        with torch.no_grad():
            record = next(records, None)
        if record is None:
            return
        yield record
