"""Rollouts: what has to hold of them before they reach the weights."""

from collections.abc import Callable

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_minitrpo.trust_region.checks import named_tensors, require_finite

Observations = np.ndarray | dict[str, np.ndarray]


def check_rollout(buffer: RolloutBuffer, last_obs: Observations | None) -> None:
    """
    :param buffer: the rollouts, complete or interrupted
    :param last_obs: the observation that followed the last step of the buffer
    :raises NonFiniteError: for the first quantity, in the order of cause and effect, that holds a NaN or an infinity
    """
    names = ["observations", "actions", "rewards", "values", "log_probs", "advantages", "returns"]
    collected = buffer.buffer_size if buffer.full else buffer.pos
    _check("observations", last_obs, lambda env, *_: f"after step {collected} of environment {env}")
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
