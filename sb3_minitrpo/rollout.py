"""Rollouts: collected without torch where nothing needs it, and checked before they reach the weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_minitrpo.numpy_mlp import BLAS
from sb3_minitrpo.numpy_policy import NumpyPolicy, numpy_policy
from sb3_minitrpo.trust_region.checks import require_finite
from sb3_minitrpo.trust_region.states import named_tensors
from sb3_minitrpo.vec_normalize import stepper

Observations = np.ndarray | dict[str, np.ndarray]

# Whose callbacks save, evaluate, count and stop, and read no more of a rollout than its dones and infos.
LIBRARIES = ("stable_baselines3.common.callbacks", "rl_zoo3.callbacks")


def collects_fast(algorithm: OnPolicyAlgorithm, buffer: RolloutBuffer, n_steps: int) -> bool:
    """Whether :func:`collect_fast` fills the buffer with what Stable-Baselines3's own loop would fill in."""
    return type(buffer) is RolloutBuffer and n_steps == buffer.buffer_size and numpy_policy(algorithm.policy) is not None


def collect_fast(
    self: OnPolicyAlgorithm, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
) -> bool:
    """
    ``OnPolicyAlgorithm.collect_rollouts``, with the forward pass of the policy in NumPy.

    The loop is that of Stable-Baselines3, step by step, and its local variables have the same names, since callbacks see
    them: that is also why the algorithm is called ``self`` here. What differs: noise is drawn for the whole rollout at
    once, from torch's generator as before; VecNormalize and the buffer are written to without detours; and values and
    log-probabilities, of which only a callback could know before, are computed for the whole rollout at its end.

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
    policy = actor_of(self)
    noise = policy.noise(n_rollout_steps, env.num_envs)
    watched = can_look(callback)
    step = stepper(env)
    acts: list[tuple[np.ndarray, Any]] = []

    n_steps = 0
    while n_steps < n_rollout_steps:
        actions, z = policy.act(self._last_obs, noise[n_steps])  # type: ignore[arg-type]
        acts.append((actions, z))
        if watched:
            obs_tensor = th.as_tensor(self._last_obs)
            values, log_probs = policy.evaluate(self._last_obs, z, actions)  # type: ignore[arg-type]
            store_evaluation(rollout_buffer, slice(n_steps, n_steps + 1), values, log_probs)

        actions = actions.reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        clipped_actions = clipped(self.action_space, actions)
        new_obs, rewards, dones, infos = step(clipped_actions)
        self.num_timesteps += env.num_envs

        callback.update_locals(locals())
        if not callback.on_step():
            return False
        if watched and not policy.is_current(self.policy):  # the callback changed more than the values of weights
            policy = actor_of(self)

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

    # A callback that only looks shall not change a bit; one that changed weights has its say, step by step
    if not watched or is_evaluation(policy, rollout_buffer, acts):
        store_evaluation(rollout_buffer, slice(None), *evaluate_all(policy, rollout_buffer, acts))
    with th.no_grad():
        values = self.policy.predict_values(th.as_tensor(new_obs))
    compute_returns_and_advantage(rollout_buffer, values.numpy().flatten(), dones)

    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


class TorchPolicy:
    """Stands for a :class:`NumpyPolicy` where a callback has made the policy another than the stock one: z is its answer."""

    def __init__(self, policy: ActorCriticPolicy):
        self.policy = policy

    def is_current(self, policy: ActorCriticPolicy) -> bool:
        return policy is self.policy

    def noise(self, *shape: int) -> np.ndarray:
        return np.empty(shape)

    def act(self, observations: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, Any]:
        with th.no_grad():
            actions, *evaluation = self.policy(obs_as_tensor(observations, self.policy.device))
        return actions.cpu().numpy(), evaluation

    def evaluate(self, observations: Any, z: Any, actions: np.ndarray) -> Any:
        return z


def actor_of(algorithm: OnPolicyAlgorithm) -> NumpyPolicy | TorchPolicy:
    return numpy_policy(algorithm.policy) or TorchPolicy(algorithm.policy)


def clipped(space: spaces.Space, actions: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(actions, space.low), space.high) if isinstance(space, spaces.Box) else actions


def can_look(callback: BaseCallback) -> bool:
    """
    Whether someone may read local variables or change weights within a rollout: whoever passed a callback to ``learn``,
    unless it is one of :data:`LIBRARIES`, or says by an attribute ``ignores_rollout_steps = True`` that it does neither.
    """
    if getattr(callback, "ignores_rollout_steps", False):
        return False
    if type(callback) is ConvertCallback:
        return callback.callback is not None
    if type(callback).__module__ not in LIBRARIES:
        return True
    children = [getattr(callback, "callback", None), getattr(callback, "callback_on_new_best", None)]
    return any(can_look(child) for child in [*getattr(callback, "callbacks", ()), *children] if child is not None)


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


def evaluate_all(policy: NumpyPolicy | TorchPolicy, buffer: RolloutBuffer, acts: list[tuple[np.ndarray, Any]]) -> Any:
    """Values and log-probabilities of a whole rollout."""
    observations = buffer.observations.reshape(-1, *buffer.obs_shape)
    actions, z = (np.concatenate(arrays) for arrays in zip(*acts, strict=True))
    with BLAS.limit(limits=1):
        return policy.evaluate(observations, z, actions)


def is_evaluation(policy: NumpyPolicy | TorchPolicy, buffer: RolloutBuffer, acts: list[tuple[np.ndarray, Any]]) -> bool:
    """Whether what the buffer holds, step by step, is what the policy says now of all steps, up to rounding."""
    if not (isinstance(policy, NumpyPolicy) and all(isinstance(z, np.ndarray) for _, z in acts)):
        return False
    held = zip((buffer.values, buffer.log_probs), evaluate_all(policy, buffer, acts), strict=True)
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
    collected = buffer.buffer_size if buffer.full else buffer.pos
    _check("observations", last_obs, lambda env, *_: _place(collected, env))
    for name in ("observations", "actions", "rewards", "values", "log_probs", "advantages", "returns"):
        _check(name, getattr(buffer, name, None), _where(buffer, name))


def _check(name: str, values: Observations | None, where: Callable[..., str]) -> None:
    if values is None:
        return
    for label, array in named_tensors(name, values):
        require_finite(label, th.as_tensor(array), where)


def _place(step: int, env: int) -> str:
    return f"at step {step} of environment {env} in this rollout"


def _where(buffer: RolloutBuffer, name: str) -> Callable[..., str]:
    if name == "rewards":  # the only one of these arrays that get() leaves as it is
        hint = "; where an episode ends by a time limit, V of its terminal observation is in the reward"
        return lambda step, env: _place(step, env) + hint
    if buffer.generator_ready:  # get() has put the steps of one environment behind those of another
        return lambda row, *_: _place(row % buffer.buffer_size, row // buffer.buffer_size)
    return lambda step, env, *_: _place(step, env)
