"""The training loop: any objective, any number of ranks."""

import contextlib
import math

import torch

from .. import dist_util, files, logger
from ..averages import rate_at, young
from ..devices import sent
from ..errors import UserError
from ..images import grid, save_grid
from ..jobs import interruption, random_state, slow_steps, trial
from ..networks import for_training
from ..nn import update_ema
from ..objectives.objective import Objective
from .flags import AUTO
from .log import Clock, line, log_loss_dict
from .precision import BAD_STEPS, Outcome, Precision
from .run_files import RunFiles


def as_given(batch, extra):
    """The conditioning that tells the network what the data say beside the images."""
    return extra


class Loop:
    """Optimises a network until the last step, writing logs, checkpoints and pictures.

    With several ranks each computes its own batch, and gradients are averaged over the ranks.

    :param model: the network, on its device.
    :param objective: an Objective.
    :param data: endless iterator of (batch [N, C, ...], extra: dict of tensors or arrays [N, ...]).
    :param flags: TrainFlags.
    :param resolved: {flag: value} to lie beside each checkpoint.
    :param dtype: what the network computes in; torch.float16 comes with a loss scale.
    :param conditioning: `(batch, extra) -> {name: tensor [N, ...]}` that the network is told, of whole batches on the
        device; it may draw from torch's global generator.
    :param preview: `model -> uint8 images [N, H, W, C]`, or None; run on rank 0.
    :param after_step: `loop -> bool`, called after each step on every rank, to log more; or None. Where it gives True,
        a row is written at this step. What takes it long it does within `loop.aside()`.
    """

    def __init__(
        self,
        *,
        model,
        objective: Objective,
        data,
        flags,
        resolved,
        dtype=torch.float32,
        conditioning=as_given,
        preview=None,
        after_step=None,
    ):
        self.model = model
        self.objective = objective
        self.data = data
        self.flags = flags
        self.conditioning = conditioning
        self.preview = preview
        self.after_step = after_step
        self.device = next(model.parameters()).device
        self._ahead = self._trouble = None  # the next batch, or why there is none
        self.files = RunFiles(flags, resolved)
        if flags.microbatch == AUTO and objective.waits_for_ranks and dist_util.world_size() > 1:
            raise UserError(
                "--microbatch auto lets each rank try what fits, and losses that all ranks share, as those of "
                "--schedule_sampler loss-second-moment, cannot be tried; expected a number"
            )
        self.microbatch = max(flags.microbatch, 0)  # 0 is the whole batch
        self.step = flags.first_step()
        self.samples = self.step * flags.batch_size * dist_util.world_size()
        self.files.load_model(model)
        if hasattr(model, "convert_to"):  # autocast lowers it in training, and previews ask it as it is
            model.convert_to(torch.float32)
        dist_util.sync_params(model.parameters())
        objective.begin(model)
        self.precision = Precision(model, dtype, flags.fp16_scale_growth, flags.grad_clip)
        if not math.isfinite(self.precision.param_norm()):
            raise UserError(f"the weights of {flags.resume_checkpoint or flags.init_from} are not finite numbers")
        # on a CPU its one kernel would round otherwise than runs that go on
        fused = True if self.device.type == "cuda" else None
        rates = {"lr": flags.lr, "betas": (flags.beta1, flags.beta2), "weight_decay": flags.weight_decay}
        self.opt = torch.optim.AdamW(model.parameters(), **rates, fused=fused)
        self.ema = {rate: [p.detach().clone() for p in model.parameters()] for rate in flags.ema_rates()}
        self.fast_model = for_training(model)
        # a pass that may run out of memory waits for no other rank
        self.ddp_model = self.fast_model
        if flags.microbatch != AUTO:
            self.ddp_model = dist_util.data_parallel(self.fast_model, gradient_as_bucket_view=True)
        # what of steps is not logged yet: their numbers, (t, terms) of their microbatches, and outcomes
        self._unread = []
        if flags.resume_checkpoint:
            self.files.load_averages(model, self.ema)
            self.files.load_optimizer(self.opt, self.device)
            self.samples = self.files.load_state(self.samples, self.precision, objective, self.device)

    def run_loop(self):
        """Train to the end, and save there; SIGTERM and Ctrl-C save after the step in hand and end the run.

        Nothing is saved after a step that was not finite: a checkpoint that is due then waits for the next good step.
        Only the last step of float16 is saved though its loss scale was too high, which changes no weight.

        :raises UserError: when training diverges, or ends with steps that were not finite.
        """
        last = self.flags.last_step()
        if last is not None and self.step >= last:
            logger.log(f"{self.flags.resume_checkpoint} is at step {self.step}, and training ends at step {last}")
            self.files.prune()
            return
        self.files.open_logs()
        self.clock = Clock(self.step, last)
        with interruption.awaited() as asked, slow_steps.told(_say_slow) as doing:
            signal = 0
            while not signal and self.step != last:
                self._next_step(doing)
                signal = asked(self._trouble is not None)
                if signal:
                    self._read()
                if (signal or self.step == last or self._save_is_due()) and self._may_be_saved():
                    doing("its checkpoint, which rank 0 writes")
                    with self.aside():
                        self.save()
        self._end(signal)

    @contextlib.contextmanager
    def aside(self):
        """Within it is what does not count as time of the steps, whose work on the device is waited for first."""
        self._read()
        with self.clock.stopped():
            yield

    def _next_step(self, doing):
        """Take a step on the next batch, and score, log and draw it; what is wrong with its score is noted, as below.

        :param doing: is told what is waited for; see `slow_steps.told`.
        """
        doing("the next batch", step=self.step + 1)
        batch, extra = next(self.data) if self._ahead is None else self._ahead
        doing("its loss and gradient, and for those of the other ranks")
        self.run_step(batch, extra)
        images = len(batch) * dist_util.world_size()
        self.step += 1
        self.samples += images
        self.clock.images += images
        scored = False
        if self.after_step is not None:
            doing("its score")
            try:
                scored = self.after_step(self)
            except Exception as error:
                if dist_util.world_size() > 1 and not isinstance(error, UserError | OSError):
                    raise  # the other ranks may wait within the score
                self._trouble = error
        doing("its log row, and for those of the other ranks")
        draws = self.flags.sample_interval and self.step % self.flags.sample_interval == 0
        ends = self.step == self.flags.last_step()
        if self.step % self.flags.log_interval == 0 or not self.clock.logged or draws or scored or ends:
            self._read()
            logger.logkv("step", self.step)
            logger.logkv("samples", self.samples)
            logger.logkvs(self.objective.logged())
            logger.logkvs(self.clock.read(self.step))
            self.clock.logged = True
            logger.dumpkvs()
        elif self.clock.silent():
            self._read()
            logger.log(line({**logger.getkvs(), **self.clock.read(self.step)}))
        if draws:
            doing("its preview, which rank 0 draws")
            with self.aside():
                self.draw_preview()
        if not ends and self._trouble is None:
            self._look_ahead(doing)
        doing("the answer of the other ranks whether to stop")

    def _look_ahead(self, doing):
        """Take the next batch, or note what is wrong with it: the step in hand is saved first then."""
        doing("the next batch", step=self.step + 1)
        try:
            self._ahead = next(self.data)
        except Exception as error:
            self._trouble = error

    def _save_is_due(self):
        """Whether a multiple of --save_interval lies between the last checkpoint and this step, or is this step."""
        interval = self.flags.save_interval
        return self.step // interval > (self.files.saved_step or 0) // interval

    def _may_be_saved(self):
        """Whether this step was finite, or is the last of float16, whose loss scale may just have been too high."""
        too_high = self.precision.scales_loss and self.step == self.flags.last_step()
        return too_high or not self.precision.bad_steps

    def _end(self, signal):
        """Say where a run stands that a signal stopped, or that ends on a step which is not saved.

        :param signal: its number, or 0.
        """
        unsaved = f"step {self.step} is not saved, for its loss or gradient is not finite; {self.files.last_good()}"
        saved = self._may_be_saved()
        if signal == interruption.TROUBLE:
            self._end_in_trouble(f"saved at step {self.step}" if saved else unsaved)
        if signal and self.step != self.flags.last_step():
            advice = f"saved at step {self.step}" if saved else unsaved
            if self.files.saved_step is not None:
                advice += "; --resume_checkpoint auto goes on from there"
            interruption.stop(signal, advice)
        if not saved:
            raise UserError(f"{unsaved}; go on from there, or from the start, with more steps, or with a lower --lr")

    def _end_in_trouble(self, state):
        """Say on every rank what was wrong with the score or the next batch of some; an error of the program is raised
        as it is.

        :param state: what is saved, in words.
        """
        known = isinstance(self._trouble, (UserError, OSError))
        said = dist_util.gather_object(str(self._trouble) if known else None)
        said = dist_util.broadcast_object(said and next(filter(None, said), "another rank cannot go on"))
        if self._trouble is not None and not known:
            raise self._trouble
        raise UserError(f"{said}; {state}; --resume_checkpoint auto goes on from there")

    def run_step(self, batch, extra):
        """One optimiser step on this rank's batch; gradients are averaged over microbatches and ranks."""
        self._set_lr()
        batch = sent(batch, self.device)
        cond = {k: sent(torch.as_tensor(v), self.device) for k, v in extra.items()}
        cond = self.conditioning(batch, cond)
        fits = self.flags.microbatch != AUTO
        seen = self._backward(batch, cond) if fits else self._backward_that_fits(batch, cond)
        outcome = self.precision.optimize(self.opt)
        self._unread.append((self.step + 1, seen, outcome))
        if self.device.type == "cuda" and not self.objective.follows_steps:
            self._follow(outcome.select(0, 0))
        elif self._read():
            for rate, params in self.ema.items():
                update_ema(params, self.model.parameters(), self._ema_rate(rate))
            self.objective.stepped(self.model)
        else:
            self.objective.skipped()

    def _backward_that_fits(self, batch, cond):
        """`_backward`, begun anew with microbatches of half as many images whenever a rank has not enough memory.

        :raises UserError: where a single image is too much.
        """
        before = random_state.capture(self.device), self.objective.captured()
        while True:
            seen = None
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                seen = self._backward(batch, cond)
            if not dist_util.all_reduce_sum(torch.tensor(float(seen is None))):
                if dist_util.world_size() > 1:
                    grads = dist_util.sum_gradients(self.precision.params)
                    torch._foreach_div_(grads, dist_util.world_size())
                return seen
            tried = min(self.microbatch or len(batch), len(batch))
            if tried == 1:
                raise UserError(
                    f"there is not enough memory on {self.device} for one image of a rank; expected a smaller "
                    "network, or --use_checkpoint True"
                )
            self.microbatch = tried // 2
            logger.warn(f"not enough memory for {tried} images at once: from here on --microbatch {self.microbatch}")
            self.opt.zero_grad(set_to_none=True)
            self.objective.skipped()
            random_state.restore(before[0], self.device)
            self.objective.load_state_dict(before[1])
            before = before[0], self.objective.captured()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward(self, batch, cond):
        """Add the gradients of a batch, microbatch by microbatch; returns the (t, terms) of each."""
        size = self.microbatch or len(batch)
        starts, seen = range(0, len(batch), size), []
        for start in starts:
            x, *told = (value.narrow(0, start, min(size, len(batch) - start)) for value in (batch, *cond.values()))
            told = dict(zip(cond, told))
            wait = start != starts[-1] and self.ddp_model is not self.fast_model
            with self.ddp_model.no_sync() if wait else contextlib.nullcontext():
                with self.precision.autocast():
                    loss = self.objective(self.ddp_model, x, told)
                self.precision.backward(loss.value.mean() * (len(x) / len(batch)))
            seen.append((loss.t, {name: values.detach() for name, values in loss.terms.items()}))
        return seen

    def rehearse(self):
        """Take a step, of which nothing is kept, and log what it takes and how many images fit into memory at once."""
        trial.count(self.model)
        batch, extra = next(self.data)
        trial.tried(lambda: self.run_step(batch, extra), len(batch))
        logger.log(f"--microbatch {min(self.microbatch or len(batch), len(batch))} fits")

    def _ema_rate(self, rate):
        return rate_at(float(rate), self.step, self.flags.ema_warmup)

    @torch.no_grad()
    def _follow(self, stepped):
        """Move the averages if the weights moved, which the device knows: `stepped` [] is 1 or 0 there."""
        for rate, averages in self.ema.items():
            moves = torch._foreach_sub([p.detach() for p in self.model.parameters()], averages)
            torch._foreach_mul_(moves, (stepped * (1 - self._ema_rate(rate))).float())
            torch._foreach_add_(averages, moves)

    def _read(self):
        """Log what steps said since this was last called, for which it waits; whether the last of them was taken."""
        stepped = True
        for step, seen, outcome in self._unread:
            for t, terms in seen:
                log_loss_dict(self.objective, t, terms)
            came = Outcome(*outcome.tolist())
            stepped = bool(came.stepped)
            logger.logkv_mean("grad_norm", came.grad_norm)
            logger.logkv_mean("param_norm", came.param_norm)
            if self.precision.scales_loss:
                logger.logkv("lg_loss_scale", came.lg_loss_scale)
            if self.flags.grad_clip:
                logger.logkv_mean("clipped", float(came.grad_norm > self.flags.grad_clip))
            if not stepped:
                logger.warn(f"step {step}: the loss or a gradient is not finite, so the weights stay as they are")
                self._raise_if_diverged(step, came)
        self._unread.clear()
        return stepped

    def _set_lr(self):
        lr = self.flags.lr_at(self.step)
        for group in self.opt.param_groups:
            group["lr"] = lr
        self.objective.set_rate(lr / self.flags.lr)

    def _raise_if_diverged(self, step, came):
        """Let a step pass that changed nothing, unless none has been better for long or no later one can be.

        :raises UserError: at weights that are not finite, after BAD_STEPS such steps in a row, or at a loss scale
            below 1.
        """
        if not math.isfinite(came.param_norm):
            cause = f"the norm of the weights is {came.param_norm:g}"
        elif came.lg_loss_scale < 0:
            cause = f"{_in_a_row(came.bad_steps)} and the loss scale fell below 1"
        elif came.bad_steps >= BAD_STEPS:
            cause = _in_a_row(came.bad_steps)
        else:
            return
        raise self._diverged(step, f"{cause}, with gradient norm {came.grad_norm:g}")

    def _diverged(self, step, cause):
        """The UserError that ends a run at a step."""
        remedies = "a lower --lr, --grad_clip 1" + (", --use_bf16 for --use_fp16" if self.precision.scales_loss else "")
        rate = self.opt.param_groups[0]["lr"]
        return UserError(
            f"training diverged at step {step}: {cause} and learning rate {rate:g}; {self.files.last_good()}; "
            f"try {remedies}"
        )

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
        logger.picture("preview", grid(images), self.step)
        logger.log(f"wrote {path}")
        self._say_young(*list(self.ema)[:1])

    def _say_young(self, *rates):
        for rate in rates:
            if said := young(float(rate), self.step, self.flags.ema_warmup):
                logger.log(f"the moving average {rate} {said}")

    def save(self):
        """Write model, moving averages and optimiser under their published names, the state, and then the manifest.

        Rank 0 writes; every rank must call it.

        :raises UserError: on every rank, if it cannot be written, and nothing of it stays then; or if the weights are
            not finite.
        """
        norm = self.precision.param_norm()
        if not math.isfinite(norm):
            raise self._diverged(self.step, f"the norm of the weights is {norm:g}, so they are not saved,")
        random = dist_util.gather_object(random_state.capture(self.device))
        self.files.write(self.step, self._parts(random))
        self._say_young(*self.ema)
        if not self.precision.bad_steps:
            self.files.prune()

    def _parts(self, random):
        state = self.files.state(self.step, self.samples, self.precision, self.objective, random)
        yield from self.files.parts(self.step, self.model, self.ema, self.opt, state)


def _in_a_row(steps):
    return f"{steps:g} steps in a row had a loss or gradient that is not finite"


def _say_slow(sentence):
    logger.warn(f"{dist_util.place()}: {sentence}")
    if not dist_util.is_main():  # whose warnings reach a file alone
        dist_util.say(f"{dist_util.place()}: {sentence}")


def _copy(source, target):
    with torch.no_grad():
        for a, b in zip(source, target):
            b.copy_(a)
