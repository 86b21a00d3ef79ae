"""The first step that keeps its promise."""

from collections.abc import Callable
from typing import NamedTuple


class LineSearchResult(NamedTuple):
    """
    What :func:`backtracking_line_search` found.

    :param accepted: whether a trial was accepted; if so, it is the last one that was evaluated
    :param fraction: c of the last trial
    :param backtracks: trials refused before the accepted one, or in all
    :param improve: L(θ₀ + cΔ) − L(θ₀) of the last trial
    :param kl: KL(θ₀ + cΔ) of the last trial, in nats
    :param outcome: ``"accepted"``, or why the last trial was not
    """

    accepted: bool
    fraction: float
    backtracks: int
    improve: float
    kl: float
    outcome: str


def backtracking_line_search(
    trial: Callable[[float], tuple[float, float]],
    expected_improve: float,
    max_kl: float,
    shrink: float,
    max_trials: int,
    accept_ratio: float,
) -> LineSearchResult:
    """
    Try c = 1, α, α², … and take the first with

        KL(θ₀ + cΔ) ≤ δ,   L(θ₀ + cΔ) − L(θ₀) > 0   and   L(θ₀ + cΔ) − L(θ₀) ≥ ratio · c gᵀΔ.

    Source: Schulman et al. (2015), appendix C; the ratio is the condition of Armijo. A trial whose L or KL is not
    finite is refused like any other.

    :param trial: c ↦ (L(θ₀ + cΔ) − L(θ₀), KL(θ₀ + cΔ))
    :param expected_improve: gᵀΔ, what the linear model promises for c = 1
    :param max_kl: δ, in nats
    :param shrink: α, in (0, 1)
    :param max_trials: how many c are tried at the most
    :param accept_ratio: the part of the promised improvement that must be kept
    """
    for backtracks in range(max_trials):
        fraction = shrink**backtracks
        improve, kl = trial(fraction)
        # Each comparison is false for NaN: what is not a number is refused.
        if not kl <= max_kl:
            outcome = "KL above the bound" if kl > max_kl else "KL not finite"
        elif not improve > 0.0:
            outcome = "surrogate not improved" if improve <= 0.0 else "surrogate not finite"
        elif not improve >= accept_ratio * fraction * expected_improve:
            outcome = "improvement below the accepted ratio"
        elif improve == float("inf"):
            outcome = "surrogate not finite"
        else:
            return LineSearchResult(True, fraction, backtracks, improve, kl, "accepted")
    return LineSearchResult(False, fraction, max_trials, improve, kl, outcome)
