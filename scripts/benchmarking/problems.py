"""What is trained, by whom, and with which settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_minitrpo import MiniTRPO

Policy = str | type[ActorCriticPolicy]


class CustomPolicy(ActorCriticPolicy):
    """Somebody's own: whatever it may do differently, no fast path may bypass it."""


@dataclass(frozen=True)
class Case:
    """
    A training whose ``learn()`` is timed.

    :param make_env: gives a vectorized environment
    :param policy: as the algorithms take it
    :param arguments: of the algorithms, in the terms of sb3-contrib's TRPO; what is left out is its default
    """

    make_env: Callable[[], VecEnv]
    policy: Policy
    arguments: dict[str, Any]


def case(task: str, n_envs: int = 1, policy: Policy = "MlpPolicy", **arguments: Any) -> Case:
    return Case(lambda: make_vec_env(task, n_envs), policy, arguments)


def with_dictionary_observations(env: gym.Env) -> gym.Env:
    """Half of an observation under one key, half under another."""
    assert isinstance(env.observation_space, spaces.Box)
    low, high = env.observation_space.low, env.observation_space.high
    half = len(low) // 2
    space = spaces.Dict({"first": spaces.Box(low[:half], high[:half]), "second": spaces.Box(low[half:], high[half:])})
    return TransformObservation(env, lambda obs: {"first": obs[:half], "second": obs[half:]}, space)


# The RL Zoo's settings for sb3-contrib's TRPO on MuJoCo tasks; these for HalfCheetah.
ZOO = {
    "n_steps": 1024,
    "batch_size": 128,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "learning_rate": 1e-3,
    "cg_max_steps": 25,
    "cg_damping": 0.1,
    "n_critic_updates": 20,
    "target_kl": 0.04,
}

CASES = {
    "CartPole-v1": case("CartPole-v1"),
    "Pendulum-v1": case("Pendulum-v1"),
    "Hopper-v5": case("Hopper-v5"),
    "HalfCheetah-v5": case("HalfCheetah-v5"),
    "HalfCheetah-v5, the RL Zoo's settings": Case(
        lambda: VecNormalize(make_vec_env("HalfCheetah-v5", 2)), "MlpPolicy", {**ZOO}
    ),
    "HalfCheetah-v5, networks of 256×256": case("HalfCheetah-v5", policy_kwargs={"net_arch": [256, 256]}),
    "CnnPolicy, 84×84 images": Case(lambda: make_vec_env(FakeImageEnv), "CnnPolicy", {"n_steps": 32, "batch_size": 32}),
    "MultiInputPolicy, Pendulum-v1": Case(
        lambda: make_vec_env("Pendulum-v1", wrapper_class=with_dictionary_observations), "MultiInputPolicy", {}
    ),
    "gSDE, Pendulum-v1": case("Pendulum-v1", use_sde=True, sde_sample_freq=4),
    "SubprocVecEnv, HalfCheetah-v5": Case(
        lambda: make_vec_env("HalfCheetah-v5", 2, vec_env_cls=SubprocVecEnv), "MlpPolicy", {"n_steps": 1024}
    ),
    "custom policy, HalfCheetah-v5": case("HalfCheetah-v5", policy=CustomPolicy),
}


@dataclass(frozen=True)
class Contender:
    """
    An algorithm that is timed.

    :param algorithm: its class
    :param arguments: its constructor's, next to those of the case
    """

    algorithm: type[OnPolicyAlgorithm]
    arguments: dict[str, Any]


# A variant, say with another critic, is another line here and its name in ``plan.CONTENDERS``.
CONTENDERS = {
    "sb3-contrib": Contender(TRPO, {}),
    "MiniTRPO": Contender(MiniTRPO, {"line_search_accept_ratio": 0.0}),  # contrib's takes any improvement
}


def build(contender: str, policy: Policy, env: VecEnv | gym.Env, arguments: dict[str, Any]) -> OnPolicyAlgorithm:
    """
    An algorithm with one seed for all, so that all begin with the same weights.

    :param contender: one of :data:`CONTENDERS`
    :param policy: as the algorithm takes it
    :param env: the environment
    :param arguments: in the terms of sb3-contrib's TRPO: MiniTRPO is given those that make it solve the same problem
    """
    algorithm, own = CONTENDERS[contender].algorithm, CONTENDERS[contender].arguments
    given: dict[str, Any] = {"seed": 0, "device": "cpu"} | arguments | own
    if issubclass(algorithm, MiniTRPO):
        given |= joint_terms(env.action_space, arguments)
    return algorithm(policy, env, **given)


def joint_terms(space: spaces.Space, arguments: dict[str, Any]) -> dict[str, float]:
    """
    δ_joint = d·δ and λ_joint = d·λ: sb3-contrib's KL is the mean over the d dimensions of a Box, MiniTRPO's the sum.

    :param space: of actions
    :param arguments: in the terms of sb3-contrib's TRPO
    """
    d = int(np.prod(space.shape)) if isinstance(space, spaces.Box) else 1
    return {"target_kl": d * arguments.get("target_kl", 0.01), "cg_damping": d * arguments.get("cg_damping", 0.1)}
