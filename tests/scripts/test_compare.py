"""scripts/compare.py, as its users call it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import compare
from comparison.records import record_path, write_record
from tests.scripts.comparison.examples import example_record

SCRIPT = Path(compare.__file__)
SETTINGS = "default: {n_timesteps: 500, policy: MlpPolicy, n_steps: 128}"


@pytest.fixture
def short(tmp_path):
    """Arguments for runs of a moment."""
    settings = tmp_path / "settings.yml"
    settings.write_text(SETTINGS)
    return [
        "--settings",
        str(settings),
        "--out",
        str(tmp_path),
        "--tasks",
        "CartPole-v1",
        "--eval-episodes",
        "1",
        "--jobs",
        "1",
    ]


def records_of(folder):
    return {path: path.read_bytes() for path in (folder / "records").iterdir()}


def test_finished_runs_are_kept_and_missing_ones_are_made(tmp_path, short):
    command = [*short, "--algos", "minitrpo", "trpo", "--seeds", "0"]
    first = subprocess.run([sys.executable, SCRIPT, *command], capture_output=True, text=True, check=True)
    assert first.stdout.split() == [str(tmp_path / "report.md")]
    assert "100%" in first.stderr, "the progress bar"
    before = records_of(tmp_path)
    assert len(before) == 2
    assert all(len(content) < 4000 for content in before.values()), "a record is a few kB"
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["baseline"] == "trpo"

    lost, kept = sorted(before)
    lost.unlink()
    modified = kept.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "logs")
    assert compare.main(command) == 0
    assert [log.stem for log in (tmp_path / "logs").iterdir()] == [lost.stem], "only the missing run was made"
    assert kept.stat().st_mtime_ns == modified
    assert json.loads(lost.read_text())["returns"] == json.loads(before[lost])["returns"], "and gave what it had given"


def test_a_crashed_run_is_reported_and_the_others_go_on(tmp_path, short, capsys):
    status = compare.main([*short, "--algos", "tests.scripts.crashing:Crashing", "minitrpo", "--seeds", "0"])
    assert status == 1
    assert "Crashing on CartPole-v1, seed 0 crashed: RuntimeError: this algorithm always crashes" in capsys.readouterr().err
    assert [path.name.split("_")[1] for path in records_of(tmp_path)] == ["minitrpo"]
    (log,) = (tmp_path / "logs").glob("*Crashing*")
    assert "Traceback" in log.read_text()
    assert "1 run is missing: Crashing on CartPole-v1, seed 0" in (tmp_path / "report.md").read_text()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_comparison_ends_its_processes_and_says_how_to_go_on(tmp_path, short, signal_sent):
    command = [sys.executable, SCRIPT, *short, "--steps", "100000000"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the suite runs in the background
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "logs").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)  # the first run is at work
        process.send_signal(signal_sent)
        said, errors = process.communicate(timeout=60)
        assert process.returncode == compare.INTERRUPTED
        assert "0 of 6 runs finished: the same command goes on" in said
        assert "Traceback" not in errors
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # nobody is left of the session
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_report_only_takes_the_records_that_are_chosen(tmp_path, capsys):
    for label in ("minitrpo", "trpo", "ppo"):
        for seed in (0, 1):
            record = example_record(label, seed=seed)
            write_record(record_path(tmp_path, record.spec), record)
    assert compare.main(["--report-only", "--out", str(tmp_path), "--algos", "minitrpo", "ppo", "--seeds", "1"]) == 0
    runs = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert [(run["spec"]["label"], run["spec"]["seed"]) for run in runs] == [("minitrpo", 1), ("ppo", 1)]

    assert compare.main(["--report-only", "--out", str(tmp_path)]) == 0
    assert len(json.loads((tmp_path / "report.json").read_text())["runs"]) == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--algos", "reinforce"], "algorithm 'reinforce': choose from"),
        (["--tasks", "NoTask-v0"], "task 'NoTask-v0'"),
        (["--seeds", "-1"], "whole number of at least 0"),
        (["--steps", "0"], "whole number of at least 1"),
        (["--jobs", "two"], "'two': pass a whole number of at least 1"),
        (["--settings", "none.yml"], "settings file none.yml"),
        (["--baseline", "ppo"], "--baseline ppo: choose from minitrpo, trpo"),
        (["--report-only"], "has no finished run"),
        (["--clock", "sun"], "invalid choice: 'sun'"),
    ],
)
def test_wrong_arguments_are_clear_errors(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as end:
        compare.main(["--out", str(tmp_path), *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir()), "nothing was begun"
