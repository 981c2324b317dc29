"""What an objective is, and the networks that it may own beside the one that is trained."""

import copy
import math
from typing import ClassVar, NamedTuple

import torch
from torch.utils._pytree import tree_map

from .. import dist_util, logger
from ..errors import UserError
from ..training.precision import BAD_STEPS, Precision


class Loss(NamedTuple):
    """What an objective says of N images.

    :ivar value: [N], of which training minimises the mean.
    :ivar terms: {name: [N]} to log.
    :ivar t: int64 [N] in 0..num_timesteps-1, the timesteps they belong to, by whose quartiles they are logged.
    """

    value: torch.Tensor
    terms: dict[str, torch.Tensor]
    t: torch.Tensor


def refuse_respacing(parsed, objective):
    """Validate that training keeps all timesteps, for an objective whose network is sampled at others than it draws.

    :raises UserError: naming --timestep_respacing.
    """
    if kept := parsed.values().get("timestep_respacing"):
        raise UserError(
            f"--timestep_respacing {kept} leaves out timesteps that --objective {objective} samples at; expected none"
        )


class AuxiliaryNetwork:
    """A network that an objective owns: frozen, as a teacher is, or trained by an optimiser of its own, as a critic is.

    It is the same on all ranks: it starts from the weights of rank 0, and its gradients are averaged over the ranks.

    :param network: is moved to the device of this rank.
    :param optimizer: a torch.optim.Optimizer of its parameters; None freezes it.
    :param dtype: what its losses were computed in; under torch.float16 they are scaled, see Precision.
    :param grad_clip: largest norm of its gradient; 0 never clips.
    """

    def __init__(self, network, optimizer=None, dtype=torch.float32, grad_clip=0.0):
        self.network = network.to(dist_util.dev()).requires_grad_(optimizer is not None)
        self.optimizer = optimizer
        self.trainer = Precision(network, dtype, grad_clip=grad_clip)
        self._images = 0
        dist_util.sync_params([*network.parameters(), *network.buffers()])

    def __call__(self, *args, **kwargs):
        """The output of the network, whose gradients reach its weights: for its own losses."""
        return self.network(*args, **kwargs)

    def fixed(self, *args, **kwargs):
        """The output of the network, whose gradients reach the arguments alone: for losses of the trained network."""
        weights = {name: p.detach() for name, p in self.network.named_parameters()}
        return torch.func.functional_call(self.network, weights, args, kwargs)

    def backward(self, losses):
        """Add the gradients of its losses [n] of a microbatch, which must not reach the trained network."""
        self.trainer.backward(losses.sum())
        self._images += len(losses)

    def step(self):
        """Take an optimiser step by the mean gradient of all losses since the last one, over microbatches and ranks.

        Without losses nothing happens. Every rank must call it.

        :return: whether the weights changed; they do not where a loss or a gradient is not finite.
        :raises UserError: after BAD_STEPS such steps in a row, or where the weights are not finite.
        """
        if self.optimizer is None:
            return False
        images = dist_util.all_reduce_sum(torch.tensor(float(self._images))).item()
        self._images = 0
        if not images:
            return False
        torch._foreach_div_(dist_util.sum_gradients(self.trainer.params), images)
        stepped, grad_norm, *_ = self.trainer.optimize(self.optimizer).tolist()
        dist_util.sync_params(self.network.buffers())
        what = f"the {type(self.network).__name__} of --objective"
        if not stepped:
            logger.warn(f"the loss or a gradient of {what} is not finite, so its weights stay as they are")
        if self.trainer.bad_steps >= BAD_STEPS or not math.isfinite(self.trainer.param_norm()):
            raise UserError(
                f"training diverged: {what} has gradient norm {grad_norm:g}; try a lower learning rate of it"
            )
        return bool(stepped)

    def discard(self):
        """Forget the gradients of the losses since the last step."""
        self.network.zero_grad(set_to_none=True)
        self._images = 0

    def state_dict(self):
        """Weights, buffers and the optimiser's state."""
        state = {"network": self.network.state_dict()}
        if self.optimizer is not None:
            state |= {"optimizer": self.optimizer.state_dict(), "lg_loss_scale": self.trainer.lg_loss_scale}
        return state

    def load_state_dict(self, state):
        """Go on from a `state_dict`; learning rate and the like stay those that the optimiser has.

        :raises UserError: if it is that of another network or optimiser; it does not change then.
        """
        shapes, theirs = ({k: v.shape for k, v in s.items()} for s in (self.network.state_dict(), state["network"]))
        if shapes != theirs or ("optimizer" in state) != (self.optimizer is not None):
            raise UserError("it is that of another network or optimiser")
        if self.optimizer is not None:
            own = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            try:
                self.optimizer.load_state_dict(state["optimizer"])
            except ValueError as error:
                raise UserError(f"it is that of another optimiser ({error})") from error
            for group, values in zip(self.optimizer.param_groups, own):
                group.update(values)
            if self.trainer.scales_loss:
                self.trainer.lg_loss_scale = state["lg_loss_scale"]
        self.network.load_state_dict(state["network"])


class OpenedNetwork(AuxiliaryNetwork):
    """A frozen network of a file, which is opened again when a run goes on; the state has it as the run began with it.

    :param network: as of AuxiliaryNetwork.
    :param flag: that names the file, for the warning that it has changed.
    """

    def __init__(self, network, flag):
        super().__init__(network)
        self.flag = flag

    def load_state_dict(self, state):
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        super().load_state_dict(state)
        if any(not torch.equal(value, before[name]) for name, value in self.network.state_dict().items()):
            logger.warn(
                f"--{self.flag} is not what --resume_checkpoint was trained with: it has other weights, and the run "
                "goes on with those that it began with"
            )


class Objective:
    """What training minimises. A paper is a class of its own in a file of its own, and a line in OBJECTIVES.

    Its attributes that are an AuxiliaryNetwork, or lists and dicts of them, are trained and frozen, saved and resumed
    with it: `__call__` tells those that are trained their losses by `backward`. Whatever else has to go on when a run
    is resumed belongs into `state_dict`, but for draws from the global generators of torch and numpy.

    :cvar flags: flag groups of scripts that offer it.
    :cvar memory: what a state file holds of it, in words.
    :cvar trains_variance: whether it trains the channels that --learn_sigma adds.
    :ivar num_timesteps: T, of which the log has quartiles.
    :ivar sampled_by: {flag: value} of the sampler that its networks are meant for; {} where any will do. It lies beside
        their checkpoints: previews take it, and sampling scripts where their command lines say nothing else.
    :ivar timesteps: the training timesteps that its networks have seen; None for all.
    """

    flags = ()
    memory = "what --objective has learnt"
    trains_variance = True
    sampled_by: ClassVar = {}
    timesteps = None

    @classmethod
    def create(cls, parsed, diffusion):
        """The objective of a command line.

        :param parsed: the resolved Parsed flags, which have the groups in `flags`.
        :param diffusion: a GaussianDiffusion.
        """
        raise NotImplementedError

    def begin(self, model):
        """Take note of the trained network, whose first weights are read, before training begins or goes on."""

    def __call__(self, model, x, cond):
        """The Loss of a microbatch, once for each of a step, under the autocast of the trained network.

        :param model: the trained network, `model(x, t, **cond)`.
        :param x: [N, C, H, W] in [-1, 1], on the device of this rank.
        :param cond: {name: tensor [N, ...]} of what the network is told.
        """
        raise NotImplementedError

    def set_rate(self, share):
        """Take note, before a step, of the trained network's learning rate in it, as a share of --lr."""

    def stepped(self, model):
        """Follow an optimiser step that changed the weights of the trained network; every rank calls it.

        :param model: the trained network, without the wrapper that averages gradients.
        """
        for auxiliary in self._auxiliaries().values():
            auxiliary.step()

    @property
    def waits_for_ranks(self):
        """Whether a call waits for those of the other ranks."""
        return False

    @property
    def follows_steps(self):
        """Whether `stepped` or `skipped` does something: then a loop has to know at once whether it took a step."""
        own = (getattr(type(self), name) is not getattr(Objective, name) for name in ("stepped", "skipped"))
        return any(own) or bool(self._auxiliaries())

    def skipped(self):
        """In place of `stepped`, where a loss or gradient was not finite and so no weight has changed."""
        for auxiliary in self._auxiliaries().values():
            auxiliary.discard()

    def logged(self):
        """{name: number} of its own for a log row, the same on all ranks, which call this together."""
        return {}

    def state_dict(self):
        """{name: state as tensors and plain values}, the same on all ranks; rank 0 alone calls it."""
        return {name: auxiliary.state_dict() for name, auxiliary in self._auxiliaries().items()}

    def captured(self):
        """A copy of `state_dict` that a step, begun anew, begins from; of weights, which no call changes, no copy."""
        networks = (auxiliary.network for auxiliary in self._auxiliaries().values())
        left = {p.data_ptr() for network in networks for p in network.parameters()}

        def copied(value):
            if isinstance(value, torch.Tensor):
                return value if value.data_ptr() in left else value.clone()
            return copy.deepcopy(value)

        return tree_map(copied, self.state_dict())

    def load_state_dict(self, state):
        """Go on from a `state_dict`, and say in a warning what is not in it and so starts afresh.

        :raises UserError: for the state of another network, or of one that this objective has not.
        """
        own = self._auxiliaries()
        if foreign := [name for name, value in state.items() if name not in own and _is_network(value)]:
            raise UserError(
                f"it holds networks that --objective does not know ({', '.join(foreign)}); expected the objective that "
                "they belong to, or --init_from, which takes the trained weights alone"
            )
        for name, auxiliary in own.items():
            if name not in state:
                logger.warn(f"the checkpoint has no {name} of --objective, which starts afresh")
                continue
            try:
                auxiliary.load_state_dict(state[name])
            except UserError as error:
                raise UserError(f"the {name} of the checkpoint does not fit --objective: {error}") from error

    def _auxiliaries(self):
        found = {}
        for name, value in _auxiliaries_in(vars(self)):
            if all(value is not other for other in found.values()):
                found[name] = value
        return found


def _auxiliaries_in(parts):
    """(name, AuxiliaryNetwork) of those in {name: value}, and in lists and dicts there as "critics.0"."""
    for name, value in parts.items():
        if isinstance(value, AuxiliaryNetwork):
            yield name, value
        elif isinstance(value, (dict, list, tuple)):
            inner = value if isinstance(value, dict) else dict(enumerate(value))
            yield from _auxiliaries_in({f"{name}.{key}": part for key, part in inner.items()})


def _is_network(state):
    """Whether it is what an AuxiliaryNetwork saves."""
    return isinstance(state, dict) and "network" in state
