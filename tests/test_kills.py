"""Every script that writes, killed at its calls of fsync, rename and remove, ends with the files of a whole run."""

import json
import os
import re
import signal
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import script_runs
from processes import slow
from script_runs import CLASSIFIER, NETWORK, PROCESS, SUPER_RES

ROOT = Path(__file__).parents[1]
CALLS = ("fsync", "replace", "remove")

RUN = ["--batch_size", 4, "--iterations", 3, "--save_interval", 1, "--keep_checkpoints", 1, "--log_interval", 1]
RUN += ["--num_workers", 0, "--resume_checkpoint", "auto"]
TRAIN = [*RUN, *PROCESS]
ROUNDS = ["--prediction", "v", "--start_steps", 4, "--end_steps", 1]
MODEL = ["--model_path", "{place}/model.pt", "--timestep_respacing", 2]
FIVE = ["--num_samples", 5, "--batch_size", 2]
SETS = ["--reference", "{place}/data", "--samples", "{place}/named.npz"]
SCORED = ["--metrics", "frechet_distance", "--standard_error", True]
DEJAVU = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
SETTINGS = [*MODEL[:2], "--steps", 2, "--settings", "{place}/settings.txt", *FIVE]
FEATURES = ["--features", "torchscript:{place}/colours.pt", "--trust_code", True]
# with --out_dir where nothing stands for it
SCRIPTS = {
    "image_train": ["--data_dir", "{place}/data", "--sample_interval", 2, *NETWORK, *TRAIN],
    "super_res_train": ["--data_dir", "{place}/data", "--sample_interval", 2, *SUPER_RES, *TRAIN],
    "classifier_train": ["--data_dir", "{place}/data", *CLASSIFIER, *TRAIN],
    "image_sample": [*MODEL, "--num_samples", 5, "--batch_size", 2],
    "image_sample_1gpu": [*MODEL, "--num_samples", 5, "--batch_size", 2],
    "image_nll": [*MODEL, "--data_dir", "{place}/data", "--num_samples", 4, "--batch_size", 2],
    "image_invert": [*MODEL, "--data_dir", "{place}/data", "--num_samples", 4, "--batch_size", 2],
    "vae_train": ["--data_dir", "{place}/data", "--image_size", 16, "--vae_channels", 8, *RUN],
    "image_distill": ["--data_dir", "{place}/data", "--teacher", "{place}/model.pt", *ROUNDS, *NETWORK, *RUN[:-2]],
    "inpaint_train": ["--data_dir", "{place}/data", *NETWORK, *TRAIN],
    "inpaint_sample": ["--model_path", "{place}/inpaint.pt", *MODEL[2:], "--data_dir", "{place}/data", *FIVE],
    "classifier_sample": [*MODEL, "--classifier_path", "{place}/classifier.pt", *FIVE],
    "super_res_sample": ["--model_path", "{place}/upsampler.pt", *MODEL[2:], "--base_samples", "{place}/small", *FIVE],
    "compare_samplers": [*SETTINGS, "--reference", "{place}/data", *FEATURES, "--repeats", 2],
    "exposure_bias": [*SETTINGS, "--data_dir", "{place}/data"],
    "tune_sampler": [*MODEL, "--use_ddim", True, "--data_dir", "{place}/data", *FIVE, "--refine", 40, *FEATURES],
    "convert to safetensors": [*MODEL[:2], "--to", "safetensors"],
    "convert to diffusers": [*MODEL[:2], "--to", "diffusers"],
    "evaluator": [*SETS, *FEATURES, *SCORED, "--json", "{out}/scores.json", "--out_dir", "{out}"],
    "make_reference": ["--data_dir", "{place}/data", *FEATURES, "--out", "{out}/reference.npz", "--out_dir", "{out}"],
    "classifier_accuracy": ["--samples", "{place}/named.npz", "--classifier_path", "{place}/classifier.pt"],
    "nearest": ["--train", "{place}/data", "--samples", "{place}/named.npz"],
    "pack": ["--data_dir", "{place}/data", "--image_size", 16, "--labels", "--out_dir", "{out}/set"],
    "pack as png": ["--data_dir", "{place}/small.npz", "--out_dir", "{out}/set", "--png"],
    "photo_patches": ["--num_images", 4, "--labels", "--out_dir", "{out}/set"],
    "glyphs": ["--font", DEJAVU, "--classes", "A-C", "--image_size", 16, "--out_dir", "{out}/set"],
}
ELSEWHERE = {
    "evaluations": ["evaluator", "make_reference", "classifier_accuracy", "nearest"],
    "datasets": ["pack", "photo_patches", "glyphs"],
}
OFTEN = ["image_train", "image_sample"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("kills")
    data = script_runs.draw_images(place / "data", 6)
    inpaint = [*NETWORK, "--learn_sigma", True]
    trained = {
        "model": script_runs.train_diffusion(data, place / "trained"),
        "classifier": script_runs.train_classifier(data, place / "classifier"),
        "upsampler": script_runs.train_super_res(data, place / "upsampler"),
        "inpaint": script_runs.train("inpaint_train", data, place / "inpaint", *inpaint),
    }
    for name, made in trained.items():
        for ending in (".pt", ".json"):
            (place / f"{name}{ending}").write_bytes(made.with_suffix(ending).read_bytes())
    script_runs.draw_images(place / "small", 5, size=8)
    script_runs.mean_colours(place / "colours.pt", 16)
    images, labels = np.random.default_rng(1).integers(256, size=(40, 16, 16, 3), dtype=np.uint8), np.arange(40) % 3
    np.savez(place / "named.npz", images, labels)
    np.savez(place / "small.npz", images[:4], labels[:4])
    (place / "settings.txt").write_text("plain: --use_ddim True\nscaled: --use_ddim True --eps_scaler 1.02\n")
    return place


def run(name, place, out, killed_at=None):
    """(exit status, how many calls) of a script in a process of its own, which a call may kill."""
    words = [str(word).format(place=place, out=out) for word in SCRIPTS[name]]
    words += [] if any(str(out) in word for word in words) else ["--out_dir", str(out)]
    script = name.split()[0]
    part = next((part for part, names in ELSEWHERE.items() if script in names), "scripts")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(call):
            def counting(*args, **options):
                nonlocal calls
                calls += 1
                if calls == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)

            return counting

        for call in CALLS:
            setattr(os, call, counted(getattr(os, call)))
        status = 1
        try:
            script_runs.run(script, *words, folder=ROOT / part)
            status = 0
        except SystemExit as end:
            status = end.code
        finally:
            os.write(write, str(calls).encode())
            os._exit(status or 0)
    os.close(write)
    with os.fdopen(read) as said:
        calls = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(calls or 0)


def files_of(out):
    """{name: content} of all that a run left, without its logs, the time of manifests and the name of the folder."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name, content = str(path.relative_to(out)), path.read_bytes().replace(str(out).encode(), b"OUT")
        if path.name.startswith("manifest"):
            content = {k: v for k, v in json.loads(content).items() if k in ("step", "files")}
            content["files"] = {
                k: v for k, v in content["files"].items() if not k.endswith("json")
            }  # they name the folder
        if name in ("comparison.csv", "comparison.md"):  # they say how long it took
            content = re.sub(rb"\d+(\.\d+)?", b"", content)
        if not path.name.startswith((".lock", "log", "progress", "flags")) and path.parent.name != "rows":
            found[name] = content
    return found


def survives(name, place, tmp_path, moments):
    status, calls = run(name, place, tmp_path / "whole")
    assert status == 0 and calls > 1
    whole = files_of(tmp_path / "whole")
    for moment in moments(calls):
        out = tmp_path / f"killed{moment}"
        assert run(name, place, out, moment)[0] == -signal.SIGKILL
        assert run(name, place, out)[0] == 0, moment
        assert files_of(out) == whole, moment
    return calls


@pytest.mark.parametrize("name", [*OFTEN, *slow(*(name for name in SCRIPTS if name not in OFTEN))])
def test_killed_at_some_calls(place, tmp_path, name):
    rng = np.random.default_rng(len(name))
    survives(name, place, tmp_path, lambda calls: rng.choice(np.arange(1, calls + 1), 2, replace=False).tolist())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCRIPTS)
def test_killed_at_each_call(place, tmp_path, name):
    survives(name, place, tmp_path, lambda calls: range(1, calls + 1))
