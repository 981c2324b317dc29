"""Train a small network in each of several ways; each rank saves what it saw as FOLDER/RANK.json.

Timesteps and noise are functions of the images, so that a global batch gives the same loss however it is
divided into ranks and microbatches.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import critic

from guided_diffusion import dist_util, logger
from guided_diffusion.image_datasets import DataFlags, batches
from guided_diffusion.networks import UNetFlags
from guided_diffusion.objectives import Loss, Objective
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.resample import UniformSampler
from guided_diffusion.script_util import diffusion_of
from guided_diffusion.training.data import next_batch
from guided_diffusion.training.flags import AUTO, TrainFlags
from guided_diffusion.training.loop import Loop

SIZE, IMAGES, GLOBAL_BATCH = 8, 24, 8
# 64 channels: with 32, each normalisation group is one channel and its bias has no gradient but rounding
NETWORK = UNetFlags(image_size=SIZE, num_channels=64, num_res_blocks=1, channel_mult="1", attention_resolutions="")
THREE_STEPS = dict(iterations=3, lr=0.05, ema_rate="0.5,0.9")
PROCESS = DiffusionFlags(learn_sigma=True, diffusion_steps=100)


class ReadFromImages(Objective):
    """The diffusion loss at timesteps and noise that the images decide.

    :param poison: {number of the call: factor of the loss}, to make gradients that are not finite.
    """

    def __init__(self, poison=None):
        self.diffusion = diffusion_of(PROCESS)
        self.num_timesteps = self.diffusion.num_timesteps
        self.poison = poison or {}
        self.calls = []

    def draws(self, images):
        t = (images[:, 0, 3, 3] * 127.5 + 127.5).round().long() % self.num_timesteps
        return t, torch.sin(100 * images + 1)

    def __call__(self, model, batch, cond):
        t, noise = self.draws(batch)
        terms = self.diffusion.training_losses(model, batch, t, model_kwargs=cond, noise=noise)
        terms["loss"] = terms["loss"] * self.poison.get(len(self.calls), 1.0)
        self.calls.append((t, {name: values.detach().clone() for name, values in terms.items()}))
        return Loss(terms["loss"], terms, t)


class CriticFromImages(critic.Critic):
    """The objective with a second network at timesteps and noise that the images decide; each rank draws its own."""

    def __init__(self):
        torch.manual_seed(0)  # so that its network begins alike, whatever ran before
        super().__init__(diffusion_of(PROCESS), UniformSampler(diffusion_of(PROCESS)))

    def draw(self, x):
        t, noise = ReadFromImages.draws(self, x)
        return t, torch.ones(len(x)), noise


class OutOfMemory:
    """An objective that has not enough memory for more than `most` images, which it learns when it has computed them.

    :param after: steps' calls that have enough.
    """

    def __init__(self, objective, most, after=0):
        self.objective, self.most, self.after, self.failures = objective, most, after, 0

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def __call__(self, model, x, cond):
        loss = self.objective(model, x, cond)
        self.after -= 1
        if len(x) > self.most and self.after < 0:
            loss.value.sum().backward()
            self.failures += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return loss


def write_images(path):
    """An npz of random images; training is quick on it and every image is different."""
    np.savez(path, arr_0=np.random.default_rng(0).integers(256, size=(IMAGES, SIZE, SIZE, 3), dtype=np.uint8))
    return str(path)


def network(flags=NETWORK):
    """The small network, all of whose weights have gradients: none is left at zero."""
    torch.manual_seed(dist_util.rank())  # so that ranks start apart, and have to be made one
    model = flags.create(PROCESS.learn_sigma)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def loop(images, out_dir, objective=None, *, network_flags=NETWORK, sgd=False, **options):
    """A Loop on the images of an npz that logs to `out_dir`."""
    flags = TrainFlags(
        **{"batch_size": GLOBAL_BATCH // dist_util.world_size(), "log_interval": 1, "lr": 1e-2, **options}
    )
    logger.configure(str(out_dir), "csv,log")
    dataset = DataFlags(data_dir=images).dataset(SIZE, False, None, flags.seed)
    place = {"rank": dist_util.rank(), "size": dist_util.world_size(), "num_workers": 0, "start": next_batch(flags)}
    training = Loop(
        model=network(network_flags),
        dtype=network_flags.dtype,
        objective=objective or ReadFromImages(),
        data=batches(dataset, flags.batch_size, **place),
        flags=flags,
        resolved={"image_size": SIZE},
    )
    if sgd:  # unlike Adam it feels the scale of the gradients
        training.opt = torch.optim.SGD(training.model.parameters(), lr=flags.lr)
    return training


def digest(tensors):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in tensors)).hexdigest()


def hashes(training):
    seen = [digest(training.model.parameters()), *(digest(params) for params in training.ema.values())]
    if hasattr(training.objective, "critic"):
        seen += [digest(getattr(training.objective, name).network.parameters()) for name in ("critic", "teacher")]
    return seen


def train(*args, **kwargs):
    """Run a loop to its end; returns it."""
    training = loop(*args, **kwargs)
    training.run_loop()
    return training


def main(folder):
    dist_util.setup_dist("cpu")
    folder, images, rank = Path(folder), str(Path(folder, "images.npz")), dist_util.rank()
    seen = {}
    for name, microbatch in (("whole", -1), ("uneven", 3)):
        seen[name] = hashes(train(images, folder / name, sgd=True, microbatch=microbatch, **THREE_STEPS))

    tight = OutOfMemory(ReadFromImages(), 4 - 2 * rank)
    auto = train(images, folder / "auto", tight, sgd=True, microbatch=AUTO, **THREE_STEPS)
    seen |= {"auto": hashes(auto), "fits": {"microbatch": auto.microbatch, "failures": tight.failures}}

    seen["data"] = digest([next(loop(images, folder / "data").data)[0]])
    seen["adam"] = hashes(train(images, folder / "adam", iterations=4, save_interval=2, lr_anneal_steps=8))
    resume = str(folder / "adam" / "model000002.pt")
    seen["resumed"] = hashes(
        train(images, folder / "resumed", iterations=4, lr_anneal_steps=8, resume_checkpoint=resume)
    )

    for name, microbatch in (("critic", -1), ("critic_uneven", 3)):
        own = train(images, folder / name, CriticFromImages(), microbatch=microbatch, save_interval=2, **THREE_STEPS)
        seen[name] = hashes(own)
    resume = str(folder / "critic" / "model000002.pt")
    seen["critic_resumed"] = hashes(
        train(images, folder / "critic_resumed", CriticFromImages(), resume_checkpoint=resume, **THREE_STEPS)
    )

    start = hashes(loop(images, folder / "poisoned"))
    poisoned = loop(images, folder / "poisoned", ReadFromImages({0: float("nan")} if rank == 1 else {}), iterations=1)
    poisoned.run_step(*next(poisoned.data))
    seen["unmoved"] = hashes(poisoned) == start
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist_util.cleanup()


if __name__ == "__main__":
    main(*sys.argv[1:])
