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
    """z is the mean of N(mean, diag σ²)."""

    def __init__(self, log_std: th.Tensor):
        self.log_std = log_std.detach().numpy()

    def noise(self, *shape: int) -> Array:
        """Standard normal numbers, from torch's generator as everything that a policy draws."""
        return th.randn(*shape, len(self.log_std)).numpy()

    def actions(self, mean: Array, noise: Array) -> Array:
        return mean + np.exp(self.log_std) * noise

    def log_prob(self, mean: Array, actions: Array) -> Array:
        z = (actions - mean) / np.exp(self.log_std)
        return -0.5 * (z * z).sum(axis=-1) - self.log_std.sum() - np.float32(0.5 * math.log(2.0 * math.pi) * len(self.log_std))


class CategoricalHead:
    """z are the logits of one categorical variable. Logits plus Gumbel noise are largest at a sample of their softmax."""

    def __init__(self, size: int):
        self.size = size

    def noise(self, *shape: int) -> Array:
        return -th.empty(*shape, self.size).exponential_().log_().numpy()

    def actions(self, logits: Array, noise: Array) -> Array:
        return (logits + noise).argmax(axis=-1)

    def log_prob(self, logits: Array, actions: Array) -> Array:
        logits = logits - logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, actions[..., None], axis=-1)[..., 0]
        return chosen - np.log(np.exp(logits).sum(axis=-1))


class MultiCategoricalHead:
    """z are the logits of several categorical variables, one behind the other."""

    def __init__(self, sizes: Sequence[int]):
        self.parts = [CategoricalHead(size) for size in sizes]
        self.bounds = np.cumsum(sizes)[:-1]

    def noise(self, *shape: int) -> Array:
        return np.concatenate([part.noise(*shape) for part in self.parts], axis=-1)

    def actions(self, logits: Array, noise: Array) -> Array:
        split = zip(self.parts, self._split(logits), self._split(noise), strict=True)
        return np.stack([part.actions(x, y) for part, x, y in split], axis=-1)

    def log_prob(self, logits: Array, actions: Array) -> Array:
        split = zip(self.parts, self._split(logits), np.moveaxis(actions, -1, 0), strict=True)
        return np.sum([part.log_prob(x, action) for part, x, action in split], axis=0)

    def _split(self, logits: Array) -> list[Array]:
        return np.split(logits, self.bounds, axis=-1)


class BernoulliHead:
    """z are the logits of independent binary variables."""

    def __init__(self, size: int):
        self.size = size

    def noise(self, *shape: int) -> Array:
        return th.rand(*shape, self.size).numpy()

    def actions(self, logits: Array, noise: Array) -> Array:
        return (noise < sigmoid(logits)).astype(np.float32)

    def log_prob(self, logits: Array, actions: Array) -> Array:
        return -np.logaddexp(np.float32(0.0), np.where(actions == 1.0, -logits, logits)).sum(axis=-1)


Head = GaussianHead | CategoricalHead | MultiCategoricalHead | BernoulliHead


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

    def act(self, observations: Array, noise: Array) -> tuple[Array, Array]:
        """
        :param observations: shape ``(n, …)``
        :param noise: one step of ``head.noise``, shape ``(n, …)``
        :return: actions as the torch policy gives them, but for Box flat; and the parameters z of their distribution
        :raises ValueError: for z that are not finite, as torch's distributions do
        """
        z = apply(self.actor, flat(observations))
        if not math.isfinite(z.sum()):
            raise ValueError(f"the policy gave parameters of the action distribution that are not finite: {z}")
        return self.head.actions(z, noise), z

    def evaluate(self, observations: Array, z: Array, actions: Array) -> tuple[th.Tensor, th.Tensor]:
        """:return: values ``(n, 1)`` and log-probabilities ``(n,)``, as the torch policy's ``forward`` gives them"""
        log_probs = self.head.log_prob(z, actions)
        return th.from_numpy(apply(self.critic, flat(observations))), th.from_numpy(log_probs)


def flat(observations: Array) -> Array:
    """What the flatten extractor makes of observations, shape ``(n, features)``."""
    return observations.reshape(len(observations), -1).astype(np.float32, copy=False)


class Layer(NamedTuple):
    """A linear layer and what follows it. The arrays share the memory of the parameters."""

    linear: nn.Linear
    weight: Array  # (in, out)
    bias: Array
    activation: Activation | None


def layers_of(hidden: nn.Sequential, last: nn.Module) -> list[Layer]:
    modules = [*hidden, last]
    return [
        Layer(module, module.weight.detach().numpy().T, module.bias.detach().numpy(), ACTIVATIONS.get(type(following)))
        for module, following in zip(modules, [*modules[1:], None], strict=True)
        if isinstance(module, nn.Linear)
    ]


def apply(layers: Sequence[Layer], x: Array) -> Array:
    for _, weight, bias, activation in layers:
        x = x @ weight + bias
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
            delta = (delta @ layers[i].weight.T) * before.slope(outputs[i])
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
        return CategoricalHead(dist.action_dim)
    if type(dist) is sb3.MultiCategoricalDistribution:
        return MultiCategoricalHead(dist.action_dims)
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
