"""Measurements, one after the other, each in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from benchmarking.plan import Job

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Cell = dict[str, Any]


def run_all(jobs: Sequence[Job], bar: tqdm) -> Iterator[Cell | None]:
    """
    :param jobs: in the order in which they are run
    :param bar: moves as they end, in seconds that they were expected to take
    :return: for each job its cell, as soon as it is known: ``name``, ``arguments``, ``result`` and ``provenance``;
        ``None`` for one that crashed, whose reason is told on standard error
    """
    for job in jobs:
        bar.set_postfix_str(job.name)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarking.worker"],
            input=json.dumps([job.function, job.arguments]),
            env=surroundings(os.environ, job.threads),
            capture_output=True,
            text=True,
        )
        bar.update(job.seconds)
        if done.returncode != 0:
            bar.write(f"{job.name} crashed:\n{done.stderr}", file=sys.stderr)
            yield None
        else:
            yield {"name": job.name, "arguments": job.arguments} | json.loads(done.stdout.splitlines()[-1])


def surroundings(environ: Mapping[str, str], threads: int | None) -> dict[str, str]:
    """
    The environment variables of a measurement.

    :param environ: those of this process
    :param threads: of torch and the linear algebra below NumPy, which read them when they are loaded; ``None``: as many
        as they choose by themselves, whatever is set here
    """
    others = {name: value for name, value in environ.items() if name not in THREAD_VARIABLES}
    limits = {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))
    return others | limits | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
