"""The training loop: any objective, any number of ranks."""

import contextlib
import math
import os
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from . import checkpoints, dist_util, files, logger
from .checkpoints import manifest, resume
from .errors import UserError
from .flags import COUNT_OR_UNSET, POSITIVE, FlagGroup, at_least, flag
from .fp16_util import MixedPrecisionTrainer
from .image_datasets import batches, describe
from .images import save_grid
from .jobs import interruption, random_state, slow_steps
from .nn import update_ema
from .resample import LossAwareSampler

# So many steps in a row without a finite gradient end the run.
BAD_STEPS = 20


@dataclass
class TrainFlags(FlagGroup):
    """Training."""

    iterations: int = flag(
        0, "Number of optimiser steps; 0 goes on until interrupted.", aliases=("max_steps",), legal=at_least(0)
    )
    batch_size: int = flag(1, "Images per step and process.", legal=at_least(1))
    microbatch: int = flag(-1, "Images computed at once; -1 is the whole batch.", legal=COUNT_OR_UNSET)
    lr: float = flag(1e-4, "Learning rate of AdamW.", legal=POSITIVE)
    weight_decay: float = flag(0.0, "Weight decay of AdamW.", legal=at_least(0))
    lr_anneal_steps: int = flag(
        0, "Steps over which the learning rate falls linearly to 0, where training ends; 0 keeps it.", legal=at_least(0)
    )
    ema_rate: str = flag("0.9999", "Rates of the moving averages of the weights, with commas.")
    log_interval: int = flag(10, "Steps between log lines.", legal=at_least(1))
    save_interval: int = flag(10000, "Steps between checkpoints.", legal=at_least(1))
    sample_interval: int = flag(
        0, "Steps between picture grids of moving-average samples; 0 draws none.", legal=at_least(0)
    )
    keep_checkpoints: int = flag(
        0, "Complete checkpoints of this run to keep, of which the oldest are deleted; 0 keeps all.", legal=at_least(0)
    )
    resume_checkpoint: str = flag(
        "", "Path of a modelNNNNNN.pt to go on from, or auto for the newest complete one of the output folder."
    )
    init_from: str = flag(
        "",
        "Checkpoint to take the weights from and nothing else, with --resume_checkpoint auto where that finds none; "
        "its classes may differ.",
    )
    grad_clip: float = flag(
        0.0, "Largest norm of the gradient, to which a larger one is scaled down; 0 never does.", legal=at_least(0)
    )
    fp16_scale_growth: float = flag(1e-3, "Growth of the log2 loss scale per step with --use_fp16.", legal=at_least(0))
    seed: int = flag(0, "Seed of the data order, the noise and the timesteps.", legal=at_least(0))

    def __post_init__(self):
        super().__post_init__()
        self.ema_rates()
        if self.init_from and self.resume_checkpoint not in ("", resume.AUTO):
            raise UserError(
                f"--init_from {self.init_from} starts a run, and --resume_checkpoint {self.resume_checkpoint} goes on "
                "with one; expected one of them, or --resume_checkpoint auto"
            )

    def ema_rates(self):
        """The rates as written, so that file names keep their spelling."""
        rates = [part.strip() for part in self.ema_rate.split(",") if part.strip()]
        for rate in rates:
            try:
                valid = 0 <= float(rate) <= 1
            except ValueError:
                valid = False
            if not valid:
                raise UserError(f"--ema_rate has {rate!r}; expected numbers from 0 to 1, such as 0.9999")
        return rates

    def first_step(self):
        """The step that training starts after: 0, or that of the checkpoint it resumes."""
        return resume.step_of(self.resume_checkpoint) if self.resume_checkpoint else 0

    def last_step(self):
        """The step at which training ends; None for no end."""
        return min((n for n in (self.iterations, self.lr_anneal_steps) if n), default=None)


def training_data(data_flags, flags, image_size, class_cond=False, num_classes=None, start=None):
    """This rank's endless stream of (batch [N, 3, H, W], {"y": [N]} if class_cond), checked before it starts.

    :param start: the number of the first batch; default that after the images its checkpoint has seen.
    """
    dataset = data_flags.dataset(image_size, class_cond, num_classes, flags.seed)
    logger.log(describe(dataset))
    dataset.on_skip = lambda error: logger.warn(f"skipped {dataset.num_skipped} so far: {error}")
    return batches(
        dataset,
        flags.batch_size,
        rank=dist_util.rank(),
        size=dist_util.world_size(),
        num_workers=data_flags.num_workers,
        start=_next_batch(flags) if start is None else start,
    )


def _next_batch(flags):
    state = resume.read_state(flags.resume_checkpoint) if flags.resume_checkpoint else None
    if state is None:
        return flags.first_step()
    return state["samples"] // (flags.batch_size * dist_util.world_size())


def seed_everything(flags):
    """Seed this rank's generators, and say how large a step is over all ranks.

    A resumed run whose random states cannot be restored draws numbers of its own, not those of the first steps again.
    """
    seeds = np.random.SeedSequence([flags.seed, dist_util.rank(), flags.first_step()]).generate_state(2)
    np.random.seed(seeds[0])
    torch.manual_seed(int(seeds[1]))
    ranks = dist_util.world_size()
    logger.log(f"each step: {flags.batch_size} images x {ranks} ranks = {flags.batch_size * ranks}")


class DiffusionObjective:
    """Losses of a diffusion network at drawn timesteps.

    :param diffusion: a GaussianDiffusion.
    :param sampler: a ScheduleSampler.
    """

    def __init__(self, diffusion, sampler):
        self.diffusion = diffusion
        self.sampler = sampler
        self.num_timesteps = diffusion.num_timesteps
        if self.num_timesteps < diffusion.schedule.num_timesteps:
            logger.warn(
                f"--timestep_respacing leaves {self.num_timesteps} of {diffusion.schedule.num_timesteps} timesteps: "
                "the network is trained on no others"
            )

    def __call__(self, model, batch, cond):
        """The loss [N], what to log {name: [N]}, and the timesteps [N] they belong to."""
        t, weights = self.sampler.sample(batch.shape[0], batch.device)
        terms = self.diffusion.training_losses(model, batch, t, model_kwargs=cond)
        if isinstance(self.sampler, LossAwareSampler):
            self.sampler.update_with_local_losses(t, terms["loss"].detach())
        terms = {name: values * weights for name, values in terms.items()}
        return terms["loss"], terms, t


class ClassifierObjective:
    """Cross entropy of a classifier of noisy images, and its accuracy.

    :param diffusion: the GaussianDiffusion whose noise the images get.
    :param sampler: a ScheduleSampler.
    :param noised: False leaves the images clean, at timestep 0.
    :param split: "train" or "val", which the logged names begin with.
    """

    def __init__(self, diffusion, sampler, noised=True, split="train"):
        self.diffusion = diffusion
        self.sampler = sampler
        self.noised = noised
        self.split = split
        self.num_timesteps = diffusion.num_timesteps

    def __call__(self, model, batch, cond):
        """The loss [N], what to log {name: [N]}, and the timesteps [N] they belong to."""
        labels = cond["y"]
        if self.noised:
            t, weights = self.sampler.sample(batch.shape[0], batch.device)
            batch = self.diffusion.q_sample(batch, t)
        else:
            t, weights = torch.zeros_like(labels), torch.ones_like(labels, dtype=torch.float32)
        logits = model(batch, self.diffusion.network_time(t)).float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        if self.noised and self.split == "train" and isinstance(self.sampler, LossAwareSampler):
            self.sampler.update_with_local_losses(t, loss.detach())
        terms = {"loss": loss.detach(), "acc@1": _hits(logits, labels, 1), "acc@5": _hits(logits, labels, 5)}
        return loss * weights, {f"{self.split}_{name}": value for name, value in terms.items()}, t


def _hits(logits, labels, k):
    """1 where the label [N] is among the k largest logits [N, K], else 0."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).float()


class TrainLoop:
    """Optimises a network until the last step, writing logs, checkpoints and pictures.

    With several ranks each computes its own batch, and gradients are averaged over the ranks.

    :param model: the network, on its device.
    :param objective: `(model, batch, cond) -> (loss [N], {name: [N]} to log, t [N])` with `num_timesteps`; what its
        `sampler`, if it has one, has learnt is saved with the checkpoints.
    :param data: endless iterator of (batch [N, C, ...], cond: dict of tensors or arrays [N, ...]).
    :param flags: TrainFlags.
    :param resolved: {flag: value} to lie beside each checkpoint.
    :param dtype: what the network computes in; torch.float16 comes with a loss scale.
    :param preview: `model -> uint8 images [N, H, W, 3]`, or None; run on rank 0.
    :param after_step: called with the number of steps done, to log more; or None. Where it gives True, on every rank,
        a row is written at this step.
    """

    def __init__(
        self,
        *,
        model,
        objective,
        data,
        flags,
        resolved,
        dtype=torch.float32,
        preview=None,
        after_step=None,
    ):
        self.model = model
        self.objective = objective
        self.data = data
        self.flags = flags
        self.resolved = resolved
        self.preview = preview
        self.after_step = after_step
        self.device = next(model.parameters()).device
        self.step = flags.first_step()
        self.samples = self.step * flags.batch_size * dist_util.world_size()
        self.run = resume.run_of(flags.resume_checkpoint)
        self.saved_step = self.step if flags.resume_checkpoint else None
        if flags.resume_checkpoint:
            checkpoints.load_into(model, flags.resume_checkpoint, "resume_checkpoint")
        elif flags.init_from:
            for name in checkpoints.load_into(model, flags.init_from, "init_from", free_head=True):
                logger.warn(f"{name} is not taken from {flags.init_from}, which has other classes")
        dist_util.sync_params(model.parameters())
        self.mp_trainer = MixedPrecisionTrainer(model, dtype, flags.fp16_scale_growth, flags.grad_clip)
        if not math.isfinite(self.mp_trainer.param_norm()):
            raise UserError(f"the weights of {flags.resume_checkpoint or flags.init_from} are not finite numbers")
        self.opt = torch.optim.AdamW(model.parameters(), lr=flags.lr, weight_decay=flags.weight_decay)
        self.ema = {rate: [p.detach().clone() for p in model.parameters()] for rate in flags.ema_rates()}
        if flags.resume_checkpoint:
            self._restore_files()
        self.ddp_model = dist_util.data_parallel(model)
        if flags.resume_checkpoint:
            self._restore_state()

    def _restore_files(self):
        """Read moving averages and optimiser from their files, and say which are not there."""
        names = [name for name, _ in self.model.named_parameters()]
        for rate, params in self.ema.items():
            path = resume.beside(self.flags.resume_checkpoint, f"ema_{rate}_")
            if files.exists(path):
                state = dist_util.load_state_dict(path)
                with _fitting(path):
                    for name, param in zip(names, params):
                        param.copy_(state[name])
            else:
                logger.warn(f"no {path}: the moving average {rate} starts from the resumed weights")
        path = resume.beside(self.flags.resume_checkpoint, "opt")
        if files.exists(path):
            state = dist_util.load_checkpoint(path, map_location=self.device)
            with _fitting(path):
                self.opt.load_state_dict(state)
            for group in self.opt.param_groups:  # the file has those of the run it is from
                group.update(lr=self.flags.lr, weight_decay=self.flags.weight_decay)
        else:
            logger.warn(f"no {path}: the optimiser starts afresh")

    def _restore_state(self):
        """Take up the rest of what `_state` saved, and say what cannot be."""
        path, flags = self.flags.resume_checkpoint, self.flags
        state = resume.read_state(path)
        if state is None:
            logger.warn(
                f"no {resume.beside(path, 'state')}: random numbers, the loss scale and the history of "
                "--schedule_sampler start afresh, and the data go on as if all steps had been of this size"
            )
            return
        self.samples = state["samples"]
        if self.mp_trainer.scales_loss and state["lg_loss_scale"] is not None:
            self.mp_trainer.lg_loss_scale = state["lg_loss_scale"]
        if state["seed"] != flags.seed:
            logger.warn(f"--seed is {flags.seed}, the checkpoint has {state['seed']}: the data come in another order")
        sampler = getattr(self.objective, "sampler", None)
        if sampler is not None:
            try:
                sampler.load_state_dict(state["sampler"])
            except UserError as error:
                logger.warn(f"the history of --schedule_sampler starts afresh: {error}")
        step_size = [flags.batch_size, dist_util.world_size()]
        if state["step_size"] == step_size:
            random_state.restore(state["random"][dist_util.rank()], self.device)
        else:
            then, now = ("{} images x {} ranks".format(*size) for size in (state["step_size"], step_size))
            logger.warn(
                f"the checkpoint's steps were of {then}, now they are of {now}: random numbers are drawn afresh, so "
                f"what follows is not exactly what would have been; the data go on after {self.samples} images"
            )

    def _state(self, random):
        """What the published files do not hold, of a run that is to go on exactly.

        :param random: the random states of all ranks, in their order.
        """
        sampler = getattr(self.objective, "sampler", None)
        return {
            "step": self.step,
            "samples": self.samples,
            "step_size": [self.flags.batch_size, dist_util.world_size()],
            "seed": self.flags.seed,
            "lg_loss_scale": self.mp_trainer.lg_loss_scale if self.mp_trainer.scales_loss else None,
            "sampler": {} if sampler is None else sampler.state_dict(),
            "random": random,
        }

    def run_loop(self):
        """Train to the end, and save there; SIGTERM and Ctrl-C save after the step in hand and end the run.

        Nothing is saved after a step that was not finite: a checkpoint that is due then waits for the next good step.
        Only the last step of float16 is saved though its loss scale was too high, which changes no weight.

        :raises UserError: when training diverges, or ends with steps that were not finite.
        """
        last = self.flags.last_step()
        if last is not None and self.step >= last > 0:
            raise UserError(
                f"--resume_checkpoint is at step {self.step}, and training ends at step {last}: nothing to do"
            )
        if dist_util.is_main():
            files.remove_unfinished(logger.get_dir())
            logger.rewind(self.step if self._goes_on_here() else math.inf)
        clock = _Clock(self.step, last)
        with interruption.awaited() as asked, slow_steps.told(_say_slow) as doing:
            signal, due = 0, False
            while not signal and (last is None or self.step < last):
                doing("the next batch", step=self.step + 1)
                batch, cond = next(self.data)
                doing("its loss and gradient, and for those of the other ranks")
                self.run_step(batch, cond)
                self._report(len(batch) * dist_util.world_size(), clock, last, doing)
                signal = asked()
                due = due or self.step % self.flags.save_interval == 0 or signal or self.step == last
                too_high = self.mp_trainer.scales_loss and self.step == last
                if due and (too_high or not self.mp_trainer.bad_steps):
                    doing("its checkpoint, which rank 0 writes")
                    with clock.stopped():
                        self.save()
                    due = False
        unsaved = f"step {self.step} is not saved, for its loss or gradient is not finite; {self._last_good()}"
        if signal and self.step != last:
            advice = unsaved if due else f"saved at step {self.step}"
            if self.saved_step is not None:
                advice += "; --resume_checkpoint auto goes on from there"
            interruption.stop(signal, advice)
        if due:
            raise UserError(f"{unsaved}; go on from there, or from the start, with more steps, or with a lower --lr")

    def _goes_on_here(self):
        """Whether the run goes on from a checkpoint of its own output folder, and so with the logs there."""
        if not self.flags.resume_checkpoint:
            return False
        folder = files.split(self.flags.resume_checkpoint)[0]
        return logger.get_dir() == (folder if files.is_remote(folder) else os.path.abspath(folder))

    def _report(self, images, clock, last, doing):
        """Count a step of so many images, score it, log it and draw it."""
        self.step += 1
        self.samples += images
        clock.images += images
        scored = False
        if self.after_step is not None:
            doing("its score")
            with clock.stopped():
                scored = self.after_step(self.step)
        doing("its log row, and for those of the other ranks")
        draws = self.flags.sample_interval and self.step % self.flags.sample_interval == 0
        if self.step % self.flags.log_interval == 0 or clock.first or draws or scored or self.step == last:
            logger.logkv("step", self.step)
            logger.logkv("samples", self.samples)
            clock.log(self.step)
            logger.dumpkvs()
        if draws:
            doing("its preview, which rank 0 draws")
            with clock.stopped():
                self.draw_preview()
        doing("the answer of the other ranks whether to stop")

    def run_step(self, batch, cond):
        """One optimiser step on this rank's batch; gradients are averaged over microbatches and ranks."""
        self._anneal_lr()
        size = self.flags.microbatch if self.flags.microbatch > 0 else len(batch)
        starts = range(0, len(batch), size)
        for start in starts:
            part = slice(start, start + size)
            x = batch[part].to(self.device)
            micro_cond = {k: torch.as_tensor(v[part]).to(self.device) for k, v in cond.items()}
            wait = start != starts[-1] and self.ddp_model is not self.model
            with self.ddp_model.no_sync() if wait else contextlib.nullcontext():
                with self.mp_trainer.autocast():
                    loss, terms, t = self.objective(self.ddp_model, x, micro_cond)
                self.mp_trainer.backward(loss.mean() * (len(x) / len(batch)))
            log_loss_dict(self.objective.num_timesteps, t, terms)
        stepped, grad_norm, param_norm = self.mp_trainer.optimize(self.opt)
        logger.logkv_mean("grad_norm", grad_norm)
        logger.logkv_mean("param_norm", param_norm)
        if self.mp_trainer.scales_loss:
            logger.logkv("lg_loss_scale", self.mp_trainer.lg_loss_scale)
        if self.flags.grad_clip:
            logger.logkv_mean("clipped", float(grad_norm > self.flags.grad_clip))
        if not stepped:
            logger.warn(f"step {self.step + 1}: the loss or a gradient is not finite, so the weights stay as they are")
            self._expect_recovery(grad_norm, param_norm)
        else:
            for rate, params in self.ema.items():
                update_ema(params, self.model.parameters(), rate=float(rate))

    def _anneal_lr(self):
        if self.flags.lr_anneal_steps:
            lr = self.flags.lr * (1 - self.step / self.flags.lr_anneal_steps)
            for group in self.opt.param_groups:
                group["lr"] = lr

    @contextlib.contextmanager
    def ema_weights(self):
        """Within it the model has the first moving average's weights (its own where there is none)."""
        own = [p.detach().clone() for p in self.model.parameters()]
        averaged = next(iter(self.ema.values()), own)
        try:
            _copy(averaged, self.model.parameters())
            yield
        finally:
            _copy(own, self.model.parameters())

    def draw_preview(self):
        """Write `preview_NNNNNN.png`, a grid of samples of the moving average, on rank 0."""
        if self.preview is None or not dist_util.is_main():
            return
        with self.ema_weights():
            self.model.eval()
            images = self.preview(self.model)
            self.model.train()
        path = files.join(logger.get_dir(), f"preview_{self.step:06d}.png")
        save_grid(path, images)
        logger.log(f"wrote {path}")

    def _expect_recovery(self, grad_norm, param_norm):
        """Give up at weights that are not finite, after BAD_STEPS bad steps in a row, or at a loss scale below 1."""
        trainer = self.mp_trainer
        if not math.isfinite(param_norm):
            cause = f"the norm of the weights is {param_norm:g}"
        elif trainer.bad_steps < BAD_STEPS and trainer.lg_loss_scale >= 0:
            return
        else:
            cause = f"{trainer.bad_steps} steps in a row had a loss or gradient that is not finite"
            if trainer.lg_loss_scale < 0:
                cause += " and the loss scale fell below 1"
        raise self._diverged(self.step + 1, f"{cause}, with gradient norm {grad_norm:g}")

    def _diverged(self, step, cause):
        """The UserError that ends a run at a step."""
        remedies = "a lower --lr, --grad_clip 1" + (
            ", --use_bf16 for --use_fp16" if self.mp_trainer.scales_loss else ""
        )
        rate = self.opt.param_groups[0]["lr"]
        return UserError(
            f"training diverged at step {step}: {cause} and learning rate {rate:g}; {self._last_good()}; try {remedies}"
        )

    def _last_good(self):
        """Which checkpoint this run wrote last, or goes on from: none is written in a bad state."""
        if self.saved_step is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of step {self.saved_step} is whole"

    def save(self):
        """Write model, moving averages and optimiser under their published names, the state, and then the manifest.

        Rank 0 writes; every rank must call it.

        :raises UserError: on every rank, if it cannot be written, and nothing of it stays then; or if the weights are
            not finite.
        """
        norm = self.mp_trainer.param_norm()
        if not math.isfinite(norm):
            raise self._diverged(self.step, f"the norm of the weights is {norm:g}, so they are not saved,")
        random = dist_util.gather_object(random_state.capture(self.device))
        failed = None
        if dist_util.is_main():
            logger.log(f"saving {files.join(logger.get_dir(), f'model{self.step:06d}.pt')}")
            try:
                manifest.write(logger.get_dir(), self.step, self._parts(random), self.run)
            except OSError as error:
                failed = (
                    f"the checkpoint of step {self.step} cannot be written ({error}), so training ends; "
                    f"{self._last_good()}: make room and go on with --resume_checkpoint auto"
                )
        failed = dist_util.broadcast_object(failed)
        if failed:
            raise UserError(failed)
        self.saved_step = self.step
        if self.flags.keep_checkpoints and not self.mp_trainer.bad_steps and dist_util.is_main():
            try:
                manifest.prune(logger.get_dir(), self.flags.keep_checkpoints, self.run)
            except OSError as error:
                logger.warn(f"step {self.step} is saved, but older checkpoints cannot be deleted: {error}")

    def _parts(self, random):
        """(file name, content) of a checkpoint, in turn."""
        step, flags = f"{self.step:06d}", {**self.resolved, "step": self.step}
        state = self.model.state_dict()
        yield from checkpoints.parts(f"model{step}.pt", state, flags)
        names = [name for name, _ in self.model.named_parameters()]
        for rate, params in self.ema.items():
            yield from checkpoints.parts(f"ema_{rate}_{step}.pt", {**state, **dict(zip(names, params))}, flags)
        yield from checkpoints.parts(f"opt{step}.pt", self.opt.state_dict())
        yield from checkpoints.parts(f"state{step}.pt", self._state(random))


@contextlib.contextmanager
def _fitting(path):
    """Errors within it mean that the file at `path` is that of another network."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} does not fit the network of --resume_checkpoint ({error})") from error


def _say_slow(sentence):
    logger.warn(f"{dist_util.place()}: {sentence}")
    if not dist_util.is_main():  # whose warnings reach a file alone
        dist_util.say(f"{dist_util.place()}: {sentence}")


def _copy(source, target):
    with torch.no_grad():
        for a, b in zip(source, target):
            b.copy_(a)


class _Clock:
    """Speed and time left, for log lines, by the time of the steps: scores, previews and checkpoints are left out."""

    def __init__(self, step, last):
        self.start, self.first_step, self.last = time.time(), step, last
        self.images = 0
        self.first = True

    @contextlib.contextmanager
    def stopped(self):
        """The time within it does not count."""
        began = time.time()
        yield
        self.start += time.time() - began

    def log(self, step):
        seconds = time.time() - self.start
        self.first = False
        logger.logkv("images_per_second", self.images / seconds)
        logger.logkv("progress", f"{step}/{self.last or 'no end'}")
        if self.last:
            left = seconds / (step - self.first_step) * (self.last - step)
            logger.logkv("time_left", f"{int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d}")


def log_loss_dict(num_timesteps, t, losses):
    """Log the mean of each term [N], and its mean within each quartile of the timesteps t [N]."""
    quartiles = (4 * t // num_timesteps).tolist()
    for name, values in losses.items():
        values = values.detach().float()
        logger.logkv_mean(name, values.mean().item())
        for quartile, value in zip(quartiles, values.tolist()):
            logger.logkv_mean(f"{name}_q{quartile}", value)
