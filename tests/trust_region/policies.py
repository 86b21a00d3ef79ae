"""Small random policies, one for each family of action distributions, and the dense algebra that the step must agree with."""

from collections.abc import Callable
from typing import NamedTuple

import torch as th
from torch import nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.func import functional_call

from sb3_minitrpo import MultiCategorical

OBS_DIM = 3


class Policy(nn.Module):
    """A tanh layer with ``n_out`` outputs and a log-std, and any function of them as the action distribution."""

    def __init__(self, n_out: int, family: Callable[[th.Tensor, th.Tensor], Distribution]):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(OBS_DIM, 4), nn.Tanh(), nn.Linear(4, n_out))
        self.log_std = nn.Parameter(0.3 * th.randn(2))
        self.family = family

    def dist(self, states: th.Tensor) -> Distribution:
        return self.family(self.net(states), self.log_std)

    forward = dist


FAMILIES: dict[str, tuple[int, Callable[[th.Tensor, th.Tensor], Distribution]]] = {
    "normal": (2, lambda z, log_std: Normal(z, log_std.exp())),
    "normal_expanded_view": (2, lambda z, log_std: Independent(Normal(z, log_std.exp().expand_as(z)), 1)),
    "normal_fixed_std": (2, lambda z, log_std: Independent(Normal(z, th.ones_like(z)), 1)),
    "normal_state_std": (4, lambda z, log_std: Independent(Normal(z[:, :2], z[:, 2:].exp()), 1)),
    "categorical_logits": (3, lambda z, log_std: Categorical(logits=z)),
    "categorical_probs": (3, lambda z, log_std: Categorical(probs=z.softmax(-1))),
    "independent_categorical": (6, lambda z, log_std: Independent(Categorical(logits=z.view(-1, 2, 3)), 1)),
    "multi_categorical": (5, lambda z, log_std: MultiCategorical([Categorical(logits=y) for y in z.split([2, 3], 1)])),
    "bernoulli": (2, lambda z, log_std: Bernoulli(logits=z)),
    "independent_bernoulli": (2, lambda z, log_std: Independent(Bernoulli(probs=z.sigmoid()), 1)),
    # not known to the step: the product by double backward
    "beta": (4, lambda z, log_std: Independent(Beta(z[:, :2].exp() + 1, z[:, 2:].exp() + 1), 1)),
    "tanh_normal": (
        2,
        lambda z, log_std: TransformedDistribution(Independent(Normal(z, log_std.exp().expand_as(z)), 1), TanhTransform()),
    ),
}


class Problem(NamedTuple):
    policy: Policy
    states: th.Tensor
    actions: th.Tensor
    advantages: th.Tensor
    old_logp: th.Tensor


def per_state(values: th.Tensor) -> th.Tensor:
    return values.reshape(len(values), -1).sum(1)


def make_problem(family: str, dtype: th.dtype = th.float64, n: int = 40, seed: int = 0) -> Problem:
    """The same numbers for every ``dtype``, up to its precision."""
    th.manual_seed(seed)
    policy = Policy(*FAMILIES[family]).double()
    states = th.randn(n, OBS_DIM, dtype=th.float64)
    advantages = th.randn(n, dtype=th.float64)
    with th.no_grad():
        actions = policy.dist(states).sample()
        policy, states, advantages = policy.to(dtype), states.to(dtype), advantages.to(dtype)
        actions = actions.to(dtype) if actions.is_floating_point() else actions
        old_logp = per_state(policy.dist(states).log_prob(actions))
    return Problem(policy, states, actions, advantages, old_logp)


def moved(policy: Policy, states: th.Tensor) -> dict[str, th.Tensor]:
    """The parameters that the action distribution of this family depends on."""
    dist = policy.dist(states)
    logp = dist.log_prob(dist.sample()).sum()
    params = dict(policy.named_parameters())
    grads = th.autograd.grad(logp, list(params.values()), allow_unused=True)
    return {name: param for (name, param), grad in zip(params.items(), grads, strict=True) if grad is not None}


class Dense(NamedTuple):
    """KL(θ₀ + d) and L(θ₀ + d) as functions of a flat vector, and their derivatives at θ₀ by automatic differentiation."""

    kl: Callable[[th.Tensor], th.Tensor]
    surrogate: Callable[[th.Tensor], th.Tensor]
    fisher: th.Tensor
    gradient: th.Tensor


def dense(problem: Problem) -> Dense:
    policy, states, actions, advantages, old_logp = problem
    params = {name: param.detach().clone() for name, param in moved(policy, states).items()}
    sizes = [param.numel() for param in params.values()]
    with th.no_grad():
        old = functional_call(policy, params, (states,))

    def dist_at(step: th.Tensor) -> Distribution:
        chunks = step.split(sizes)
        new = {name: p + chunk.view_as(p) for (name, p), chunk in zip(params.items(), chunks, strict=True)}
        return functional_call(policy, new, (states,))

    def kl(step: th.Tensor) -> th.Tensor:
        return per_state(kl_divergence(old, dist_at(step))).mean()

    def surrogate(step: th.Tensor) -> th.Tensor:
        return (advantages * th.exp(per_state(dist_at(step).log_prob(actions)) - old_logp)).mean()

    zero = th.zeros(sum(sizes), dtype=states.dtype)
    fisher = th.autograd.functional.hessian(kl, zero)
    gradient = th.autograd.functional.jacobian(surrogate, zero)
    return Dense(kl, surrogate, fisher, gradient)
