"""Many runs, several at a time, each in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from comparison.records import RunSpec, log_path, record_path

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Failure(NamedTuple):
    """
    A run that ended without a record.

    :param spec: the run
    :param reason: the last line of its log, which of a traceback says what was raised
    :param log: the whole
    """

    spec: RunSpec
    reason: str
    log: Path


def run_all(specs: Sequence[RunSpec], out: Path, jobs: int, command: str) -> list[Failure]:
    """
    Make the records that are missing.

    :param specs: the runs, in the order in which they begin; finished ones are left as they are
    :param out: the folder of records and logs
    :param jobs: how many processes at a time
    :param command: for the records: what they were made by
    :return: the runs that crashed; the others were not disturbed by these
    :raises KeyboardInterrupt: after all processes have been ended; what was finished stays
    """
    missing = [spec for spec in specs if not record_path(out, spec).exists()]
    if not missing:
        return []
    steps = sum(spec.n_timesteps for spec in specs)
    done = steps - sum(spec.n_timesteps for spec in missing)
    running: set[subprocess.Popen] = set()
    # smoothing=0: the time left follows from the mean speed of all, since algorithms and tasks differ
    with (
        tqdm(total=steps, initial=done, desc="compare", unit=" steps", unit_scale=True, smoothing=0) as bar,
        ThreadPoolExecutor(jobs) as pool,
    ):
        futures = [pool.submit(run_one, spec, out, command, bar, running) for spec in missing]
        try:
            return list(failures(futures, bar))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):  # again and again: one may be about to start
                for process in list(running):
                    process.terminate()
                time.sleep(0.1)
            raise


def failures(futures: Sequence[Future], bar: tqdm) -> Iterator[Failure]:
    """The runs that crashed, each told as soon as it did."""
    for finished, future in enumerate(as_completed(futures), start=1):
        failure = future.result()
        bar.set_postfix_str(f"{finished} of {len(futures)} runs")
        if failure is not None:
            bar.write(f"{failure.spec} crashed: {failure.reason}\n  the whole is in {failure.log}", file=sys.stderr)
            yield failure


def run_one(spec: RunSpec, out: Path, command: str, bar: tqdm, running: set[subprocess.Popen]) -> Failure | None:
    """Have one run done by a process of :mod:`comparison.runs`, and move the bar as it goes."""
    record, log = record_path(out, spec), log_path(out, spec)
    log.parent.mkdir(parents=True, exist_ok=True)
    request = json.dumps({"spec": asdict(spec), "record": str(record), "command": command})
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "comparison.runs", request],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        running.add(process)
        done = 0
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():  # a library in C may print to it as well
                steps = min(int(line), spec.n_timesteps)
                advance(bar, steps - done)
                done = steps
    running.discard(process)
    advance(bar, spec.n_timesteps - done)
    return None if record.exists() else Failure(spec, last_line(log, process.returncode), log)


def advance(bar: tqdm, steps: int) -> None:
    with bar.get_lock():  # several threads move it
        bar.update(steps)


def last_line(log: Path, returncode: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return said[-1] if said and returncode > 0 else f"the process ended with status {returncode}"
