"""
Seconds of ``learn()``, its parts, and the least that an iteration could take.

All contenders take turns in one process. A turn is one iteration: ``learn(n_steps * n_envs)``, of which ``collect_rollouts``
and ``train`` are timed from outside. Each turn starts with the same weights, optimizer state and seeds for all: what one
does differently decides how long it takes, not what it has learned so far.

The actor's part of ``train`` is a second ``train`` with ``n_critic_updates=0``, from the same weights on the same buffer; the
critic's part is what the first took longer.

For the floor, the actions of the rollout are given to the environment once more, from the same seed: so it goes through the
same states, and nobody has to choose an action.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from benchmarking.problems import CASES, build

DEFAULTS = {"n_steps": 2048, "batch_size": 128}  # of both algorithms
Weights = tuple[dict[str, Any], dict[str, Any]]


def measure(case: str, contenders: Sequence[str], repetitions: int, n_steps: int | None = None) -> dict[str, Any]:
    """
    Time the iterations of one training.

    :param case: one of :data:`problems.CASES`
    :param contenders: of :data:`problems.CONTENDERS`; the others go along the first one's learning
    :param repetitions: number of turns, after one that is not counted
    :param n_steps: the most steps of an iteration for each environment; ``None`` for those of the case
    :return: ``seconds``, for each contender those of ``learn``, ``collection``, ``train`` and ``actor``, one for each
        turn; ``stepping``, those of the environment alone; and ``busy``, the share of the time that this process had a
        processor
    """
    problem = CASES[case]
    arguments = problem.arguments if n_steps is None else shortened(problem.arguments, n_steps)
    models = {name: build(name, problem.policy, problem.make_env(), arguments) for name in contenders}
    first, last = models[contenders[0]], models[contenders[-1]]
    turns, stepping = [], []
    wall, cpu = time.perf_counter(), time.process_time()
    for seed in range(1 + repetitions):
        start = weights_of(first)
        turns.append({name: iteration(model, start, seed) for name, model in models.items()})
        stepping.append(seconds_of_stepping(environment(last), rollout_actions(last), seed))
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    for model in models.values():
        environment(model).close()
    return {
        "seconds": {name: {part: [turn[name][part] for turn in turns[1:]] for part in turns[0][name]} for name in contenders},
        "stepping": stepping[1:],
        "busy": busy,
    }


def shortened(arguments: dict[str, Any], n_steps: int) -> dict[str, Any]:
    """Fewer steps to an iteration, and minibatches that are no larger."""
    return arguments | {name: min(n_steps, arguments.get(name, DEFAULTS[name])) for name in DEFAULTS}


def iteration(model: OnPolicyAlgorithm, start: Weights, seed: int) -> dict[str, float]:
    """Seconds of one iteration and of its parts. The model ends with the weights that ``learn`` gave it."""
    env = environment(model)
    load_weights(model, start)
    seed_all(env, seed)
    with stopwatches(model, "collect_rollouts", "train") as seconds:
        learn = seconds_of(lambda: model.learn(model.n_steps * env.num_envs))
    learned = weights_of(model)
    load_weights(model, start)
    actor = seconds_of_actor(model)
    load_weights(model, learned)
    return {"learn": learn, "collection": seconds["collect_rollouts"], "train": seconds["train"], "actor": actor}


def seconds_of_actor(model: OnPolicyAlgorithm) -> float:
    """Of ``train`` without critic."""
    n_critic_updates = model.n_critic_updates  # type: ignore[attr-defined]  # which every contender has
    model.n_critic_updates = 0  # type: ignore[attr-defined]
    seconds = seconds_of(model.train)
    model.n_critic_updates = n_critic_updates  # type: ignore[attr-defined]
    return seconds


def rollout_actions(model: OnPolicyAlgorithm) -> np.ndarray:
    """The actions of a rollout that ``train`` has seen, as the environment was given them, shape ``(n_steps, n_envs, …)``."""
    buffer, space = model.rollout_buffer, model.action_space
    actions = buffer.actions.reshape(buffer.n_envs, buffer.buffer_size, *(space.shape or ())).swapaxes(0, 1)
    if isinstance(space, spaces.Box):
        return np.clip(actions, space.low, space.high)
    return actions.astype(space.dtype)


def seconds_of_stepping(env: VecEnv, actions: np.ndarray, seed: int) -> float:
    seed_all(env, seed)
    env.reset()

    def step_through() -> None:
        for action in actions:
            env.step(action)

    return seconds_of(step_through)


def environment(model: OnPolicyAlgorithm) -> VecEnv:
    assert model.env is not None, "build() gives each model its environment"
    return model.env


def seed_all(env: VecEnv, seed: int) -> None:
    set_random_seed(seed)
    env.seed(seed)  # at its next reset, with which learn() begins


def weights_of(model: OnPolicyAlgorithm) -> Weights:
    return copy.deepcopy((model.policy.state_dict(), model.policy.optimizer.state_dict()))


def load_weights(model: OnPolicyAlgorithm, weights: Weights) -> None:
    policy, optimizer = copy.deepcopy(weights)  # an optimizer goes on with the very tensors that it is given
    model.policy.load_state_dict(policy)
    model.policy.optimizer.load_state_dict(optimizer)


def seconds_of(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@contextmanager
def stopwatches(target: Any, *methods: str) -> Iterator[dict[str, float]]:
    """Sum up the seconds that calls of some methods of an object take, each under its name."""
    seconds = dict.fromkeys(methods, 0.0)

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - start

        return call

    for name in methods:
        setattr(target, name, timed(name, getattr(target, name)))
    try:
        yield seconds
    finally:
        for name in methods:
            delattr(target, name)
