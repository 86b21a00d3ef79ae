"""
The stock MLP policy in NumPy, on the memory of its own weights.

On a handful of observations torch spends its time on calls, not on arithmetic: the same forward pass in NumPy takes a
tenth of it. Only what Stable-Baselines3 builds by itself is known here; :func:`numpy_policy` tells.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn
from torch.distributions import Distribution

from sb3_minitrpo.numpy_mlp import ACTIVATIONS, BLAS, Array, apply, backward, forward, layers_of, sigmoid, tangent
from sb3_minitrpo.trust_region.fisher import Product, fisher_product
from sb3_minitrpo.trust_region.joint import fisher_blocks
from sb3_minitrpo.trust_region.parameters import unflatten
from sb3_minitrpo.trust_region.states import States


class GaussianHead:
    """z is the mean of N(mean, diag σ²)."""

    def __init__(self, log_std: nn.Parameter):
        self.log_std = log_std
        self.values = log_std.detach().numpy()

    def noise(self, *shape: int) -> Array:
        """Standard normal numbers, from torch's generator as everything that a policy draws."""
        return th.randn(*shape, len(self.values)).numpy()

    def actions(self, mean: Array, noise: Array) -> Array:
        return mean + np.exp(self.values) * noise

    def log_prob(self, mean: Array, actions: Array) -> Array:
        z = (actions - mean) / np.exp(self.values)
        return -0.5 * (z * z).sum(axis=-1) - self.values.sum() - np.float32(0.5 * math.log(2.0 * math.pi) * len(self.values))


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
        self.modules = list(policy.modules())
        self.policy, self.seen = policy, fingerprint(self.modules)

    def actor_params(self) -> list[th.Tensor]:
        """The parameters that the action distribution depends on."""
        params: list[th.Tensor] = [param for layer in self.actor for param in layer.linear.parameters()]
        return [*params, self.head.log_std] if isinstance(self.head, GaussianHead) else params

    def is_current(self, policy: nn.Module) -> bool:
        """Whether this is still the policy that was copied, with the same parts, and its weights in the same memory."""
        return policy is self.policy and fingerprint(self.modules) == self.seen

    def noise(self, n_steps: int, n_envs: int) -> Array:
        """What :meth:`act` takes, step by step."""
        return self.head.noise(n_steps, n_envs)

    def act(self, observations: Array, noise: Array) -> tuple[Array, Array]:
        """
        :param observations: shape ``(n, …)``
        :param noise: one step of ``head.noise``, shape ``(n, …)``
        :return: actions as the torch policy gives them, but for Box flat; and the parameters z of their distribution
        :raises ValueError: for z that are not finite, as torch's distributions do
        """
        z = apply(self.actor, flat(observations))
        actions = self.head.actions(z, noise)
        if not math.isfinite(z.sum() + actions.sum()):
            raise ValueError(f"the policy gave parameters of the action distribution that are not finite: {z}")
        return actions, z

    def evaluate(self, observations: Array, z: Array, actions: Array) -> tuple[th.Tensor, th.Tensor]:
        """:return: values ``(n, 1)`` and log-probabilities ``(n,)``, as the torch policy's ``forward`` gives them"""
        log_probs = self.head.log_prob(z, actions)
        return th.from_numpy(apply(self.critic, flat(observations))), th.from_numpy(log_probs)


def flat(observations: Array) -> Array:
    """What the flatten extractor makes of observations, shape ``(n, features)``."""
    return observations.reshape(len(observations), -1).astype(np.float32, copy=False)


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


def fingerprint(modules: Sequence[nn.Module]) -> list[tuple]:
    """What changes when a module gets other parts, parameters, memory of parameters, hooks or attributes."""
    return [
        (
            *map(id, module._modules.values()),
            *(param.data_ptr() for param in module._parameters.values() if param is not None),
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            len(vars(module)),
        )
        for module in modules
    ]


def is_hooked(module: nn.Module) -> bool:
    """Whether someone listens to its passes forward or back, or to the gradients of its parameters."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks) or any(
        param is not None and (param._backward_hooks or getattr(param, "_post_accumulate_grad_hooks", None))
        for param in module._parameters.values()
    )


def is_stock(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Exactly of this class, with no hook and none of its methods shadowed by an attribute of the instance."""
    shadowed = any(callable(getattr(kind, name, None)) for name in vars(module))
    return type(module) is kind and not (is_hooked(module) or shadowed)


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


def fast_fisher_product(
    policy: nn.Module,
    dist_at: Callable[[States], Distribution],
    states: States,
    dist: Distribution,
    params: Sequence[th.Tensor],
) -> Product:
    """
    :func:`~sb3_minitrpo.trust_region.fisher.fisher_product`, written out for the stock MLP: nothing but the arithmetic is
    left of a product then. Another policy, or one with frozen layers, gets the general one; so does every policy if torch
    may use several threads, which for large batches gain more.
    """
    stock = numpy_policy(policy) if isinstance(policy, ActorCriticPolicy) and th.get_num_threads() == 1 else None
    if stock is None or {id(param) for param in params} != {id(param) for param in stock.actor_params()}:
        return fisher_product(policy, dist_at, states, dist, params)
    assert isinstance(states, th.Tensor)  # the stock MLP takes no dictionaries
    layers, log_std = stock.actor, stock.head.log_std if isinstance(stock.head, GaussianHead) else None
    done = forward(layers, flat(states.numpy()))
    # z is what the network gives; σ is a parameter by itself, and the Fisher information of log σ is 2
    blocks = (fisher_blocks(dist) or [])[: 1 if log_std is not None else None]
    bounds = np.cumsum([block.z.shape[-1] for block in blocks])[:-1]

    @BLAS.wrap(limits=1)
    def product(v: th.Tensor) -> th.Tensor:
        direction = {param: x.numpy() for param, x in zip(params, unflatten(v, params), strict=True)}
        Jv = np.split(tangent(layers, done, direction), bounds, axis=1)
        MJv = [block.metric(th.from_numpy(x)).numpy() for block, x in zip(blocks, Jv, strict=True)]
        Fv = backward(layers, done, np.concatenate(MJv, axis=1) / np.float32(len(states)))
        if log_std is not None:
            Fv[log_std] = np.float32(2.0) * direction[log_std]
        return th.from_numpy(np.concatenate([Fv[param].ravel() for param in params]))

    return product
