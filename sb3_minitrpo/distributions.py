"""Stable-Baselines3's action distributions as torch distributions of the whole action."""

import copy

import torch as th
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from sb3_minitrpo.trust_region import MultiCategorical


class SquashedGaussian(Independent):
    """
    tanh of a diagonal Gaussian, with the log-probability that Stable-Baselines3 gives it.

    KL and its Hessian are those of the Gaussian, since tanh is one-to-one. The entropy has no closed form.

    :param squashed: a distribution of Stable-Baselines3 with ``squash_output``
    """

    def __init__(self, squashed: sb3.DiagGaussianDistribution | sb3.StateDependentNoiseDistribution):
        super().__init__(squashed.distribution, 1)
        self._log_prob = copy.copy(squashed).log_prob  # a copy, since a policy uses one such object for all its states

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        return self._log_prob(value)

    def entropy(self) -> th.Tensor:
        raise NotImplementedError


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
    :param dist: a distribution of Stable-Baselines3; one of torch is handed through
    :raises ValueError: for anything else
    """
    if isinstance(dist, Distribution):
        return dist
    if isinstance(dist, sb3.MultiCategoricalDistribution):
        return MultiCategorical(dist.distribution)
    if isinstance(dist, sb3.SquashedDiagGaussianDistribution):
        return SquashedGaussian(dist)
    if isinstance(dist, sb3.StateDependentNoiseDistribution) and dist.bijector is not None:
        return SquashedGaussian(dist)
    inner = getattr(dist, "distribution", None)
    if isinstance(inner, Normal | Bernoulli):
        return Independent(inner, 1)
    if isinstance(inner, Distribution):
        return inner
    raise ValueError(
        f"the policy's get_distribution() gave a {type(dist).__name__}: return a distribution of "
        "stable_baselines3.common.distributions or of torch.distributions"
    )
