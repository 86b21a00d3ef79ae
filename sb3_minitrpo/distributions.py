"""Stable-Baselines3's action distributions as torch distributions of the whole action."""

import copy
from typing import Any

import torch as th
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.distributions import Distribution, Independent, kl_divergence, register_kl

from sb3_minitrpo.trust_region import MultiCategorical
from sb3_minitrpo.trust_region.joint import Block, fisher_blocks

# Those of which log-probability and entropy are what torch says of the distribution inside
PLAIN = (
    sb3.DiagGaussianDistribution,
    sb3.CategoricalDistribution,
    sb3.MultiCategoricalDistribution,
    sb3.BernoulliDistribution,
)


class Adapted(Distribution):
    """
    A distribution whose log-probability and entropy are those that Stable-Baselines3's object gives, be they its own,
    as those of a tanh of a Gaussian are.

    KL and its Hessian are those of the torch distribution inside: a function that maps its samples to actions one to one,
    as tanh does, changes neither.

    :param outer: Stable-Baselines3's object; a copy is kept, since a policy uses one such object for all its states
    :param inner: the torch distribution inside, of whole actions
    """

    def __init__(self, outer: sb3.Distribution, inner: Distribution):
        self.outer, self.inner = copy.copy(outer), inner
        super().__init__(inner.batch_shape, inner.event_shape, validate_args=False)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        return self.outer.log_prob(value)

    def entropy(self) -> th.Tensor:
        entropy = self.outer.entropy()
        if entropy is None:
            raise NotImplementedError("no closed form")
        return entropy


@register_kl(Adapted, Adapted)
def _kl_adapted(p: Adapted, q: Adapted) -> th.Tensor:
    return kl_divergence(p.inner, q.inner)


@fisher_blocks.register
def _(dist: Adapted) -> list[Block] | None:
    return fisher_blocks(dist.inner)


def action_distribution(policy: ActorCriticPolicy, observations: PyTorchObs) -> Distribution:
    """
    π(·|s) of a policy of Stable-Baselines3.

    :param policy: anything with ``get_distribution(observations)``
    :param observations: a batch of ``n`` observations
    :return: a distribution of batch shape ``(n,)`` over whole actions
    :raises ValueError: if the policy gives something else
    """
    return as_torch(policy.get_distribution(observations))


def as_torch(dist: sb3.Distribution | Distribution) -> Distribution:
    """
    :param dist: a distribution of Stable-Baselines3, or a subclass; one of torch is handed through
    :raises ValueError: for anything else
    """
    if isinstance(dist, Distribution):
        return dist
    inner = whole_action(getattr(dist, "distribution", None))
    if inner is None:
        raise ValueError(
            f"the policy's get_distribution() gave a {type(dist).__name__}: return a distribution of "
            "stable_baselines3.common.distributions or of torch.distributions"
        )
    plain = type(dist) in PLAIN or (type(dist) is sb3.StateDependentNoiseDistribution and dist.bijector is None)
    return inner if plain else Adapted(dist, inner)


def whole_action(inner: Any) -> Distribution | None:
    """What stands in ``.distribution``, with all dimensions behind the first as one action."""
    if isinstance(inner, list):
        return MultiCategorical(inner)
    if not isinstance(inner, Distribution):
        return None
    dims = len(inner.batch_shape) - 1
    return Independent(inner, dims) if dims > 0 else inner
