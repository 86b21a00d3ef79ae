"""From the cells of a section, as ``jobs`` gives them, to its numbers. Pure functions."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarking.plan import BASELINE, OURS, TASKS, network_name
from benchmarking.statistics import Spread, geometric_mean, ratio, spread

Cell = dict[str, Any]
Seconds = dict[str, list[float]]  # parts of an iteration, one number for each turn

PARTS = ("learn", "collection", "train", "actor", "critic")


class Learning(NamedTuple):
    """
    One training.

    :param name: of the case
    :param seconds: for each contender the medians of :data:`PARTS`
    :param ratios: for each contender but the baseline, how many times longer the baseline took for each part
    :param floor: seconds of stepping the environment and of MiniTRPO's update
    :param above_floor: MiniTRPO's ``learn`` over the floor
    :param above_stepping: MiniTRPO's collection over stepping the environment
    :param busy: the share of the time that the process had a processor
    """

    name: str
    seconds: dict[str, dict[str, float]]
    ratios: dict[str, dict[str, Spread]]
    floor: float
    above_floor: Spread
    above_stepping: Spread
    busy: float


def learning(cell: Cell) -> Learning:
    result = cell["result"]
    turns = {contender: with_critic(seconds) for contender, seconds in result["seconds"].items()}
    ours, stepping = turns[OURS], result["stepping"]
    floor = [step + train for step, train in zip(stepping, ours["train"], strict=True)]
    return Learning(
        cell["name"],
        {contender: {part: median(seconds[part]) for part in PARTS} for contender, seconds in turns.items()},
        {
            contender: {part: ratio(turns[BASELINE][part], seconds[part]) for part in PARTS}
            for contender, seconds in turns.items()
            if contender != BASELINE
        },
        median(floor),
        ratio(ours["learn"], floor),
        ratio(ours["collection"], stepping),
        result["busy"],
    )


def with_critic(seconds: Seconds) -> Seconds:
    """The critic's part of ``train`` is what is left of it without the actor's."""
    return seconds | {"critic": [whole - actor for whole, actor in zip(seconds["train"], seconds["actor"], strict=True)]}


def mean_ratios(learnings: Iterable[Learning], contender: str) -> dict[str, float]:
    """Geometric means of the median ratios over the tasks at default settings; empty if not all of these are there."""
    at_defaults = [one.ratios[contender] for one in learnings if one.name in TASKS]
    if len(at_defaults) < len(TASKS):
        return {}
    return {part: geometric_mean([ratios[part].median for ratios in at_defaults]) for part in PARTS}


class Growth(NamedTuple):
    """
    Updates of one size.

    :param network: what computes
    :param actions: dimensions of a Box, or the number of Discrete actions
    :param samples: of an update
    :param actor: seconds of an update without critic, for each contender
    :param train: seconds of a whole one
    :param memory: that it needs, MiB
    :param products: of MiniTRPO with the Fisher matrix
    """

    network: str
    actions: int
    samples: int
    actor: dict[str, float]
    train: dict[str, float]
    memory: dict[str, float]
    products: int | None


def growths(cells: Iterable[Cell]) -> list[Growth]:
    """One for each size that every contender was measured at."""
    sizes: dict[tuple[str, int, int], dict[str, Any]] = {}
    for cell in cells:
        arguments = cell["arguments"]
        size = (network_name(arguments["net_arch"]), arguments["actions"], arguments["samples"])
        sizes.setdefault(size, {})[arguments["contender"]] = cell["result"]
    return [
        Growth(
            *size,
            {contender: median(result["actor"]) for contender, result in results.items()},
            {contender: median(result["train"]) for contender, result in results.items()},
            {contender: result["memory"] for contender, result in results.items()},
            results[OURS]["products"],
        )
        for size, results in sizes.items()
        if {BASELINE, OURS} <= results.keys()
    ]


def thread_times(cells: Iterable[Cell]) -> dict[str, dict[str, tuple[int, Spread]]]:
    """For each case and each choice of threads: how many torch had, and the seconds of MiniTRPO's ``learn``."""
    table: dict[str, dict[str, tuple[int, Spread]]] = {}
    for cell in cells:
        case, _, choice = cell["name"].partition("; ")
        used = cell["provenance"]["machine"]["torch_threads"]
        table.setdefault(case, {})[choice] = (used, spread(cell["result"]["seconds"][OURS]["learn"]))
    return table


class Scaling(NamedTuple):
    """
    A number of processes that train together.

    :param ranks: how many
    :param steps_per_second: of all of them
    :param speed_up: R · t(1) / t(R), with t the seconds of an iteration, by turns
    :param seconds: t(R)
    :param rollout: seconds of it
    :param reducing: seconds of it in reductions, waiting for other ranks included
    :param calls: reductions in an iteration
    :param bytes: that each rank gives to them
    :param latency: seconds of a small reduction where nothing else is done; ``None`` for one process
    :param bandwidth: of large reductions, bytes per second
    """

    ranks: int
    steps_per_second: float
    speed_up: Spread
    seconds: float
    rollout: float
    reducing: float
    calls: float
    bytes: float
    latency: float | None
    bandwidth: float | None


def scalings(cells: Iterable[Cell]) -> list[Scaling]:
    """One for each number of ranks, over those turns that have all of these numbers."""
    turns: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in cells:
        turns.setdefault(cell["name"].partition(",")[0], {})[cell["arguments"]["ranks"]] = cell["result"]
    numbers = sorted({ranks for turn in turns.values() for ranks in turn} | {1})
    whole = [turn for turn in turns.values() if turn.keys() == set(numbers)]
    return [scaling(ranks, [turn[ranks] for turn in whole], [turn[1] for turn in whole]) for ranks in numbers if whole]


def scaling(ranks: int, results: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]) -> Scaling:
    def over_turns(name: str) -> float:
        return median([median(result[name]) for result in results])

    return Scaling(
        ranks,
        steps_per_second=results[0]["steps"] / over_turns("seconds"),
        speed_up=ratio([ranks * median(one["seconds"]) for one in alone], [median(result["seconds"]) for result in results]),
        seconds=over_turns("seconds"),
        rollout=over_turns("rollout"),
        reducing=over_turns("reducing"),
        calls=over_turns("calls"),
        bytes=over_turns("bytes"),
        latency=over_turns("latency") if ranks > 1 else None,
        bandwidth=over_turns("bandwidth") if ranks > 1 else None,
    )


def modelled_seconds(pair: Scaling, ranks: int, latency: float) -> float:
    """
    A model, not a measurement, of an iteration of R ranks that each have the work of one:

        t(R) = own + calls · (R − 1) · l + bytes · 2 (R − 1)/R / β.

    It is that of reductions around a ring, as gloo makes them: 2 (R − 1) messages one after the other, each of them the
    R-th part of the vector (Thakur, Rabenseifner & Gropp, 2005, "Optimization of collective communication operations in
    MPICH", section 4.5). It knows nothing of a network, nor of how much longer one waits for the slowest of many.

    :param pair: what was measured with two ranks: own, the time outside of reductions; calls, bytes; β, bytes per second
    :param ranks: R
    :param latency: l, seconds of a small reduction between two ranks, so of two messages
    """
    assert pair.bandwidth is not None
    own = pair.seconds - pair.reducing
    return own + pair.calls * (ranks - 1) * latency + pair.bytes * 2 * (ranks - 1) / ranks / pair.bandwidth


def median(values: Sequence[float]) -> float:
    return float(np.median(values))
