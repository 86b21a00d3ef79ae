"""
``learn()`` of Stable-Baselines3 on several ranks: every rank steps environments of its own, all make one update.

Everything is the identity where no process group was initialized.
"""

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common import utils
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_minitrpo.distributed import (
    Moments,
    active,
    calm_gloo,
    from_rank_0,
    gathered,
    moments_of,
    pooled,
    rank,
    require_same,
    row_of_each,
    together,
)

Setup = Callable[..., tuple[int, BaseCallback]]


def seed_of_rank(seed: int | None) -> int | None:
    """The seed itself on rank 0; on any other rank a number that NumPy derives from it and from the rank."""
    if seed is None or rank() == 0:
        return seed
    return int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0]) // 2  # environments may add small numbers to it


def set_up_together(
    algorithm: OnPolicyAlgorithm, setup: Setup, total_timesteps: int, callback: MaybeCallback, progress_bar: bool
) -> tuple[int, BaseCallback]:
    """
    ``_setup_learn``: all ranks go on from what rank 0 has. Rank 0 alone writes logs and shows a progress bar; callbacks
    are called on rank 0, and on every rank if they have an attribute ``every_rank`` that is true.

    :param algorithm: the algorithm
    :param setup: its own ``_setup_learn``, as a function of ``total_timesteps``, ``callback`` and ``progress_bar``
    :return: the total number of steps of all ranks, and the callback for this rank
    """
    if not active():
        return setup(total_timesteps, callback, progress_bar=progress_bar)
    calm_gloo()
    give_state_of_rank_0(algorithm)
    total_timesteps = from_rank_0(total_timesteps)
    if rank() > 0:
        algorithm.set_logger(Logger(folder=None, output_formats=[]))
    callbacks = callbacks_here(callback)
    if progress_bar and rank() == 0:
        callbacks.append(CommonProgressBar())
    with pooled_statistics(algorithm.get_vec_normalize_env()), together():
        return setup(total_timesteps, callbacks, progress_bar=False)


def give_state_of_rank_0(algorithm: OnPolicyAlgorithm) -> None:
    """Weights, optimizer, normalisation and counters of rank 0 to every rank."""
    statistics = running_statistics(algorithm.get_vec_normalize_env())
    parameters = io.BytesIO()
    th.save(algorithm.get_parameters(), parameters)
    counters = {name: getattr(algorithm, name) for name in ("num_timesteps", "_n_updates", "_critic_damping")}
    mine = (parameters.getvalue(), counters, [(rms.count, rms.mean, rms.var) for rms in statistics])
    theirs = from_rank_0(mine)
    with together():
        if rank() > 0:
            algorithm.set_parameters(th.load(io.BytesIO(theirs[0]), map_location=algorithm.device), device=algorithm.device)
            vars(algorithm).update(theirs[1])
            for rms, (count, mean, var) in zip(statistics, theirs[2], strict=True):
                rms.count, rms.mean, rms.var = count, mean, var


def callbacks_here(callback: MaybeCallback) -> list[BaseCallback]:
    """Those to be called on this rank."""
    if callback is None:
        return []
    if isinstance(callback, CallbackList):
        callback = callback.callbacks
    if isinstance(callback, list):
        return [each for part in callback for each in callbacks_here(part)]
    if rank() > 0 and not getattr(callback, "every_rank", False):
        return []
    return [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]


class CommonProgressBar(ProgressBarCallback):
    """Stable-Baselines3's progress bar over the steps of all ranks. Those of others come in between two rollouts."""

    ignores_rollout_steps = True

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.first = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.model.num_timesteps - self.first - self.pbar.n)
        return True

    def _on_training_end(self) -> None:
        self._on_step()
        super()._on_training_end()


class Collected(NamedTuple):
    """What one rank tells the others about its rollout."""

    steps: int
    go_on: bool
    episodes: list[dict[str, Any]]
    successes: list[Any]


def collect_together(algorithm: OnPolicyAlgorithm, collect: Callable[[], bool]) -> bool:
    """
    ``collect_rollouts``: each rank its own; then all agree whether to go on, and have the same number of steps, episode
    statistics and normalisation. Within a rollout, ``num_timesteps`` and the statistics lack what other ranks have added.

    :param algorithm: the algorithm
    :param collect: fills its rollout buffer; ``False`` if a callback stopped the training
    :return: ``False`` if training is to stop, the same on all ranks
    """
    if not active():
        return collect()
    before = algorithm.num_timesteps
    episodes, successes = list(algorithm.ep_info_buffer or []), list(algorithm.ep_success_buffer or [])
    algorithm.ep_info_buffer, algorithm.ep_success_buffer = deque(episodes), deque(successes)  # to see all that is new
    with pooled_statistics(algorithm.get_vec_normalize_env()), together():
        go_on = collect()
    mine = Collected(
        algorithm.num_timesteps - before,
        go_on,
        list(algorithm.ep_info_buffer)[len(episodes) :],
        list(algorithm.ep_success_buffer)[len(successes) :],
    )
    everyones = gathered(mine)
    window = algorithm._stats_window_size
    algorithm.num_timesteps = before + sum(collected.steps for collected in everyones)
    algorithm.ep_info_buffer = deque(episodes + in_turn([each.episodes for each in everyones]), maxlen=window)
    algorithm.ep_success_buffer = deque(successes + in_turn([each.successes for each in everyones]), maxlen=window)
    return all(collected.go_on for collected in everyones)


def in_turn(lists: Sequence[Sequence[Any]]) -> list[Any]:
    """One list of several, as if each had grown evenly, so that the last items are the last ones of every list."""
    placed = [((i + 1) / len(items), item) for items in lists for i, item in enumerate(items)]
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]


@contextmanager
def pooled_statistics(env: VecNormalize | None) -> Iterator[None]:
    """Let the statistics of ``VecNormalize`` be, after a block that moves them, as if one had seen what all ranks saw."""
    statistics = running_statistics(env)
    before = [rms.copy() for rms in statistics]
    yield
    if not statistics:
        return
    seen = [increment(old, rms) for old, rms in zip(before, statistics, strict=True)]
    n, mean, var = pooled(Moments(*(th.as_tensor(np.concatenate(parts)) for parts in zip(*seen, strict=True))))
    sizes = [rms.mean.size for rms in statistics]
    parts = zip(n.split(sizes), mean.split(sizes), var.split(sizes), strict=True)
    for old, rms, (count, means, variances) in zip(before, statistics, parts, strict=True):
        rms.count, rms.mean, rms.var = old.count, old.mean, old.var
        if count[0] > 0:
            shape = rms.mean.shape
            rms.update_from_moments(means.numpy().reshape(shape), variances.numpy().reshape(shape), int(count[0]))


def increment(old: RunningMeanStd, new: RunningMeanStd) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean and variance, each of shape ``(k,)``, of what a running statistic was updated with since."""
    n = round(new.count - old.count)
    if n == 0:
        mean = var = np.zeros_like(new.mean)
    else:
        mean = old.mean + (new.mean - old.mean) * (new.count / n)
        var = (new.var * new.count - old.var * old.count) / n - np.square(mean - old.mean) * (old.count / new.count)
    return np.full(new.mean.size, float(n)), np.ravel(mean), np.ravel(var)


def running_statistics(env: VecNormalize | None) -> list[RunningMeanStd]:
    """Of observations, by key if they are dictionaries, and of returns."""
    if env is None:
        return []
    observations = getattr(env, "obs_rms", {})  # there is none without norm_obs
    of_keys = observations if isinstance(observations, dict) else {"": observations}
    return [*(of_keys[key] for key in sorted(of_keys)), env.ret_rms]


def mean_and_std(values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Of the values of all ranks; the standard deviation has Bessel's correction."""
    if not active():
        return values.mean(), values.std()
    n, mean, var = pooled(moments_of(values.double().reshape(-1, 1)))
    return mean[0], (var[0] * n[0] / (n[0] - 1.0)).sqrt()


def explained_variance(predictions: np.ndarray, targets: np.ndarray) -> float:
    """1 − Var[y − ŷ] / Var[y] over the data of all ranks, both of shape ``(n,)``."""
    if not active():
        return utils.explained_variance(predictions, targets)
    of_errors, of_targets = pooled(moments_of(th.as_tensor(np.stack([targets - predictions, targets], axis=1)))).var.tolist()
    return 1.0 - of_errors / of_targets if of_targets else float("nan")


def common_number_of_minibatches(n: int, batch_size: int) -> int:
    """
    How many minibatches a pass over the data has on every rank: as many as the rank with the most data needs, but no more
    than the rank with the least data has samples.

    :param n: number of samples here
    :param batch_size: samples of each rank in a minibatch
    """
    wanted, possible = row_of_each([-(-n // batch_size), n]).T
    return int(min(wanted.max(), possible.min()))


def require_same_state(algorithm: OnPolicyAlgorithm) -> None:
    """:raises RankError: on all ranks, if weights, optimizer or normalisation are not the same bits on each of them"""
    if not active():
        return
    env, policy = algorithm.get_vec_normalize_env(), algorithm.policy
    normalization = [th.as_tensor(part) for rms in running_statistics(env) for part in (rms.count, rms.mean, rms.var)]
    require_same(weights=policy.state_dict(), optimizer=policy.optimizer.state_dict(), normalization=normalization)
