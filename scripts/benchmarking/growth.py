"""
Seconds and memory of ``train()`` on a buffer of a given size, without an environment.

Each measurement is made in a process of its own, after a small update that loads what torch loads late. Memory is how far
the largest resident size of the process (``ru_maxrss``) rises during the updates of the full size; on a GPU, how far the
peak of torch's allocator does.
"""

import resource
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed

from benchmarking.learning import load_weights, seconds_of, seconds_of_actor, weights_of
from benchmarking.problems import build

OBSERVATION_SIZE = 64
IMAGE_SHAPE = (4, 84, 84)
FEW = 16  # samples of the small update, and of what fills the buffer at a time: neither may be the peak of memory
LONG = 5.0  # seconds
MEBIBYTE = 2**20
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


class SpacesOnly(gym.Env):
    """Nobody steps it: the buffer is filled by hand."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space


def measure(
    contender: str, samples: int, net_arch: list[int] | None, actions: int, repetitions: int, device: str = "cpu"
) -> dict[str, Any]:
    """
    Time updates from a buffer of noise, each from the same weights.

    :param contender: one of :data:`problems.CONTENDERS`
    :param samples: size of the buffer
    :param net_arch: hidden layers of an MlpPolicy on Box actions; ``None`` for CnnPolicy on Discrete ones
    :param actions: dimensions of the Box, or the number of Discrete actions
    :param repetitions: of each update, after one that is not counted; one that takes long is counted and not repeated
    :param device: of the networks
    :return: ``actor``, seconds of updates without critic; ``train``, of whole ones; ``memory`` in MiB; ``products``, with
        the Fisher matrix, if the algorithm tells
    """
    with_noise(contender, FEW, net_arch, actions, device).train()

    model = with_noise(contender, samples, net_arch, actions, device)
    if device == "cuda":
        th.cuda.reset_peak_memory_stats()
    before = peak_memory(device)
    actor = repeat(model, seconds_of_actor, repetitions)
    train = repeat(model, lambda model: seconds_of(model.train), repetitions)
    return {
        "actor": actor,
        "train": train,
        "memory": peak_memory(device) - before,
        "products": model.logger.name_to_value.get("train/cg_iterations"),
    }


def repeat(model: OnPolicyAlgorithm, update: Callable[[OnPolicyAlgorithm], float], repetitions: int) -> list[float]:
    # An update ends with numbers that were fetched from the device: there is nothing to wait for
    start = weights_of(model)
    seconds = []
    for _ in range(1 + repetitions):
        seconds.append(update(model))
        load_weights(model, start)
        if seconds[0] > LONG:
            return seconds
    return seconds[1:]


def with_noise(contender: str, samples: int, net_arch: list[int] | None, actions: int, device: str) -> OnPolicyAlgorithm:
    """An algorithm whose buffer is full: actions by its policy, everything else drawn at random."""
    env = SpacesOnly(*(image_spaces(actions) if net_arch is None else vector_spaces(actions)))
    arguments = {"n_steps": samples, "batch_size": min(samples, 128), "device": device}
    if net_arch is not None:
        arguments["policy_kwargs"] = {"net_arch": net_arch}
    model = build(contender, "CnnPolicy" if net_arch is None else "MlpPolicy", env, arguments)
    model.set_logger(Logger(folder=None, output_formats=[]))
    set_random_seed(0)
    fill(model, np.random.default_rng(0))
    return model


def vector_spaces(dimensions: int) -> tuple[spaces.Space, spaces.Space]:
    return spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,)), spaces.Box(-1.0, 1.0, (dimensions,))


def image_spaces(choices: int) -> tuple[spaces.Space, spaces.Space]:
    return spaces.Box(0, 255, IMAGE_SHAPE, np.uint8), spaces.Discrete(choices)


@th.no_grad()
def fill(model: OnPolicyAlgorithm, rng: np.random.Generator) -> None:
    buffer = model.rollout_buffer
    shape = buffer.observations.shape
    if buffer.observations.dtype == np.uint8:
        buffer.observations[:] = rng.integers(0, 256, shape, np.uint8)
    else:
        buffer.observations[:] = rng.standard_normal(shape, np.float32)
    for i in range(0, len(buffer.observations), FEW):
        rows = slice(i, i + FEW)
        actions, values, log_probs = model.policy(th.as_tensor(buffer.observations[rows, 0], device=model.device))
        buffer.actions[rows, 0] = actions.cpu().numpy().reshape(len(actions), -1)
        buffer.values[rows] = values.cpu().numpy()
        buffer.log_probs[rows, 0] = log_probs.cpu().numpy()
    buffer.advantages[:] = rng.standard_normal(buffer.advantages.shape, np.float32)
    buffer.returns[:] = buffer.advantages + buffer.values
    buffer.pos, buffer.full = buffer.buffer_size, True


def peak_memory(device: str) -> float:
    """The most that this process has held so far, in MiB."""
    if device == "cuda":
        return th.cuda.max_memory_allocated() / MEBIBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT / MEBIBYTE
