"""One sampler: what acts in it, and what was measured of it."""

from typing import NamedTuple

import numpy as np
import torch

from evaluations.comparison.rows import digest_of_code, key_of, named_files
from guided_diffusion import checkpoints, dist_util, kernels, logger
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.denoiser import ModelMeanType
from guided_diffusion.flags import flags_of
from guided_diffusion.generate import SampleFlags
from guided_diffusion.networks import computing_by
from guided_diffusion.sampling import no_correction, no_coupling

from .measures import Setup
from .sums import batch_maker, measured


class Result(NamedTuple):
    """What was measured of one sampler with one budget.

    :ivar name: of its setting.
    :ivar budget: such as "20 steps".
    :ivar solver: its name.
    :ivar active: the methods that moved something, in words.
    :ivar count: of the images.
    :ivar times: int [S] the kept timesteps, increasing.
    :ivar levels: float64 [S] alpha_bar at them.
    :ivar data_variance: of the real images.
    :ivar gaussian_error: about the relative error of lengths of the Gaussian, which no standard error holds.
    :ivar curves: {measure: {curve: Curve}}.
    :ivar findings: {column: number or None} of its methods along sampling.
    :ivar predicts_eps: the network predicts the noise, and nothing of x0 beside it.
    """

    name: str
    budget: str
    solver: str
    active: list
    count: int
    times: np.ndarray
    levels: np.ndarray
    data_variance: float
    gaussian_error: float
    curves: dict
    findings: dict
    predicts_eps: bool


def rounding():
    """What may round a number in another way, as JSON can hold it."""
    kinds = (computing_by(), kernels.instructions()) if dist_util.dev().type == "cpu" else ()
    return dist_util.device_name(), str(torch.__version__), torch.get_num_threads(), *kinds


class Opened(NamedTuple):
    """A network with all that is measured with it.

    :ivar parsed: resolved Parsed flags.
    :ivar network: on this rank's device.
    :ivar real: RealImages.
    :ivar measures: Measures.
    :ivar digests: of the files that flags name and the code, on rank 0.
    """

    parsed: object
    network: object
    real: object
    measures: list
    digests: dict

    @classmethod
    def of(cls, parsed, network, real, measures):
        digests = dist_util.is_main() and {
            "files": named_files(parsed),
            "model": checkpoints.read_flags(parsed[CheckpointFlags].model_path),
            "code": digest_of_code(),
            "rounding": rounding(),
        }
        return cls(parsed, network, real, measures, digests)

    def result(self, name, budget, parsed, process):
        """The Result of a sampler of this network, on every rank.

        :param parsed: its resolved Parsed flags, which may differ from these in what is no matter of the network.
        :param process: the Process of those.
        """
        sampling = parsed[SampleFlags]
        title = ", ".join(filter(None, [name, str(budget)]))
        acting = active(process)
        logger.log(f"{title}: {process.solver_name}, active: {'; '.join(acting) or 'no method'}")
        times = np.array(process.grid)
        setup = Setup(
            process.schedule,
            times,
            process.schedule.alpha_bar(torch.tensor(process.grid)).cpu().numpy(),
            self.real.data_variance,
            self.real.gaussian,
        )
        key = dist_util.is_main() and key_of(self._decisive(parsed))
        make_batch = batch_maker(process, self.network, self.real, sampling.seed, setup, self.measures)
        made = measured(
            logger.get_dir(),
            dist_util.broadcast_object(key),
            title,
            make_batch,
            self.real.count,
            sampling.batch_size,
            setup,
            self.measures,
        )
        for name_of_tally, tally in process.tallies.items():
            tally.values = torch.from_numpy(made.tallies[name_of_tally])
        found = {column: value for method in process.methods for column, value in method.findings(process).items()}
        return Result(
            name,
            str(budget),
            process.solver_name,
            acting,
            self.real.count,
            times,
            setup.levels,
            setup.data_variance,
            1 / self.real.gaussian.count,
            made.curves,
            found,
            process.mean_type is ModelMeanType.EPSILON,
        )

    def _decisive(self, parsed):
        """What decides a Result, as JSON can hold it."""
        return {
            **self.digests,
            "flags": {k: v for k, v in parsed.values().items() if k not in parsed.marked("idle")},
            "real": (self.real.digest, self.real.count),
            "measures": [measure.name for measure in self.measures],
        }


def active(process):
    """The methods of a Process that move something, each as its class with the flags that are not at their defaults."""

    def asked(x, t, cond):
        raise NotImplementedError

    words = []
    for method in process.methods:
        if (
            method.wrap(asked, process) is asked
            and method.couple(process) is no_coupling
            and method.clock(process) is None
            and method.correct(process) is no_correction
        ):
            continue
        fields = [field for field in flags_of(method) if getattr(method, field.name) != field.default]
        told = [f"--{field.name} {getattr(method, field.name)}" for field in fields or flags_of(method)[:1]]
        words.append(f"{type(method).__name__} ({' '.join(told)})")
    return words
