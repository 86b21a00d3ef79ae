"""
Steps per second of one and of several processes, at a fixed amount of work for each; what they reduce, and a model of more.

    PYTHONPATH=scripts python -m benchmarking.scaling --env Ant-v5 --ranks 1 2

One process trains without a process group, as a user without torchrun does; several train under torchrun on this machine.
They take turns. Time that a rank waits for a slower one counts as time of reductions.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from provenance import command_line, provenance
from sb3_minitrpo import MiniTRPO
from sb3_minitrpo.distributed import n_ranks, process_group, rank

MODELLED_RANKS = (8, 64, 512)
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
    """Count every reduction; an object that is gathered is a call of few bytes, which are not counted."""
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


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train on this rank; the first iteration is not counted."""
    model = MiniTRPO(
        "MlpPolicy",
        make_vec_env(args.env, 1),
        n_steps=args.n_steps,
        batch_size=args.batch_size,
        n_critic_updates=args.n_critic_updates,
        seed=0,
        device="cpu",
    )
    steps = args.n_steps * n_ranks()
    with counted() as traffic:
        timing = Timing(traffic)
        model.learn(steps * (1 + args.iterations), callback=timing)
    iterations = np.diff(timing.starts[1:])
    rollouts = np.subtract(timing.ends[1:], timing.starts[1:-1])
    per_iteration = {
        name: float(np.median(np.diff([getattr(seen, name) for seen in timing.seen[1:]])))
        for name in ("calls", "bytes", "seconds")
    }
    return {
        "steps_per_second": steps / float(np.median(iterations)),
        "seconds": float(np.median(iterations)),
        "rollout_seconds": float(np.median(rollouts)),
        "reductions": per_iteration,
        "latency": time_of_reduction(1),
        "large": time_of_reduction(LARGE),
        "load": os.getloadavg()[0],  # processes that wanted a core in the last minute, these among them
    }


def time_of_reduction(size: int) -> float | None:
    """Median seconds of one reduction of float32 numbers, with nothing else to do; ``None`` in one process."""
    if n_ranks() == 1:
        return None
    values, seconds = th.zeros(size), []
    for _ in range(REDUCTIONS):
        start = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def run(ranks: int, arguments: Sequence[str]) -> dict[str, Any]:
    """:func:`measure` in processes of their own, with one thread each; what rank 0 has to say."""
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command += ["benchmarking.scaling", *arguments, "--worker"]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{ranks} ranks: {' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over repetitions, number by number."""
    if isinstance(runs[0], dict):
        return {name: summary([each[name] for each in runs]) for name in runs[0]}
    return None if runs[0] is None else float(np.median(runs))


def modelled_seconds(alone: dict[str, Any], pair: dict[str, Any], ranks: int) -> float:
    """
    A model, not a measurement, of an iteration of R ranks that each have a core and the work of one:

        t(R) = t(1) + calls · 2 (R − 1) α + bytes · 2 (R − 1)/R / β.

    It is that of reductions around a ring, as gloo makes them: 2 (R − 1) messages one after the other, each of them the
    R-th part of the vector (Thakur, Rabenseifner & Gropp, 2005, "Optimization of collective communication operations in
    MPICH", section 4.5). α, the time of a message, and β, bytes per second, are those measured between two ranks here. It
    knows nothing of ranks that wait for a slower one, and nothing of a network.
    """
    alpha = pair["latency"] / 2.0
    beta = 4 * LARGE / max(pair["large"] - pair["latency"], 1e-9)
    calls, size = pair["reductions"]["calls"], pair["reductions"]["bytes"]
    return alone["seconds"] + calls * 2 * (ranks - 1) * alpha + size * 2 * (ranks - 1) / ranks / beta


def table(results: dict[int, dict[str, Any]], n_steps: int) -> str:
    alone = results[1]
    lines = ["ranks  steps/s  speed-up  iteration  rollout  reductions: calls  KiB    seconds"]
    for ranks, result in results.items():
        reductions = result["reductions"]
        lines.append(
            f"{ranks:5}  {result['steps_per_second']:7.0f}  {result['steps_per_second'] / alone['steps_per_second']:7.2f}×  "
            f"{result['seconds']:7.2f} s  {result['rollout_seconds']:5.2f} s  {reductions['calls']:17.0f}  "
            f"{reductions['bytes'] / 1024:5.0f}  {reductions['seconds']:5.2f}"
        )
    if 2 in results:
        latency, large = results[2]["latency"], results[2]["large"]
        lines.append(f"\nOne reduction between 2 ranks: {1e6 * latency:.0f} µs; of 4 MiB: {1e3 * large:.1f} ms")
        lines.append("Model (not measured), by these figures, reductions around a ring:")
        for ranks in MODELLED_RANKS:
            seconds = modelled_seconds(alone, results[2], ranks)
            lines.append(
                f"{ranks:5}  {ranks * n_steps / seconds:7.0f}  {ranks * alone['seconds'] / seconds:7.1f}×  {seconds:7.2f} s"
            )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Ant-v5", help="id of a Gymnasium environment (Ant-v5)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of processes, 1 among them (1 2)")
    parser.add_argument("--iterations", type=int, default=6, help="counted iterations of a run (6)")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each number of processes (3)")
    parser.add_argument("--n-steps", type=int, default=2048, help="steps of each process in an iteration (2048)")
    parser.add_argument("--batch-size", type=int, default=128, help="of the critic, in each process (128)")
    parser.add_argument("--n-critic-updates", type=int, default=10, help="passes of the critic (10)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("iterations", "repetitions", "n_steps", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: pass a number of at least 1")
    if min(args.ranks) < 1 or 1 not in args.ranks:
        parser.error(f"--ranks {args.ranks}: pass 1, which the others are compared with, and numbers above it")
    return args


def main() -> None:
    args = parse_arguments()
    if args.worker:
        with process_group(timedelta(minutes=5)):
            result = measure(args)
            if rank() == 0:
                print(json.dumps(result))
        return
    runs: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in sorted(set(args.ranks))}
    for _ in range(args.repetitions):
        for ranks, of_ranks in runs.items():
            of_ranks.append(run(ranks, sys.argv[1:]))
    results = {ranks: summary(of_ranks) for ranks, of_ranks in runs.items()}
    print(table(results, args.n_steps))
    if args.out:
        record = {"command": command_line(), "provenance": provenance(), "results": results, "runs": runs}
        args.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
