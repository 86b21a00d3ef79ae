"""
What the step asks of an action distribution: log-probability, entropy and KL of the whole action, and the KL's Hessian.

A batch of ``n`` states gives distributions of batch shape ``(n,)``, as ``Independent(Normal)`` does, or ``(n, act_dim)``,
as a plain ``Normal`` does. Dimensions behind the first are dimensions of one action: they are summed, never averaged.
"""

import copy
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import torch as th
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal, kl_divergence, register_kl


class MultiCategorical(Distribution):
    """
    Several independent categorical variables as one action.

    :param categoricals: one distribution of batch shape ``(n,)`` per action dimension; their sizes may differ
    """

    def __init__(self, categoricals: Sequence[Categorical]):
        self.categoricals = list(categoricals)
        super().__init__(self.categoricals[0].batch_shape, th.Size([len(self.categoricals)]), validate_args=False)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """:param value: shape ``(n, act_dim)``; the result has shape ``(n,)``"""
        pairs = zip(self.categoricals, value.unbind(-1), strict=True)
        return sum_all(dist.log_prob(action) for dist, action in pairs)

    def entropy(self) -> th.Tensor:
        return sum_all(dist.entropy() for dist in self.categoricals)

    def sample(self, sample_shape: Any = ()) -> th.Tensor:
        return th.stack([dist.sample(th.Size(sample_shape)) for dist in self.categoricals], dim=-1)


@register_kl(MultiCategorical, MultiCategorical)
def _kl_multi_categorical(p: MultiCategorical, q: MultiCategorical) -> th.Tensor:
    return sum_all(kl_divergence(a, b) for a, b in zip(p.categoricals, q.categoricals, strict=True))


def sum_all(tensors: Any) -> th.Tensor:
    return th.stack(list(tensors)).sum(0)


def _per_state(values: th.Tensor) -> th.Tensor:
    """Sum over every dimension but the first."""
    return values if values.dim() == 1 else values.flatten(1).sum(1)


def log_prob(dist: Distribution, actions: th.Tensor) -> th.Tensor:
    """
    log π(a|s) of whole actions, shape ``(n,)``.

    :raises ValueError: if the actions do not fit: ``(n, 1)`` of them would broadcast to ``(n, n)`` log-probabilities
    """
    values = dist.log_prob(actions)
    if values.shape != dist.batch_shape:
        raise ValueError(
            f"actions of shape {tuple(actions.shape)} have log-probabilities of shape {tuple(values.shape)}: pass actions "
            f"of shape {tuple(dist.batch_shape + dist.event_shape)}, one for each state"
        )
    return _per_state(values)


def entropy(dist: Distribution) -> th.Tensor | None:
    """Entropy of whole actions in nats, shape ``(n,)``; ``None`` where it has no closed form."""
    try:
        return _per_state(dist.entropy())
    except NotImplementedError:
        return None


def kl(old: Distribution, new: Distribution) -> th.Tensor:
    """KL(old ‖ new) of whole actions in nats, shape ``(n,)``."""
    return _per_state(kl_divergence(old, new))


def snapshot(dist: Distribution) -> Distribution:
    """
    The distribution as it is now, on tensors of its own.

    ``detach()`` alone would not do: a detached ``log_std.expand_as(mean)`` is a view of the live parameter, and moves
    with it when the line search moves the policy.
    """
    return _own(dist)


def _own(value: Any) -> Any:
    if isinstance(value, th.Tensor):
        return value.detach().clone()
    if isinstance(value, list | tuple):
        return type(value)(_own(item) for item in value)
    if isinstance(value, Distribution):
        twin = copy.copy(value)
        twin.__dict__ = {name: _own(item) for name, item in value.__dict__.items()}
        return twin
    return value


class Block(NamedTuple):
    """
    One tensor of distribution parameters and its diagonal block of M, the Hessian of KL(old ‖ new) at new = old.

    :param z: the parameters, shape ``(n, …)``
    :param metric: u ↦ M u, for u of the shape of z
    """

    z: th.Tensor
    metric: Callable[[th.Tensor], th.Tensor]


@singledispatch
def fisher_blocks(dist: Distribution) -> list[Block] | None:
    """
    The parameters z of a distribution with the Hessian of its KL in them, as blocks that do not interact.

    M is the Fisher information of z (Martens, 2020, "New insights and perspectives on the natural gradient method",
    section 9.2).

    :return: ``None`` for a family that is not known here
    """
    return None


@fisher_blocks.register
def _(dist: Normal) -> list[Block]:
    precision = dist.scale.detach() ** -2
    return [Block(dist.loc, lambda u: precision * u), Block(dist.scale, lambda u: 2.0 * precision * u)]


@fisher_blocks.register
def _(dist: Categorical) -> list[Block]:
    return [_categorical_block(dist)]


@fisher_blocks.register
def _(dist: MultiCategorical) -> list[Block]:
    return [_categorical_block(categorical) for categorical in dist.categoricals]


@fisher_blocks.register
def _(dist: Bernoulli) -> list[Block]:
    probs = dist.probs.detach()
    return [Block(dist.logits, lambda u: probs * (1.0 - probs) * u)]


@fisher_blocks.register
def _(dist: Independent) -> list[Block] | None:
    return fisher_blocks(dist.base_dist)


def _categorical_block(dist: Categorical) -> Block:
    probs = dist.probs.detach()
    return Block(dist.logits, lambda u: probs * (u - (probs * u).sum(-1, keepdim=True)))
