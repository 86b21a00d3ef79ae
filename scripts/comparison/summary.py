"""From the records of a comparison to its numbers."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from comparison import curves
from comparison.records import Record
from comparison.statistics import Estimate, estimate, interquartile_mean, mean_probability_of_improvement


class Runs(NamedTuple):
    """
    The runs of one algorithm on one task.

    :param returns: the learning curves, shape ``(runs, points)``
    :param scores: at each point the mean return over the tenth of the training that ends there, ``(runs, points)``
    :param seconds: time of training at each point, the median over runs, ``(points,)``: what one run was slower than
        another is the machine's doing, and no part of the comparison
    :param evaluation: mean return of the evaluation at the end, ``(runs,)``
    :param n_timesteps: the steps of each training
    """

    returns: np.ndarray
    scores: np.ndarray
    seconds: np.ndarray
    evaluation: np.ndarray
    n_timesteps: int

    @property
    def steps(self) -> np.ndarray:
        """Shape ``(points,)``"""
        points = self.returns.shape[-1]
        return np.arange(1, points + 1) * self.n_timesteps / points


Study = dict[str, dict[str, Runs]]  # task, then algorithm


def collect(records: Iterable[Record], clock: str) -> Study:
    """
    The records as arrays, tasks and algorithms in the order in which they come.

    :param clock: what time is, ``wall`` or ``cpu``
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        groups.setdefault(record.spec.task, {}).setdefault(record.spec.label, []).append(record)
    return {task: {label: runs_of(runs, clock) for label, runs in algorithms.items()} for task, algorithms in groups.items()}


def runs_of(records: Sequence[Record], clock: str) -> Runs:
    returns = curves.fill_gaps(np.array([record.returns for record in records], dtype=float))
    return Runs(
        returns,
        curves.trailing_mean(returns),
        np.median([record.seconds[clock] for record in records], axis=0),
        np.array([np.mean(record.evaluation) for record in records]),
        records[0].spec.n_timesteps,
    )


def complete(study: Study) -> Study:
    """The tasks on which every algorithm has a run: what is said over all tasks is said of these."""
    labels = {label for algorithms in study.values() for label in algorithms}
    return {task: algorithms for task, algorithms in study.items() if algorithms.keys() == labels}


def equal_time(algorithms: dict[str, Runs]) -> float:
    """The time in which every algorithm is compared: until the fastest has done its steps, in seconds."""
    return min(float(runs.seconds[-1]) for runs in algorithms.values())


def scores_at_time(algorithms: dict[str, Runs]) -> dict[str, np.ndarray]:
    """The score of each run at the equal time, shape ``(runs,)``"""
    time = equal_time(algorithms)
    return {label: curves.value_at(time, runs.seconds, runs.scores) for label, runs in algorithms.items()}


def final_scores(algorithms: dict[str, Runs]) -> dict[str, np.ndarray]:
    return {label: runs.scores[:, -1] for label, runs in algorithms.items()}


def normalized(algorithms: dict[str, Runs]) -> dict[str, Runs]:
    """Training returns on a scale common to all tasks: 0 and 1 are the lowest and highest score of any run at any time."""
    low = min(runs.scores.min() for runs in algorithms.values())
    high = max(runs.scores.max() for runs in algorithms.values())

    def scale(values: np.ndarray) -> np.ndarray:
        return (values - low) / ((high - low) or 1.0)

    return {label: runs._replace(returns=scale(runs.returns), scores=scale(runs.scores)) for label, runs in algorithms.items()}


def summarize(study: Study, baseline: str, targets: dict[str, float]) -> dict[str, Any]:
    """
    All numbers of a report, as JSON has them.

    :param study: at least one task
    :param baseline: the algorithm that the others are compared with
    :param targets: for some tasks, the return whose time is asked for; for the others it is the baseline's final IQM
    """
    whole = complete(study)
    return {
        "baseline": baseline,
        "tasks": {task: task_summary(algorithms, baseline, targets.get(task)) for task, algorithms in study.items()},
        "all_tasks": {"tasks": list(whole), "algorithms": overall_summary(whole, baseline)},
    }


def task_summary(algorithms: dict[str, Runs], baseline: str, target: float | None) -> dict[str, Any]:
    if target is None and baseline in algorithms:
        target = float(interquartile_mean(algorithms[baseline].scores[:, -1]))
    final, timed = final_scores(algorithms), scores_at_time(algorithms)
    return {
        "n_timesteps": next(iter(algorithms.values())).n_timesteps,
        "target_return": target,
        "equal_time": equal_time(algorithms),
        "algorithms": {
            label: {
                "runs": len(runs.scores),
                "final": iqm(final[label]),
                "area": iqm(curves.area_under_curve(runs.returns)),
                "evaluation": iqm(runs.evaluation),
                "final_at_equal_time": iqm(timed[label]),
                "seconds": float(runs.seconds[-1]),
            }
            | target_summary(runs, target)
            | improvement([final], [timed], label, baseline)
            for label, runs in algorithms.items()
        },
    }


def target_summary(runs: Runs, target: float | None) -> dict[str, Any]:
    """How many of the runs had the target return, and the median of when; ``None`` unless more than half had it."""
    if target is None:
        return {"reached": None, "steps_to_target": None, "seconds_to_target": None}
    steps = curves.first_reached(target, runs.steps, runs.scores)
    seconds = curves.first_reached(target, runs.seconds, runs.scores)
    return {
        "reached": int(np.isfinite(steps).sum()),
        "steps_to_target": median(steps),
        "seconds_to_target": median(seconds),
    }


def overall_summary(study: Study, baseline: str) -> dict[str, Any]:
    """Over all tasks: IQM of the normalised scores, and the mean of P over tasks."""
    if not study:
        return {}
    final, timed = [final_scores(runs) for runs in study.values()], [scores_at_time(runs) for runs in study.values()]
    scaled = [normalized(algorithms) for algorithms in study.values()]
    scaled_final = [final_scores(runs) for runs in scaled]
    scaled_timed = [scores_at_time(runs) for runs in scaled]
    return {
        label: {
            "final": iqm(*(scores[label] for scores in scaled_final)),
            "area": iqm(*(curves.area_under_curve(runs[label].returns) for runs in scaled)),
            "final_at_equal_time": iqm(*(scores[label] for scores in scaled_timed)),
        }
        | improvement(final, timed, label, baseline)
        for label in scaled[0]
    }


def improvement(
    final: Sequence[dict[str, np.ndarray]], timed: Sequence[dict[str, np.ndarray]], label: str, baseline: str
) -> dict[str, Any]:
    """P(label ≥ baseline), averaged over tasks, at equal steps and at equal time; empty for the baseline itself."""
    if label == baseline or any(baseline not in scores for scores in final):
        return {}
    return {"p_equal_steps": probability(final, label, baseline), "p_equal_time": probability(timed, label, baseline)}


def probability(scores: Sequence[dict[str, np.ndarray]], label: str, baseline: str) -> dict[str, float | None]:
    strata = [task[label] for task in scores] + [task[baseline] for task in scores]
    return as_json(estimate(mean_probability_of_improvement, strata))


def iqm(*strata: np.ndarray) -> dict[str, float | None]:
    return as_json(estimate(interquartile_mean, strata))


def as_json(result: Estimate) -> dict[str, float | None]:
    return {name: finite(float(value)) for name, value in result._asdict().items()}


def median(values: np.ndarray) -> float | None:
    return finite(float(np.median(values)))


def finite(value: float) -> float | None:
    """JSON has no NaN and no ∞."""
    return value if np.isfinite(value) else None
