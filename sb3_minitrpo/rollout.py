"""Rollouts: collected without torch where nothing needs it, and checked before they reach the weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_minitrpo.numpy_policy import NumpyPolicy, numpy_policy
from sb3_minitrpo.trust_region.checks import require_finite
from sb3_minitrpo.trust_region.states import named_tensors

Observations = np.ndarray | dict[str, np.ndarray]


def collects_fast(algorithm: OnPolicyAlgorithm) -> bool:
    """Whether :func:`collect_fast` fills the buffer with what Stable-Baselines3's own loop would fill in."""
    return type(algorithm.rollout_buffer) is RolloutBuffer and numpy_policy(algorithm.policy) is not None


def collect_fast(
    self: OnPolicyAlgorithm, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
) -> bool:
    """
    ``OnPolicyAlgorithm.collect_rollouts``, with the forward pass of the policy in NumPy.

    The loop is that of Stable-Baselines3, step by step, and its local variables have the same names, since callbacks see
    them: that is also why the algorithm is called ``self`` here. What differs: noise is drawn for the whole rollout at
    once, from torch's generator as before; the buffer is written to without detours; and values and log-probabilities,
    of which only a callback could know before, are computed for the whole rollout at its end.

    :param self: an algorithm for which :func:`collects_fast` holds
    :param env: the training environment
    :param callback: called at each step, and at the beginning and end of the rollout
    :param rollout_buffer: the buffer to fill
    :param n_rollout_steps: number of steps to collect per environment
    :return: ``False`` if the callback stopped the training, ``True`` otherwise
    """
    self.policy.set_training_mode(False)
    rollout_buffer.reset()
    callback.on_rollout_start()
    policy = stock_policy(self)
    noise = policy.head.noise(n_rollout_steps, env.num_envs)
    watched = can_look(callback)
    acts: list[tuple[np.ndarray, np.ndarray]] = []

    n_steps = 0
    while n_steps < n_rollout_steps:
        actions, z = policy.act(self._last_obs, noise[n_steps])  # type: ignore[arg-type]
        acts.append((actions, z))
        if watched:
            obs_tensor = th.as_tensor(self._last_obs)
            values, log_probs = policy.evaluate(self._last_obs, z, actions)
            store_evaluation(rollout_buffer, slice(n_steps, n_steps + 1), values, log_probs)

        clipped_actions = actions
        if isinstance(self.action_space, spaces.Box):
            actions = actions.reshape(-1, *self.action_space.shape)
            clipped_actions = np.minimum(np.maximum(actions, self.action_space.low), self.action_space.high)

        new_obs, rewards, dones, infos = env.step(clipped_actions)
        self.num_timesteps += env.num_envs

        callback.update_locals(locals())
        if not callback.on_step():
            return False
        if watched and not policy.is_current():
            policy = stock_policy(self)  # the callback gave the weights other memory

        self._update_info_buffer(infos, dones)
        n_steps += 1

        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.reshape(-1, 1)

        # Bootstrap with the value function where an episode ended by a time limit
        for idx, done in enumerate(dones):
            if done and ended_by_time_limit(infos[idx]):
                terminal_obs = self.policy.obs_to_tensor(infos[idx]["terminal_observation"])[0]
                with th.no_grad():
                    terminal_value = self.policy.predict_values(terminal_obs)[0]
                rewards[idx] += self.gamma * terminal_value.item()

        store(rollout_buffer, self._last_obs, actions, rewards, self._last_episode_starts)  # type: ignore[arg-type]
        self._last_obs = new_obs  # type: ignore[assignment]
        self._last_episode_starts = dones

    observations = rollout_buffer.observations.reshape(-1, *rollout_buffer.obs_shape)
    all_actions, all_z = (np.concatenate(arrays) for arrays in zip(*acts, strict=True))
    evaluation = policy.evaluate(observations, all_z, all_actions)
    # A callback that only looks shall not change a bit; one that changed weights has its say, step by step
    if not watched or is_evaluation(rollout_buffer, *evaluation):
        store_evaluation(rollout_buffer, slice(None), *evaluation)
    with th.no_grad():
        values = self.policy.predict_values(th.as_tensor(new_obs))
    compute_returns_and_advantage(rollout_buffer, values.numpy().flatten(), dones)

    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


def stock_policy(algorithm: OnPolicyAlgorithm) -> NumpyPolicy:
    policy = numpy_policy(algorithm.policy)
    assert policy is not None, "the policy is not the stock MLP, or a callback has made it another"
    return policy


def can_look(callback: BaseCallback) -> bool:
    """
    Whether someone may read local variables or change weights within a rollout: whoever passed a callback to ``learn``,
    unless it says by an attribute ``blind`` that it does neither.
    """
    if isinstance(callback, CallbackList):
        return any(can_look(part) for part in callback.callbacks)
    nobody = isinstance(callback, ConvertCallback) and callback.callback is None
    return not (nobody or isinstance(callback, ProgressBarCallback) or getattr(callback, "blind", False))


def ended_by_time_limit(info: dict[str, Any]) -> bool:
    return info.get("terminal_observation") is not None and info.get("TimeLimit.truncated", False)


def store(
    buffer: RolloutBuffer, obs: np.ndarray, actions: np.ndarray, rewards: np.ndarray, episode_starts: np.ndarray
) -> None:
    """The part of ``RolloutBuffer.add`` that is known at a step, without copies of copies."""
    step = buffer.pos
    buffer.observations[step] = obs
    buffer.actions[step] = actions.reshape(buffer.n_envs, buffer.action_dim)
    buffer.rewards[step] = rewards
    buffer.episode_starts[step] = episode_starts
    buffer.pos += 1
    buffer.full = buffer.pos == buffer.buffer_size


def store_evaluation(buffer: RolloutBuffer, steps: slice, values: th.Tensor, log_probs: th.Tensor) -> None:
    """The other part, for one step or for all."""
    buffer.values[steps] = values.numpy().reshape(-1, buffer.n_envs)
    buffer.log_probs[steps] = log_probs.numpy().reshape(-1, buffer.n_envs)


def is_evaluation(buffer: RolloutBuffer, values: th.Tensor, log_probs: th.Tensor) -> bool:
    """Whether this is what the buffer holds already, up to rounding."""
    held = ((buffer.values, values), (buffer.log_probs, log_probs))
    return all(np.allclose(old, new.numpy().reshape(old.shape), rtol=1e-5, atol=1e-5) for old, new in held)


def compute_returns_and_advantage(buffer: RolloutBuffer, last_values: np.ndarray, dones: np.ndarray) -> None:
    """
    ``RolloutBuffer.compute_returns_and_advantage``, with all but the recursion done for the whole rollout at once.

        δ_t = r_t + γ (1 − d_{t+1}) V_{t+1} − V_t,   A_t = δ_t + γλ (1 − d_{t+1}) A_{t+1},   R_t = A_t + V_t

    Source: Schulman et al. (2016), "High-dimensional continuous control using generalized advantage estimation",
    equation 16.
    """
    continues = 1.0 - np.vstack([buffer.episode_starts[1:], dones.astype(np.float32)])
    next_values = np.vstack([buffer.values[1:], last_values])
    deltas = buffer.rewards + buffer.gamma * next_values * continues - buffer.values
    decays = buffer.gamma * buffer.gae_lambda * continues
    advantage = np.zeros(buffer.n_envs, dtype=np.float32)
    for step in reversed(range(buffer.buffer_size)):
        advantage = deltas[step] + decays[step] * advantage
        buffer.advantages[step] = advantage
    buffer.returns = buffer.advantages + buffer.values


def check_rollout(buffer: RolloutBuffer, last_obs: Observations | None) -> None:
    """
    :param buffer: the rollouts, complete or interrupted
    :param last_obs: the observation behind the last step of the buffer
    :raises NonFiniteError: for the first quantity, in the order of cause and effect, that holds a NaN or an infinity
    """
    names = ["observations", "actions", "rewards", "values", "log_probs", "advantages", "returns"]
    collected = buffer.buffer_size if buffer.full else buffer.pos
    _check("observations", last_obs, lambda env, *_: f"at step {collected} of environment {env} in this rollout")
    for name in names:
        _check(name, getattr(buffer, name, None), _place(buffer))


def _check(name: str, values: Observations | None, where: Callable[..., str]) -> None:
    if values is None:
        return
    for label, array in named_tensors(name, values):
        require_finite(label, th.as_tensor(array), where)


def _place(buffer: RolloutBuffer) -> Callable[..., str]:
    if not buffer.generator_ready:
        return lambda step, env, *_: f"at step {step} of environment {env} in this rollout"
    # get() has put the steps of one environment after those of another
    return lambda row, *_: f"at step {row % buffer.buffer_size} of environment {row // buffer.buffer_size} in this rollout"
