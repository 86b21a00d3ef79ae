"""Wrong data and wrong arguments are told; extreme data are learned from; neither harms the weights."""

import copy
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import IdentityEnv, SimpleMultiObsEnv
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_minitrpo import MiniTRPO, NonFiniteError
from tests.helpers import SMALL, ReachEnv, WatchedTRPO, assert_trust_region_kept, moved, same_state, weights

BAD_NUMBERS = [float("nan"), float("inf"), float("-inf")]


class Faulty(gym.Wrapper):
    """
    An environment that gives a wrong number after some steps.

    :param quantity: ``"reward"``, or the observation: ``"observation"``, or one key of it
    :param number: the wrong number
    :param at_step: how many good steps go before
    """

    def __init__(self, env: gym.Env, quantity: str, number: float, at_step: int) -> None:
        super().__init__(env)
        self.quantity, self.number, self.at_step, self.steps = quantity, number, at_step, 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self.steps == self.at_step:
            if self.quantity == "reward":
                reward = self.number
            elif isinstance(obs, dict):
                obs = {**obs, self.quantity: np.full_like(obs[self.quantity], self.number)}
            else:
                obs = obs.copy()
                obs[1] = self.number
        self.steps += 1
        return obs, reward, terminated, truncated, info


class Spoil(BaseCallback):
    """Puts wrong numbers into complete rollouts, as a buffer or a wrapper of the user's own might."""

    def __init__(self, name: str, number: float, where: Any) -> None:
        super().__init__()
        self.name, self.number, self.where = name, number, where

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        getattr(self.model.rollout_buffer, self.name)[self.where] = self.number


def everything(model: MiniTRPO) -> Any:
    return copy.deepcopy((weights(model), model.policy.optimizer.state_dict()))


def two_environments(**kwargs: Any) -> MiniTRPO:
    return MiniTRPO("MlpPolicy", DummyVecEnv([ReachEnv, ReachEnv]), **{**SMALL, **kwargs})


@pytest.mark.parametrize("number", BAD_NUMBERS)
@pytest.mark.parametrize("name", ["rewards", "observations", "actions", "advantages"])
def test_wrong_numbers_in_the_rollouts_are_told_and_nothing_is_changed(name, number):
    model = two_environments().learn(2 * 64)
    before = everything(model)
    where = (slice(5, 7), 1) if name in ("rewards", "advantages") else (slice(5, 7), 1, 0)
    with pytest.raises(NonFiniteError) as error:
        model.learn(2 * 64, Spoil(name, number, where))
    message = str(error.value)
    assert message.startswith(f"{name}: 2 of ")
    assert str(number) in message
    assert "step 5 of environment 1" in message
    assert same_state(everything(model), before)

    model.learn(2 * 64)  # and once the cause is gone, training goes on
    assert moved(before[0], weights(model))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the advantages that follow from it
@pytest.mark.parametrize("number", BAD_NUMBERS)
@pytest.mark.parametrize("quantity", ["reward", "observation"])
@pytest.mark.parametrize("at_step", [7, 63])  # in the middle, and as the last of the rollout
def test_wrong_numbers_of_an_environment_are_told(quantity, number, at_step):
    model = two_environments().learn(2 * 64)
    before = everything(model)
    model.set_env(DummyVecEnv([ReachEnv, lambda: Faulty(ReachEnv(), quantity, number, at_step)]))
    with pytest.raises(NonFiniteError) as error:
        model.learn(2 * 64)
    message = str(error.value)
    # The observation that a step gives is the one that the next step starts from
    expected = f"step {at_step}" if quantity == "reward" else f"step {at_step + 1}"
    assert message.startswith(f"{quantity}s: 1 of ")
    assert re.search(rf"{expected}\b.*environment 1", message)
    assert same_state(everything(model), before)


@pytest.mark.parametrize("normalized", [True, False])
def test_wrong_numbers_are_told_through_vec_normalize(normalized):
    env = DummyVecEnv([ReachEnv, lambda: Faulty(ReachEnv(), "reward", float("nan"), at_step=7)])
    model = MiniTRPO("MlpPolicy", VecNormalize(env, norm_reward=normalized), **SMALL)
    before = everything(model)
    with pytest.raises(NonFiniteError, match="rewards"):
        model.learn(2 * 64)
    assert same_state(everything(model), before)


def test_the_wrong_part_of_a_dictionary_is_named():
    env = DummyVecEnv([SimpleMultiObsEnv, lambda: Faulty(SimpleMultiObsEnv(), "vec", float("nan"), at_step=3)])
    model = MiniTRPO("MultiInputPolicy", env, **{**SMALL, "n_steps": 8})
    before = everything(model)
    with pytest.raises(NonFiniteError, match=r"observations\['vec'\]: .*environment 1"):
        model.learn(2 * 8)
    assert same_state(everything(model), before)


def test_the_first_cause_is_named_rather_than_its_effects():
    """A NaN reward makes advantages and returns NaN as well."""
    with pytest.raises(NonFiniteError, match=r"^rewards: 1 of 128 "):
        two_environments().learn(2 * 64, Spoil("rewards", float("nan"), (0, 0)))
    env = DummyVecEnv([lambda: Faulty(ReachEnv(), "reward", float("nan"), at_step=7)])
    with pytest.raises(NonFiniteError, match=r"^rewards: 1 of 64 "):
        MiniTRPO("MlpPolicy", env, **SMALL).learn(64)


def test_error_of_the_environments_own_stays_what_it_is():
    class Broken(ReachEnv):
        def step(self, action: np.ndarray) -> Any:
            raise RuntimeError("the wheels came off")

    with pytest.raises(RuntimeError, match="the wheels came off"):
        MiniTRPO("MlpPolicy", Broken(), **SMALL).learn(64)


class Rewarding(gym.RewardWrapper):
    """:param transform: reward ↦ reward"""

    def __init__(self, env: gym.Env, transform: Any) -> None:
        super().__init__(env)
        self.transform = transform

    def reward(self, reward: Any) -> float:
        return self.transform(reward)


class OneStepEpisodes(gym.Wrapper):
    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = self.env.step(action)
        return obs, reward, True, truncated, info


class LargeObservations(gym.ObservationWrapper):
    """:param scale: the factor of the observations"""

    def __init__(self, env: gym.Env, scale: float) -> None:
        super().__init__(env)
        self.scale = scale
        self.observation_space = spaces.Box(-np.inf, np.inf, env.observation_space.shape)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return (observation * self.scale).astype(np.float32)


EXTREMES = {
    "constant rewards": lambda env: Rewarding(env, lambda _: 1.0),
    "no rewards": lambda env: Rewarding(env, lambda _: 0.0),
    "one-step episodes": OneStepEpisodes,
    "rewards of 1e30": lambda env: Rewarding(env, lambda reward: 1e30 * reward),
    "constant rewards of 1e30": lambda env: Rewarding(env, lambda _: 1e30),
    "rewards of 1e-30": lambda env: Rewarding(env, lambda reward: 1e-30 * reward),
    "observations of 1e20": lambda env: LargeObservations(env, 1e20),
    "observations of 1e30": lambda env: LargeObservations(env, 1e30),
}


@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize("activation", [th.nn.Tanh, th.nn.ReLU])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_training_goes_on_with_extreme_data(extreme, discrete, activation, normalize_advantage):
    env = EXTREMES[extreme](gym.make("CartPole-v1") if discrete else ReachEnv())
    kwargs = {"normalize_advantage": normalize_advantage, "policy_kwargs": {"activation_fn": activation, "net_arch": [16]}}
    model = WatchedTRPO("MlpPolicy", env, **{**SMALL, **kwargs})
    model.learn(4 * 64)
    assert len(model.updates) == 4
    assert_trust_region_kept(model)


@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize("advantage", [0.0, 1e30, 1e-30])
def test_training_goes_on_with_extreme_advantages(advantage, normalize_advantage):
    model = WatchedTRPO("MlpPolicy", ReachEnv(), **SMALL, normalize_advantage=normalize_advantage)
    model.learn(4 * 64, Spoil("advantages", advantage, slice(None)))
    assert len(model.updates) == 4
    accepted = assert_trust_region_kept(model)
    if advantage == 0.0 or normalize_advantage:
        assert not accepted, "all actions are as good as each other: there is nothing to learn from them"


@pytest.mark.parametrize("extreme", ["rewards of 1e30", "rewards of 1e-30"])
def test_the_policy_learns_whatever_the_unit_of_rewards(extreme):
    model = WatchedTRPO("MlpPolicy", EXTREMES[extreme](ReachEnv()), **SMALL)
    model.learn(4 * 64)
    assert assert_trust_region_kept(model)


WRONG_ARGUMENTS = [
    *[("target_kl", value) for value in (0, 0.0, -0.01, float("nan"), float("inf"), "0.01")],
    *[("cg_max_steps", value) for value in (0, -1, 2.5)],
    *[("cg_damping", value) for value in (-0.1, float("nan"), "0.1")],
    *[("line_search_shrinking_factor", value) for value in (0.0, 1.0, -0.5, 1.5, float("nan"))],
    *[("line_search_max_iter", value) for value in (0, -1, 1.5)],
    *[("line_search_accept_ratio", value) for value in (-0.1, 1.0, float("nan"))],
    *[("sub_sampling_factor", value) for value in (0, -1, 1.5)],
    *[("ent_coef", value) for value in (-0.1, float("nan"))],
    *[("n_steps", value) for value in (0, -1, 2.5)],
    *[("batch_size", value) for value in (0, -1, 2.5)],
    *[("n_critic_updates", value) for value in (-1, 2.5)],
    *[("gamma", value) for value in (-0.1, 1.1, float("nan"))],
    *[("gae_lambda", value) for value in (-0.1, 1.1, float("nan"))],
]


@pytest.mark.parametrize(("name", "value"), WRONG_ARGUMENTS)
def test_wrong_argument_is_told_with_its_value_and_a_remedy(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))}: .*pass"):
        MiniTRPO("MlpPolicy", ReachEnv(), device="cpu", **{name: value})


def test_one_sample_cannot_be_normalized():
    with pytest.raises(ValueError, match=r"n_steps=1 .*normalize_advantage=False"):
        MiniTRPO("MlpPolicy", ReachEnv(), n_steps=1, device="cpu")
    for kwargs in ({"normalize_advantage": False}, {"env": DummyVecEnv([ReachEnv, ReachEnv])}):
        model = WatchedTRPO("MlpPolicy", **{"env": ReachEnv(), **SMALL, "n_steps": 1, **kwargs})
        model.learn(5 * model.n_envs)
        assert len(model.updates) == 5
        assert_trust_region_kept(model)


class ActsIn(IdentityEnv):
    """:param action_space: any, of which the environment takes no notice"""

    def __init__(self, action_space: spaces.Space) -> None:
        super().__init__(dim=4)
        self.action_space = action_space


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"move": spaces.Discrete(2)}),
        spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))),
        spaces.Text(5),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.MultiBinary([2, 2]),
        spaces.MultiDiscrete([[2, 2], [2, 2]]),
    ],
    ids=str,
)
def test_action_space_that_has_no_policy_is_told(space):
    with pytest.raises(ValueError, match=re.escape(f"action space {space}")):
        MiniTRPO("MlpPolicy", ActsIn(space), device="cpu")


class NoDistribution(BasePolicy):
    """A policy that acts, and that is all."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Any, use_sde: bool) -> None:
        super().__init__(observation_space, action_space)

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return th.zeros(len(observation), 3)


class NumbersForDistribution(ActorCriticPolicy):
    """A policy that gives the means of its actions where their distribution is asked for."""

    def get_distribution(self, obs: Any) -> Any:
        return super().get_distribution(obs).mode()


def test_policy_class_without_a_distribution_is_told_at_construction():
    with pytest.raises(ValueError, match=r"there is no NoDistribution.get_distribution\(\): .*ActorCriticPolicy"):
        MiniTRPO(NoDistribution, ReachEnv(), device="cpu")


def test_recurrent_policy_class_is_told_at_construction():
    recurrent = pytest.importorskip("sb3_contrib.common.recurrent.policies").RecurrentActorCriticPolicy
    with pytest.raises(
        ValueError, match=r"RecurrentActorCriticPolicy.* lstm_states, episode_starts besides observations: .*recurrent"
    ):
        MiniTRPO(recurrent, ReachEnv(), device="cpu")


def test_policy_that_gives_something_else_than_a_distribution_is_told():
    model = MiniTRPO(NumbersForDistribution, ReachEnv(), **SMALL)
    before = everything(model)
    with pytest.raises(ValueError, match=r"get_distribution\(\) gave a Tensor: return a distribution"):
        model.learn(64)
    assert same_state(everything(model), before)


def test_frozen_policy_is_told():
    model = MiniTRPO("MlpPolicy", ReachEnv(), **SMALL)
    for param in model.policy.parameters():
        param.requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        model.learn(64)
