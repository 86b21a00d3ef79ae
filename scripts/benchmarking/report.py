"""The benchmark for readers: ``report.md`` and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path

import provenance
from benchmarking.picture import draw_iterations
from benchmarking.plan import BASELINE, GPU_SECTION, MODELLED_RANKS, OURS, SCALING_TASK, TASKS, ZOO_TASK
from benchmarking.sections import Section
from benchmarking.statistics import Spread
from benchmarking.summary import (
    PARTS,
    Growth,
    Learning,
    Scaling,
    growths,
    learning,
    mean_ratios,
    modelled_seconds,
    scalings,
    thread_times,
)

ITERATIONS = f"""\
Medians of one iteration, in seconds. *Actor* and *critic* are the parts of `train()`. The *floor* is stepping the
environment with ready actions, plus {OURS}'s own `train()`."""
RATIOS = f"""\
How many times longer {BASELINE} took: medians of turns, quartiles in brackets. *Over the floor* is {OURS}'s `learn()`
over the floor, *over stepping* its collection over stepping the environment alone."""
GROWTH = f"""\
{BASELINE} / {OURS} = ratio, of median seconds and of memory: how far the process's largest size rises, or on a GPU the
peak of torch's allocator. Observations of 64 numbers, or images of 84×84×4. *Products* are those of {OURS} with the Fisher
matrix: its solver stops at a relative residual, that of {BASELINE} in practice after the 15 that both are allowed."""
THREADS = f"""\
Median seconds of an iteration of {OURS}, quartiles in brackets. The default is what torch and NumPy take where
`OMP_NUM_THREADS` is not set."""

SCALING = f"""\
Each rank has one environment, {SCALING_TASK}, and the same number of steps; one rank is a process without a group. Medians;
*speed-up*, R times the time of one rank over that of R, by turns, quartiles in brackets. Time that a rank waits in a reduction
for the other counts as reducing."""
MODEL = """\
**A model, not measured:** an iteration of R ranks around a ring takes the time outside of reductions, and for each reduction
R − 1 times the latency l, and the bytes through the bandwidth β. l is either what a reduction takes in training, waiting and
all, or where nothing else is done. It knows nothing of a network, nor of how much longer one waits for the slowest of many."""


def write_report(out: Path, sections: dict[str, Section]) -> Path:
    """
    Tables and a picture of what was measured.

    :param out: the folder that the files go to
    :param sections: at least one, by name
    :return: the path of the tables
    """
    parts = ["# Benchmark", notes(sections)]
    if "learn" in sections:
        parts.append(learn_part(sections["learn"], out / "learn.png"))
    if "growth" in sections:
        parts.append(growth_part(sections["growth"], "train() as work grows"))
    if GPU_SECTION in sections:
        parts.append(growth_part(sections[GPU_SECTION], "train() of CnnPolicy on a GPU"))
    if "threads" in sections:
        parts.append(threads_part(sections["threads"]))
    if "scaling" in sections:
        parts.append(scaling_part(sections["scaling"]))
    parts += ["## Origin", origin(sections)]
    path = out / "report.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def notes(sections: dict[str, Section]) -> str:
    """What a reader must know before believing a number."""
    said = [f"missing in {name}: {'; '.join(section.missing)}." for name, section in sections.items() if section.missing]
    origins = [cell["provenance"] for section in sections.values() for cell in section.cells]
    for what, values in (
        ("commits", {origin["commit"] for origin in origins}),
        ("processors", {origin["machine"]["cpu"] for origin in origins}),
        ("sets of versions", {json.dumps(origin["versions"]) for origin in origins}),
    ):
        if len(values) > 1:
            said.append(f"the measurements were made with {len(values)} different {what}.")
    timed = sections["learn"].cells if "learn" in sections else []
    waiting = [cell["name"] for cell in timed if cell["name"] in TASKS and cell["result"]["busy"] < 0.95]
    if waiting:
        said.append(f"other processes took more than 5 % of the time of {', '.join(waiting)}: the machine was not quiet.")
    return "\n\n".join(f"> **Note:** {sentence}" for sentence in said)


def learn_part(section: Section, picture: Path) -> str:
    learnings = [learning(cell) for cell in section.cells]
    parts = ["## An iteration of learn()"]
    if shown := [one for one in learnings if one.name in [*TASKS, ZOO_TASK]]:
        draw_iterations(picture, shown)
        parts.append(f"![Seconds of an iteration, by task]({picture.name})")
    return "\n\n".join([*parts, seconds_table(learnings), ITERATIONS, ratio_table(learnings), RATIOS])


def seconds_table(learnings: Sequence[Learning]) -> str:
    header = ["training", "algorithm", "learn()", "collection", "train()", "actor", "critic", "floor"]
    rows = [
        [one.name, contender, *(number(seconds[part]) for part in PARTS), number(one.floor)]
        for one in learnings
        for contender, seconds in one.seconds.items()
    ]
    return table(header, rows)


def ratio_table(learnings: Sequence[Learning]) -> str:
    header = [
        "training",
        "algorithm",
        "learn()",
        "collection",
        "train()",
        "actor",
        "critic",
        "over the floor",
        "over stepping",
    ]
    rows = [
        [
            one.name,
            contender,
            *(with_quartiles(ratios[part]) for part in PARTS),
            with_quartiles(one.above_floor),
            with_quartiles(one.above_stepping),
        ]
        for one in learnings
        for contender, ratios in one.ratios.items()
    ]
    for contender in dict.fromkeys(row[1] for row in rows):
        if means := mean_ratios(learnings, contender):
            name = f"geometric mean of {', '.join(TASKS)}"
            rows.append([name, contender, *(f"**{number(means[part])}**" for part in PARTS), "", ""])
    return table(header, rows)


def growth_part(section: Section, title: str) -> str:
    return "\n\n".join([f"## {title}", growth_table(growths(section.cells)), GROWTH])


def growth_table(sizes: Sequence[Growth]) -> str:
    header = ["network", "actions", "samples", "actor, s", "train(), s", "memory, MiB", "products"]
    rows = [
        [
            one.network,
            str(one.actions),
            f"{one.samples:,}",
            *(compared(quantity) for quantity in (one.actor, one.train, one.memory)),
            str(one.products),
        ]
        for one in sizes
    ]
    return table(header, rows)


def threads_part(section: Section) -> str:
    times = thread_times(section.cells)
    choices = list(dict.fromkeys(choice for of_case in times.values() for choice in of_case))
    rows = [[case, *(thread_entry(of_case, choice) for choice in choices)] for case, of_case in times.items()]
    return "\n\n".join(["## Threads", table(["training", *choices], rows), THREADS])


def thread_entry(of_case: dict[str, tuple[int, Spread]], choice: str) -> str:
    if choice not in of_case:
        return "–"
    used, seconds = of_case[choice]
    return with_quartiles(seconds) + (f", {used} threads" if choice.startswith("default") else "")


def scaling_part(section: Section) -> str:
    measured = scalings(section.cells)
    header = ["ranks", "steps/s", "speed-up", "iteration, s", "rollout, s", "reducing, s", "reductions", "MiB"]
    rows = [
        [
            str(one.ranks),
            f"{one.steps_per_second:,.0f}",
            with_quartiles(one.speed_up),
            *(number(seconds) for seconds in (one.seconds, one.rollout, one.reducing)),
            f"{one.calls:.0f}",
            number(one.bytes / 2**20),
        ]
        for one in measured
    ]
    parts = ["## Several processes", table(header, rows), SCALING]
    parts += [model_part(one) for one in measured if one.ranks == 2]
    return "\n\n".join(parts)


def model_part(pair: Scaling) -> str:
    assert pair.latency is not None
    assert pair.bandwidth is not None
    latencies = [pair.reducing / pair.calls, pair.latency]
    header = ["ranks", *(f"speed-up, l = {1e3 * latency:.2f} ms" for latency in latencies)]
    alone = pair.speed_up.median * pair.seconds / pair.ranks
    rows = [
        [str(ranks), *(number(ranks * alone / modelled_seconds(pair, ranks, latency)) for latency in latencies)]
        for ranks in MODELLED_RANKS
    ]
    return "\n\n".join([table(header, rows), MODEL + f" β = {pair.bandwidth / 2**20:.0f} MiB/s."])


def origin(sections: dict[str, Section]) -> str:
    """Where the numbers come from: versions and machine are those of the first, and :func:`notes` says if others differ."""
    first = next(iter(sections.values())).cells[0]["provenance"]
    threads = "one thread for each measurement where nothing else is said"
    return provenance.told((section.command for section in sections.values()), first, threads)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def compared(quantity: dict[str, float]) -> str:
    theirs, ours = quantity[BASELINE], quantity[OURS]
    return f"{number(theirs)} / {number(ours)}" + (f" = **{number(theirs / ours)}**" if ours > 0 else "")


def with_quartiles(spread: Spread) -> str:
    return f"{number(spread.median)} [{number(spread.low)}, {number(spread.high)}]"


def number(value: float) -> str:
    """Three digits, and no fewer than all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
