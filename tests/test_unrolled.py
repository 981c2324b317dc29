"""Training through DDIM steps (REFace): its gradient, its loss by hand, its scripts, resumed and on two ranks."""

import json
import sys

import numpy as np
import pytest
import script_runs
import torch
import torch.nn.functional as F
from processes import MPIRUN, WORKERS, mpirun, needs_mpirun, run
from refusals import one_sentence
from unrolling import Identity, made, seed, told

from evaluations.features import ClassifierFeatures
from guided_diffusion.denoiser import bound
from guided_diffusion.networks import ClassifierFlags
from guided_diffusion.objectives import AuxiliaryNetwork
from guided_diffusion.objectives.unrolled import Unrolled, UnrollFlags, features, unrolled
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.resample import UniformSampler
from guided_diffusion.script_util import diffusion_of

NETWORK = "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions= ".split()
RUN = [*NETWORK, *"--diffusion_steps 20 --noise_schedule cosine --prediction v --masks center,blocks".split()]
RUN += "--objective unrolled --unroll_steps 2 --batch_size 3 --num_workers 0 --log_interval 1 --lr 1e-3".split()
CLASSIFIER = (
    "--image_size 8 --num_classes 2 --classifier_width 32 --classifier_depth 1 --classifier_channel_mult 1,1 "
    "--classifier_attention_resolutions 4 --classifier_num_head_channels 32"
).split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images.npz and the classifier of them, classifier/model000001.pt."""
    folder = tmp_path_factory.mktemp("unrolled")
    drawn = np.random.default_rng(0).integers(256, size=(9, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", arr_0=drawn, arr_1=np.arange(9) % 2)
    words = [*CLASSIFIER, "--iterations", 1, "--num_workers", 0, "--data_dir", folder / "images.npz"]
    script_runs.run("classifier_train", *words, "--out_dir", folder / "classifier")
    return folder


def told_of(place):
    """Flags of a run on what lies in a folder."""
    return [*RUN, "--data_dir", place / "images.npz", "--identity_path", place / "classifier" / "model000001.pt"]


def train(place, folder, *words):
    return script_runs.run("inpaint_train", *told_of(place), "--out_dir", folder, *words)


# ------------------------------------------------------------------------------------------- by hand


def test_the_gradient_through_all_steps_is_the_difference_quotient():
    """Of a sum over all predicted images, in two weights."""
    objective, _ = made(steps=4)
    start = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors = torch.randn(4, *start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alpha_bar = objective.process.schedule.alpha_bar

    def total(weights):
        def network(x, t):
            level = alpha_bar(t)[:, None, None, None]
            return (weights[0] * x + weights[1] * level.sqrt() * x.sin()).double()

        adapter = objective.process.adapter(network)
        adapter.network = lambda x, t, cond: (network(x, t), None)  # which would round it to float32
        found = unrolled(bound(adapter, {}), objective.process.schedule, objective.grid, start)
        return sum((factor * image).sum() for factor, image in zip(factors, found))

    weights = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    total(weights).backward()
    for i in range(2):
        step = 1e-5 * torch.eye(2, dtype=torch.float64)[i]
        with torch.no_grad():
            quotient = (total(weights + step) - total(weights - step)) / 2e-5
        assert weights.grad[i].item() == pytest.approx(quotient.item(), rel=1e-4)


def by_hand(objective, model, x, cond):
    """What the objective adds to the usual loss, written out for two steps: {"identity": [N], "perceptual": [N]}."""
    signals = objective.process.schedule.alpha_bar(torch.tensor([11, 5])).sqrt().float()
    noises = (1 - signals.square()).sqrt()
    network, state, images = objective.identity.network, signals[0] * x + noises[0] * torch.randn_like(x), []
    for i in range(2):
        v = model.gain * state + model.by_mask * cond["masked"]
        image, noise = signals[i] * state - noises[i] * v, noises[i] * state + signals[i] * v
        images.append(image)
        if i == 0:
            state = signals[1] * image + noises[1] * noise
    found = {"identity": [], "perceptual": []}
    for image in images:
        whole = torch.where(cond["mask"] > 0, image, x)
        blocks = [(network.input_blocks[0](y), network.middle_block(network.input_blocks[0](y))) for y in (whole, x)]
        last = [pair[1].flatten(1) for pair in blocks]
        found["identity"].append(1 - (last[0] * last[1]).sum(1) / (last[0].norm(dim=1) * last[1].norm(dim=1)))
        layers = []
        for a, b in zip(*blocks):
            at_each = a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)
            layers.append(at_each.square().sum(1).mean(dim=(1, 2)))
        found["perceptual"].append(sum(layers) / 2)
    return {name: sum(values) / 2 for name, values in found.items()}


def test_a_step_is_that_by_hand():
    objective, model = made()
    assert objective.grid == [5, 11]
    x, cond = told(4)
    seed(3)
    loss = objective(model, x, cond)
    loss.value.mean().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    seed(3)
    t, _ = objective.sampler.sample(4, x.device)
    plain = objective.diffusion.training_losses(model, x, t, model_kwargs=cond)["loss"]
    parts = by_hand(objective, model, x, cond)
    value = plain + 0.3 * parts["identity"] + 0.1 * parts["perceptual"]
    value.mean().backward()
    torch.testing.assert_close(loss.value, value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.terms["loss"], value, rtol=1e-4, atol=1e-5)
    for name, part in parts.items():
        torch.testing.assert_close(loss.terms[name], part, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, [p.grad for p in model.parameters()], rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in objective.identity.network.parameters())


def test_true_images_are_at_no_distance_and_the_hole_alone_counts():
    objective, _ = made()
    x, cond = told(3)
    wrong_outside = torch.where(cond["mask"] > 0, x, x + 1)
    for image in (x, wrong_outside):
        assert all(d.abs().max() < 1e-5 for d in objective.distances([image], x, cond).values())
    assert all(d.min() > 1e-3 for d in objective.distances([wrong_outside], x, {}).values())


def test_identity_is_what_the_last_layer_of_a_classifier_reads():
    words = dict(image_size=8, num_classes=5, classifier_width=32, classifier_depth=1, classifier_channel_mult="1,1")
    words |= dict(classifier_attention_resolutions="4", classifier_num_head_channels=32)
    classifier = ClassifierFlags(**words).create().eval()
    pixels = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    own, blocks = features(AuxiliaryNetwork(classifier), pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    torch.testing.assert_close(own, ClassifierFeatures(classifier)(pixels))
    assert len(blocks) == len(classifier.input_blocks) + 1
    assert not any(vars(module)["_forward_hooks"] for module in classifier.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_identities_are_compared_in_float32(dtype):
    objective, model = made()
    x, cond = told(3)
    with torch.autocast("cpu", dtype):
        seed(0)
        low = objective(model, x, cond).terms
    seed(0)
    full = objective(model, x, cond).terms
    for name in ("identity", "perceptual"):
        assert low[name].dtype == torch.float32
        torch.testing.assert_close(low[name], full[name], rtol=0.05, atol=0.02)


# -------------------------------------------------------------------------------------------- scripts


def test_a_run_goes_on_and_fills_holes(place, tmp_path):
    train(place, tmp_path / "whole", "--iterations", 4, "--save_interval", 2, "--sample_interval", 4)
    assert (tmp_path / "whole" / "preview_000004.png").exists()
    (tmp_path / "on").mkdir()
    for path in (tmp_path / "whole").glob("*000002.*"):
        (tmp_path / "on" / path.name).write_bytes(path.read_bytes())
    said = train(place, tmp_path / "on", "--iterations", 4, "--resume_checkpoint", "auto")
    assert "warning" not in said and "identity" in said
    assert script_runs.tensors(tmp_path / "on", 4) == script_runs.tensors(tmp_path / "whole", 4)

    data, model = place / "images.npz", tmp_path / "whole" / "model000004.pt"
    words = [
        "--model_path",
        model,
        "--data_dir",
        data,
        "--num_samples",
        4,
        "--timestep_respacing",
        3,
        "--batch_size",
        4,
    ]
    made = {}
    for name, more in {"pairs": [], "same": ["--reference_dir", data], "guided": ["--guidance_scale", 2]}.items():
        said = script_runs.run("inpaint_sample", *words, *more, "--out_dir", tmp_path / name)
        assert "never seen" not in said
        made[name] = np.load(tmp_path / name / "samples_4x8x8x3.npz")["arr_0"]
    true = np.load(data)["arr_0"][:4]
    for images in made.values():
        assert np.abs(images - true.astype(int))[:, [0, -1]].max() <= 1
        assert np.abs(images - true.astype(int))[:, 1:-1, 1:-1].max() > 20
    assert len({images.tobytes() for images in made.values()}) == 3
    said = script_runs.run("inpaint_sample", *words, "--masks", "center,column", "--out_dir", tmp_path / "foreign")
    assert "was trained with --masks center,blocks, and has never filled a column" in said


@pytest.mark.slow
@needs_mpirun
def test_two_ranks_share_their_gradients(place, tmp_path):
    words = [*told_of(place), "--iterations", 2, "--out_dir", tmp_path / "run"]
    done = run(MPIRUN, "-n", 2, sys.executable, WORKERS / "unrolled.py", tmp_path, *words, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    own, shared = ([torch.load(tmp_path / f"{name}{rank}.pt") for rank in (0, 1)] for name in ("own", "all"))
    mean = [(a + b) / 2 for a, b in zip(*own)]
    for given in shared:
        torch.testing.assert_close(given, mean)
    assert not torch.allclose(own[0][0], own[1][0])
    assert "step 2/2" in done.stdout and (tmp_path / "run" / "model000002.pt").exists()


def test_a_reference_is_shown_to_somebody(place, tmp_path, capsys):
    """Or refused; that a single image is its own is said."""
    data, own = place / "images.npz", [*NETWORK, "--batch_size", 3, "--num_workers", 0]
    np.savez(tmp_path / "one.npz", arr_0=np.load(data)["arr_0"][:1])
    models = {}
    for shows in (True, False):
        words = [*own, "--data_dir", data, "--reference_cond", shows, "--iterations", 1]
        script_runs.run("inpaint_train", *words, "--out_dir", tmp_path / f"{shows}")
        models[shows] = tmp_path / f"{shows}" / "model000001.pt"
    few = ["--num_samples", 1, "--timestep_respacing", 2, "--out_dir", tmp_path / "filled"]
    said = script_runs.run("inpaint_sample", "--model_path", models[True], "--data_dir", tmp_path / "one.npz", *few)
    assert "one.npz has one image, which is its own reference" in said
    with pytest.raises(SystemExit):
        script_runs.run(
            "inpaint_sample", "--model_path", models[False], "--data_dir", data, "--reference_dir", data, *few
        )
    assert f"--reference_dir {data} is shown to nobody" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("half", ["--use_bf16", "--use_fp16"])
def test_half_precision_goes_on_bit_for_bit(half, place, tmp_path):
    words = [*told_of(place), half, True]
    whole = script_runs.trained("inpaint_train", tmp_path / "whole", *words, ends=[2])
    assert script_runs.trained("inpaint_train", tmp_path / "part", *words, ends=[1, 2]) == whole != {}


@pytest.mark.slow
@needs_mpirun
def test_two_ranks_go_on_bit_for_bit(place, tmp_path):
    words = ["inpaint_train", *told_of(place), "--resume_checkpoint", "auto"]
    runs = [("whole", 3), ("part", 1), ("part", 3)]
    commands = [[*words, "--out_dir", tmp_path / name, "--iterations", n] for name, n in runs]
    (tmp_path / "commands.json").write_text(json.dumps([list(map(str, command)) for command in commands]))
    done = mpirun(2, "script_list.py", tmp_path / "commands.json")
    assert done.returncode == 0, done.stderr
    assert script_runs.tensors(tmp_path / "part", 3) == script_runs.tensors(tmp_path / "whole", 3) != {}


# ------------------------------------------------------------------------------------------ bad input


def refused(capsys, call, *words):
    with pytest.raises(SystemExit):
        call()
    said = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(said) and all(str(word) in said[-1] for word in words), said


def test_a_classifier_that_is_none_or_does_not_fit_is_refused(place, tmp_path, capsys):
    def begin(*words):
        return lambda: train(place, tmp_path / "run", "--iterations", 1, *words)

    refused(capsys, begin("--identity_path", ""), "--identity_path is not given")
    refused(capsys, begin("--identity_path", tmp_path / "no.pt"), "--identity_path", "no.pt does not exist")
    refused(capsys, begin("--image_size", 16), "--identity_path", "takes images of 3x8x8; the network makes 3x16x16")
    refused(capsys, begin("--timestep_respacing", 5), "--timestep_respacing 5 leaves out timesteps", "unrolled")
    refused(capsys, begin("--prediction", "eps"), "--objective unrolled", "--prediction v or x0")
    refused(capsys, begin("--identity_weight", 0, "--perceptual_weight", 0), "--identity_weight 0", "nothing to learn")
    plain = ["--data_dir", place / "images.npz", "--identity_path", place / "classifier" / "model000001.pt"]
    own = [word for i, word in enumerate(RUN) if "--masks" not in (word, RUN[i - 1])]
    refused(
        capsys,
        lambda: script_runs.run("image_train", *own, *plain, "--iterations", 1, "--out_dir", tmp_path / "plain"),
        "--objective unrolled",
        "scripts/inpaint_train.py or super_res_train.py",
    )


def test_more_steps_than_timesteps_are_refused():
    diffusion = diffusion_of(DiffusionFlags(diffusion_steps=12, noise_schedule="cosine", prediction="v"))
    flags = UnrollFlags(unroll_steps=13)
    one_sentence(
        lambda: Unrolled(diffusion, UniformSampler(diffusion), Identity(), flags), "--unroll_steps is 13", "at most 12"
    )


def test_noise_of_the_linear_schedule_still_tells_of_the_image():
    diffusion = diffusion_of(DiffusionFlags(diffusion_steps=1000, noise_schedule="linear"))
    objective = Unrolled(diffusion, UniformSampler(diffusion), Identity(), UnrollFlags())
    assert objective.grid == [249, 499, 749, 999]


def test_without_a_hole_whole_images_are_compared():
    objective, _ = made()
    x, _ = told(2)
    found = objective.distances([x.flip(0)], x, {})["identity"]
    true = [features(objective.identity, y)[0] for y in (x.flip(0), x)]
    torch.testing.assert_close(found, 1 - F.cosine_similarity(*true))
