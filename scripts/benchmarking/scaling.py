"""
Training by several processes at a fixed amount of work for each, and by one: its time, and what is reduced.

One process trains without a process group, as a user without torchrun does; several train under torchrun on this machine.
``python -m benchmarking.scaling ARGUMENTS``, with a JSON object, is the part of one rank.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_minitrpo import MiniTRPO
from sb3_minitrpo.distributed import n_ranks, process_group, rank

LARGE = 2**20  # float32 numbers of a reduction that takes its time by its size
REDUCTIONS = 50  # of each size


@dataclass
class Traffic:
    """What went through ``torch.distributed``."""

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Timing(BaseCallback):
    """When each rollout began and ended, and the traffic until it began."""

    every_rank = True
    ignores_rollout_steps = True

    def __init__(self, traffic: Traffic):
        super().__init__()
        self.traffic = traffic
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.seen: list[Traffic] = []

    def _on_rollout_start(self) -> None:
        self.starts.append(time.perf_counter())
        self.seen.append(replace(self.traffic))

    def _on_rollout_end(self) -> None:
        self.ends.append(time.perf_counter())

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._on_rollout_start()


@contextmanager
def counted() -> Iterator[Traffic]:
    """
    Count every collective call. The time that a rank waits in it for a slower one counts as its time; the bytes of objects
    that are gathered, a few, are not counted.
    """
    traffic = Traffic()
    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather_object", "broadcast_object_list")}

    def counting(name: str) -> Any:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = originals[name](first, *args, **kwargs)
            traffic.seconds += time.perf_counter() - start
            traffic.calls += 1
            traffic.bytes += first.nbytes if isinstance(first, th.Tensor) else 0
            return result

        return call

    for name in originals:
        setattr(dist, name, counting(name))
    try:
        yield traffic
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def measure(ranks: int, env: str, n_steps: int, iterations: int) -> dict[str, Any]:
    """
    :param ranks: number of processes
    :param env: id of the environment, of which each process has one
    :param n_steps: of each process in an iteration
    :param iterations: to measure, after one that is not counted
    :return: what :func:`train` has to say on rank 0
    """
    if ranks == 1:
        return train(env, n_steps, iterations)
    arguments = json.dumps({"env": env, "n_steps": n_steps, "iterations": iterations})
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *torchrun, "-m", "benchmarking.scaling", arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def train(env: str, n_steps: int, iterations: int) -> dict[str, Any]:
    """
    Train on this rank, at MiniTRPO's defaults.

    :return: ``steps`` of all ranks in an iteration; for each iteration its ``seconds`` and those of its ``rollout``, and the
        reductions' ``calls``, ``bytes`` and ``reducing`` (seconds); of several ranks also :func:`pure_reductions`
    """
    model = MiniTRPO("MlpPolicy", make_vec_env(env, 1), n_steps=n_steps, seed=0, device="cpu")
    steps = n_steps * n_ranks()
    with counted() as traffic:
        timing = Timing(traffic)
        model.learn(steps * (1 + iterations), callback=timing)
    return {
        "steps": steps,
        "seconds": np.diff(timing.starts[1:]).tolist(),
        "rollout": np.subtract(timing.ends[1:], timing.starts[1:-1]).tolist(),
        "calls": np.diff([seen.calls for seen in timing.seen[1:]]).tolist(),
        "bytes": np.diff([seen.bytes for seen in timing.seen[1:]]).tolist(),
        "reducing": np.diff([seen.seconds for seen in timing.seen[1:]]).tolist(),
    } | (pure_reductions() if n_ranks() > 1 else {})


def pure_reductions() -> dict[str, float]:
    """With nothing else to do: ``latency``, seconds of a small reduction, and ``bandwidth``, bytes per second of a large."""
    latency = time_of_reduction(1)
    return {"latency": latency, "bandwidth": 4 * LARGE / (time_of_reduction(LARGE) - latency)}


def time_of_reduction(size: int) -> float:
    """Median seconds of one reduction of float32 numbers."""
    values, seconds = th.zeros(size), []
    for _ in range(REDUCTIONS):
        start = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def main(arguments: str) -> None:
    with process_group(timedelta(minutes=5)):
        result = train(**json.loads(arguments))
        if rank() == 0:
            print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
