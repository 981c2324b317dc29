"""The flags of training."""

from dataclasses import dataclass

from ..checkpoints import resume
from ..errors import UserError
from ..flags import BELOW_ONE, POSITIVE, WIDTH, FlagGroup, Legal, at_least, flag, number

# the --microbatch that is found
AUTO = -2


@dataclass
class TrainFlags(FlagGroup):
    """Training."""

    iterations: int = flag(
        0,
        "Number of optimiser steps; 0 goes on until interrupted.",
        aliases=("max_steps",),
        legal=at_least(0),
        essential="iterations",
    )
    batch_size: int = flag(
        1, "Images per step and process.", legal=at_least(1, WIDTH), lasting=True, essential="batch_size"
    )
    global_batch: int = flag(
        0,
        "Images per step of all processes, in place of --batch_size; 0 is --batch_size of each.",
        legal=at_least(0, WIDTH),
        spells="batch_size",
    )
    microbatch: int = flag(
        -1,
        "Images computed at once; -1 is the whole batch, and auto (-2) as many as fit into memory.",
        legal=Legal(f"auto, -1 or at least 1, at most {WIDTH}", lambda value: value and AUTO <= value <= WIDTH),
        lasting=True,
        words={"auto": AUTO},
    )
    lr: float = flag(1e-4, "Learning rate of AdamW.", legal=POSITIVE, lasting=True)
    weight_decay: float = flag(0.0, "Weight decay of AdamW.", legal=at_least(0), lasting=True)
    beta1: float = flag(0.9, "AdamW's rate of the mean gradient.", legal=BELOW_ONE, lasting=True)
    beta2: float = flag(0.999, "AdamW's rate of the mean squared gradient.", legal=BELOW_ONE, lasting=True)
    lr_anneal_steps: int = flag(
        0,
        "Steps over which the learning rate falls linearly to 0, where training ends; 0 keeps it.",
        legal=at_least(0),
        lasting=True,
    )
    lr_warmup_steps: int = flag(
        0, "Steps over which the learning rate first rises linearly to --lr.", legal=at_least(0), lasting=True
    )
    ema_rate: str = flag("0.9999", "Rates of the moving averages of the weights, with commas.", lasting=True)
    ema_warmup: bool = flag(
        False,
        "After n steps the rates are at most (1 + n) / (10 + n), so that the averages soon forget the first weights.",
        lasting=True,
    )
    log_interval: int = flag(10, "Steps between log lines.", legal=at_least(1))
    save_interval: int = flag(10000, "Steps between checkpoints.", legal=at_least(1))
    sample_interval: int = flag(
        0,
        "Steps between picture grids of moving-average samples; 0 draws none.",
        legal=at_least(0),
        essential="sample_interval",
    )
    keep_checkpoints: int = flag(
        0, "Complete checkpoints of this run to keep, of which the oldest are deleted; 0 keeps all.", legal=at_least(0)
    )
    resume_checkpoint: str = flag(
        "",
        "Path of a modelNNNNNN.pt to go on from, or auto for the newest complete one of the output folder.",
        essential="resume_checkpoint",
    )
    init_from: str = flag(
        "",
        "Checkpoint to take the weights from and nothing else, with --resume_checkpoint auto where that finds none; "
        "its classes may differ, and what it predicts.",
    )
    checkpoint_key: str = flag(
        "", "Key of the weights in an --init_from that holds several, such as state_dict or ema.", shared=True
    )
    grad_clip: float = flag(
        0.0,
        "Largest norm of the gradient, to which a larger one is scaled down; 0 never does.",
        legal=at_least(0),
        lasting=True,
    )
    fp16_scale_growth: float = flag(
        1e-3,
        "Growth of the log2 loss scale per step with --use_fp16.",
        legal=at_least(0),
        lasting=True,
        needs="use_fp16",
    )
    seed: int = flag(0, "Seed of the data order, the noise and the timesteps.", legal=at_least(0), lasting=True)

    def __post_init__(self):
        super().__post_init__()
        self.ema_rates()
        if self.init_from and self.resume_checkpoint not in ("", resume.AUTO):
            raise UserError(
                f"--init_from {self.init_from} starts a run, and --resume_checkpoint {self.resume_checkpoint} goes on "
                "with one; expected one of them, or --resume_checkpoint auto"
            )

    def refuse_unread(self, given):
        if self.global_batch and "batch_size" in given:
            raise UserError(
                f"--global_batch {self.global_batch} contradicts --batch_size {self.batch_size}; expected one of them"
            )

    def ema_rates(self):
        """The rates as written, so that file names keep their spelling."""
        rates = [part.strip() for part in self.ema_rate.split(",") if part.strip()]
        for rate in rates:
            try:
                valid = 0 <= number(rate) <= 1
            except ValueError:
                valid = False
            if not valid:
                raise UserError(f"--ema_rate has {rate!r}; expected numbers from 0 to 1, such as 0.9999")
        return rates

    def lr_at(self, step):
        """The learning rate of the step after `step` earlier ones."""
        lr = self.lr
        if self.lr_anneal_steps:
            lr *= 1 - step / self.lr_anneal_steps
        if self.lr_warmup_steps:
            lr *= min(1, (step + 1) / self.lr_warmup_steps)
        return lr

    def first_step(self):
        """The step that training starts after: 0, or that of the checkpoint it resumes."""
        return resume.step_of(self.resume_checkpoint) if self.resume_checkpoint else 0

    def last_step(self):
        """The step at which training ends; None for no end."""
        return min((n for n in (self.iterations, self.lr_anneal_steps) if n), default=None)
