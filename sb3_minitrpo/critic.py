"""Value regression: the critic's half of an update."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_minitrpo.numpy_mlp import BLAS, regression_gradient
from sb3_minitrpo.numpy_policy import NumpyPolicy, flat, numpy_policy
from sb3_minitrpo.trust_region.averages import Average, average_here
from sb3_minitrpo.trust_region.modes import evaluation_mode
from sb3_minitrpo.trust_region.parameters import flatten, unflatten
from sb3_minitrpo.trust_region.states import take

SMALL_BATCH = 512  # up to which a second thread does not pay
Gradient = Callable[[th.Tensor], th.Tensor | float]  # rows of a minibatch ↦ its loss, the gradient left in .grad


class CriticFit(NamedTuple):
    """
    What a fit of the critic did.

    :param loss: mean (V − R)², over the minibatches as they were met, or at the end of Gauss-Newton steps
    :param accepted: ``False`` if a weight or the optimizer's state became infinite or NaN, and all are as before; of
        Gauss-Newton steps, if none was taken
    """

    loss: float
    accepted: bool


def fit_critic(
    policy: ActorCriticPolicy,
    params: Sequence[nn.Parameter],
    observations: PyTorchObs,
    returns: th.Tensor,
    batch_size: int,
    n_epochs: int,
    fast: bool = True,
    n_minibatches: int | None = None,
    average: Average = average_here,
) -> CriticFit:
    """
    Lower mean (V(s) − R)² by minibatch steps of ``policy.optimizer``, without moving the policy.

    The critic is in training mode, but for modules that the action distribution runs through and that hold buffers: the
    running statistics of a shared batch normalisation would move the policy outside the trust region, so they stay.

    :param policy: actor and critic, with their optimizer
    :param params: the parameters to move, see :func:`critic_params`
    :param observations: ``n`` observations
    :param returns: R, shape ``(n,)``
    :param batch_size: size of a minibatch; the last of an epoch may be smaller
    :param n_epochs: passes over the data, each in a new order drawn from NumPy's generator, as the rollout buffer does
    :param fast: differentiate the stock MLP in NumPy instead of torch, to the same result
    :param n_minibatches: how many minibatches a pass has, of nearly equal size; by default as many as ``batch_size`` gives
    :param average: (mean over ``n`` samples here, n) ↦ mean over all samples, for data that are spread over processes:
        a minibatch is then one of each process together. Each step takes one flat vector.
    """
    optimizer = policy.optimizer
    before = copy.deepcopy((policy.state_dict(), optimizer.state_dict()))
    small = batch_size <= SMALL_BATCH or th.get_num_threads() == 1
    stock = numpy_policy(policy) if fast and small else None
    gradient = gradient_by_torch(policy, params, observations, returns)
    if stock is not None and len(params) == 2 * len(stock.critic):  # nothing of it is frozen
        gradient = gradient_in_numpy(stock, observations, returns)
    if average is not average_here:
        gradient = averaged(gradient, params, average)

    losses = []
    with training_mode(policy, observations), fused(optimizer), BLAS.limit(limits=1), np.errstate(all="ignore"):
        optimizer.zero_grad()
        for _ in range(n_epochs if params else 0):  # all of the critic may be frozen, or the actor's
            order = th.from_numpy(np.random.permutation(len(returns))).to(returns.device)
            for rows in minibatches(order, batch_size, n_minibatches):
                losses.append(gradient(rows))
                optimizer.step()
        optimizer.zero_grad()
    if average is not average_here:
        average_buffers(policy, before[0], len(returns), average)

    loss = float(sum(losses) / len(losses)) if losses else math.nan
    moved = [value for name, value in policy.state_dict().items() if not th.equal(value, before[0][name])]
    accepted = all_finite(dict(enumerate(moved)), optimizer.state_dict())
    if not accepted:
        policy.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
    return CriticFit(loss, accepted)


def critic_params(
    policy: ActorCriticPolicy, actor_params: Iterable[th.Tensor], observations: PyTorchObs
) -> list[nn.Parameter]:
    """
    The trainable parameters that V depends on and the action distribution does not, read off the graph of one state.

    :param policy: actor and critic
    :param actor_params: the parameters that the action distribution depends on
    :param observations: at least one observation
    """
    actor = {id(param) for param in actor_params}
    params = [param for param in policy.parameters() if param.requires_grad and id(param) not in actor]
    with evaluation_mode(policy):
        value = policy.predict_values(take(observations, slice(0, 1)))
    if not (params and value.requires_grad):
        return []
    grads = th.autograd.grad(value, params, allow_unused=True)
    return [param for param, grad in zip(params, grads, strict=True) if grad is not None]


def minibatches(order: th.Tensor, batch_size: int, count: int | None) -> Sequence[th.Tensor]:
    parts = order.split(batch_size)
    return parts if count in (None, len(parts)) else order.tensor_split(count)


def averaged(gradient: Gradient, params: Sequence[nn.Parameter], average: Average) -> Gradient:
    """Loss and gradient over the minibatches of all processes. Where a parameter has no gradient, it is zero on the way."""

    def gradient_of_all(rows: th.Tensor) -> th.Tensor:
        loss = th.as_tensor(gradient(rows)).to(params[0])
        grads = [th.zeros_like(param) if param.grad is None else param.grad for param in params]
        mean = average(flatten([loss, *grads]), len(rows))
        for param, grad in zip(params, unflatten(mean[1:], params), strict=True):
            param.grad = None if param.grad is None else grad
        return mean[0]

    return gradient_of_all


@th.no_grad()
def average_buffers(policy: ActorCriticPolicy, before: Mapping[str, th.Tensor], n: int, average: Average) -> None:
    """The running statistics of the critic's own batch normalisation, which each process has moved by its own data."""
    buffers = [(before[name], buffer) for name, buffer in policy.named_buffers() if name in before]
    floating = [(old, buffer) for old, buffer in buffers if buffer.is_floating_point()]
    if floating:
        # where nothing changed it may be infinite, as a mask is: no difference of infinities then
        changes = average(flatten([(buffer - old).where(buffer != old, 0.0) for old, buffer in floating]), n)
        for (old, buffer), change in zip(floating, unflatten(changes, [old for old, _ in floating]), strict=True):
            buffer.copy_(old + change)


def gradient_by_torch(
    policy: ActorCriticPolicy, params: Sequence[nn.Parameter], observations: PyTorchObs, returns: th.Tensor
) -> Gradient:
    def gradient(rows: th.Tensor) -> th.Tensor:
        loss = F.mse_loss(policy.predict_values(take(observations, rows)).flatten(), returns[rows])
        for param, grad in zip(params, th.autograd.grad(loss, params, allow_unused=True), strict=True):
            param.grad = grad
        return loss.detach()

    return gradient


def gradient_in_numpy(policy: NumpyPolicy, observations: PyTorchObs, returns: th.Tensor) -> Gradient:
    assert isinstance(observations, th.Tensor)  # the stock MLP policy takes no dictionaries
    x, targets = flat(observations.numpy()), returns.numpy()

    def gradient(rows: th.Tensor) -> float:
        return regression_gradient(policy.critic, x[rows.numpy()], targets[rows.numpy()])

    return gradient


@contextmanager
def training_mode(policy: ActorCriticPolicy, observations: PyTorchObs) -> Iterator[None]:
    """Training mode, but for modules with buffers that the action distribution runs through; evaluation mode afterwards."""
    policy.set_training_mode(False)
    shared = stateful_actor_modules(policy, take(observations, slice(0, 1)))
    policy.set_training_mode(True)
    for module in shared:
        module.train(False)
    try:
        yield
    finally:
        policy.set_training_mode(False)


def stateful_actor_modules(policy: ActorCriticPolicy, observations: PyTorchObs) -> list[nn.Module]:
    """The modules with buffers that an evaluation of the action distribution runs through, found by running it."""
    stateful = [module for module in policy.modules() if any(True for _ in module.buffers(recurse=False))]
    ran: list[nn.Module] = []
    hooks = [module.register_forward_pre_hook(lambda module, _: ran.append(module)) for module in stateful]
    try:
        if stateful:
            with th.no_grad():
                policy.get_distribution(observations)
    finally:
        for hook in hooks:
            hook.remove()
    return ran


@contextmanager
def fused(optimizer: th.optim.Optimizer) -> Iterator[None]:
    """Let Adam on a CPU step with torch's fused kernel, where its owner has not chosen how it is to step."""
    groups = []
    if type(optimizer) in (th.optim.Adam, th.optim.AdamW):
        groups = [group for group in optimizer.param_groups if group["fused"] is None and group["foreach"] is None]
        groups = [group for group in groups if not group["differentiable"]]
        groups = [group for group in groups if all(param.device.type == "cpu" for param in group["params"])]
    for group in groups:
        group["fused"] = True
    try:
        yield
    finally:
        for group in groups:
            group["fused"] = None


def all_finite(*states: Any) -> bool:
    """Whether every number of some state dictionaries, however nested, is finite."""
    for state in states:
        if isinstance(state, Mapping) and not all_finite(*state.values()):
            return False
        if isinstance(state, th.Tensor) and not bool(state.isfinite().all()):
            return False
    return True
