"""What the scripts do, from Python: load a network, sample, invert, measure, tune and score.

    import guided_diffusion as gd

    model = gd.load("models/digits16.pt")
    images = model.sample(16, classes=[3, 7], steps=20, solver="dpmpp_2m", eps_scaler=1.005)

Keywords are the flags of the scripts, and a value is read as its text on a command line is; a list stands for a text
with commas. What a script refuses is refused here by the same sentence, as a UserError. An image is decided by the
seed, its index and these flags: sample i here is sample i of scripts/image_sample.py, byte for byte.

The names of this module are those of the package: `import guided_diffusion` reads it when one of them is asked for.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from tqdm.auto import tqdm

from . import adapters, checkpoints, conditioning, dist_util, logger, methods, presets
from .adapters import edm
from .checkpoints import CheckpointFlags
from .conditioning.classes import ClassFlags, class_names, with_classes_counted
from .denoiser import Prediction
from .distributed import launchers
from .errors import UserError
from .flags import Parsed, flags_of, marked, stated
from .generate import IndexedNoise, SampleFlags, batches_of, on_device, watched_images
from .image_datasets import DataFlags
from .image_labels import as_text
from .images import to_uint8
from .inversion import EXACT, advice, by_ddim, decode, encode
from .jobs import folder_lock
from .jobs.launch import RunFlags, warn_of_slow_halves, warn_of_unread
from .networks import ConvFlags, UNetFlags, compiled
from .process import DiffusionFlags, Process, SpacingFlags
from .sampling import Record
from .solvers.bdia import Before
from .solvers.flags import SolverFlags

if TYPE_CHECKING:
    from evaluations.exposure.real import RealImages
    from evaluations.exposure.sampler import Result
    from evaluations.exposure.tuning import Candidate

Path: TypeAlias = "str | os.PathLike[str]"
Classes: TypeAlias = "str | Sequence[int | str] | np.ndarray | torch.Tensor"
Images: TypeAlias = "np.ndarray | torch.Tensor"
Denoiser: TypeAlias = Callable[[torch.Tensor, torch.Tensor], Prediction]
# D(x, sigma), and with classes D(x, sigma, labels)
EDMDenoiser: TypeAlias = Callable[..., torch.Tensor]

# what is decided once, as a network is loaded, and what each sampling may have otherwise
NETWORK = [CheckpointFlags, *checkpoints.DIFFUSION.groups, ConvFlags, DiffusionFlags]
_TOLD = [group for group in conditioning.sampling_groups(UNetFlags) if group not in NETWORK]
SAMPLER = [SampleFlags, SolverFlags, *_TOLD, SpacingFlags, *methods.of_sampling()]
# how far images may be beyond [-1, 1], as unclipped samples are
BEYOND = 2.0

_OF_RUNS = dict.fromkeys(field.name for field in flags_of(RunFlags) if field.name != "preset")
_OF_NETWORK = {field.name for group in NETWORK for field in flags_of(group)} - set(marked([DiffusionFlags], "free"))
_OF_DATA = dict.fromkeys(["random_flip", "random_crop", "num_workers"])


def load(model_path: Path | EDMDenoiser, **flags: Any) -> Model:
    """Open a diffusion network, of this project or of others (docs/models.md).

    :param model_path: a checkpoint, local or at any address blobfile reads; a folder of diffusers, or its name on the
        Hugging Face hub; or a denoiser of EDM, `D(x [N, C, H, W], sigma [N]) -> [N, C, H, W]` and with classes
        `D(x, sigma, labels [N])`: any callable; a module is moved to the device and put in eval mode.
    :param flags: of the network, its process and its computation, such as use_fp16 or network, where the files do not
        say them; `device`, of the first network of the program; `preset`. Of a denoiser that does not show them as
        EDM's networks do: image_size, image_channels, num_classes.
    :raises UserError: if there is no such network, or a flag is unknown, illegal or contradicts it.
    """
    device = flags.pop("device", None)
    off = _OF_RUNS | dict.fromkeys([*marked([DiffusionFlags], "free"), "model_path"])
    own = _stated(flags, [*NETWORK, RunFlags], off)
    if device:
        dist_util.setup_dist(str(device))
        chosen = launchers.choose_device(str(device), dist_util.local_rank(), torch.cuda.device_count())
        if chosen != dist_util.dev():
            raise UserError(f"--device {device} contradicts {dist_util.dev()}, where this process computes already")
    known = {name: value for name, value in _given(own).items() if name in _OF_NETWORK}
    if known.get("vae"):
        known["vae"] = adapters.on_disk(known["vae"], "vae")
    if not callable(model_path):
        return Model({**known, "model_path": adapters.on_disk(str(model_path))})
    if of_files := sorted(known.keys() & {"network", "vae", "checkpoint_key"}):
        raise UserError(f"--{of_files[0]} says something of files, and a denoiser is given; leave it out")
    found, name = edm.of_object(model_path, known), getattr(model_path, "__name__", type(model_path).__name__)
    return Model({**known, "model_path": adapters.hold(found, name.strip("<>"))})


@dataclass(frozen=True)
class Encoded:
    """Images as `Model.encode` returns them: a pair of noisy states, and what leads back.

    :ivar noisiest: float32 [N, C, H, W] at timesteps[0].
    :ivar before: float32 [N, C, H, W] at timesteps[1].
    :ivar timesteps: the two training timesteps.
    :ivar flags: {flag: value} of the sampler.
    """

    noisiest: torch.Tensor
    before: torch.Tensor
    timesteps: tuple[int, int]
    flags: Mapping[str, Any]


class Model:
    """A diffusion network with its process; `load` makes it.

    :param given: {flag: value} of NETWORK that are known of it, with model_path.
    :ivar network: `network(x, t, y=labels)`, on the device, in eval mode, as `networks.for_inference` makes it: without
        gradients of most weights, and what is hooked or patched in it may be passed over. To train or hook a network,
        take that of `checkpoints.open_network(path)`.
    """

    network: Any

    def __init__(self, given: Mapping[str, Any]):
        self._given = dict(given)
        parsed = stated(self._given, [*NETWORK, *SAMPLER])
        self._found = checkpoints.of_others(parsed)
        self._loaded, self.network = checkpoints.load_network(parsed, parsed[ConvFlags].conv)
        warn_of_slow_halves(self._loaded)

    def __repr__(self) -> str:
        channels, height, width = self.network.shape
        told = f", {self.num_classes} classes" if self.num_classes else ""
        return f"<Model {self._given['model_path'].strip('<>')}: x is {channels}x{height}x{width}{told}>"

    @property
    def flags(self) -> dict[str, Any]:
        """{flag: value} of all that describes the network and its process."""
        return {name: value for name, value in self._loaded.values().items() if name in _OF_NETWORK}

    @property
    def num_classes(self) -> int | None:
        """The number of classes that the network is told; None for none."""
        unet = self._loaded[UNetFlags]
        return unet.num_classes if unet.class_cond else None

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, by their numbers; [] where they have none."""
        return class_names(self._loaded)

    @property
    def process(self) -> Process:
        """The process that the network was trained on, with all its timesteps, without a solver and methods."""
        return self._loaded[DiffusionFlags].create()

    @overload
    def sample(
        self,
        num_samples: int | None = ...,
        *,
        steps: int | str | None = ...,
        classes: Classes | None = ...,
        as_tensor: Literal[False] = ...,
        progress: bool = ...,
        callback: Callable[[Record], object] | None = ...,
        **flags: Any,
    ) -> np.ndarray: ...

    @overload
    def sample(
        self,
        num_samples: int | None = ...,
        *,
        steps: int | str | None = ...,
        classes: Classes | None = ...,
        as_tensor: Literal[True],
        progress: bool = ...,
        callback: Callable[[Record], object] | None = ...,
        **flags: Any,
    ) -> torch.Tensor: ...

    def sample(
        self,
        num_samples: int | None = None,
        *,
        steps: int | str | None = None,
        classes: Classes | None = None,
        as_tensor: bool = False,
        progress: bool = True,
        callback: Callable[[Record], object] | None = None,
        **flags: Any,
    ) -> Images:
        """Images of the network, as scripts/image_sample.py makes them.

        :param num_samples: N; None where per_class says it.
        :param steps: a number, or what --timestep_respacing takes, such as "ddim10"; None takes all timesteps.
        :param classes: numbers or names, in turn over the images; None draws them.
        :param as_tensor: return float32 [N, C, H, W] in about [-1, 1], on the device.
        :param progress: show a bar.
        :param callback: called after each step of each batch with its Record: i, t, s, x and x0.
        :param flags: of the solver and the methods, batch_size, seed, per_class, preset; with classifier_path
            those of classifier guidance.
        :return: uint8 [N, H, W, C].
        :raises UserError: for a flag that is unknown or illegal, flags that exclude each other, and images that are
            not finite numbers.
        """
        if num_samples is None and not flags.get("per_class"):
            raise UserError("--num_samples is not given; expected a number of images, or --per_class")
        if callback is not None and not callable(callback):
            raise UserError(f"callback is {callback!r}; expected a function of a Record")
        parsed, process, network = self._sampler({**flags, "num_samples": num_samples, "classes": classes}, steps)
        told, sampling, made = conditioning.of_sampling(parsed), parsed[SampleFlags], []
        with tqdm(total=sampling.num_samples, unit="image", disable=not progress) as bar:
            for indices in sampling.batches:
                noise = IndexedNoise(sampling.seed, indices)
                cond = on_device(told.of_indices(noise, indices))
                x, bad_from = watched_images(process, network, noise, cond, callback)
                if (bad_from > 0).any():
                    first = indices[int((bad_from > 0).nonzero()[0, 0])]
                    raise UserError("; ".join([f"image {first} is not of finite numbers", *process.suspects()]))
                made.append(x if as_tensor else to_uint8(x))
                bar.update(len(indices))
        return torch.cat(made) if as_tensor else np.concatenate(made)

    def denoiser(self, *, classes: Classes | None = None, steps: int | str | None = None, **flags: Any) -> Denoiser:
        """The network with the methods of a sampler around it: `(x_t [N, C, H, W], t [N]) -> Prediction`.

        :param classes: numbers or names, in turn over the N; a network with classes needs them.
        :param steps, flags: as of `sample`; steps decide what some methods do.
        """
        parsed, process, network = self._sampler({**flags, "classes": classes}, steps)
        told, last = _of_chosen(parsed), process.schedule.num_timesteps - 1
        process.denoiser(network, told(range(1)))  # what does not fit is refused now

        def denoise(x: torch.Tensor, t: torch.Tensor) -> Prediction:
            if not (t >= 0).all() or not (t <= last).all():
                raise UserError(f"t reaches from {t.min():g} to {t.max():g}; expected training timesteps, 0 to {last}")
            if x.shape[1:] != network.shape:
                raise UserError(f"x is {[*x.shape]}; expected [N, {', '.join(map(str, network.shape))}]")
            return process.denoiser(network, told(range(len(x))))(x, t)

        return denoise

    def encode(
        self, images: Images, *, classes: Classes | None = None, steps: int | str | None = None, **flags: Any
    ) -> Encoded:
        """Noisy states of images, by BDIA, from which `decode` gives them back (docs/inversion.md).

        :param images: uint8 [N, H, W, C], or a float tensor [N, C, H, W] in [-1, 1].
        :param classes: numbers or names, in turn over the images; a network with classes needs them.
        :param steps: as of `sample`; at least 2.
        :param flags: as of `sample`, without those of noise. gamma is 1 by default, where nothing is lost.
        :raises UserError: for images of another shape, and for what has no exact way back.
        """
        pixels = self._pixels(images)
        values = {**flags, "classes": classes, "timestep_respacing": _respacing(steps, flags)}
        parsed, process, network = self._sampler(values, None, _INVERTED)
        if said := advice(parsed[SolverFlags], len(process.grid)):
            logger.warn(said)
        told, pair, states = _of_chosen(parsed), adapters.pair_of(network), []
        for indices in batches_of(len(pixels), parsed[SampleFlags].batch_size):
            inside = pair.encode(pixels[indices.start : indices.stop].to(dist_util.dev()))
            denoise = process.denoiser(network, told(indices))
            x, before = encode(denoise, process.solver, process.schedule, process.grid, inside)
            states.append((x, before.x))
        noisiest, previous = map(torch.cat, zip(*states))
        last, next_to_last = process.grid[-1], process.grid[-2]
        return Encoded(noisiest, previous, (last, next_to_last), values)

    def decode(self, encoded: Encoded, *, classes: Classes | None = None, as_tensor: bool = False) -> Images:
        """The images that were encoded; with classes, these images as others, by DDIM from their noisiest states alone.

        :param classes: numbers or names, in turn over the images; None for those that they were encoded with.
        :param as_tensor: return float32 [N, C, H, W] in about [-1, 1], on the device.
        :return: uint8 [N, H, W, C], rounded, so that 8-bit images return unchanged.
        """
        if not isinstance(encoded, Encoded):
            raise UserError(f"encoded is {type(encoded).__name__}; expected what encode(...) returns")
        values = dict(encoded.flags) if classes is None else {**encoded.flags, "classes": classes}
        parsed, process, network = self._sampler(values, None, _INVERTED)
        told, pair, made = _of_chosen(parsed), adapters.pair_of(network), []
        for indices in batches_of(len(encoded.noisiest), parsed[SampleFlags].batch_size):
            some = slice(indices.start, indices.stop)
            denoise, x = process.denoiser(network, told(indices)), encoded.noisiest[some]
            if classes is None:
                t = torch.full((len(x),), encoded.timesteps[1], device=x.device)
                made.append(decode(denoise, process.solver, process.grid, x, Before(encoded.before[some], t)))
            else:
                made.append(by_ddim(process, denoise, x))
        decoded = torch.cat([pair.decode(x) for x in made])
        return decoded if as_tensor else to_uint8(decoded, rounded=True)

    def _sampler(
        self, values: Mapping[str, Any], steps: int | str | None, overrides: Mapping[str, Any] | None = None
    ) -> tuple[Parsed, Process, Any]:
        """(the resolved Parsed flags, the Process, the network) of a sampling, its classes in numbers."""
        values = {**values, "timestep_respacing": _respacing(steps, values)}
        groups = [*SAMPLER, *(checkpoints.GUIDANCE if values.get("classifier_path") else [])]
        parsed, network = self._resolved(values, groups, overrides)
        parsed, process = checkpoints.load_guided(parsed)
        warn_of_unread(parsed)
        return with_classes_counted(parsed), process, network

    def _resolved(
        self, values: Mapping[str, Any], groups: Sequence[Any], overrides: Mapping[str, Any] | None = None
    ) -> tuple[Parsed, Any]:
        """(the Parsed flags, the network) of a job: this network, with another schedule where that depends on them.

        :param groups: what beside NETWORK has flags.
        :param overrides: as for `flags.parse`.
        """
        for name in values.keys() & _OF_NETWORK:
            raise UserError(f"--{name} decides what network is loaded; expected it in load(...)")
        overrides = overrides or {}
        read = {"model_path", *(field.name for group in groups for field in flags_of(group))}
        off = _OF_RUNS | dict.fromkeys(_OF_NETWORK - read)
        path = {"model_path": self._given["model_path"]}
        own = _stated({**values, **path}, [*groups, CheckpointFlags, DiffusionFlags, RunFlags], {**off, **overrides})
        self._refuse_preset_of_another(own[RunFlags].preset)
        told = {name: value for name, value in _given(own).items() if name != "preset"}
        parsed, network = stated({**self._given, **told}, [*NETWORK, *groups], overrides), self.network
        parsed[ConvFlags].apply()
        if self._found is None:
            known = {name: value for name, value in self._loaded.values().items() if name in _OF_NETWORK}
            parsed = checkpoints.as_meant(parsed.with_values(known), self._given["model_path"], log=False)
        else:
            whole = adapters.resolve(parsed, self._found, self._given["model_path"], log=False)
            if not np.array_equal(whole[DiffusionFlags].betas, self._loaded[DiffusionFlags].betas):
                network = compiled(self.network.timed(whole[DiffusionFlags].create().schedule))
            parsed = whole
        parsed.refuse_unread()
        return parsed, network

    def _refuse_preset_of_another(self, preset: str) -> None:
        """Validate that what a preset says of a network holds for this one."""
        if not preset:
            return
        said = {k: v for k, v in presets.flags_of_preset(preset).items() if k in _OF_NETWORK}
        if said:
            meant, own = checkpoints.resolved(stated({**self._given, **said}, NETWORK), log=False).values(), self.flags
            for name in sorted(name for name in own if meant.get(name) != own[name]):
                raise UserError(
                    f"--{name} of --preset {preset} decides what network is loaded; expected it in load(...)"
                )

    def _pixels(self, images: Images) -> torch.Tensor:
        """float32 [N, C, H, W] in [-1, 1] of images as `encode` takes them."""
        unet = self._loaded[UNetFlags]
        shape = (unet.image_channels, unet.image_size, unet.image_size)
        if isinstance(images, torch.Tensor) and images.is_floating_point():
            pixels = images.float()
        else:
            array = np.asarray(images)
            if array.dtype != np.uint8 or array.ndim != 4:
                raise UserError(f"images are {array.dtype} {list(array.shape)}; expected uint8 [N, H, W, C]")
            pixels = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != shape:
            expected = "x".join(map(str, shape))
            raise UserError(f"images are [N, C, H, W] = {list(pixels.shape)}; --model_path makes images of {expected}")
        if not len(pixels):
            raise UserError("images are none; expected at least 1")
        low, high = map(float, pixels.aminmax())
        if not -BEYOND <= low <= high <= BEYOND:
            raise UserError(f"images reach from {low:g} to {high:g}; expected float tensors in [-1, 1], or uint8")
        return pixels


# of an inversion, which draws no noise
_INVERTED = {"solver": "bdia", "gamma": EXACT, "use_ddim": None, "seed": None, "num_samples": None, "per_class": None}


def evaluate(reference: Path | np.ndarray, samples: Path | np.ndarray, **flags: Any) -> dict[str, float]:
    """Score images against real ones, as evaluations/evaluator.py does (docs/evaluation.md).

    :param reference: uint8 [N, H, W, C], or the path of an npz, a folder or a zip of images, or stored statistics.
    :param samples: likewise, or the output folder of a sampling script.
    :param flags: features, metrics, standard_error and the others of the evaluator.
    :return: {name: score}, such as fid; what is undefined of so few images is left out, with a warning.
    :raises UserError: for images and flags that do not fit each other, or are none.
    """
    from evaluations import batches, evaluator
    from evaluations.features import FeatureFlags
    from evaluations.scores import ScoreFlags

    off = dict.fromkeys(["reference", "samples", "more_samples", "json"])
    parsed = _stated(flags, evaluator.GROUPS, off, presets=False)
    parsed[ScoreFlags].chosen(parsed[FeatureFlags].of_inception)

    def opened(images: Any, flag: str) -> Any:
        is_path = isinstance(images, (str, os.PathLike))
        return batches.open_images(str(images), flag) if is_path else batches.images_of_array(images, flag)

    real, sampled = opened(reference, "reference"), opened(samples, "samples")
    evaluator.refuse_swapped(real, sampled)
    features = parsed[FeatureFlags].create()
    evaluator.refuse_other_sizes([real, sampled], features)
    found: dict[str, float] = {}
    for _, scores, notes in evaluator.scored(parsed, real, [sampled], features):
        for note in notes:
            logger.warn(note)
        found |= scores
    return found


def exposure_bias(
    model: Model,
    data_dir: Path,
    *,
    steps: int | str | None = 20,
    num_samples: int = 32,
    out_dir: Path | None = None,
    **flags: Any,
) -> Result:
    """Measure the exposure bias of a sampler, as scripts/exposure_bias.py does (docs/exposure_bias.md).

    :param model: a Model.
    :param data_dir: real images, of the size that the model makes.
    :param steps: as of `Model.sample`.
    :param num_samples: of the real images, and of sampled ones.
    :param out_dir: folder that keeps what is measured, its tables and its figure; the same call goes on there.
    :param flags: as of `Model.sample`, without classes, which are those of the real images; and those of the data.
        Classifier guidance counts as of `Model.sample`.
    :return: an evaluations.exposure.sampler.Result: `times` [S], and `curves[measure][curve]` with `values`, `errors`
        and `theory` [S], by increasing timestep.
    :raises UserError: as `Model.sample`, and for data that do not fit the model.
    """
    from evaluations.exposure import figure, measures, tables
    from evaluations.exposure.sampler import Opened

    groups = checkpoints.GUIDANCE if flags.get("classifier_path") else []
    with _measured(model, data_dir, steps, {**flags, "num_samples": num_samples}, groups, out_dir) as job:
        opened = Opened.of(job.parsed, job.network, job.real, measures.MEASURES)
        result = opened.result("sampler", "", job.parsed, job.process)
        if out_dir and dist_util.is_main():
            tables.save([result], str(out_dir))
            figure.save([result], str(out_dir), measures.MEASURES)
    return result


class Tuned(NamedTuple):
    """A sampler that `tune` chose.

    :ivar flags: {flag: value} of it, keywords of `Model.sample`.
    :ivar reason: why, in words.
    :ivar candidates: evaluations.exposure.tuning.Candidates: what was proposed, measured and tried; the first is the
        sampler as it was.
    """

    flags: dict[str, Any]
    reason: str
    candidates: list[Candidate]


def tune(
    model: Model,
    data_dir: Path,
    *,
    steps: int | str | None = None,
    num_samples: int = 100,
    out_dir: Path | None = None,
    **flags: Any,
) -> Tuned:
    """Propose flags for a sampler from its exposure bias, as scripts/tune_sampler.py does (docs/exposure_bias.md).

    :param model: a Model.
    :param data_dir: real images, of the size that the model makes.
    :param steps: as of `Model.sample`.
    :param num_samples: of the real images, and of sampled ones, that are measured.
    :param out_dir: folder that keeps what is measured, its tables and its preset; the same call goes on there.
    :param flags: as of `exposure_bias`; refine=N with features=..., which try the proposals on N images each.
    :raises UserError: as `exposure_bias`.
    """
    from evaluations.exposure import tuning
    from evaluations.features import FeatureFlags

    groups = [tuning.TuneFlags, FeatureFlags]
    with _measured(model, data_dir, steps, {**flags, "num_samples": num_samples}, groups, out_dir) as job:
        tuning.refuse_without_features(job.parsed)
        found = tuning.tuning_of(job.parsed, job.network, job.process, job.real)
        if out_dir and dist_util.is_main():
            found.save(str(out_dir))
    return Tuned(found.preset.flags, found.preset.score, found.candidates)


class _Measured(NamedTuple):
    """What a measurement of a sampler is given: its resolved flags, its Process, network and the real images."""

    parsed: Parsed
    process: Process
    network: Any
    real: RealImages


@contextlib.contextmanager
def _measured(
    model: Model,
    data_dir: Path,
    steps: int | str | None,
    values: Mapping[str, Any],
    groups: Sequence[Any],
    out_dir: Path | None,
) -> Iterator[_Measured]:
    """The _Measured of a job, which has its folder, or one that is deleted after it, alone."""
    from evaluations.exposure.real import open_real

    if not isinstance(model, Model):
        raise UserError(f"model is {type(model).__name__}; expected what load(...) returns")
    if not isinstance(data_dir, (str, os.PathLike)):
        raise UserError(f"data_dir is {type(data_dir).__name__}; expected the path of images")
    if out_dir and adapters.is_held(model._given["model_path"]):
        raise UserError("out_dir keeps what is measured of a network's files, and a denoiser has none; leave it out")
    values = {**values, "data_dir": data_dir, "timestep_respacing": _respacing(steps, values)}
    groups = [*(group for group in SAMPLER if group is not ClassFlags), DataFlags, *groups]
    parsed, network = model._resolved(values, groups, _OF_DATA)
    parsed, process = checkpoints.load_guided(parsed)
    warn_of_unread(parsed)
    real = open_real(parsed, network)
    with contextlib.ExitStack() as stack:
        folder = str(out_dir) if out_dir else stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(logger.scoped_configure(folder, None if out_dir else ["stdout"]))
        stack.enter_context(folder_lock.locked(logger.get_dir()))
        yield _Measured(parsed, process, network, real)


def _stated(
    values: Mapping[str, Any], groups: Sequence[Any], overrides: Mapping[str, Any], presets: bool = True
) -> Parsed:
    """The Parsed flags of keywords, with what a preset among them fills in."""
    values = {name: _as_text(value) for name, value in values.items()}
    return stated(values, groups, overrides, _filled if presets else None)


def _filled(given: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    return presets.expand(given["preset"], known) if given.get("preset") else {}


def _as_text(value: Any) -> Any:
    """A list as its text with commas; anything else as it is."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()
    return as_text([str(part) for part in value]) if isinstance(value, (list, tuple, range)) else value


def _given(parsed: Parsed) -> dict[str, Any]:
    """{flag: value} of those that were given."""
    return {name: value for name, value in parsed.values().items() if name in parsed.given}


def _respacing(steps: int | str | None, values: Mapping[str, Any]) -> Any:
    """The --timestep_respacing that steps are."""
    other = values.get("timestep_respacing")
    if steps is not None and other is not None:
        raise UserError(f"steps {steps} contradicts --timestep_respacing {other}; expected one of them")
    return other if steps is None else steps


def _of_chosen(parsed: Parsed) -> Callable[[Sequence[int]], dict[str, torch.Tensor]]:
    """`indices -> {name: tensor}` of what the network is told of images whose classes are given, on the device."""
    told = conditioning.of_sampling(parsed)
    if not parsed[ClassFlags].classes and parsed[UNetFlags].class_cond:
        raise UserError("--classes is not given; expected numbers or names, in turn over the images")
    return lambda indices: on_device(told.of_indices(None, indices))
