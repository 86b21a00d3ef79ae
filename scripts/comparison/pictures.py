"""The pictures of a comparison."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from comparison import curves
from comparison.statistics import estimate, interquartile_mean
from comparison.summary import Runs, Study, complete, normalized

Look = dict[str, Any]

# Okabe and Ito's colours, which people with any colour vision tell apart; dashes do the same on grey paper.
LOOKS: tuple[Look, ...] = (
    {"color": "#0072B2", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": "--"},
    {"color": "#009E73", "linestyle": "-."},
    {"color": "#CC79A7", "linestyle": ":"},
    {"color": "#E69F00", "linestyle": (0, (5, 1))},
    {"color": "#56B4E9", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    {"color": "#000000", "linestyle": (0, (1, 1))},
)
TIMES = 100  # points of a curve against time


def looks_of(labels: Iterable[str]) -> dict[str, Look]:
    """One look for each algorithm, the same in all pictures of a report."""
    return dict(zip(labels, cycle(LOOKS), strict=False))


def draw_task(path: Path, task: str, algorithms: dict[str, Runs], time: str, looks: dict[str, Look]) -> None:
    """
    Learning curves on one task, against steps and against time.

    :param path: of the PNG
    :param time: what time is, in words
    """
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    by_steps, by_time = figure.subplots(1, 2, sharey=True)
    for label, runs in algorithms.items():
        draw_curve(by_steps, runs.steps, [runs.scores], label, looks[label])
        draw_curve(by_time, runs.seconds, [runs.scores], label, looks[label])
    by_steps.set(xlabel="environment steps", ylabel="episode return\n(mean over a tenth of the training)")
    by_steps.xaxis.set_major_formatter(EngFormatter(sep=""))
    by_time.set(xlabel=f"{time} of training (s)")
    figure.suptitle(task)
    figure.legend(*by_steps.get_legend_handles_labels(), loc="outside lower center", ncols=len(algorithms), frameon=False)
    finish(figure, path)


def draw_all(path: Path, study: Study, summary: dict[str, Any], time: str, looks: dict[str, Look]) -> None:
    """Normalised learning curves over all tasks, and the probability of improvement on each."""
    baseline = summary["baseline"]
    scaled = [normalized(algorithms) for algorithms in complete(study).values()]
    labels = list(scaled[0])
    figure = Figure(figsize=(13, max(4.4, 1.6 + 0.4 * len(study))), layout="constrained")
    by_steps, by_time, by_task = figure.subplots(1, 3, width_ratios=(3, 3, 4))
    for label in labels:
        scores = [algorithms[label].scores for algorithms in scaled]
        seconds = [algorithms[label].seconds / algorithms[baseline].seconds[-1] for algorithms in scaled]
        draw_curve(by_steps, scaled[0][label].steps / scaled[0][label].n_timesteps, scores, label, looks[label])
        draw_curve(by_time, *on_common_times(seconds, scores), label, looks[label])
    by_steps.set(xlabel="share of the environment steps")
    by_steps.set_ylabel("normalised return\n(0 lowest, 1 highest of any run)")
    by_time.set(xlabel=f"{time} (1 = whole training of {baseline})")
    by_time.sharey(by_steps)
    figure.legend(*by_steps.get_legend_handles_labels(), loc="outside lower left", ncols=len(labels), frameon=False)
    draw_probabilities(by_task, summary, looks)
    finish(figure, path)


def draw_curve(axes: Axes, x: np.ndarray, strata: Sequence[np.ndarray], label: str, look: Look) -> None:
    """
    IQM over runs as a line, its 95 % interval at each point as a band.

    :param x: shape ``(points,)``
    :param strata: curves of each task, shape ``(runs, points)``
    """
    curve = estimate(interquartile_mean, [scores.T for scores in strata])
    axes.plot(x, curve.value, label=label, linewidth=1.8, **look)
    axes.fill_between(x, curve.low, curve.high, color=look["color"], alpha=0.18, linewidth=0)


def on_common_times(seconds: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """
    Curves of several tasks at the same times, from where all have their first point until the first ends.

    :param seconds: for each task, shape ``(points,)``
    :param scores: for each task, shape ``(runs, points)``
    :return: the times, shape ``(times,)``, and the curves at these, ``(runs, times)``
    """
    times = np.linspace(max(grid[0] for grid in seconds), min(grid[-1] for grid in seconds), TIMES)
    return times, [curves.value_at(times, grid, values) for grid, values in zip(seconds, scores, strict=True)]


def draw_probabilities(axes: Axes, summary: dict[str, Any], looks: dict[str, Look]) -> None:
    """P(algorithm ≥ baseline) with its interval, at equal steps and at equal time: a row for each task, and one for all."""
    rows = {task: entry["algorithms"] for task, entry in summary["tasks"].items()}
    rows["all tasks"] = summary["all_tasks"]["algorithms"]
    labels = [label for label in looks if label != summary["baseline"]]
    marks = [(label, quantity) for label in labels for quantity in ("p_equal_steps", "p_equal_time")]
    for row, algorithms in enumerate(rows.values()):
        offsets = np.linspace(-1, 1, len(marks)) * min(0.06 * len(marks), 0.35)
        for offset, (label, quantity) in zip(offsets, marks, strict=True):
            if p := algorithms.get(label, {}).get(quantity):
                draw_probability(axes, row + offset, p, looks[label]["color"], hollow=quantity == "p_equal_time")
    axes.axvline(0.5, color="0.6", linewidth=1, zorder=0)
    axes.axhline(len(rows) - 1.5, color="0.6", linewidth=1, zorder=0)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=rows)
    axes.set_xlabel(f"P({labels[0] if len(labels) == 1 else 'algorithm'} ≥ {summary['baseline']})")
    keys = [
        Line2D([], [], color="0.3", marker="o", linestyle="", label="at equal steps"),
        Line2D([], [], color="0.3", marker="s", linestyle="", label="at equal time", markerfacecolor="white"),
    ]
    axes.figure.legend(handles=keys, loc="outside lower right", ncols=2, frameon=False)


def draw_probability(axes: Axes, y: float, p: dict[str, Any], color: str, hollow: bool) -> None:
    if p["low"] is not None:
        axes.plot([p["low"], p["high"]], [y, y], color=color, linewidth=1.8, solid_capstyle="butt")
    marker, face = ("s", "white") if hollow else ("o", color)
    axes.plot(p["value"], y, color=color, marker=marker, markerfacecolor=face, markersize=6)


def finish(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.savefig(path, dpi=150)
