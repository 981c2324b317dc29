"""Jobs on the files that people really have: images that vanish, logs that are damaged, commands that are run again."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import script_runs
import torch
from processes import slow
from script_runs import CLASSIFIER, NETWORK, PROCESS
from tiny_loop import plain_sum, tiny, weights

from guided_diffusion import checkpoints, dist_util, logger
from guided_diffusion.checkpoints import manifest, resume
from guided_diffusion.errors import UserError
from guided_diffusion.flags import number, whole
from guided_diffusion.jobs.sample_store import SampleStore


@pytest.fixture(autouse=True)
def terminal_afterwards():
    yield
    logger.reset()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("jobs")
    script_runs.draw_images(place / "data")
    return place


WORDS = [*NETWORK, *PROCESS, "--batch_size", 4, "--log_interval", 1, "--num_workers", 0, "--resume_checkpoint", "auto"]


def train(data, out, steps, *more, name="image_train", words=WORDS):
    return script_runs.run(name, "--data_dir", data, "--out_dir", out, *words, "--iterations", steps, *more)


# ---------------------------------------------------------------------------------- data that goes bad


@pytest.mark.parametrize("error", [UserError("x.png is gone"), OSError(5, "I/O", "x.png"), RuntimeError("a bug")])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_step_in_hand_is_saved_before_bad_data_end_a_run(tmp_path, error, after):
    loop, seen = tiny(tmp_path, plain_sum, iterations=9)
    good = [(torch.tensor([[1.0, 0.0, 0.0]]), {})] * after

    def data():
        yield from good
        raise error

    loop.data = data()
    with (
        pytest.raises(type(error), match=re.escape(str(error).split(":")[0]))
        if not isinstance(error, OSError)
        else (pytest.raises((UserError, OSError), match="x.png"))
    ):
        loop.run_loop()
    assert manifest.steps(tmp_path) == ([after] if after else [])
    if after:
        assert torch.equal(weights(tmp_path / f"model{after:06d}.pt")["weight"][0], seen[-1])


def test_the_step_in_hand_is_saved_before_a_bad_score_ends_a_run(tmp_path):
    def score(loop):
        if loop.step == 3:
            raise UserError("held.png cannot be read")

    loop, _ = tiny(tmp_path, plain_sum, iterations=9)
    loop.after_step = score
    with pytest.raises(UserError, match="held.png cannot be read; saved at step 3; --resume_checkpoint auto goes on"):
        loop.run_loop()
    assert manifest.steps(tmp_path) == [3]


def test_a_bug_in_the_score_of_one_rank_is_not_waited_with(tmp_path, monkeypatch):
    def score(loop):
        monkeypatch.setattr(dist_util, "world_size", lambda: 2)
        raise RuntimeError("a bug")

    loop, _ = tiny(tmp_path, plain_sum, iterations=9)
    loop.after_step = score
    with pytest.raises(RuntimeError, match="a bug"):
        loop.run_loop()
    assert manifest.steps(tmp_path) == []


def test_a_bad_held_out_image_leaves_a_checkpoint(place, tmp_path, capsys):
    held_out = shutil.copytree(place / "data", tmp_path / "held_out")
    next(held_out.glob("*.png")).write_bytes(b"no image")
    words = [*CLASSIFIER, "--batch_size", 4, "--num_workers", 0, "--iterations", 20, "--eval_interval", 1]
    with pytest.raises(SystemExit) as end:
        script_runs.run(
            "classifier_train", "--data_dir", place / "data", "--val_data_dir", held_out, *words, "--out_dir", tmp_path
        )
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and "cannot be read as an image (cannot identify image file); mend" in said
    assert "; saved at step" in said and len(manifest.steps(tmp_path)) == 1


def test_an_image_that_vanishes_leaves_a_checkpoint_to_go_on_from(place, tmp_path, capsys):
    data = shutil.copytree(place / "data", tmp_path / "data")
    train(data, tmp_path / "whole", 6)
    (data / "bee_7.png").unlink()
    (data / "bee_7.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        train(data, tmp_path / "out", 6)
    said = capsys.readouterr().err
    steps = manifest.steps(tmp_path / "out")
    assert "bee_7.png" in said and (not steps or f"saved at step {steps[0]}" in said)
    shutil.copy(place / "data" / "bee_7.png", data)
    train(data, tmp_path / "out", 6)
    for name in ("model", "opt", "state", "ema_0.9999_"):
        assert (tmp_path / "out" / f"{name}000006.pt").read_bytes() == (
            tmp_path / "whole" / f"{name}000006.pt"
        ).read_bytes()


# ------------------------------------------------------------------------------------ runs that go on


@pytest.mark.parametrize("name", ["image_train", "super_res_train"])
def test_a_run_in_pieces_ends_with_the_files_of_a_whole_one(place, tmp_path, name):
    words, more = WORDS, ["--sample_interval", 4]
    if name == "super_res_train":
        words = ["--large_size", 16, "--small_size", 8, *WORDS[2:]]
    whole = lambda out, steps: train(place / "data", out, steps, *more, name=name, words=words)  # noqa: E731
    whole(tmp_path / "whole", 4)
    whole(tmp_path / "pieces", 2)
    said = whole(tmp_path / "pieces", 4)
    assert "warning" not in said
    for step, kind in [(4, "pt"), (4, "json"), (4, "png")]:
        names = {p.name for p in (tmp_path / "whole").glob(f"*{step:06d}.{kind}") if "manifest" not in p.name}
        assert names
        for file in names:
            one, other = ((tmp_path / out / file).read_bytes() for out in ("whole", "pieces"))
            if kind == "json":
                one, other = ({k: v for k, v in json.loads(x).items() if k != "out_dir"} for x in (one, other))
            assert one == other, file


def test_a_resumed_fine_tune_remembers_that_it_is_one(place, tmp_path):
    train(place / "data", tmp_path / "base", 1)
    start = ["--init_from", tmp_path / "base" / "model000001.pt"]
    train(place / "data", tmp_path / "tuned", 1, *start)
    train(place / "data", tmp_path / "tuned", 2, *start)
    for step in (1, 2):
        beside = json.loads((tmp_path / "tuned" / f"ema_0.9999_{step:06d}.json").read_text())
        assert beside["init_from"] == str(start[1]) and "resume_checkpoint" not in beside
    sampled = script_runs.run(
        "image_sample", "--model_path", tmp_path / "tuned" / "ema_0.9999_000002.pt", "--num_samples", 1,
        "--timestep_respacing", 2, "--out_dir", tmp_path / "out",
    )  # fmt: skip
    assert "untrained" not in sampled


@pytest.mark.parametrize("steps", [2, 1])
def test_the_command_of_a_finished_run_ends_well_and_prunes(place, tmp_path, steps):
    train(place / "data", tmp_path, 2, "--save_interval", 1)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*000002.pt")}
    assert f"training ends at step {steps}" in train(place / "data", tmp_path, steps, "--keep_checkpoints", 1)
    assert manifest.steps(tmp_path) == [2]
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*000002.pt")} == before


def test_a_link_to_a_checkpoint_is_resumed_as_the_checkpoint(place, tmp_path):
    train(place / "data", tmp_path / "run", 2)
    (tmp_path / "latest.pt").symlink_to(tmp_path / "run" / "model000002.pt")
    said = train(place / "data", tmp_path / "on", 3, "--resume_checkpoint", tmp_path / "latest.pt")
    assert "warning" not in said and manifest.steps(tmp_path / "on") == [3]


def test_a_newer_checkpoint_without_its_manifest_is_said(place, tmp_path):
    train(place / "data", tmp_path, 4, "--save_interval", 2)
    (tmp_path / "manifest000004.json").unlink()
    said = train(place / "data", tmp_path, 4)
    assert "model000004.pt is not taken: it has no manifest000004.json" in said


STATES = {
    "a list": [],
    "of another step": {"step": 7},
    "text for a number": {"samples": "many"},
    "a negative count": {"samples": -1},
    "a number for a list": {"step_size": 4},
    "no random states": {"random": None},
    "texts for numbers": {"step_size": ["a", "b"]},
    "one number for two": {"step_size": [4]},
    "too large a count": {"samples": 10**30},
}


@pytest.mark.parametrize("what", STATES)
def test_a_state_that_is_none_is_a_sentence(place, tmp_path, what):
    tiny(tmp_path, plain_sum, iterations=2)[0].run_loop()
    path = tmp_path / "state000002.pt"
    content = STATES[what]
    torch.save({**weights(path), **content} if isinstance(content, dict) else content, path)
    with pytest.raises(UserError, match="state000002.pt is (not the state of a training run|that of step 7)"):
        resume.read_state(str(tmp_path / "model000002.pt"))


@pytest.mark.parametrize(
    "what",
    ["another shape", "not finite", "no dict", "other groups", "no groups", "a step below 0", "sparse", "a number"],
)
def test_an_optimiser_state_that_does_not_fit_is_a_sentence(tmp_path, what):
    tiny(tmp_path, plain_sum, iterations=2)[0].run_loop()
    path = tmp_path / "opt000002.pt"
    state = weights(path)
    if what == "another shape":
        state["state"][0]["exp_avg"] = torch.ones(5, 2)
    elif what == "not finite":
        state["state"][0]["exp_avg_sq"][0, 1] = float("nan")
    elif what == "no groups":
        del state["param_groups"]
    elif what == "a step below 0":
        state["state"][0]["step"] = torch.tensor(-5.0)
    elif what == "sparse":
        state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].to_sparse()
    elif what == "a number":
        state["state"][0] = 7
    elif what == "other groups":
        state["param_groups"] = state["param_groups"] * 2
    torch.save([1] if what == "no dict" else state, path)
    (tmp_path / "manifest000002.json").unlink()
    with pytest.raises(UserError, match=r"opt000002.pt does not fit the network.*\)$") as refused:
        tiny(tmp_path, plain_sum, iterations=3, resume_checkpoint=str(tmp_path / "model000002.pt"))
    assert "\n" not in str(refused.value)


def test_an_optimiser_state_of_nothing_is_said(tmp_path, monkeypatch):
    tiny(tmp_path, plain_sum, iterations=2)[0].run_loop()
    path = tmp_path / "opt000002.pt"
    torch.save({**weights(path), "state": {}}, path)
    (tmp_path / "manifest000002.json").unlink()
    said = []
    monkeypatch.setattr(logger, "warn", said.append)
    tiny(tmp_path, plain_sum, iterations=3, resume_checkpoint=str(tmp_path / "model000002.pt"))
    assert f"{path} holds nothing of any weight: the optimiser starts afresh" in said


# -------------------------------------------------------------------------------------- damaged logs


DAMAGE = {
    "no text": lambda data: data[:20] + b"\xff" + data[21:],
    "a quote": lambda data: data.replace(b"\n", b'\n"', 1),
    "a lost comma": lambda data: data[:-8].rpartition(b",")[0] + data[-8:] if b"{" not in data else b"\xff" + data,
    "a short row": lambda data: data + b"1,2\n" if b"{" not in data else data + b"\xfe\n",
}


@pytest.mark.parametrize("what", [*list(DAMAGE)[:2], *slow(*list(DAMAGE)[2:])])
@pytest.mark.parametrize("name", ["progress.csv", "progress.json"])
def test_a_damaged_log_is_set_aside_and_training_goes_on(place, tmp_path, what, name):
    train(place / "data", tmp_path, 2)
    path = tmp_path / name
    if what == "a quote" and name == "progress.json":
        pytest.skip("a line that is no JSON stays a line")
    damaged = DAMAGE[what](path.read_bytes())
    path.write_bytes(damaged)
    said = train(place / "data", tmp_path, 3)
    assert f"{name} is damaged" in said and manifest.steps(tmp_path) == [3, 2]
    assert (tmp_path / f"{name}.damaged").read_bytes() == damaged
    assert path.read_text().strip()


# ------------------------------------------------------------------------------------------- sampling


SAMPLE = ["--num_samples", 6, "--batch_size", 2, "--timestep_respacing", 2]


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_sampling_whose_chunks_vanish_does_not_end_well(place, tmp_path, monkeypatch, capsys, lost):
    train(place / "data", tmp_path / "run", 1)
    words = [
        "image_sample",
        "--model_path",
        tmp_path / "run" / "model000001.pt",
        "--out_dir",
        tmp_path / "out",
        *SAMPLE,
    ]
    save = SampleStore.save
    made = []

    def saving(store, chunk, arrays):
        save(store, chunk, arrays)
        made.append(chunk)
        if len(made) == 3:
            for path in sorted((tmp_path / "out" / "samples.chunks").glob("*.chunk"))[:lost]:
                path.unlink()

    monkeypatch.setattr(SampleStore, "save", saving)
    with pytest.raises(SystemExit) as end:
        script_runs.run(*words)
    assert end.value.code == 2 and f"{2 * lost} images have vanished" in capsys.readouterr().err
    monkeypatch.setattr(SampleStore, "save", save)
    assert "saved" in script_runs.run(*words)
    assert len(np.load(tmp_path / "out" / "samples_6x16x16x3.npz")["arr_0"]) == 6


@pytest.mark.parametrize("name", ["images_x.chunk", "images_1_2.chunk.old", "finished_x.json", "thesis.tmp"])
def test_files_of_others_among_the_chunks_stay_and_do_no_harm(place, tmp_path, name):
    folder = tmp_path / "out" / "samples.chunks"
    folder.mkdir(parents=True)
    (folder / name).write_text("mine")
    words = ["--model_path", "models/digits16.pt", "--out_dir", tmp_path / "out", *SAMPLE]
    assert "saved" in script_runs.run("image_sample", *words)
    assert (folder / name).read_text() == "mine"


# ------------------------------------------------------------------------------------------- numbers


BAD_NUMBERS = ["\u0661\u0662", "1_0", "\uff11", "0x10", "1e3", "", " ", "--1", "1 2", "²", "1.0"]


@pytest.mark.parametrize("text", BAD_NUMBERS)
def test_whole_numbers_are_ascii_digits(text):
    with pytest.raises(ValueError):
        whole(text)


@pytest.mark.parametrize("text", ["\u0661.\u0662", "1_0.0", "\uff11", "0x10", "", "1e", "1,5", "½", "1e1_0"])
def test_numbers_are_ascii_digits(text):
    with pytest.raises(ValueError):
        number(text)


@pytest.mark.parametrize(
    "text", ["0", "-1", "+7", "007", "12345678901234567890", "1.5", "-.5", "1e-4", "2.", "1E5", "inf"]
)
def test_what_are_numbers_are_what_python_takes_them_for(text):
    assert number(text) == float(text)
    if text.lstrip("+-").isdigit():
        assert whole(text) == int(text)


HUGE = (
    "image_train batch_size microbatch diffusion_steps image_size num_workers num_res_blocks num_channels num_heads "
    "num_classes; image_sample num_samples batch_size diffusion_steps per_class; compare_samplers repeats columns "
    "num_samples; classifier_train classifier_width classifier_depth; super_res_train large_size small_size"
)


@pytest.mark.parametrize("name, flag", [(s.split()[0], f) for s in HUGE.split("; ") for f in s.split()[1:]])
@pytest.mark.parametrize("value", ["1000000000000", "9" * 30, "\u0661\u0662", "1_0"])
def test_numbers_that_no_machine_holds_are_refused_at_once(tmp_path, capsys, name, flag, value):
    with pytest.raises(SystemExit) as end:
        script_runs.run(name, f"--{flag}", value, "--out_dir", tmp_path)
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"--{flag}" in said and said.count("\n") == 1, said


FACTORS = "image_sample guidance_scale eta; classifier_sample classifier_scale; image_train lr weight_decay grad_clip"


@pytest.mark.parametrize("name, flag", [(s.split()[0], f) for s in FACTORS.split("; ") for f in s.split()[1:]])
def test_factors_beyond_all_use_are_said_to_be_too_large(tmp_path, capsys, name, flag):
    with pytest.raises(SystemExit) as end:
        script_runs.run(name, f"--{flag}", "1e38", "--out_dir", tmp_path)
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"--{flag} is 1e+38" in said and re.search("below 2.63|0 to 1", said), said


@pytest.mark.parametrize(
    "flag, value", [("num_channels", 10**12), ("diffusion_steps", 10**10), ("num_res_blocks", 10**9)]
)
def test_huge_numbers_beside_a_checkpoint_name_it(tmp_path, flag, value):
    shutil.copy("models/digits16.pt", tmp_path / "x.pt")
    flags = json.loads(Path("models/digits16.json").read_text())
    (tmp_path / "x.json").write_text(json.dumps(flags | {flag: value}))
    with pytest.raises(UserError, match=rf"x.json: --{flag} is {value}; expected at least 1, at most"):
        checkpoints.open_network(str(tmp_path / "x.pt"))


def test_a_word_for_a_number_is_shown_as_the_word(tmp_path):
    data = script_runs.draw_images(tmp_path / "data", 4)
    said = script_runs.run(
        "image_train",
        *["--data_dir", data, "--out_dir", tmp_path / "run", *script_runs.NETWORK, *script_runs.TRAINING],
        *["--microbatch", "auto", "--dry_run", True],
    )
    assert "--microbatch auto" in said and "--microbatch -2" not in said
