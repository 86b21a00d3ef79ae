"""A small policy for using the step without Stable-Baselines3."""

from collections.abc import Sequence

import torch as th
from torch import nn
from torch.distributions import Independent, Normal


class GaussianPolicy(nn.Module):
    """
    π(·|s) = N(μ(s), diag σ²), with μ a tanh MLP and log σ a parameter that does not depend on the state.

    :param obs_dim: size of a state
    :param act_dim: size of an action
    :param hidden_sizes: widths of the hidden layers
    :param log_std_init: initial value of log σ
    """

    def __init__(self, obs_dim: int, act_dim: int, hidden_sizes: Sequence[int] = (64, 64), log_std_init: float = 0.0):
        super().__init__()
        layers: list[nn.Module] = []
        width = obs_dim
        for hidden in hidden_sizes:
            layers += [nn.Linear(width, hidden), nn.Tanh()]
            width = hidden
        self.body = nn.Sequential(*layers)
        self.mean = nn.Linear(width, act_dim)
        self.log_std = nn.Parameter(th.full((act_dim,), float(log_std_init)))

    def dist(self, states: th.Tensor) -> Independent:
        """
        :param states: shape ``(batch, obs_dim)``
        :return: the joint distribution of the actions; its ``log_prob`` of ``(batch, act_dim)`` has shape ``(batch,)``
        """
        mean = self.mean(self.body(states))
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)
