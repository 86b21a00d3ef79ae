"""What several test files need: environments, policies, and measurements that do not go through the package's own code."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution, kl_divergence
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples
from torch import nn

from sb3_minitrpo import MiniTRPO


class ReachEnv(gym.Env):
    """Ten steps of: see a point, name it. It has three coordinates, so that a sum over them and a mean are two things."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (3,))
        self.action_space = spaces.Box(-1.0, 1.0, (3,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._next_point(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = -float(np.sum((action - self.point) ** 2))
        return self._next_point(), reward, self.steps == 10, False, {}

    def _next_point(self) -> np.ndarray:
        self.point = self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)
        return self.point


# Settings for a few updates in no time
SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}

# Of a step so long, the gradient promises more than there is to gain
REFUSED: dict[str, Any] = {"target_kl": 1e3, "line_search_accept_ratio": 0.999}

# One environment for each action space, and so for each action distribution
ACTION_SPACES: dict[str, Callable[[], gym.Env]] = {
    "Box": ReachEnv,
    "Discrete": lambda: IdentityEnv(dim=4, ep_length=10),
    "MultiDiscrete": lambda: IdentityEnv(space=spaces.MultiDiscrete([2, 4]), ep_length=10),
    "MultiBinary": lambda: IdentityEnv(space=spaces.MultiBinary(3), ep_length=10),
}


class ValueNamedExtractor(BaseFeaturesExtractor):
    """A features extractor that looks like a part of the critic to whoever judges by names."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=8)
        self.value_encoder = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(observation_space.shape)), 8), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.value_encoder(observations)


class NoisyExtractor(BaseFeaturesExtractor):
    """Batch normalisation and dropout: another function in training mode than in evaluation mode."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=8)
        inputs = int(np.prod(observation_space.shape))
        self.net = nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


class SharedTrunk(nn.Module):
    """A network of the user's own in the place of SB3's: actor and critic share a layer, named after neither's part."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 8
        self.value_trunk = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh())
        self.value_actor = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.policy_critic = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.value_actor(self.value_trunk(features))

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.policy_critic(self.value_trunk(features))


class SharedTrunkPolicy(ActorCriticPolicy):
    """A policy class of the user's own."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = SharedTrunk(self.features_dim)


class ScaledReturns(RolloutBuffer):
    """A buffer of the user's own: it scales rewards as they come in, and counts."""

    def __init__(self, *args: Any, reward_scale: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reward_scale, self.added, self.computed = reward_scale, 0, 0

    def add(self, obs: Any, action: Any, reward: Any, *args: Any, **kwargs: Any) -> None:
        self.added += 1
        super().add(obs, action, reward * self.reward_scale, *args, **kwargs)

    def compute_returns_and_advantage(self, *args: Any, **kwargs: Any) -> None:
        self.computed += 1
        super().compute_returns_and_advantage(*args, **kwargs)


def other_than_default(folder: Path) -> dict[str, Any]:
    """Every argument of MiniTRPO that is a setting, each with a value that is not its default."""
    return {
        "learning_rate": lambda progress: 1e-3 * progress,
        "n_steps": 32,
        "batch_size": 16,
        "gamma": 0.9,
        "cg_max_steps": 7,
        "cg_damping": 0.2,
        "line_search_shrinking_factor": 0.5,
        "line_search_max_iter": 6,
        "n_critic_updates": 3,
        "gae_lambda": 0.8,
        "use_sde": True,
        "sde_sample_freq": 4,
        "rollout_buffer_class": ScaledReturns,
        "rollout_buffer_kwargs": {"reward_scale": 2.0},
        "normalize_advantage": False,
        "target_kl": lambda progress: 0.02 * progress + 0.01,
        "sub_sampling_factor": 2,
        "stats_window_size": 10,
        "tensorboard_log": str(folder),
        "policy_kwargs": {"net_arch": [8]},
        "verbose": 0,
        "seed": 3,
        "line_search_accept_ratio": 0.3,
        "ent_coef": 0.01,
        "cg_residual_tol": 1e-3,
        "critic": "gauss_newton",
        "gn_steps": 2,
        "gn_cg_steps": 5,
        "fast_path": False,
    }


def twin(model: OnPolicyAlgorithm) -> ActorCriticPolicy:
    """
    A second policy with the weights that a model's has now, in evaluation mode.

    A copy.deepcopy that works with gSDE as well, where the policy holds tensors in the middle of a graph.
    """
    with th.random.fork_rng(devices=[]):
        policy = type(model.policy)(
            model.observation_space, model.action_space, model.lr_schedule, use_sde=model.use_sde, **model.policy_kwargs
        )
    policy.load_state_dict(copy.deepcopy(model.policy.state_dict()))
    policy.set_training_mode(False)
    return policy


def distribution(policy: ActorCriticPolicy, observations: PyTorchObs) -> Distribution:
    """π(·|s), apart from the one object that a policy of SB3 gives out each time."""
    return copy.copy(policy.get_distribution(observations))


@th.no_grad()
def mean_kl(old: ActorCriticPolicy, new: ActorCriticPolicy, observations: PyTorchObs) -> float:
    """KL(old ‖ new) of whole actions: SB3's, which leaves the dimensions of a Box and of a MultiBinary to the caller."""
    kl = kl_divergence(distribution(old, observations), distribution(new, observations))
    return float(kl.double().reshape(len(kl), -1).sum(1).mean())


def actions_of(model: OnPolicyAlgorithm, data: RolloutBufferSamples) -> th.Tensor:
    return data.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else data.actions


def advantages_of(model: MiniTRPO, data: RolloutBufferSamples) -> th.Tensor:
    advantages = data.advantages.double()
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8) if model.normalize_advantage else advantages


@th.no_grad()
def objective(model: MiniTRPO, policy: ActorCriticPolicy, data: RolloutBufferSamples) -> float:
    """L of a policy, with the entropy bonus."""
    dist = distribution(policy, data.observations)
    logp = dist.log_prob(actions_of(model, data)).double()
    ratio = th.exp(logp - data.old_log_prob.double())
    entropy = dist.entropy()
    bonus = -ratio * logp if entropy is None else entropy.double()
    return float((advantages_of(model, data) * ratio).mean() + model.ent_coef * bonus.mean())


class Update(NamedTuple):
    """
    One update, seen from outside.

    :param kl: KL(before ‖ after)
    :param improvement: L(after) − L(before)
    :param bound: ``target_kl`` as it was then
    :param scale: mean absolute advantage
    :param log: what was recorded under ``train/``
    """

    kl: float
    improvement: float
    bound: float
    scale: float
    log: dict[str, Any]

    @property
    def accepted(self) -> bool:
        return self.log["is_line_search_success"] == 1.0


class WatchedTRPO(MiniTRPO):
    """MiniTRPO, with each update measured from outside."""

    def train(self) -> None:
        before = twin(self)
        super().train()
        after = twin(self)
        data = next(self.rollout_buffer.get())
        progress = self._current_progress_remaining
        update = Update(
            kl=mean_kl(before, after, data.observations),
            improvement=objective(self, after, data) - objective(self, before, data),
            bound=bound_of(self.target_kl, progress, self.action_space),
            scale=float(advantages_of(self, data).abs().mean()),
            log=train_log(self),
        )
        self.updates = [*getattr(self, "updates", []), update]


def bound_of(target_kl: Any, progress: float, space: spaces.Space) -> float:
    """δ of an argument ``target_kl``, of which ``None`` is 0.02 nats for each of the numbers that make an action."""
    if target_kl is None:
        return 0.02 * np.size(space.sample())
    return target_kl(progress) if callable(target_kl) else target_kl


def train_log(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """What is recorded under ``train/`` and not yet written out."""
    values = model.logger.name_to_value
    return {key.removeprefix("train/"): value for key, value in values.items() if key.startswith("train/")}


def assert_trust_region_kept(model: WatchedTRPO) -> list[Update]:
    """
    Every accepted step is inside the trust region, improved the surrogate, and is reported as it was; every refused one
    left the policy where it was. Weights and optimizer are finite.

    :return: the accepted updates
    """
    for update in model.updates:
        if not update.accepted:
            assert update.kl == 0.0
            assert update.improvement == 0.0
            continue
        assert 0.0 < update.kl <= update.bound * (1.0 + 1e-4) + 1e-7  # measured in float32, in another order
        assert update.log["kl_divergence_loss"] == pytest.approx(update.kl, rel=1e-3, abs=1e-7)
        assert update.improvement > 0.0
        assert update.log["actual_improvement"] == pytest.approx(update.improvement, rel=1e-3, abs=1e-5 * update.scale)
    moments = [value for state in model.policy.optimizer.state.values() for value in state.values()]
    assert all(th.as_tensor(tensor).isfinite().all() for tensor in [*model.policy.state_dict().values(), *moments])
    return [update for update in model.updates if update.accepted]


def with_rollout(model: OnPolicyAlgorithm) -> Any:
    """A model that has collected its rollouts and not learned from them: one call of ``train()`` before the update."""
    model.train = lambda: None
    model.learn(model.n_steps * model.n_envs)
    del model.train
    model.set_logger(Logger(None, []))
    return model


def with_start_of(model: OnPolicyAlgorithm, other: OnPolicyAlgorithm) -> Any:
    """``other`` at the start of the update that ``model`` is about to make: the same weights, the same rollouts."""
    other.policy.load_state_dict(copy.deepcopy(model.policy.state_dict()))
    other.rollout_buffer = copy.deepcopy(model.rollout_buffer)
    other.set_logger(Logger(None, []))
    return other


def weights(model: OnPolicyAlgorithm) -> dict[str, th.Tensor]:
    """A copy of all parameters and buffers of the policy."""
    return copy.deepcopy(model.policy.state_dict())


def moved(before: dict[str, th.Tensor], after: dict[str, th.Tensor]) -> set[str]:
    """The names of those that are not bitwise what they were."""
    assert before.keys() == after.keys()
    return {name for name in before if not th.equal(before[name], after[name])}


def same_state(a: Any, b: Any) -> bool:
    """Whether two state dictionaries, however nested, are bitwise the same."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_state(x, y) for x, y in zip(a, b, strict=True))
    return th.equal(a, b) if isinstance(a, th.Tensor) else a == b


def actor_names(model: OnPolicyAlgorithm) -> set[str]:
    """The parameters that the action distribution depends on."""
    data = next(model.rollout_buffer.get())
    dist = model.policy.get_distribution(data.observations)
    names, params = zip(*model.policy.named_parameters(), strict=True)
    grads = th.autograd.grad(dist.log_prob(actions_of(model, data)).sum(), params, allow_unused=True)
    return {name for name, grad in zip(names, grads, strict=True) if grad is not None}
