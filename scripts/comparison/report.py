"""A comparison for readers: ``report.md``, pictures, and ``report.json`` with everything."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import provenance
from comparison.pictures import draw_all, draw_task, looks_of
from comparison.records import Record, RunSpec, file_name, write_atomically
from comparison.summary import collect, complete, summarize

CLOCKS = {"wall": "wall-clock time", "cpu": "processor time"}
EXPLANATION = """\
**How to read it.** Returns are interquartile means over runs (without the lowest and the highest quarter; of fewer than
four runs, the mean) with 95 % intervals by stratified bootstrap in brackets. Few seeds give intervals that are too narrow.

- *final*: mean return of the training episodes in the last tenth of the steps
- *equal time*: mean over as many steps before the time at which the fastest algorithm had done all of its own
- *area*: return averaged over the whole training
- *evaluation*: {episodes} deterministic episodes after the training, in an environment with a seed of its own
- *training time*, *steps to* and *time to* the return: medians over runs, {time}; a run reaches a return when its
  mean over a tenth of the training does
- *P(algorithm ≥ {baseline})*: the probability that a run of the algorithm does better than a run of {baseline}, a tie
  counted as one half; over all tasks, its mean over tasks
- *normalised*: 0 is the lowest and 1 the highest mean over a tenth of the training that any run had on the task"""


def write_report(
    out: Path,
    records: Sequence[Record],
    baseline: str,
    targets: dict[str, float],
    clock: str,
    command: str,
    missing: Sequence[RunSpec] = (),
) -> Path:
    """
    Tables, pictures and JSON of finished runs.

    :param out: the folder that the files go to
    :param records: at least one
    :param baseline: the algorithm that the others are compared with
    :param targets: returns whose time is asked for, by task
    :param clock: what time is: one of :data:`CLOCKS`
    :param command: what the report is made by
    :param missing: runs without a record: the report names them
    :return: the path of the table
    """
    labels = list(dict.fromkeys(record.spec.label for record in records))
    if baseline not in labels:  # all its runs crashed
        baseline = labels[-1]
    study = collect(records, clock)
    summary = summarize(study, baseline, targets)
    looks = looks_of(labels)
    for task, algorithms in study.items():
        draw_task(out / f"{file_name(task)}.png", task, algorithms, CLOCKS[clock], looks)
    if complete(study) and len(labels) > 1:
        draw_all(out / "all_tasks.png", study, summary, CLOCKS[clock], looks)
    everything = {
        "command": command,
        "clock": clock,
        "missing": [str(spec) for spec in missing],
        "summary": summary,
        "runs": [asdict(record) for record in records],
    }
    write_atomically(out / "report.json", json.dumps(everything, allow_nan=False) + "\n")
    write_atomically(out / "report.md", report_text(records, summary, CLOCKS[clock], command, missing))
    return out / "report.md"


def report_text(
    records: Sequence[Record], summary: dict[str, Any], time: str, command: str, missing: Sequence[RunSpec]
) -> str:
    overall = summary["all_tasks"]
    parts = ["# Comparison of learning curves", f"`{command}`", warnings(records, missing)]
    if len(overall["algorithms"]) > 1:
        parts += ["## Over all tasks", overall_table(overall, summary["baseline"])]
        parts += ["![Normalised learning curves and P on each task](all_tasks.png)"]
    parts += ["## Returns", task_table(summary["tasks"]), f"## {time.capitalize()}", time_table(summary["tasks"])]
    if probabilities := probability_table(summary):
        parts += [f"## P(algorithm ≥ {summary['baseline']})", probabilities]
    parts += ["## Learning curves", *(f"![{task}]({file_name(task)}.png)" for task in summary["tasks"])]
    episodes = records[0].spec.eval_episodes
    parts += [EXPLANATION.format(episodes=episodes, time=time, baseline=summary["baseline"]), origin(records)]
    return "\n\n".join(part for part in parts if part) + "\n"


def overall_table(overall: dict[str, Any], baseline: str) -> str:
    header = ["algorithm", "final", "equal time", "area", "P, equal steps", "P, equal time"]
    rows = [
        [
            label,
            *(interval(entry[name]) for name in ("final", "final_at_equal_time", "area")),
            *(interval(entry.get(name)) for name in ("p_equal_steps", "p_equal_time")),
        ]
        for label, entry in overall["algorithms"].items()
    ]
    return f"Normalised returns, and P(algorithm ≥ {baseline}), of {', '.join(overall['tasks'])}:\n\n{table(header, rows)}"


def task_table(tasks: dict[str, Any]) -> str:
    header = ["task", "algorithm", "runs", "final", "equal time", "area", "evaluation"]
    rows = [
        [
            f"{task}, {entry['n_timesteps']:,} steps",
            label,
            str(algorithm["runs"]),
            *(interval(algorithm[name]) for name in ("final", "final_at_equal_time", "area", "evaluation")),
        ]
        for task, entry in tasks.items()
        for label, algorithm in entry["algorithms"].items()
    ]
    return table(header, rows)


def time_table(tasks: dict[str, Any]) -> str:
    header = ["task", "algorithm", "training time", "return", "reached by", "steps to", "time to"]
    rows = [
        [
            task,
            label,
            with_unit(algorithm["seconds"], "s"),
            number(entry["target_return"]),
            f"{algorithm['reached']} of {algorithm['runs']}" if algorithm["reached"] is not None else "–",
            number(algorithm["steps_to_target"]),
            with_unit(algorithm["seconds_to_target"], "s"),
        ]
        for task, entry in tasks.items()
        for label, algorithm in entry["algorithms"].items()
    ]
    return table(header, rows)


def probability_table(summary: dict[str, Any]) -> str:
    """Empty if there is nothing to compare with the baseline."""
    rows = [
        [
            task,
            label,
            interval(algorithm["p_equal_steps"]),
            interval(algorithm["p_equal_time"]),
            f"{entry['equal_time']:.0f} s",
        ]
        for task, entry in summary["tasks"].items()
        for label, algorithm in entry["algorithms"].items()
        if "p_equal_steps" in algorithm
    ]
    return table(["task", "algorithm", "P at equal steps", "P at equal time", "equal time"], rows) if rows else ""


def warnings(records: Sequence[Record], missing: Sequence[RunSpec]) -> str:
    """What a reader must know before believing a number."""
    said = []
    if missing:
        count = "1 run is" if len(missing) == 1 else f"{len(missing)} runs are"
        said.append(f"{count} missing: {'; '.join(map(str, missing))}.")
    for what, values in (
        ("commits", {record.provenance["commit"] for record in records}),
        ("machines", {json.dumps(record.provenance["machine"]) for record in records}),
        ("versions", {json.dumps(record.provenance["versions"]) for record in records}),
    ):
        if len(values) > 1:
            said.append(f"The runs were made with {len(values)} different {what}.")
    waiting = max(1 - record.times["learn_cpu"] / record.times["learn"] for record in records)
    if waiting > 0.1:
        said.append(f"A run waited for a processor for up to {waiting:.0%} of its training: wall-clock times compare badly.")
    return "\n".join(f"> **Note:** {sentence}" for sentence in said)


def origin(records: Sequence[Record]) -> str:
    """How the runs were made: versions and machine are those of the first, and :func:`warnings` says if others differ."""
    first = records[0].provenance
    threads = f"{first['machine']['torch_threads']} thread for each run"
    return "**Made by** " + provenance.told((record.provenance["command"] for record in records), first, threads)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(estimate: dict[str, float | None] | None) -> str:
    if estimate is None:
        return "–"
    if estimate["low"] is None:
        return number(estimate["value"])
    return f"{number(estimate['value'])} [{number(estimate['low'])}, {number(estimate['high'])}]"


def number(value: float | None) -> str:
    """Three digits, at most two of them behind the point."""
    if value is None:
        return "–"
    decimals = min(2, max(0, 3 - len(str(int(abs(value))))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def with_unit(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{number(value)} {unit}"
