import math

import pytest

from sb3_minitrpo.trust_region.line_search import backtracking_line_search

NAN, INF = math.nan, math.inf


def search(trial, expected_improve=1.0, accept_ratio=0.1, max_trials=10):
    tried = []

    def counted(fraction):
        tried.append(fraction)
        return trial(fraction)

    found = backtracking_line_search(
        counted, expected_improve, max_kl=0.01, shrink=0.5, max_trials=max_trials, accept_ratio=accept_ratio
    )
    return found, tried


def test_takes_the_first_that_keeps_both_promises():
    """KL = 0.04 c²: 0.04, 0.01. The bound itself is inside."""
    found, tried = search(lambda c: (c, 0.04 * c * c))
    assert tried == [1.0, 0.5]
    assert found == (True, 0.5, 1, 0.5, 0.01, "accepted")


def test_steps_shrink_by_the_factor_until_the_trials_are_used_up():
    found, tried = search(lambda c: (1.0, 1.0), max_trials=4)
    assert tried == [1.0, 0.5, 0.25, 0.125]
    assert not found.accepted
    assert found.backtracks == 4


@pytest.mark.parametrize(
    ("improve", "kl", "outcome"),
    [
        (1.0, 0.02, "KL above the bound"),
        (1.0, INF, "KL above the bound"),
        (1.0, NAN, "KL not finite"),
        (0.0, 0.0, "surrogate not improved"),
        (-INF, 0.0, "surrogate not improved"),
        (NAN, 0.0, "surrogate not finite"),
        (INF, 0.0, "surrogate not finite"),
    ],
)
def test_a_bad_trial_is_refused_for_its_reason(improve, kl, outcome):
    found, _ = search(lambda c: (improve, kl))
    assert not found.accepted
    assert found.outcome == outcome


def test_the_accepted_ratio_is_used():
    """A trial brings 0.05 of the promise at c = 1, and all of it further in: accepted where the ratio first holds."""
    brings = {1.0: 0.05, 0.5: 0.09 * 0.5, 0.25: 0.11 * 0.25}
    found, tried = search(lambda c: (brings[c], 0.0))
    assert tried == [1.0, 0.5, 0.25]
    assert found.accepted
    assert search(lambda c: (brings[c], 0.0), accept_ratio=0.0)[1] == [1.0]
    refused, _ = search(lambda c: (brings[1.0] * c, 0.0))
    assert refused.outcome == "improvement below the accepted ratio"
