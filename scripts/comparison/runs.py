"""
One run: a process that trains one algorithm on one task with one seed, and writes the record.

``python -m comparison.runs RUN`` with ``RUN`` a JSON object: ``spec``, ``record`` (the path) and ``command`` (what the
record says of how it was made). Standard output is for the steps done, one number a line; what libraries print goes
to standard error.
"""

import contextlib
import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

import provenance
from comparison.curves import POINTS, binned_returns
from comparison.records import Record, RunSpec, write_record
from comparison.settings import import_class

EVALUATION_SEED = 10_000  # is added to the run's: no episode of the evaluation begins as one of the training did


class Clock(BaseCallback):
    """Notes when each iteration began, what part of it was collection, and reports the steps done."""

    ignores_rollout_steps = True  # for MiniTRPO: nothing here looks into a rollout, so it need not be shown

    def __init__(self, report_every: int, report: Callable[[int], None]):
        super().__init__()
        self.steps: list[int] = []
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.collection = 0.0
        self._report_every = report_every
        self._report = report
        self._reported = 0

    def _on_training_start(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def _on_rollout_start(self) -> None:
        self._note()

    def _on_rollout_end(self) -> None:
        self.collection += time.perf_counter() - self._start[0] - self.wall[-1]

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._note()

    def _note(self) -> None:
        self.steps.append(self.num_timesteps)
        self.wall.append(time.perf_counter() - self._start[0])
        self.cpu.append(time.process_time() - self._start[1])
        if self.num_timesteps >= self._reported + self._report_every:
            self._reported = self.num_timesteps
            self._report(self._reported)


def execute(spec: RunSpec, command: str, report: Callable[[int], None] = lambda steps: None) -> Record:
    """
    Train, evaluate, and say what came of it.

    :param spec: the run
    :param command: for the record: what it was made by
    :param report: is called with the number of steps done, now and then
    :raises ValueError: if no training episode ended
    """
    clock = Clock(spec.n_timesteps // 100, report)
    points = np.arange(1, POINTS + 1) * spec.n_timesteps / POINTS
    marks = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as folder:
        manager, model = build(spec, Path(folder))
        marks.append(time.perf_counter())
        model.learn(spec.n_timesteps, callback=clock)
        marks.append(time.perf_counter())
        returns = binned_returns(*training_episodes(training_env(model)), spec.n_timesteps)
        evaluation = evaluate(manager, model, spec)
        marks.append(time.perf_counter())
        training_env(model).close()

    setup, learn, evaluating = np.diff(marks)
    times = {
        "setup": setup,
        "learn": learn,
        "collection": clock.collection,
        "learn_cpu": clock.cpu[-1],
        "evaluation": evaluating,
    }
    return Record(
        spec,
        returns=[None if np.isnan(value) else rounded(value) for value in returns],
        seconds={
            "wall": [rounded(value) for value in np.interp(points, clock.steps, clock.wall)],
            "cpu": [rounded(value) for value in np.interp(points, clock.steps, clock.cpu)],
        },
        evaluation=[rounded(value) for value in evaluation],
        times={name: rounded(seconds) for name, seconds in times.items()},
        provenance={"command": command} | provenance.provenance(),
    )


def build(spec: RunSpec, folder: Path) -> tuple[ExperimentManager, BaseAlgorithm]:
    """Environment and model as the RL Zoo makes them of its settings: wrappers, normalisation, schedules, seeds."""
    ALGOS[spec.label] = import_class(spec.algorithm)
    config = folder / "settings.yml"
    config.write_text(yaml.safe_dump({spec.task: spec.settings}), encoding="utf-8")
    manager = ExperimentManager(
        Namespace(),
        spec.label,
        spec.task,
        log_folder=str(folder),
        config=str(config),
        seed=spec.seed,
        eval_freq=-1,  # no evaluation during the training
        verbose=0,
        device="cpu",
    )
    experiment = manager.setup_experiment()
    assert experiment is not None, "the zoo gives no model only when it optimizes hyperparameters"
    return manager, experiment[0]


def training_env(model: BaseAlgorithm) -> VecEnv:
    env = model.get_env()
    assert env is not None, "the zoo gives each model its environment"
    return env


def training_episodes(env: VecEnv) -> tuple[np.ndarray, np.ndarray]:
    """
    All episodes of the training, as each environment's Monitor noted them: raw returns, whatever is normalised.

    :return: the step of the training at which each episode ended, and its return, shape ``(episodes,)``
    """
    returns = env.env_method("get_episode_rewards")
    lengths = env.env_method("get_episode_lengths")
    ends = [np.cumsum(length) * env.num_envs for length in lengths]  # the environments are stepped together
    return np.concatenate(ends), np.concatenate(returns)


def evaluate(manager: ExperimentManager, model: BaseAlgorithm, spec: RunSpec) -> list[float]:
    """Returns of deterministic episodes in an environment with a seed of its own, the normalisation frozen."""
    manager.seed = spec.seed + EVALUATION_SEED
    env = manager.create_envs(1, eval_env=True)
    sync_envs_normalization(training_env(model), env)
    returns, _ = evaluate_policy(model, env, spec.eval_episodes, deterministic=True, return_episode_rewards=True)
    env.close()
    assert isinstance(returns, list)
    return returns


def rounded(value: float) -> float:
    """Six digits: more would be noise, and make records large."""
    return float(f"{value:.6g}")


def main(run: str) -> None:
    request = json.loads(run)
    th.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        record = execute(
            RunSpec(**request["spec"]),
            request["command"],
            report=lambda steps: print(steps, file=sys.__stdout__, flush=True),
        )
    write_record(Path(request["record"]), record)


if __name__ == "__main__":
    main(sys.argv[1])
