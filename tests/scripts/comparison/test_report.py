"""What readers get."""

import json

import pytest

from comparison.report import number, write_report
from tests.scripts.comparison.examples import example_record


def report(out, records, baseline="trpo", **kwargs):
    path = write_report(out, records, baseline, {}, "wall", "the command", **kwargs)
    return path.read_text(), json.loads((out / "report.json").read_text())


@pytest.fixture
def records():
    return [
        example_record(label, task, seed, slope=slope)
        for label, slope in (("minitrpo", 2.0), ("trpo", 1.0))
        for task in ("CartPole-v1", "Pendulum-v1")
        for seed in (0, 1)
    ]


def test_report_has_tables_pictures_and_everything_as_json(tmp_path, records):
    text, everything = report(tmp_path, records)
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["CartPole-v1.png", "Pendulum-v1.png", "all_tasks.png"]
    assert all(f"({name})" in text for name in pictures)
    assert "| minitrpo | 2 | 96.0 [96.0, 96.0] | 96.0 [96.0, 96.0] | 51.0 [51.0, 51.0] | 100 [100, 100] |" in text
    assert "| Pendulum-v1 | minitrpo | 1.00 [1.00, 1.00] |" in text
    assert "Note" not in text
    assert [run["spec"]["seed"] for run in everything["runs"]] == [0, 1] * 4
    assert everything["summary"]["all_tasks"]["algorithms"]["minitrpo"]["p_equal_steps"]["value"] == 1.0


def test_readers_are_told_what_weakens_the_numbers(tmp_path, records):
    records += [example_record("trpo", seed=2, commit="def", waited=0.4)]
    text, _ = report(tmp_path, records, missing=[example_record("minitrpo", seed=2).spec])
    assert "1 run is missing: minitrpo on CartPole-v1, seed 2" in text
    assert "2 different commits" in text
    assert "waited for a processor for up to 40% of its training" in text


def test_report_without_the_baseline_and_with_one_algorithm(tmp_path, records):
    text, _ = report(tmp_path, [record for record in records if record.spec.label == "minitrpo"])
    assert "## Returns" in text
    assert "P(algorithm ≥ trpo)" not in text


def test_one_seed_has_no_interval(tmp_path, records):
    text, _ = report(tmp_path, [record for record in records if record.spec.seed == 0])
    assert "| CartPole-v1, 5,000 steps | minitrpo | 1 | 96.0 | 96.0 | 51.0 | 100 |" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.123, "0.12"), (-1.5, "−1.50"), (12.34, "12.3"), (-123.4, "−123"), (12345.6, "12,346"), (None, "–")],
)
def test_numbers_have_about_three_digits(value, text):
    assert number(value) == text
