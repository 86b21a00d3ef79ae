"""
Compare how algorithms learn, at equal steps and at equal time.

Trains every algorithm on every task with every seed, one process with one thread for each run, and writes tables,
pictures and JSON. Finished runs are kept: the same command goes on where it was interrupted.

    python scripts/compare.py
    python scripts/compare.py --algos minitrpo trpo ppo --tasks Hopper-v5 Walker2d-v5 --seeds 0 1 2 3 4 --out runs/mujoco
    python scripts/compare.py --out runs/mujoco --report-only
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import provenance
from comparison.records import Record, RunSpec, check_comparable, read_record, record_path
from comparison.report import CLOCKS, write_report
from comparison.schedule import run_all
from comparison.settings import ALGORITHMS, Settings, plan_runs, read_settings, target_returns

DEFAULT_SETTINGS = Path(__file__).parent / "settings" / "compare.yml"
DEFAULT_ALGORITHMS = ["minitrpo", "trpo"]
DEFAULT_TASKS = ["CartPole-v1", "Pendulum-v1"]
DEFAULT_SEEDS = [0, 1, 2]
INTERRUPTED = 130  # what a shell says of a command that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line
    :return: the exit status: 0 if every run has a record
    """
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        settings = read_settings(args.settings)
        records = chosen_records(args) if args.report_only else []
        runs = [record.spec for record in records] if args.report_only else planned_runs(args, settings)
        baseline = choose_baseline(args.baseline, [run.label for run in runs])
    except ValueError as error:
        parser.error(str(error))

    missing: list[RunSpec] = []
    if not args.report_only:
        try:
            missing = [failure.spec for failure in run_all(runs, args.out, args.jobs, provenance.command_line())]
        except KeyboardInterrupt:
            done = sum(record_path(args.out, run).exists() for run in runs)
            print(f"Interrupted with {done} of {len(runs)} runs finished: the same command goes on from there.")
            return INTERRUPTED
        records = [read_record(record_path(args.out, run)) for run in runs if run not in missing]
    if records:
        targets, command = target_returns(settings), provenance.command_line()
        print(write_report(args.out, records, baseline, targets, args.clock, command, missing))
    return 1 if missing else 0


def planned_runs(args: argparse.Namespace, settings: Settings) -> list[RunSpec]:
    return plan_runs(
        settings,
        args.algos or DEFAULT_ALGORITHMS,
        args.tasks or DEFAULT_TASKS,
        args.seeds or DEFAULT_SEEDS,
        args.steps,
        args.eval_episodes,
        args.matched,
    )


def chosen_records(args: argparse.Namespace) -> list[Record]:
    """
    The records of the folder, or those of them that the arguments choose.

    :raises ValueError: if there are none, or they do not belong in one table
    """
    records = [read_record(path) for path in sorted((args.out / "records").glob("*.json"))]
    chosen = [record for record in records if is_chosen(args, record.spec)]
    if not chosen:
        raise ValueError(f"{args.out / 'records'} has no finished run of these: leave out --report-only to make them")
    check_comparable(chosen)
    return chosen


def is_chosen(args: argparse.Namespace, run: RunSpec) -> bool:
    return all(
        choice is None or value in choice
        for choice, value in ((args.algos, run.label), (args.tasks, run.task), (args.seeds, run.seed))
    )


def choose_baseline(asked: str | None, labels: Iterable[str]) -> str:
    """
    :return: what was asked for, else ``trpo``, else the last of the algorithms
    :raises ValueError: if what was asked for is not among them
    """
    known = list(dict.fromkeys(labels))
    if asked is not None and asked not in known:
        raise ValueError(f"--baseline {asked}: choose from {', '.join(known)}")
    return asked or ("trpo" if "trpo" in known else known[-1])


def make_parser() -> argparse.ArgumentParser:
    description, _, examples = (__doc__ or "").partition("\n\n    ")
    parser = argparse.ArgumentParser(
        description=description, epilog="    " + examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    algorithms = ", ".join(ALGORITHMS)
    parser.add_argument("--algos", nargs="+", metavar="A", help=f"{algorithms}, labels of the settings file, or module:Class")
    parser.add_argument(
        "--tasks", nargs="+", metavar="ID", help=f"Gymnasium environments (default: {' '.join(DEFAULT_TASKS)})"
    )
    parser.add_argument("--seeds", nargs="+", type=at_least(0), metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--steps", type=at_least(1), help="of each training, instead of the settings' n_timesteps")
    parser.add_argument("--settings", type=Path, default=DEFAULT_SETTINGS, help="YAML as in %(default)s, which says how")
    parser.add_argument("--matched", action="store_true", help="give MiniTRPO the trust region of sb3-contrib's TRPO")
    parser.add_argument("--eval-episodes", type=at_least(1), default=10, help="after the training (default: %(default)s)")
    parser.add_argument("--baseline", metavar="A", help="what the others are compared with (default: trpo)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="time in the report (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=at_least(1), default=provenance.available_cores(), help="runs at a time (default: cores)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--report-only", action="store_true", help="report on the finished runs in the folder, all or the chosen"
    )
    return parser


def at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: pass a whole number of at least {least}")
        return int(text)

    return parse


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, with all processes
    sys.exit(main())
