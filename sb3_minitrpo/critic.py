"""Value regression: the critic's half of an update."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F


class CriticFit(NamedTuple):
    """
    What :func:`fit_critic` did.

    :param loss: mean squared error, averaged over the minibatches as they were met
    :param accepted: ``False`` if a weight or the optimizer's state became infinite or NaN: all are then as before
    """

    loss: float
    accepted: bool


def fit_critic(
    policy: ActorCriticPolicy,
    actor_params: Iterable[th.Tensor],
    observations: PyTorchObs,
    returns: th.Tensor,
    batch_size: int,
    n_epochs: int,
) -> CriticFit:
    """
    Lower mean (V(s) − R)² by minibatch steps of ``policy.optimizer``, without moving the policy.

    Only parameters that the action distribution does not depend on are differentiated and moved. The critic is in
    training mode, but for modules that the action distribution runs through and that hold buffers: the running
    statistics of a shared batch normalisation would move the policy outside the trust region, so they stay.

    :param policy: actor and critic, with their optimizer
    :param actor_params: the parameters that the action distribution depends on
    :param observations: ``n`` observations
    :param returns: R, shape ``(n,)``
    :param batch_size: size of a minibatch; the last of an epoch may be smaller
    :param n_epochs: passes over the data, each in a new order drawn from NumPy's generator, as the rollout buffer does
    """
    optimizer = policy.optimizer
    actor = {id(param) for param in actor_params}
    params = [param for param in policy.parameters() if param.requires_grad and id(param) not in actor]
    before = copy.deepcopy((policy.state_dict(), optimizer.state_dict()))

    policy.set_training_mode(True)
    for module in stateful_actor_modules(policy, observations):
        module.train(False)

    losses = []
    for _ in range(n_epochs if params else 0):  # all of the critic may be frozen, or shared with the actor
        for rows in th.from_numpy(np.random.permutation(len(returns))).to(returns.device).split(batch_size):
            loss = F.mse_loss(policy.predict_values(take(observations, rows)).flatten(), returns[rows])
            optimizer.zero_grad()
            loss.backward(inputs=params)
            optimizer.step()
            losses.append(loss.detach())
    policy.set_training_mode(False)

    mean_loss = float(th.stack(losses).mean()) if losses else float("nan")
    if not all_finite(policy.state_dict(), optimizer.state_dict()):
        policy.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        return CriticFit(mean_loss, accepted=False)
    return CriticFit(mean_loss, accepted=True)


def take(observations: PyTorchObs, rows: th.Tensor) -> PyTorchObs:
    """Some of the observations, which may be a dictionary."""
    if isinstance(observations, Mapping):
        return {key: value[rows] for key, value in observations.items()}
    return observations[rows]


def stateful_actor_modules(policy: ActorCriticPolicy, observations: PyTorchObs) -> list[nn.Module]:
    """The modules with buffers that an evaluation of the action distribution runs through, found by running it."""
    stateful = [module for module in policy.modules() if any(True for _ in module.buffers(recurse=False))]
    ran: list[nn.Module] = []
    hooks = [module.register_forward_pre_hook(lambda module, _: ran.append(module)) for module in stateful]
    if stateful:
        run_in_evaluation_mode(policy, lambda: policy.get_distribution(take(observations, th.zeros(1, dtype=th.long))))
    for hook in hooks:
        hook.remove()
    return ran


@th.no_grad()
def run_in_evaluation_mode(policy: ActorCriticPolicy, function: Callable[[], Any]) -> None:
    policy.set_training_mode(False)
    function()
    policy.set_training_mode(True)


def all_finite(*states: Any) -> bool:
    """Whether every number of some state dictionaries, however nested, is finite."""
    for state in states:
        if isinstance(state, Mapping):
            if not all_finite(*state.values()):
                return False
        elif isinstance(state, th.Tensor) and not bool(state.isfinite().all()):
            return False
    return True
