"""A frozen diffusion network from which another one learns."""

from dataclasses import dataclass

import torch

from .. import checkpoints, logger
from ..adapters import PIXELS, pair_of
from ..errors import UserError
from ..flags import FlagGroup, flag
from ..networks import InpaintFlags, SuperResFlags, UNetFlags, for_inference
from ..process import DiffusionFlags
from .objective import OpenedNetwork


@dataclass
class TeacherFlags(FlagGroup):
    """The teacher."""

    teacher: str = flag(
        "",
        "Checkpoint of the diffusion network, model*.pt or ema_*.pt, that --objective distills.",
        lasting=True,
        essential="start_steps",
    )

    def path(self):
        """Where the teacher lies.

        :raises UserError: if no command line says so.
        """
        if not self.teacher:
            raise UserError("--teacher is not given; expected the checkpoint of a diffusion network (.pt)")
        return self.teacher


def refuse_eps(parsed):
    """Validate that a student of few steps can tell the image at the noisiest timestep.

    :param parsed: the resolved Parsed flags of its training.
    """
    if parsed[DiffusionFlags].prediction == "eps":
        raise UserError(
            "--prediction eps says almost nothing of the image at the noisiest timestep, where each of few steps has "
            "to begin; expected --prediction v or x0, whatever the teacher predicts"
        )


class Teacher(OpenedNetwork):
    """A network whose predicted images are held in [-1, 1], as its sampler holds them.

    :param network: `network(x, t, **cond)`.
    :param process: its Process.
    """

    def __init__(self, network, process):
        super().__init__(network, "teacher")
        self.process, self.path, self.trained = process, "", {}
        self.asked = for_inference(network)

    @classmethod
    def open(cls, parsed, diffusion):
        """The teacher of a command line.

        :param parsed: the resolved Parsed flags, which have TeacherFlags.
        :param diffusion: the GaussianDiffusion of the network that learns.
        :raises UserError: if there is none, or if it is of other images, classes or noise.
        """
        path, values = parsed[TeacherFlags].path(), parsed.values()
        if values.get("timestep_respacing"):
            raise UserError(
                f"--timestep_respacing {values['timestep_respacing']} does nothing beside the steps of --objective"
            )
        kinds = {"inpaint": InpaintFlags, "super_res": SuperResFlags, "diffusion": UNetFlags}
        expected = next(name for name, group in kinds.items() if group in parsed.groups)
        network, process, flags = checkpoints.open_network(path, "teacher", expected)
        names = [checkpoints.NETWORKS[expected].size_flag, "image_channels", "class_cond"]
        names += ["num_classes"] if parsed[UNetFlags].class_cond else []
        names += {"super_res": ["small_size"], "inpaint": ["reference_cond"]}.get(expected, [])
        # names that either does not know may be the same
        names += (
            ["class_names"] if values["class_cond"] and flags.get("class_names") and values.get("class_names") else []
        )
        for name in names:
            if flags[name] != values[name]:
                raise UserError(f"--teacher {path} has --{name} {flags[name]}; expected {values[name]}, as of this run")
        if bool(flags.get("vae_path")) != bool(values.get("vae_path")):
            has, expected = ("one with", "it here too") if flags.get("vae_path") else ("one without", "none here")
            raise UserError(f"--teacher {path} is {has} --vae_path; expected {expected}, or a teacher as of this run")
        if pair_of(network) is not PIXELS:
            raise UserError(f"--teacher {path} denoises latents of an autoencoder; expected a network of pixels")
        if flags.get("latent_dim"):
            raise UserError(
                f"--teacher {path} draws its images, each from a random vector (--latent_dim {flags['latent_dim']}); "
                "expected one that predicts them"
            )
        beside, dropped = checkpoints.read_flags(path), values.get("class_dropout")
        if checkpoints.does_jump(beside):
            raise UserError(
                f"--teacher {path} was trained to jump to the data (--solver consistency); expected a network that "
                "predicts means"
            )
        if dropped and not beside.get("class_dropout"):
            logger.warn(
                f"--class_dropout {dropped:g} asks --teacher {path} without classes, and it was trained without "
                "--class_dropout: it has never seen such a question"
            )
        schedules = process.schedule, diffusion.schedule
        levels = [schedule.alpha_bar(torch.arange(schedule.num_timesteps)) for schedule in schedules]
        if len(levels[0]) != len(levels[1]) or not torch.allclose(*levels):
            raise UserError(
                f"--teacher {path} was trained with other noise; expected the --noise_schedule, --diffusion_steps and "
                "--rescale_zero_terminal_snr of this run"
            )
        teacher = cls(network, process)
        teacher.path, teacher.trained = path, beside
        return teacher

    def warn_of(self, timesteps):
        """Say in the log at which of the timesteps that it will be asked it was not trained."""
        if foreign := checkpoints.untrained(timesteps, self.trained):
            logger.warn(
                f"--teacher {self.path} was not trained at {len(foreign)} of the {len(timesteps)} timesteps at which "
                f"it is asked here, such as {foreign[-1]}"
            )

    @torch.no_grad()
    def predict(self, x, t, cond):
        """Its Prediction of x [N, C, ...] at training timesteps t [N], float32, whatever the student computes in."""
        with torch.autocast(x.device.type, enabled=False):
            prediction = self.process.denoiser(self.asked, cond)(x, t)
        return prediction.with_x0(prediction.x0.clamp(-1, 1))

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.asked = for_inference(self.network)
