"""The numbers of a report, from records with curves that one can calculate with: at point k of 50 the return is k."""

import pytest

from comparison.curves import POINTS
from comparison.summary import collect, complete, summarize
from tests.scripts.comparison.examples import example_record

LAST = POINTS - 2  # the mean of the last tenth, so of k = 46 … 50


def summary(*records, targets=None, clock="wall"):
    return summarize(collect(records, clock), "trpo", targets or {})


def test_scores_of_a_task():
    numbers = summary(example_record("trpo"), example_record("trpo", seed=1, start=10))["tasks"]["CartPole-v1"]
    trpo = numbers["algorithms"]["trpo"]
    assert trpo["runs"] == 2
    assert trpo["final"]["value"] == pytest.approx(LAST + 5)
    assert trpo["area"]["value"] == pytest.approx((POINTS + 1) / 2 + 5)
    assert trpo["evaluation"]["value"] == pytest.approx(POINTS + 5)
    assert trpo["final"]["low"] <= trpo["final"]["value"] <= trpo["final"]["high"]


def test_at_equal_time_the_slower_has_done_less():
    """Both learn the same in a step; trpo takes twice as long, so it is half way when minitrpo is done."""
    records = [example_record("minitrpo", seed=seed) for seed in (0, 1)]
    records += [example_record("trpo", seed=seed, pace=2.0) for seed in (0, 1)]
    numbers = summary(*records)["tasks"]["CartPole-v1"]
    mini, contrib = numbers["algorithms"]["minitrpo"], numbers["algorithms"]["trpo"]

    assert numbers["equal_time"] == POINTS
    assert mini["final_at_equal_time"]["value"] == pytest.approx(LAST)
    assert contrib["final_at_equal_time"]["value"] == pytest.approx(POINTS / 2 - 2)
    assert mini["p_equal_steps"]["value"] == 0.5
    assert mini["p_equal_time"]["value"] == 1.0
    assert "p_equal_steps" not in contrib, "the baseline is not compared with itself"


def test_a_run_that_the_machine_slowed_down_does_not_change_what_is_compared():
    paces = [1.0, 1.0, 30.0]
    records = [
        example_record(label, seed=seed, pace=pace) for label in ("minitrpo", "trpo") for seed, pace in enumerate(paces)
    ]
    numbers = summary(*records)["tasks"]["CartPole-v1"]
    assert numbers["equal_time"] == POINTS
    assert numbers["algorithms"]["minitrpo"]["p_equal_time"]["value"] == 0.5


def test_processor_time_leaves_out_the_waiting():
    records = [example_record("minitrpo", waited=0.8), example_record("trpo")]
    assert summary(*records)["tasks"]["CartPole-v1"]["equal_time"] == POINTS
    assert summary(*records, clock="cpu")["tasks"]["CartPole-v1"]["equal_time"] == pytest.approx(POINTS / 5)


def test_time_to_a_return():
    records = [
        example_record("minitrpo", seed=0),
        example_record("minitrpo", seed=1, slope=2.0),
        example_record("trpo", slope=0.1),
    ]
    algorithms = summary(*records, targets={"CartPole-v1": 40.0})["tasks"]["CartPole-v1"]["algorithms"]
    # the mean over k−4 … k is k − 2: it reaches 40 at k = 42, and twice as steep at k = 22
    assert algorithms["minitrpo"]["reached"] == 2
    assert algorithms["minitrpo"]["steps_to_target"] == 100 * (42 + 22) / 2
    assert algorithms["minitrpo"]["seconds_to_target"] == (42 + 22) / 2
    assert (algorithms["trpo"]["reached"], algorithms["trpo"]["steps_to_target"]) == (0, None)


def test_without_a_target_it_is_where_the_baseline_ends():
    numbers = summary(example_record("minitrpo", slope=2.0), example_record("trpo"))["tasks"]["CartPole-v1"]
    assert numbers["target_return"] == pytest.approx(LAST)
    assert numbers["algorithms"]["minitrpo"]["steps_to_target"] == 100 * (LAST / 2 + 2)


def test_over_all_tasks_scores_are_normalised_and_probabilities_averaged():
    records = [
        example_record("minitrpo", "CartPole-v1", seed, slope=2.0) for seed in (0, 1)
    ] + [
        example_record("trpo", "CartPole-v1", seed, slope=1.0) for seed in (0, 1)
    ] + [
        example_record("minitrpo", "Pendulum-v1", seed, slope=10.0, start=-1000) for seed in (0, 1)
    ] + [
        example_record("trpo", "Pendulum-v1", seed, slope=20.0, start=-1000) for seed in (0, 1)
    ]  # fmt: skip
    overall = summary(*records)["all_tasks"]
    mini, contrib = overall["algorithms"]["minitrpo"], overall["algorithms"]["trpo"]

    assert overall["tasks"] == ["CartPole-v1", "Pendulum-v1"]
    assert mini["p_equal_steps"]["value"] == 0.5  # wins one task and loses the other
    # scores go from the first point, 1 or −990, to 2 · 48 or 20 · 48 − 1000; the better run of each task has 1
    worse = [(LAST - 1) / (2 * LAST - 1), (10 * LAST - 10) / (20 * LAST - 10)]
    assert mini["final"]["value"] == pytest.approx((1 + worse[1]) / 2)
    assert contrib["final"]["value"] == pytest.approx((1 + worse[0]) / 2)


def test_returns_that_never_change_can_be_normalised():
    overall = summary(example_record("trpo", slope=0.0), example_record("minitrpo", slope=0.0))["all_tasks"]
    assert overall["algorithms"]["minitrpo"]["final"]["value"] == 0.0


def test_a_task_that_an_algorithm_lacks_is_left_out_of_all_tasks():
    records = [example_record("trpo"), example_record("minitrpo"), example_record("trpo", "Pendulum-v1")]
    assert list(complete(collect(records, "wall"))) == ["CartPole-v1"]
    numbers = summary(*records)
    assert numbers["all_tasks"]["tasks"] == ["CartPole-v1"]
    assert list(numbers["tasks"]["Pendulum-v1"]["algorithms"]) == ["trpo"]
