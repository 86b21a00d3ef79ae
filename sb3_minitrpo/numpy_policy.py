"""
The stock MLP policy in NumPy, on the memory of its own weights.

On a handful of observations torch spends its time on calls, not on arithmetic: the same forward pass in NumPy takes a
tenth of it. Only what Stable-Baselines3 builds by itself is known here; :func:`numpy_policy` tells.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn

Array = np.ndarray


def sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * x)  # does not overflow


class Activation(NamedTuple):
    """A function and its derivative, the latter from the function's value."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


# Only such as have no settings of their own
ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: Activation(np.tanh, lambda y: 1.0 - y * y),
    nn.ReLU: Activation(lambda x: np.maximum(x, 0.0), lambda y: y > 0.0),
    nn.Sigmoid: Activation(sigmoid, lambda y: y * (1.0 - y)),
}


class GaussianHead:
    """Actions N(mean, diag σ²), from standard normal noise."""

    def __init__(self, log_std: th.Tensor):
        self.log_std = log_std.detach().numpy()

    def noise(self, *shape: int) -> Array:
        return th.randn(*shape, len(self.log_std)).numpy()

    def act(self, mean: Array, noise: Array) -> tuple[Array, Array]:
        std = np.exp(self.log_std)
        actions = mean + std * noise
        z = (actions - mean) / std  # the noise that is left in the rounded action: this is what an update will see
        log_probs = -0.5 * (z * z).sum(axis=1) - self.log_std.sum() - 0.5 * math.log(2.0 * math.pi) * len(std)
        return actions, log_probs


class CategoricalHead:
    """One action of each categorical variable: argmax of logits plus Gumbel noise is a sample of the softmax."""

    def __init__(self, sizes: Sequence[int], squeeze: bool):
        self.ends = np.cumsum(sizes).tolist()
        self.squeeze = squeeze

    def noise(self, *shape: int) -> Array:
        return -th.empty(*shape, self.ends[-1]).exponential_().log_().numpy()

    def act(self, logits: Array, noise: Array) -> tuple[Array, Array]:
        rows = np.arange(len(logits))
        actions = np.empty((len(logits), len(self.ends)), dtype=np.int64)
        log_probs = np.zeros(len(logits), dtype=np.float32)
        start = 0
        for i, end in enumerate(self.ends):
            x = logits[:, start:end]
            actions[:, i] = (x + noise[:, start:end]).argmax(axis=1)
            x = x - x.max(axis=1, keepdims=True)
            log_probs += x[rows, actions[:, i]] - np.log(np.exp(x).sum(axis=1))
            start = end
        return (actions[:, 0] if self.squeeze else actions), log_probs


class BernoulliHead:
    """Independent binary actions, from uniform noise."""

    def __init__(self, size: int):
        self.size = size

    def noise(self, *shape: int) -> Array:
        return th.rand(*shape, self.size).numpy()

    def act(self, logits: Array, noise: Array) -> tuple[Array, Array]:
        actions = (noise < sigmoid(logits)).astype(np.float32)
        log_probs = -np.logaddexp(0.0, np.where(actions == 1.0, -logits, logits)).sum(axis=1)
        return actions, log_probs


Head = GaussianHead | CategoricalHead | BernoulliHead


class NumpyPolicy:
    """
    π and V of a stock policy. It sees every change of the weights in place; :meth:`is_current` tells of others.

    :param policy: a policy for which :func:`numpy_policy` holds
    :param head: how actions are drawn
    """

    def __init__(self, policy: ActorCriticPolicy, head: Head):
        self.head = head
        self.actor = layers_of(policy.mlp_extractor.policy_net, policy.action_net)
        self.critic = layers_of(policy.mlp_extractor.value_net, policy.value_net)
        self.params = list(policy.parameters())
        self.addresses = [param.data_ptr() for param in self.params]

    def is_current(self) -> bool:
        """Whether the weights are still in the memory that this object looks at."""
        return self.addresses == [param.data_ptr() for param in self.params]

    def forward(self, observations: Array, noise: Array) -> tuple[Array, th.Tensor, th.Tensor]:
        """
        :param observations: shape ``(n, …)``
        :param noise: one step of ``head.noise``, shape ``(n, …)``
        :return: actions, values ``(n, 1)`` and log-probabilities ``(n,)``; the latter two as tensors, as the policy gives them
        :raises ValueError: where torch's distributions would refuse their parameters
        """
        x = flat(observations)
        actions, log_probs = self.head.act(apply(self.actor, x), noise)
        if not np.isfinite(log_probs).all():
            raise ValueError(f"log-probabilities of actions are not finite: {log_probs}")
        return actions, th.from_numpy(apply(self.critic, x)), th.from_numpy(log_probs)


def flat(observations: Array) -> Array:
    """What the flatten extractor makes of observations, shape ``(n, features)``."""
    return observations.reshape(len(observations), -1).astype(np.float32, copy=False)


class Layer(NamedTuple):
    """A linear layer and what follows it. The arrays share the memory of the parameters."""

    linear: nn.Linear
    weight: Array  # (out, in)
    bias: Array
    activation: Activation | None


def layers_of(hidden: nn.Sequential, last: nn.Module) -> list[Layer]:
    modules = [*hidden, last]
    return [
        Layer(module, module.weight.detach().numpy(), module.bias.detach().numpy(), ACTIVATIONS.get(type(following)))
        for module, following in zip(modules, [*modules[1:], None], strict=True)
        if isinstance(module, nn.Linear)
    ]


def apply(layers: Sequence[Layer], x: Array) -> Array:
    for _, weight, bias, activation in layers:
        x = x @ weight.T + bias
        if activation is not None:
            x = activation.value(x)
    return x


def regression_gradient(layers: Sequence[Layer], x: Array, targets: Array) -> float:
    """
    mean (V(x) − R)², with its gradient in each parameter put into ``.grad``.

    :param layers: V, with one output
    :param x: shape ``(n, in)``
    :param targets: R, shape ``(n,)``
    """
    outputs = [x]
    for layer in layers:
        outputs.append(apply([layer], outputs[-1]))
    error = outputs[-1][:, 0] - targets
    delta = (error * np.float32(2.0 / len(x)))[:, None]  # ∂loss/∂(weight · input + bias) of a layer, from the last one back
    for i in reversed(range(len(layers))):
        layers[i].linear.weight.grad = th.from_numpy(delta.T @ outputs[i])
        layers[i].linear.bias.grad = th.from_numpy(delta.sum(axis=0))
        before = layers[i - 1].activation if i > 0 else None
        if before is not None:
            delta = (delta @ layers[i].weight) * before.slope(outputs[i])
    return float(error.dot(error)) / len(x)


def numpy_policy(policy: ActorCriticPolicy) -> NumpyPolicy | None:
    """
    The policy in NumPy, if every part of it is just what Stable-Baselines3 builds; ``None`` otherwise.

    A subclass, a replaced or shadowed method, a hook, another module, dtype or device: whatever could make the policy
    act differently from its stock parts rules it out.
    """
    if not is_stock(policy, ActorCriticPolicy) or policy.use_sde:
        return None
    if is_image_space(policy.observation_space) or not isinstance(policy.observation_space, spaces.Box):
        return None
    extractors = {policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor}
    if not (is_stock(policy.mlp_extractor, MlpExtractor) and all(is_stock(part, FlattenExtractor) for part in extractors)):
        return None
    if not (is_stock(policy.action_net, nn.Linear) and is_stock(policy.value_net, nn.Linear)):
        return None
    if not (is_stock_mlp(policy.mlp_extractor.policy_net) and is_stock_mlp(policy.mlp_extractor.value_net)):
        return None
    if any(param.dtype != th.float32 or param.device.type != "cpu" for param in policy.parameters()):
        return None
    head = stock_head(policy)
    return None if head is None else NumpyPolicy(policy, head)


def stock_head(policy: ActorCriticPolicy) -> Head | None:
    dist = policy.action_dist
    if type(dist) is sb3.DiagGaussianDistribution:
        return GaussianHead(policy.log_std)
    if type(dist) is sb3.CategoricalDistribution:
        return CategoricalHead([dist.action_dim], squeeze=True)
    if type(dist) is sb3.MultiCategoricalDistribution:
        return CategoricalHead(dist.action_dims, squeeze=False)
    if type(dist) is sb3.BernoulliDistribution:
        return BernoulliHead(dist.action_dims)
    return None


def is_stock(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Exactly of this class, with no hook and none of its methods shadowed by an attribute of the instance."""
    shadowed = any(callable(getattr(kind, name, None)) for name in vars(module))
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks or shadowed)


def is_stock_mlp(net: nn.Sequential) -> bool:
    """Linear layers with a bias, each followed by a known activation."""
    modules = list(net)
    linear, activations = modules[::2], modules[1::2]
    return (
        is_stock(net, nn.Sequential)
        and len(linear) == len(activations)
        and all(is_stock(module, nn.Linear) and module.bias is not None for module in linear)
        and all(type(module) in ACTIVATIONS and is_stock(module, type(module)) for module in activations)
    )
