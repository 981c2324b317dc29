"""What of a training run lies on disk: the checkpoint that it goes on from, and those that it writes."""

import contextlib
import math
import os
import sys

import torch

from .. import checkpoints, dist_util, files, logger
from ..checkpoints import manifest, resume
from ..errors import UserError
from ..jobs import random_state
from ..tensor_files import load_checkpoint, load_state_dict


class RunFiles:
    """The files of a run: it goes on from --resume_checkpoint, and writes to the output folder.

    :param flags: TrainFlags.
    :param resolved: {flag: value} to lie beside each checkpoint.
    :ivar saved_step: of the checkpoint that was written last, or that the run goes on from; None before the first.
    """

    def __init__(self, flags, resolved):
        self.flags = flags
        self.source = flags.resume_checkpoint
        # as of a run that was never interrupted
        self.resolved = {k: v for k, v in resolved.items() if k != "resume_checkpoint"}
        if self.source and "init_from" in resolved:
            self.resolved["init_from"] = checkpoints.read_flags(self.source).get("init_from", "")
        self.run = resume.run_of(self.source)
        self.saved_step = flags.first_step() if self.source else None

    # -- what a run goes on from -----------------------------------------------------------------

    def load_model(self, model):
        """Read the weights of --resume_checkpoint, or else of --init_from, into the network."""
        if self.source:
            checkpoints.load_into(model, self.source, "resume_checkpoint")
        elif self.flags.init_from:
            for name in checkpoints.load_into(
                model, self.flags.init_from, "init_from", free_head=True, key=self.flags.checkpoint_key
            ):
                logger.warn(f"{name} is not taken from {self.flags.init_from}, which has other classes")

    def load_averages(self, model, averages):
        """Read moving averages {rate: [tensor of each parameter]}, and say which are not there."""
        names = [name for name, _ in model.named_parameters()]
        for rate, params in averages.items():
            path = resume.beside(self.source, f"ema_{rate}_")
            if files.exists(path):
                state = load_state_dict(path)
                with _fitting(path):
                    for name, param in zip(names, params):
                        param.copy_(state[name])
            else:
                logger.warn(f"no {path}: the moving average {rate} starts from the resumed weights")

    def load_optimizer(self, optimizer, device):
        """Read the optimiser's state, or say that it is not there; the flags decide its rates."""
        path = resume.beside(self.source, "opt")
        if files.exists(path):
            state = load_checkpoint(path, map_location=device)
            with _fitting(path):
                for group in state["param_groups"]:  # how a step is computed is this run's affair, not the file's
                    group |= {name: optimizer.defaults.get(name) for name in ("fused", "foreach")}
                optimizer.load_state_dict(state)
                _check_moments(optimizer)
            if not optimizer.state:
                logger.warn(f"{path} holds nothing of any weight: the optimiser starts afresh")
            for group in optimizer.param_groups:  # the file has those of the run it is from
                betas = (self.flags.beta1, self.flags.beta2)
                group.update(lr=self.flags.lr, betas=betas, weight_decay=self.flags.weight_decay)
        else:
            logger.warn(f"no {path}: the optimiser starts afresh")

    def load_state(self, samples, precision, objective, device):
        """Take up the rest of what `state` has, and say what cannot be.

        :param samples: the images of all steps so far, if no file says it.
        :return: the images of all steps so far.
        """
        flags, path = self.flags, resume.beside(self.source, "state")
        state = resume.read_state(self.source)
        if state is None:
            logger.warn(
                f"no {path}: random numbers, the loss scale and {objective.memory} start afresh, and the data go on as "
                "if all steps had been of this size"
            )
            return samples
        if precision.scales_loss and state["lg_loss_scale"] is not None:
            precision.lg_loss_scale = state["lg_loss_scale"]
        if state["seed"] != flags.seed:
            logger.warn(f"--seed is {flags.seed}, the checkpoint has {state['seed']}: the data come in another order")
        with _fitting(path):
            objective.load_state_dict({k: _interned(v) for k, v in state.items() if k not in resume.STATE})
        step_size = [flags.batch_size, dist_util.world_size()]
        if state["step_size"] == step_size:
            with _fitting(path):
                random_state.restore(state["random"][dist_util.rank()], device)
        else:
            then, now = ("{} images x {} ranks".format(*size) for size in (state["step_size"], step_size))
            logger.warn(
                f"the checkpoint's steps were of {then}, now they are of {now}: random numbers are drawn afresh, so "
                f"what follows is not exactly what would have been; the data go on after {state['samples']} images"
            )
        return state["samples"]

    # -- what a run writes -----------------------------------------------------------------------

    def open_logs(self):
        """Clear away the log rows past the start where the run goes on with logs; on rank 0."""
        if dist_util.is_main():
            logger.rewind(self.flags.first_step() if self._goes_on_here() else math.inf)

    def _goes_on_here(self):
        """Whether the run goes on from a checkpoint of its own output folder, and so with the logs there."""
        if not self.source:
            return False
        folder = files.split(self.source)[0]
        return logger.get_dir() == (folder if files.is_remote(folder) else os.path.abspath(folder))

    def write(self, step, parts):
        """Write the checkpoint of a step, and its manifest last. Rank 0 writes; every rank must call it.

        :param parts: (file name, content) in turn, as `parts` gives them.
        :raises UserError: on every rank, if it cannot be written, and nothing of it stays then.
        """
        failed = None
        if dist_util.is_main():
            logger.log(f"saving {files.join(logger.get_dir(), f'model{step:06d}.pt')}")
            try:
                manifest.write(logger.get_dir(), step, parts, self.run)
            except OSError as error:
                failed = (
                    f"the checkpoint of step {step} cannot be written ({error}), so training ends; "
                    f"{self.last_good()}: make room and go on with --resume_checkpoint auto"
                )
        failed = dist_util.broadcast_object(failed)
        if failed:
            raise UserError(failed)
        self.saved_step = step

    def prune(self):
        """Delete the oldest checkpoints of the run beyond --keep_checkpoints, on rank 0."""
        if self.flags.keep_checkpoints and dist_util.is_main():
            try:
                manifest.prune(logger.get_dir(), self.flags.keep_checkpoints, self.run)
            except OSError as error:
                logger.warn(f"step {self.saved_step} is saved, but older checkpoints cannot be deleted: {error}")

    def last_good(self):
        """Which checkpoint is the last, in words: none is written in a bad state."""
        if self.saved_step is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of step {self.saved_step} is whole"

    def parts(self, step, model, averages, optimizer, state):
        """(file name, content) of a checkpoint, in turn, under their published names but for the state.

        :param averages: {rate: [tensor of each parameter]}.
        :param state: see `state`.
        """
        number, flags, weights = f"{step:06d}", {**self.resolved, "step": step}, model.state_dict()
        yield from checkpoints.parts(f"model{number}.pt", weights, flags)
        names = [name for name, _ in model.named_parameters()]
        for rate, params in averages.items():
            yield from checkpoints.parts(f"ema_{rate}_{number}.pt", {**weights, **dict(zip(names, params))}, flags)
        yield from checkpoints.parts(f"opt{number}.pt", optimizer.state_dict())
        yield from checkpoints.parts(f"state{number}.pt", state)

    def state(self, step, samples, precision, objective, random):
        """What the published files do not hold, of a run that is to go on exactly.

        :param samples: the images of all steps so far.
        :param random: the random states of all ranks, in their order.
        """
        return {
            "step": step,
            "samples": samples,
            "step_size": [self.flags.batch_size, dist_util.world_size()],
            "seed": self.flags.seed,
            "lg_loss_scale": precision.lg_loss_scale if precision.scales_loss else None,
            **objective.state_dict(),
            "random": random,
        }


def _check_moments(optimizer):
    """Validate what an optimiser keeps of each parameter, which it does not look at itself.

    :raises ValueError: if it is of another shape, or not finite.
    """
    for param, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.numel() != 1 and value.shape != param.shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, expected {tuple(param.shape)}")
            if not torch.as_tensor(value).isfinite().all():
                raise ValueError(f"{name} is not finite")
            if name in ("step", "exp_avg_sq") and (torch.as_tensor(value) < 0).any():
                raise ValueError(f"{name} is below 0")


@contextlib.contextmanager
def _fitting(path):
    """Errors within it mean that the file at `path` is that of another network."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UserError(f"{path} does not fit the network of --resume_checkpoint ({reason})") from error


def _interned(state):
    """The same, in which equal keys are one object, as they are in a new state: so it is saved as the same bytes."""
    if isinstance(state, dict):
        return {sys.intern(k) if isinstance(k, str) else k: _interned(v) for k, v in state.items()}
    return [_interned(part) for part in state] if isinstance(state, list) else state
