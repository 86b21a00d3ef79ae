"""Checkpoints to go on from, of one process or of several ranks, and signals that end a training with one."""

import io
import os
import pickle
import random
import signal
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_minitrpo.distributed import from_rank_0, gathered, n_ranks, rank, together

Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)

# The parts of the file
STEPS, MODEL, NORMALIZATION, GENERATORS = "num_timesteps.txt", "model.zip", "normalization.pkl", "generators.pkl"


def save_checkpoint(model: BaseAlgorithm, path: Path) -> None:
    """
    Write all that a training goes on from into one file: weights, optimizer, counters, settings, the statistics of
    ``VecNormalize``, and the states of the random generators of every rank. The states of environments are not in it.

    The file is written aside and then put in its place, so that an interruption leaves the checkpoint that was there.
    All ranks call this; rank 0 writes.

    :param model: the algorithm
    :param path: the file
    """
    generators = gathered(generator_states(model.device))
    with together():
        if rank() == 0:
            write_whole(path, lambda file: write_parts(file, model, generators))


def write_parts(file: BinaryIO, model: BaseAlgorithm, generators: Sequence[Any]) -> None:
    saved = io.BytesIO()
    model.save(saved)
    with zipfile.ZipFile(file, "w") as parts:
        parts.writestr(STEPS, str(model.num_timesteps))
        parts.writestr(MODEL, saved.getvalue())
        parts.writestr(NORMALIZATION, pickle.dumps(model.get_vec_normalize_env()))
        parts.writestr(GENERATORS, pickle.dumps(generators))


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let a file hold what it held before or all that is written, whatever happens in between."""
    aside = path.with_name(f"{path.name}.part")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def checkpoint_steps(path: Path) -> int:
    """How many steps the training of a checkpoint had taken, 0 if there is none. All ranks call this; rank 0 reads."""
    with together():
        mine = int(read_part(path, STEPS)) if rank() == 0 and path.exists() else 0
    return from_rank_0(mine)


def load_checkpoint(algorithm: type[Algorithm], path: Path, env: VecEnv, **kwargs: Any) -> Algorithm:
    """
    The model of a checkpoint, ready for ``learn(..., reset_num_timesteps=False)``, which begins with new episodes.

    All ranks call this; rank 0 reads the file. Ranks that were not there when it was written have generators of their own.
    As with every model of Stable-Baselines3, load only files that you trust: they are unpickled.

    :param algorithm: the class that was saved
    :param path: the file
    :param env: environments without ``VecNormalize``, which the checkpoint brings if there was one
    :param kwargs: for ``algorithm.load``
    """
    with together():
        mine = [read_part(path, part) for part in (MODEL, NORMALIZATION, GENERATORS)] if rank() == 0 else []
    saved, *pickled = from_rank_0(mine)
    normalization, generators = map(pickle.loads, pickled)
    if normalization is not None:
        normalization.set_venv(env)
        env = normalization
    model = algorithm.load(io.BytesIO(saved), env=env, **kwargs)
    if rank() < len(generators):
        set_generator_states(generators[rank()], model.device)
    env.seed(int(np.random.randint(2**31 - 1)))  # other episodes than those at the beginning
    return model


def read_part(path: Path, part: str) -> bytes:
    with zipfile.ZipFile(path) as parts:
        return parts.read(part)


def generator_states(device: th.device) -> dict[str, Any]:
    """Of Python's, NumPy's and torch's global generators."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state()}
    return {**states, "cuda": th.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_generator_states(states: dict[str, Any], device: th.device) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        th.cuda.set_rng_state(states["cuda"], device)


class RollingCheckpoint(BaseCallback):
    """
    Keep one checkpoint, written between two rollouts and at the end of training.

    A training that breaks off has lost no more than ``every`` steps (or one rollout, if that is longer): a checkpoint
    is written before the rollout with which it would be more.

    :param path: the file
    :param every: in steps of all ranks
    """

    every_rank = True  # see data_parallel
    ignores_rollout_steps = True  # see rollout

    def __init__(self, path: Path, every: int):
        super().__init__()
        self.path, self.every = path, every

    def _on_training_start(self) -> None:
        self.saved_at = self.last_start = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        steps = self.model.num_timesteps
        per_rollout = steps - self.last_start
        self.last_start = steps
        if steps > self.saved_at and steps + per_rollout - self.saved_at > self.every:
            self._save()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._save()

    def _save(self) -> None:
        save_checkpoint(self.model, self.path)
        self.saved_at = self.model.num_timesteps


class StopOnSignal(BaseCallback):
    """Ends training at the next step once a signal has been received. See :func:`stop_on_signals`."""

    every_rank = True
    ignores_rollout_steps = True
    received: signal.Signals | None = None

    def _on_step(self) -> bool:
        return self.received is None


@contextmanager
def stop_on_signals(*signals: signal.Signals) -> Iterator[StopOnSignal]:
    """
    Within a block, let a signal end a training as a callback ends it, so that what comes after ``learn`` still happens.

    In one process, a second signal does what it did before: a second Ctrl-C interrupts. Among several ranks it is waited
    for the others, since torchrun hands every signal on, and one that comes twice is the usual case.

    :param signals: by default Ctrl-C (SIGINT) and SIGTERM
    :return: the callback to give to ``learn``
    """
    callback = StopOnSignal()
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in signals or (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        callback.received = signal.Signals(number)
        if n_ranks() == 1:
            restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield callback
    finally:
        restore()
