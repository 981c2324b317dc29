"""Training in rounds, in each of which the student of the round before is the teacher, and takes half its steps."""

import re
from dataclasses import dataclass, replace

from .. import files, logger
from ..checkpoints import manifest, read_flags, resume
from ..errors import UserError, told_of
from ..flags import STEPS, FlagGroup, at_least, flag
from ..jobs.launch import RunFlags
from ..objectives.progressive_distillation import ProgressiveDistillationFlags
from ..objectives.teacher import TeacherFlags
from ..process import DiffusionFlags
from .flags import TrainFlags
from .job import train_diffusion


@dataclass
class RoundFlags(FlagGroup):
    """The rounds."""

    start_steps: int = flag(
        16,
        "Steps of the teacher's DDIM in the first round; the student of each round takes half as many.",
        legal=at_least(2, STEPS),
        essential="start_steps",
    )
    end_steps: int = flag(
        1,
        "Steps of the last round's student: --start_steps halved so many times as one likes.",
        legal=at_least(1, STEPS),
        essential="start_steps",
    )

    def students(self):
        """The steps of the student of each round.

        :raises UserError: if halving does not lead from the first to the last.
        """
        steps = [self.start_steps]
        while steps[-1] % 2 == 0 and steps[-1] > self.end_steps:
            steps.append(steps[-1] // 2)
        if steps[-1] != self.end_steps or len(steps) == 1:
            raise UserError(
                f"--start_steps {self.start_steps} halved does not come to --end_steps {self.end_steps}; expected "
                f"one of {', '.join(map(str, _halved(self.start_steps))) or 'none, for it is odd'}"
            )
        return steps[1:]


def _halved(steps):
    while steps % 2 == 0:
        steps //= 2
        yield steps


def _refuse_other_chain(folder, teacher, parsed):
    """Validate that what a round's folder has was taught by the teacher that would teach it now, and by these flags.

    :raises UserError: naming both, of which the chain would be a mixture.
    """
    for step in manifest.steps(folder)[:1] if files.is_folder(folder) else ():
        flags = read_flags(files.join(folder, f"model{step:06d}.pt"))
        known = flags.get("teacher", teacher)
        if _student(known) != _student(teacher) or _is_another(known, teacher):
            raise UserError(
                f"{folder} has a student of {known}, and its teacher would be {teacher} now; expected the --teacher, "
                "--start_steps and --iterations that it began with, or another --out_dir"
            )
        for name in sorted(parsed.given & set(ProgressiveDistillationFlags.__dataclass_fields__) & flags.keys()):
            if (value := parsed.values()[name]) != flags[name]:
                raise UserError(
                    f"{folder} has a student by --{name} {flags[name]}, and it is {value} now; expected that of the "
                    "rounds there are, or another --out_dir"
                )


def _is_another(known, teacher):
    """Whether the files that taught and that would teach are there, and have other contents than each other."""
    there = known != teacher and files.exists(known) and files.exists(teacher)
    return there and files.sha256(known) != files.sha256(teacher)


def _student(path):
    """The folder and the file of a student of some round; None for another network."""
    folder, name = files.split(path)
    above = files.split(folder)[1]
    return (above, name) if re.fullmatch(r"\d{4}_steps", above) else None


def distill(parsed, network, after_step=None):
    """Train a student in rounds, each in a folder of its own below the output folder, and for --iterations steps.

    A round whose checkpoint of the last step is there is not repeated, and one that was stopped goes on.

    :param parsed: the command line, which has RoundFlags and those of the objective, without --objective,
        --student_steps, --init_from and --resume_checkpoint.
    :param network, after_step: as for `train_diffusion`.
    """
    last, folder = parsed[TrainFlags].last_step(), logger.get_dir()
    teacher, students = parsed[TeacherFlags].path(), parsed[RoundFlags].students()
    if last is None:
        raise UserError("--iterations is 0; expected the number of optimiser steps of each round")
    rate = next(iter(parsed[TrainFlags].ema_rates()), None)
    name = f"model{last:06d}.pt" if rate is None else f"ema_{rate}_{last:06d}.pt"
    folders = [files.join(folder, f"{steps:04d}_steps") for steps in students]
    teachers = [teacher, *(files.join(place, name) for place in folders[:-1])]
    for place, teacher in zip(folders, teachers):
        _refuse_other_chain(place, teacher, parsed)
    for steps, place, teacher in zip(students, folders, teachers):
        told = {
            "objective": "progressive_distillation",
            "student_steps": steps,
            "teacher": teacher,
            "init_from": teacher,
            "resume_checkpoint": resume.AUTO,
            "prediction": parsed[DiffusionFlags].prediction,
        }
        of_round = replace(parsed.with_values(told), given=parsed.given | told.keys(), absent=frozenset())
        with logger.scoped_configure(place):
            logger.log(f"a student of {steps} steps, by {teacher}")
            with told_of("teacher", "init_from"):
                train_diffusion(of_round, network, after_step)
        if parsed[RunFlags].dry_run:
            return
