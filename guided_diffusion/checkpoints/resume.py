"""Which checkpoint a training run goes on from, and the state that lies beside its published files."""

import os
import re
import secrets

from .. import dist_util, files, logger
from ..errors import UserError
from ..tensor_files import load_checkpoint
from . import manifest
from .read import sidecar_path
from .resolve import initialise, resumed

AUTO = "auto"

# What a training run saves as stateNNNNNN.pt, beside what its objective does.
STATE = {"step", "samples", "step_size", "seed", "lg_loss_scale", "random"}


def starting_point(parsed, network):
    """The Parsed flags of a training run, with the path of its checkpoint in place of `auto` or of a path.

    Flags that were not given come from that checkpoint or, where a run starts, for the network from that of
    --init_from. Every rank must call it.

    :param network: the Network that is trained.
    :raises UserError: for a checkpoint that is not there, not whole, or of another network.
    """
    values = parsed.values()
    path = _agreed(values["resume_checkpoint"], logger.get_dir())
    if path:
        return resumed(parsed.with_values({"resume_checkpoint": path, "init_from": ""}), path, network)
    return initialise(parsed.with_values({"resume_checkpoint": ""}), values["init_from"], network)


def _agreed(wanted, folder):
    """What `find` gives on rank 0, for all ranks: checksums are read once, and all take the same checkpoint."""
    found = failed = None
    if dist_util.is_main():
        try:
            found = find(wanted, folder)
        except (UserError, OSError) as error:
            failed = str(error)
    found, failed = dist_util.broadcast_object((found, failed))
    if failed:
        raise UserError(failed)
    return found


def find(wanted, folder):
    """The path of the model that --resume_checkpoint means, "" for a fresh start.

    :param wanted: "", a path, or `auto`: the newest complete checkpoint of `folder`.
    """
    if wanted == AUTO:
        return _newest(folder)
    if wanted:
        path = _checked(wanted)
        _refuse_another(folder, path)
        return path
    _refuse_another(folder, "")
    return ""


def _refuse_another(folder, source):
    """Leave the checkpoints of another run in the output folder to it: this one would replace them step by step.

    :param source: the checkpoint that is gone on from; "" for a fresh start.
    """
    if source and _place(files.split(source)[0]) == _place(folder):
        return
    own = run_of(source)
    if foreign := [step for step in manifest.steps(folder) if manifest.run_of(folder, step) != own]:
        raise UserError(
            f"--out_dir {folder} has checkpoints of another run, the last at step {foreign[0]}, which this one would "
            "replace; expected another --out_dir, or --resume_checkpoint auto to go on with that run"
        )
    published = [path for path in _unlisted(folder) if not files.exists(sidecar_path(path))]
    if published:
        raise UserError(
            f"--out_dir {folder} has published checkpoints, which this run would replace; expected another --out_dir, "
            f"or --resume_checkpoint {published[-1]} to go on"
        )


def _place(folder):
    return folder if files.is_remote(folder) else os.path.abspath(folder)


def _newest(folder):
    complete = manifest.steps(folder)
    for path in _unlisted(folder) if complete else ():
        if step_of(path) > complete[0]:
            name = files.split(manifest.path_of(folder, step_of(path)))[1]
            logger.warn(f"{path} is not taken: it has no {name}, so it was not written to its end")
    for step in complete:
        try:
            manifest.check(folder, step)
            return files.join(folder, f"model{step:06d}.pt")
        except UserError as error:
            logger.warn(f"the checkpoint of step {step} is not taken: {error}")
    if complete:
        raise UserError(
            f"--resume_checkpoint auto: no checkpoint in {folder} is whole (see the warnings above); expected one, or "
            "another --out_dir to start afresh"
        )
    _refuse_unlisted(folder)
    logger.log(f"no checkpoint to go on from in {folder}: training starts at step 0")
    return ""


def _unlisted(folder):
    """Paths of the models in a folder that have no manifest, by step."""
    found = [files.join(folder, name) for name, _ in files.entries(folder) if re.fullmatch(r"model\d+\.pt", name)]
    listed = set(manifest.steps(folder))
    return sorted((path for path in found if step_of(path) not in listed), key=step_of)


def _refuse_unlisted(folder):
    """Leave no checkpoints without manifest, such as published ones, to a run that starts afresh and replaces them.

    A single one with its flags beside it is what a first save leaves that was killed, and may be replaced.
    """
    unlisted = _unlisted(folder)
    if not unlisted:
        return
    newest = unlisted[-1]
    if len(unlisted) > 1 or not files.exists(sidecar_path(newest)):
        raise UserError(
            f"--resume_checkpoint auto: the checkpoints in {folder} have no manifest, so none is known to be whole; "
            f"expected --resume_checkpoint {newest}, or another --out_dir to start afresh"
        )
    logger.warn(f"{newest} has no manifest, so it was not written to its end, and is replaced")


def _checked(path):
    """The path, or that of what it links to, if it is there and its manifest, where its folder has some, agrees."""
    if not _named(path) or not files.exists(beside(path, "opt")):
        path = files.target(path)
    step = step_of(path)
    if not files.exists(path):
        raise UserError(f"--resume_checkpoint: checkpoint {path} does not exist")
    folder = files.split(path)[0] or "."
    complete = manifest.steps(folder)
    if step in complete:
        try:
            manifest.check(folder, step)
        except UserError as error:
            raise UserError(f"--resume_checkpoint {path}: {error}") from error
    elif complete and files.exists(sidecar_path(path)):  # published ones have no flags beside them
        raise UserError(
            f"--resume_checkpoint {path} has no {files.split(manifest.path_of(folder, step))[1]}, so it was not "
            f"written to its end; the newest complete one there is of step {complete[0]}"
        )
    return path


def step_of(path):
    """The step in the name of a checkpoint, model012345.pt."""
    match = _named(path)
    if not match:
        raise UserError(f"--resume_checkpoint {path} is not named as modelNNNNNN.pt, so its step is unknown")
    return int(match[1])


def _named(path):
    return re.fullmatch(r"model(\d+)\.pt", files.split(path)[1], re.ASCII)


def beside(path, name):
    """The path of the file `name` beside a model, with its step: "opt" gives opt012345.pt."""
    return files.join(files.split(path)[0], f"{name}{step_of(path):06d}.pt")


def run_of(path):
    """The name of the run that a checkpoint belongs to, by its manifest; a new one for "" or where none says it."""
    folder, known = files.split(path)[0], None
    if path and files.exists(manifest.path_of(folder, step_of(path))):
        known = manifest.read(folder, step_of(path)).get("run")
    return known or secrets.token_hex(8)


def read_state(path):
    """The values named by STATE and those of the objective, saved beside a model; None where there are none."""
    state = beside(path, "state")
    if not files.exists(state):
        return None
    content = load_checkpoint(state)
    if not _is_state(content):
        raise UserError(f"{state} is not the state of a training run")
    if content["step"] != step_of(path):
        raise UserError(f"{state} is that of step {content['step']}; expected step {step_of(path)}, as its name says")
    return content


def _is_state(content):
    """Whether what a file holds has the entries of STATE, each of its type."""
    if not isinstance(content, dict) or not content.keys() >= STATE:
        return False
    counts = [content["step"], content["samples"], content["seed"]]
    size, scale = content["step_size"], content["lg_loss_scale"]
    if not (isinstance(size, list) and len(size) == 2 and isinstance(content["random"], list)):
        return False
    counts_too = all(isinstance(n, int) and 0 <= n < 2**63 for n in [*counts, *size])
    return counts_too and isinstance(scale, float | int | None)
