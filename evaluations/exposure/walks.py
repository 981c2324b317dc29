"""What measures read: the states of a sampler step by step, and true states beside them.

Four walks visit the kept timesteps from the noisiest to the data, each with the noise of its own images:

    sampled    sampling as image_sample does it, from standard normal noise
    from_real  sampling from the noised real images of the noisiest kept timestep, one chain for each, as the release of
               Epsilon Scaling measures delta_t
    true       q(x_t | x_0) of the real images, with fresh noise at each timestep
    gaussian   sampling as above, but for methods, with the exact denoiser of a Gaussian of the real images' mean and
               covariance in place of the network: what the solver alone does in these steps

A sampled walk reads the records of the loop and what the network answered meanwhile; the loop knows nothing of it.
"""

from typing import NamedTuple

import torch

from guided_diffusion.denoiser import Prediction, split_output
from guided_diffusion.generate import IndexedNoise
from guided_diffusion.schedule import per_sample

# indices of noise from here on are of true states, which share none with sampling
APART = 2**32


class Moment(NamedTuple):
    """The states of a batch before one step.

    :ivar walk: "sampled", "from_real", "true" or "gaussian".
    :ivar i: index of the kept step, S-1 (noisiest) down to 0.
    :ivar time: its timestep, at which the states are meant to be, even where a method moved the step's start.
    :ivar alpha_bar: of that time.
    :ivar x: [N, C, H, W] the states.
    :ivar said: the network's (or the Gaussian's) own Prediction of them, before scaling, guidance and clipping.
    :ivar x0: [N, C, H, W] the clean images that the solver was given, after those.
    :ivar image: [N, C, H, W] the real images in [-1, 1].
    :ivar noise: [N, C, H, W] of true states; None of sampled ones.
    """

    walk: str
    i: int
    time: int
    alpha_bar: float
    x: torch.Tensor
    said: Prediction
    x0: torch.Tensor
    image: torch.Tensor
    noise: torch.Tensor | None


class Listener:
    """A network that keeps the first answer since `heard` was last called: that to the state a step begins with.

    Churn adds noise to the state before the network is asked, so `asked` keeps what of. The time is that of the
    denoiser, which may tell its network another.
    """

    def __init__(self, network, process):
        self.network = network
        self.takes = getattr(network, "takes", None)
        self.needs = getattr(network, "needs", ())
        self.shape = network.shape
        self.adapter = process.adapter(network, self.takes)
        self.answer = self.state = None

    def __call__(self, x, t, **cond):
        answer = self.network(x, t, **cond)
        if self.answer is None:
            self.answer = answer
        return answer

    def asked(self, denoise):
        """`denoise`, which asks this network, such that the state is kept that it is first asked of."""

        def asking(x, t):
            if self.state is None:
                self.state = x, t
            return denoise(x, t)

        return asking

    def heard(self):
        """The Prediction [N, C, H, W] that the answer stands for.

        Guidance asks about N more samples in the same call, behind these.
        """
        (x, t), self.state = self.state, None
        answer, self.answer = self.answer[: len(x)].float(), None
        return self.adapter.interpret(x, t, *split_output(answer, x, self.adapter.var_type))


class Gaussian:
    """The exact denoiser of N(mean, covariance) for images.

    :param images: [N, C, H, W], whose mean and covariance it has; N at least 2.
    :ivar count: N; lengths of its predictions of the same images are wrong by about 1 / N.
    """

    def __init__(self, images):
        flat = images.flatten(1).double()
        self.count = len(flat)
        self.mean = flat.mean(dim=0)
        _, deviations, self.axes = torch.linalg.svd(flat - self.mean, full_matrices=False)
        self.variances = deviations.square() / (self.count - 1)

    def predict(self, x, alpha_bar):
        """The Prediction of x [N, C, H, W] at levels alpha_bar [N]."""
        mean, axes, variances = (part.to(x) for part in (self.mean, self.axes, self.variances))
        level = per_sample(alpha_bar, x.flatten(1))
        gain = level.sqrt() * variances / (level * variances + 1 - level)
        x0 = mean + (gain * ((x.flatten(1) - level.sqrt() * mean) @ axes.T)) @ axes
        # as if its variance were learned to be the posterior's
        return Prediction.from_x0(x, alpha_bar, x0.view_as(x), -torch.ones_like(x))


def walk(name, process, network, cond, image, seed, indices, gaussian=None):
    """The Moments of a walk.

    :param process: a Process with a solver.
    :param network: on the images' device; its `shape` is (C, H, W).
    :param gaussian: the Gaussian of the walk of that name.
    :param cond: {name: tensor [N, ...]} of what it is told.
    :param image: [N, C, H, W] the real images in [-1, 1].
    :param seed: with `indices` it decides the noise: that of image_sample's images of these indices.
    """
    listener = Listener(network, process)
    denoise = listener.asked(process.denoiser(listener, cond))
    levels = process.schedule.alpha_bar(torch.tensor(process.grid))
    if name == "true":
        yield from _true_states(process, listener, denoise, levels, image, seed, indices)
        return
    noise = IndexedNoise(seed, indices)
    x = noise.normal(*network.shape).to(image.device)
    if name == "from_real":
        x = noised(image, x, levels[-1])
    if name == "gaussian":
        said = []

        def exact(x, t):
            said.append(gaussian.predict(x, process.schedule.alpha_bar(t)))
            return said[-1]

        for record in process.bare().sample_records(process.solver, exact, x, noise):
            i = record.i
            yield Moment(name, i, process.grid[i], float(levels[i]), x, said[0], record.x0, image, None)
            x = record.x
            said.clear()
        return
    for record in process.sample_records(process.solver, denoise, x, noise):
        said, i = listener.heard(), record.i
        yield Moment(name, i, process.grid[i], float(levels[i]), x, said, record.x0, image, None)
        x = record.x


@torch.no_grad()
def _true_states(process, listener, denoise, levels, image, seed, indices):
    draw = IndexedNoise(seed, [APART + index for index in indices])
    for i in reversed(range(len(levels))):
        noise = draw(image)
        x = noised(image, noise, levels[i])
        t = torch.full((len(x),), process.grid[i], device=x.device)
        x0 = denoise(x, t).x0
        yield Moment("true", i, process.grid[i], float(levels[i]), x, listener.heard(), x0, image, noise)


def noised(image, noise, level):
    """q(x_t | x_0) [N, C, H, W] at one alpha_bar."""
    level = level.expand(len(image)).to(image.device)
    return per_sample(level.sqrt(), image) * image + per_sample((1 - level).sqrt(), image) * noise
