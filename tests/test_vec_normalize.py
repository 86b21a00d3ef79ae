"""The lean step of VecNormalize against that of Stable-Baselines3: equal to the bit, and only where nothing is special."""

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecCheckNan, VecNormalize

from sb3_minitrpo import MiniTRPO
from sb3_minitrpo.vec_normalize import stepper


def make_env(n_envs: int = 2, task: str = "Pendulum-v1", **settings) -> VecNormalize:
    env = VecNormalize(make_vec_env(task, n_envs, seed=0), **settings)
    env.reset()
    return env


def statistics(env: VecNormalize) -> list[np.ndarray]:
    return [np.asarray(x) for rms in (env.obs_rms, env.ret_rms) for x in (rms.mean, rms.var, rms.count)]


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype
        assert np.array_equal(our, their)


@pytest.mark.parametrize("n_envs", [1, 2, 7])
@pytest.mark.parametrize(
    "settings", [{}, {"norm_reward": False}, {"clip_obs": 0.5, "clip_reward": 0.1, "gamma": 0.9, "epsilon": 1e-2}]
)
@pytest.mark.parametrize("task", ["Pendulum-v1", "MountainCarContinuous-v0", "CartPole-v1"])
def test_a_step_is_that_of_sb3_to_the_bit(task, settings, n_envs):
    lean, stock = (make_env(n_envs, task, **settings) for _ in range(2))
    lean.action_space.seed(0)
    episodes = 0
    for step in range(450):  # two time limits of Pendulum
        lean.training = stock.training = step % 10 != 9
        actions = np.array([lean.action_space.sample() for _ in range(n_envs)])
        ours, theirs = stepper(lean)(actions), stock.step(actions)
        assert stepper(lean) != lean.step
        assert_same([*ours[:3], *statistics(lean), lean.returns], [*theirs[:3], *statistics(stock), stock.returns])
        assert_same([lean.get_original_obs(), lean.get_original_reward()], [stock.old_obs, stock.old_reward])
        for our, their in zip(ours[3], theirs[3], strict=True):
            assert our.keys() == their.keys()
            if "terminal_observation" in our:
                episodes += 1
                assert np.array_equal(our["terminal_observation"], their["terminal_observation"])
    assert episodes or task == "MountainCarContinuous-v0"


def test_observations_that_are_not_normalised_are_copies():
    lean = make_env(norm_obs=False)
    observations, *_ = stepper(lean)(np.zeros((2, 1), dtype=np.float32))
    assert np.array_equal(observations, lean.old_obs)
    assert not np.shares_memory(observations, lean.old_obs)


class Own(VecNormalize):
    pass


def test_whatever_is_not_stock_steps_itself():
    env = make_env()
    for other in (env.venv, Own(env.venv), VecCheckNan(env)):
        assert stepper(other) == other.step
    for method in ("step_wait", "normalize_obs", "_update_reward"):
        patched = make_env()
        setattr(patched, method, getattr(patched, method))
        assert stepper(patched) == patched.step
    counted = make_env()
    counted.ret_rms = type("Counted", (type(env.ret_rms),), {})()
    assert stepper(counted) == counted.step
    rewards_only = make_env(norm_obs=False)
    assert stepper(rewards_only) != rewards_only.step


def test_a_training_takes_the_lean_step(monkeypatch):
    env = make_env()
    monkeypatch.setattr(VecNormalize, "step_wait", lambda self: pytest.fail("the step of Stable-Baselines3"))
    MiniTRPO("MlpPolicy", env, n_steps=16, seed=0).learn(32)
    assert env.obs_rms.count == pytest.approx(32 + 2 * 2, abs=0.1)  # and two resets
