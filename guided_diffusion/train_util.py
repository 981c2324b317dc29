"""The published training loop, for programs that subclass it or take it apart; the scripts' own is training/loop.py."""

import contextlib
import copy
import os

import torch
from torch.optim import AdamW

from . import checkpoints, dist_util, files, logger
from .fp16_util import INITIAL_LOG_LOSS_SCALE, MixedPrecisionTrainer
from .nn import update_ema
from .resample import LossAwareSampler, UniformSampler
from .training.log import log_loss_dict

__all__ = [
    "INITIAL_LOG_LOSS_SCALE",
    "TrainLoop",
    "find_ema_checkpoint",
    "find_resume_checkpoint",
    "get_blob_logdir",
    "log_loss_dict",
    "parse_resume_step_from_filename",
]


class TrainLoop:
    """Trains a diffusion network by `diffusion.training_losses`, with the published steps, names and files.

    A subclass may replace any method: `run_loop` calls `run_step` and `save`; `run_step` calls `forward_backward`,
    `mp_trainer.optimize`, `_update_ema`, `_anneal_lr` and `log_step`. Gradients of microbatches are summed, and
    averaged over the ranks, on the CPU too.

    :param model: the network, on the device of `dist_util.dev()`.
    :param diffusion: a GaussianDiffusion.
    :param data: iterator of (batch [N, C, ...], {name: tensor [N, ...]}).
    :param batch_size: N, of this rank.
    :param microbatch: images computed at once; below 1 the whole batch.
    :param lr: learning rate of AdamW.
    :param ema_rate: a rate of the moving averages of the weights, or several as text with commas.
    :param log_interval: steps between rows of the log.
    :param save_interval: steps between checkpoints, of which the first is after the first step.
    :param resume_checkpoint: path of a modelNNNNNN.pt, which leads to those of averages and optimiser; empty for none.
    :param use_fp16: see MixedPrecisionTrainer, as for `fp16_scale_growth`.
    :param schedule_sampler: a ScheduleSampler, by default a uniform one.
    :param weight_decay: of AdamW.
    :param lr_anneal_steps: steps over which the learning rate falls linearly to 0, where training ends; 0 goes on
        forever.
    :ivar step: how many steps this run has taken before the present one; file names and logs add `resume_step`.
    :ivar mp_trainer: a MixedPrecisionTrainer.
    :ivar ddp_model: the network, wrapped so that gradients are averaged over the ranks where `use_ddp`.
    :ivar ema_params: for each of the `ema_rate`, tensors like `mp_trainer.master_params`.
    :raises UserError: for a checkpoint that is not there or of another network.
    """

    def __init__(
        self,
        *,
        model,
        diffusion,
        data,
        batch_size,
        microbatch,
        lr,
        ema_rate,
        log_interval,
        save_interval,
        resume_checkpoint,
        use_fp16=False,
        fp16_scale_growth=1e-3,
        schedule_sampler=None,
        weight_decay=0.0,
        lr_anneal_steps=0,
    ):
        self.model, self.diffusion, self.data = model, diffusion, data
        self.batch_size, self.microbatch = batch_size, microbatch if microbatch > 0 else batch_size
        self.lr, self.weight_decay, self.lr_anneal_steps = lr, weight_decay, lr_anneal_steps
        self.ema_rate = [float(rate) for rate in str(ema_rate).split(",")]
        self.log_interval, self.save_interval = log_interval, save_interval
        self.resume_checkpoint = resume_checkpoint
        self.use_fp16, self.fp16_scale_growth = use_fp16, fp16_scale_growth
        self.schedule_sampler = schedule_sampler or UniformSampler(diffusion)
        self.step = self.resume_step = 0
        self.global_batch = batch_size * dist_util.world_size()
        self.sync_cuda = torch.cuda.is_available()

        self._load_and_sync_parameters()
        self.mp_trainer = MixedPrecisionTrainer(model=model, use_fp16=use_fp16, fp16_scale_growth=fp16_scale_growth)
        self.opt = AdamW(self.mp_trainer.master_params, lr=lr, weight_decay=weight_decay)
        if self.resume_step:
            self._load_optimizer_state()
            self.ema_params = [self._load_ema_parameters(rate) for rate in self.ema_rate]
        else:
            self.ema_params = [copy.deepcopy(self.mp_trainer.master_params) for _ in self.ema_rate]
        self.ddp_model = dist_util.data_parallel(model)
        self.use_ddp = self.ddp_model is not model

    # -- what a run goes on from -----------------------------------------------------------------

    def _main_checkpoint(self):
        return find_resume_checkpoint() or self.resume_checkpoint

    def _load_and_sync_parameters(self):
        path = self._main_checkpoint()
        if path:
            self.resume_step = parse_resume_step_from_filename(path)
            _say_loading(path)
            checkpoints.load_into(self.model, path, "resume_checkpoint")
        dist_util.sync_params(self.model.parameters())

    def _load_ema_parameters(self, rate):
        params = copy.deepcopy(self.mp_trainer.master_params)
        path = find_ema_checkpoint(self._main_checkpoint(), self.resume_step, rate)
        if path:
            _say_loading(path)
            state = dist_util.load_state_dict(path, map_location=dist_util.dev())
            params = self.mp_trainer.state_dict_to_master_params(state)
        dist_util.sync_params(params)
        return params

    def _load_optimizer_state(self):
        path = files.join(files.split(self._main_checkpoint())[0], f"opt{self.resume_step:06d}.pt")
        if files.exists(path):
            _say_loading(path)
            self.opt.load_state_dict(dist_util.load_state_dict(path, map_location=dist_util.dev()))

    # -- steps -----------------------------------------------------------------------------------

    def run_loop(self):
        """Train until the learning rate is 0, or forever, logging and saving at their intervals and at the end.

        With the environment variable DIFFUSION_TRAINING_TEST it ends at the second checkpoint.
        """
        while not self.lr_anneal_steps or self.step + self.resume_step < self.lr_anneal_steps:
            self.run_step(*next(self.data))
            if self.step % self.log_interval == 0:
                logger.dumpkvs()
            if self.step % self.save_interval == 0:
                self.save()
                if self.step > 0 and os.environ.get("DIFFUSION_TRAINING_TEST"):
                    return
            self.step += 1
        if (self.step - 1) % self.save_interval != 0:
            self.save()

    def run_step(self, batch, cond):
        """One optimiser step on this rank's batch [N, C, ...] and what the network is told of it."""
        self.forward_backward(batch, cond)
        if self.mp_trainer.optimize(self.opt):
            self._update_ema()
        self._anneal_lr()
        self.log_step()

    def forward_backward(self, batch, cond):
        """The gradients of a batch, in place of those of the last one."""
        self.mp_trainer.zero_grad()
        starts = range(0, len(batch), self.microbatch)
        for start in starts:
            part, device = slice(start, start + self.microbatch), dist_util.dev()
            x = batch[part].to(device)
            told = {name: value[part].to(device) for name, value in cond.items()}
            t, weights = self.schedule_sampler.sample(len(x), device)
            waits = self.use_ddp and start != starts[-1]
            with self.ddp_model.no_sync() if waits else contextlib.nullcontext():
                losses = self.diffusion.training_losses(self.ddp_model, x, t, model_kwargs=told)
            if isinstance(self.schedule_sampler, LossAwareSampler):
                self.schedule_sampler.update_with_local_losses(t, losses["loss"].detach())
            weighted = {name: values * weights for name, values in losses.items()}
            log_loss_dict(self.diffusion, t, weighted)
            self.mp_trainer.backward(weighted["loss"].mean())

    def _update_ema(self):
        for rate, params in zip(self.ema_rate, self.ema_params):
            update_ema(params, self.mp_trainer.master_params, rate=rate)

    def _anneal_lr(self):
        if self.lr_anneal_steps:
            done = (self.step + self.resume_step) / self.lr_anneal_steps
            for group in self.opt.param_groups:
                group["lr"] = self.lr * (1 - done)

    def log_step(self):
        """Put the step and the images so far into the next row."""
        logger.logkv("step", self.step + self.resume_step)
        logger.logkv("samples", (self.step + self.resume_step + 1) * self.global_batch)

    # -- what a run writes -----------------------------------------------------------------------

    def save(self):
        """Write modelNNNNNN.pt, ema_RATE_NNNNNN.pt and optNNNNNN.pt into `get_blob_logdir()`.

        Rank 0 writes; every rank must call it.
        """
        if dist_util.is_main():
            step = f"{self.step + self.resume_step:06d}"
            _write(f"model{step}.pt", self.mp_trainer.master_params_to_state_dict(self.mp_trainer.master_params))
            for rate, params in zip(self.ema_rate, self.ema_params):
                _write(f"ema_{rate}_{step}.pt", self.mp_trainer.master_params_to_state_dict(params))
            _write(f"opt{step}.pt", self.opt.state_dict())
        dist_util.barrier()


def _say_loading(path):
    if dist_util.is_main():
        logger.log(f"going on from {path}")


def _write(name, content):
    path = files.join(get_blob_logdir(), name)
    logger.log(f"saving {path}")
    with files.replacing(path) as file:
        torch.save(content, file)


def parse_resume_step_from_filename(filename):
    """The step in the name of a checkpoint, path/to/modelNNNNNN.pt; 0 where there is none."""
    _, found, rest = str(filename).rpartition("model")
    number = rest.split(".")[0]
    return int(number) if found and number.isdecimal() else 0


def get_blob_logdir():
    """The folder of checkpoints, that of the logger; to be replaced where they belong elsewhere."""
    if logger.get_dir() is None:
        logger.configure()
    return logger.get_dir()


def find_resume_checkpoint():
    """The path of a checkpoint to go on from whatever TrainLoop is told, or None: to be replaced by a search."""


def find_ema_checkpoint(main_checkpoint, step, rate):
    """The path of the moving average `rate` beside the modelNNNNNN.pt of a step, None where there is none."""
    if main_checkpoint is None:
        return None
    path = files.join(files.split(main_checkpoint)[0], f"ema_{rate}_{step:06d}.pt")
    return path if files.exists(path) else None
