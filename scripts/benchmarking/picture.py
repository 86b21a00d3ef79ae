"""The picture of the benchmark."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarking.plan import BASELINE
from benchmarking.summary import Learning

# Okabe and Ito's colours, which people with any colour vision tell apart; they differ in lightness too.
COLOURS = {"collection": "#0072B2", "actor": "#E69F00", "critic": "#F0E442"}
GAP = 0.8  # between trainings, in bars


def draw_iterations(path: Path, learnings: Sequence[Learning]) -> None:
    """
    Seconds of an iteration: for each training a bar for every contender, stacked from its parts, with the floor marked and
    how many times faster it is than the baseline at its end.

    :param path: of the PNG
    :param learnings: at least one, with the same contenders
    """
    bars = sum(len(one.seconds) for one in learnings)
    figure = Figure(figsize=(8.5, 1.2 + 0.32 * bars + 0.25 * len(learnings)), layout="constrained")
    axes = figure.subplots()
    ticks: dict[float, str] = {}
    y = 0.0
    for one in learnings:
        top = y
        axes.text(0, y - 0.68, one.name, fontweight="bold", fontsize=9.5, va="center")
        for contender in one.seconds:
            draw_bar(axes, y, one, contender)
            ticks[y] = contender
            y += 1
        axes.vlines(one.floor, top - 0.43, y - 1 + 0.43, color="black", linestyle=(0, (3, 1.5)), linewidth=1.6)
        y += GAP
    finish(axes, ticks, end=1.12 * max(one.seconds[BASELINE]["learn"] for one in learnings))
    figure.legend(*keys(axes), loc="outside lower center", ncols=len(COLOURS) + 1, frameon=False)
    figure.savefig(path, dpi=150)


def draw_bar(axes: Axes, y: float, one: Learning, contender: str) -> None:
    seconds, start = one.seconds[contender], 0.0
    for part, colour in COLOURS.items():
        axes.barh(y, seconds[part], left=start, height=0.78, color=colour, edgecolor="white", linewidth=0.5)
        start += seconds[part]
    if contender in one.ratios:
        said = f"{one.ratios[contender]['learn'].median:.1f}× faster"
        axes.annotate(said, (max(start, one.floor), y), (6, 0), textcoords="offset points", va="center", fontweight="bold")


def keys(axes: Axes) -> tuple[list, list[str]]:
    """What colours and the line mean."""
    parts = [axes.barh(0, 0, color=colour) for colour in COLOURS.values()]
    floor = axes.plot([], [], color="black", linestyle=(0, (3, 1.5)), linewidth=1.6)
    return [*parts, *floor], [*COLOURS, "floor: the environment alone + MiniTRPO's update"]


def finish(axes: Axes, ticks: dict[float, str], end: float) -> None:
    axes.set(yticks=list(ticks), yticklabels=list(ticks.values()), xlim=(0, end), xlabel="seconds per iteration (median)")
    axes.set_ylim(max(ticks) + 0.6, -1.1)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
