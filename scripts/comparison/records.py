"""Runs on disk: what one is to do, and what it gave."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunSpec:
    """
    All that decides what a run gives.

    :param label: the name of the algorithm in the comparison
    :param algorithm: its class, as ``module:Class``
    :param task: the id of a Gymnasium environment
    :param seed: of weights, action noise and environments
    :param eval_episodes: number of episodes of the evaluation at the end
    :param settings: as the RL Zoo has them: of the environment, and what the algorithm's constructor is given
    :param arguments: what the constructor works with, so with its defaults: if a default changes, it is another run
    """

    label: str
    algorithm: str
    task: str
    seed: int
    eval_episodes: int
    settings: dict[str, Any]
    arguments: dict[str, Any]

    @property
    def n_timesteps(self) -> int:
        return self.settings["n_timesteps"]

    @property
    def name(self) -> str:
        """Says what the run is, and ends in a hash of all of it."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return file_name(f"{self.task}_{self.label}_{self.seed}_{digest}")

    def __str__(self) -> str:
        return f"{self.label} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Record:
    """
    What a run gave.

    :param spec: the run
    :param returns: mean return of the training episodes that ended in each of equal intervals of steps, shape
        ``(points,)``; ``None`` where no episode ended
    :param seconds: time of training at the end of each interval, by ``wall`` clock and as the processor's (``cpu``)
    :param evaluation: returns of the episodes of the evaluation at the end
    :param times: wall-clock time of ``setup``, ``learn`` (of it ``collection``, the rest is updates) and ``evaluation``,
        and the processor's time for learning, ``learn_cpu``, in seconds
    :param provenance: versions, machine, commit, command
    """

    spec: RunSpec
    returns: list[float | None]
    seconds: dict[str, list[float]]
    evaluation: list[float]
    times: dict[str, float]
    provenance: dict[str, Any]


def file_name(text: str) -> str:
    """Ids of tasks may have a namespace or a module in front."""
    return text.replace("/", "-").replace(":", "-")


def record_path(out: Path, spec: RunSpec) -> Path:
    return out / "records" / f"{spec.name}.json"


def log_path(out: Path, spec: RunSpec) -> Path:
    return out / "logs" / f"{spec.name}.log"


def write_record(path: Path, record: Record) -> None:
    write_atomically(path, json.dumps(asdict(record), allow_nan=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Whoever reads ``path``, at whatever time, finds all of a file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def read_record(path: Path) -> Record:
    """:raises ValueError: if the file is not a record"""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Record(**(fields | {"spec": RunSpec(**fields["spec"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not the record of a run ({error}): delete it, and the run will be made anew") from error


def check_comparable(records: Iterable[Record]) -> None:
    """
    :raises ValueError: if two records cannot stand in one table: two of the same algorithm, task and seed, or two of one
        task with different numbers of steps
    """
    seen: set[tuple[str, str, int]] = set()
    steps: dict[str, int] = {}
    for spec in (record.spec for record in records):
        run = (spec.label, spec.task, spec.seed)
        if run in seen:
            raise ValueError(
                f"there are two different runs of {spec}: keep different settings in folders or under labels apart"
            )
        if steps.setdefault(spec.task, spec.n_timesteps) != spec.n_timesteps:
            raise ValueError(
                f"runs on {spec.task} have {steps[spec.task]} and {spec.n_timesteps} steps: keep these in folders apart"
            )
        seen.add(run)
