"""
Measure how fast MiniTRPO learns, next to sb3-contrib's TRPO: time and memory, with nothing asserted.

Every measurement is made in a process of its own, one at a time, on one thread unless said otherwise. Writes JSON, tables
and a picture. Measure on a machine that does nothing else.

Sections: learn() of both in turn, its parts and the floor (learn), train() as batches and networks grow (growth), the number
of threads (threads), and training by one and by two processes (scaling). A section that is measured again replaces what the
folder has of it.

    python scripts/benchmark.py
    python scripts/benchmark.py --quick
    python scripts/benchmark.py --sections learn threads --only "CartPole*" "Hopper*"
    python scripts/benchmark.py --sections growth --max-batch 16384
    python scripts/benchmark.py --device cuda
    python scripts/benchmark.py --report-only
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch as th
from tqdm import tqdm

import provenance
from benchmarking.jobs import run_all
from benchmarking.plan import GPU_SECTION, QUICK, SECTIONS, Effort, Job, chosen, gpu_jobs
from benchmarking.report import write_report
from benchmarking.sections import Section, read_sections, write_section

INTERRUPTED = 130  # what a shell says of a command that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line
    :return: the exit status: 0 if everything was measured
    """
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.report_only:
        complete = True
    elif args.device == "cuda" and not th.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; leave it out to measure on the processor")
    else:
        plan = planned(args)
        if not any(plan.values()):
            parser.error("none of the measurements is left: --only, --sections or --max-batch leave them all out")
        try:
            complete = measure(plan, args.out)
        except KeyboardInterrupt:
            print(f"Interrupted: what was measured until now is in {args.out}.", file=sys.stderr)
            return INTERRUPTED
    try:
        print(write_report(args.out, read_sections(args.out, [*SECTIONS, GPU_SECTION])))
    except ValueError as error:
        parser.error(str(error))
    return 0 if complete else 1


def planned(args: argparse.Namespace) -> dict[str, list[Job]]:
    """The jobs of each section."""
    effort = QUICK if args.quick else Effort()
    given = {name: getattr(args, name) for name in ("repetitions", "n_steps", "max_batch")}
    effort = effort._replace(**{name: value for name, value in given.items() if value is not None})
    if args.device == "cuda":
        return {GPU_SECTION: chosen(gpu_jobs(effort), args.only)}
    return {name: chosen(SECTIONS[name](effort), args.only) for name in args.sections}


def measure(plan: dict[str, list[Job]], out: Path) -> bool:
    """
    Make the measurements, and keep each as soon as it is made.

    :return: whether none is missing
    """
    complete = True
    total = sum(job.seconds for jobs in plan.values() for job in jobs)
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
    with tqdm(total=total, desc="benchmark", bar_format=form, smoothing=0) as bar:
        for name, jobs in plan.items():
            cells: list[dict] = []
            missing = [job.name for job in jobs]
            for job, cell in zip(jobs, run_all(jobs, bar), strict=True):
                if cell is not None:
                    cells.append(cell)
                    missing.remove(job.name)
                write_section(out, name, Section(provenance.command_line(), cells, missing))
            complete = complete and not missing
    return complete


def make_parser() -> argparse.ArgumentParser:
    description, _, examples = (__doc__ or "").partition("\n\n    ")
    parser = argparse.ArgumentParser(
        description=description, epilog="    " + examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure (default: all)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PATTERN", help="measurements whose name fits, with * and ? as in a shell"
    )
    parser.add_argument("--quick", action="store_true", help="a minute or two: small numbers of everything")
    parser.add_argument("--repetitions", type=positive, help="turns of learn() (default: 15; quick: 2)")
    parser.add_argument("--n-steps", type=positive, help="of an iteration (default: as each training has it; quick: 512)")
    parser.add_argument("--max-batch", type=positive, metavar="SAMPLES", help="leave larger updates out (quick: 2048)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda: instead of all sections, CnnPolicy on a GPU"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder (default: %(default)s)")
    parser.add_argument("--report-only", action="store_true", help="tables and picture of what the folder has")
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: pass a whole number of at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
