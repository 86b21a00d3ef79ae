"""The settings of one update, and what values they may have."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


def _positive(value: Any) -> bool:
    return isinstance(value, Real) and 0.0 < float(value) < math.inf


def _not_negative(value: Any) -> bool:
    return isinstance(value, Real) and 0.0 <= float(value) < math.inf


def _count(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) >= 1


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_kl": (_positive, "a trust region has a size: pass a finite number above 0, such as 0.01"),
    "cg_iters": (_count, "pass a whole number of at least 1, such as 10"),
    "cg_damping": (_not_negative, "F + λI must stay positive definite: pass a finite number of at least 0, such as 0.1"),
    "backtrack_coeff": (lambda x: _positive(x) and x < 1.0, "steps must shrink: pass a number in (0, 1), such as 0.8"),
    "backtrack_iters": (_count, "pass a whole number of at least 1, such as 10"),
    "accept_ratio": (lambda x: _not_negative(x) and x < 1.0, "pass a number in [0, 1), such as 0.1"),
    "residual_tol": (_not_negative, "pass a finite number of at least 0, such as 1e-10"),
    "ent_coef": (_not_negative, "pass a finite number of at least 0"),
    "sub_sampling_factor": (_count, "pass a whole number of at least 1; 1 uses every state"),
}


def check_setting(field: str, value: Any, name: str | None = None) -> None:
    """
    :param field: a field of :class:`TRPOConfig`
    :param value: the value to check
    :param name: what the message calls it, if not ``field``
    :raises ValueError: with the value and the remedy
    """
    holds, remedy = RULES[field]
    if isinstance(value, bool) or not holds(value):
        raise ValueError(f"{name or field}={value!r}: {remedy}")


@dataclass(frozen=True)
class TRPOConfig:
    """
    The settings of one update.

    :param max_kl: δ, the largest mean KL(π₀ ‖ π_θ) of the joint action, in nats
    :param cg_iters: the largest number of Fisher-vector products
    :param cg_damping: λ in (F + λI) x = g
    :param backtrack_coeff: α, the factor between two trials of the line search
    :param backtrack_iters: the largest number of trials
    :param accept_ratio: a trial must bring this part of the improvement that the gradient promises
    :param residual_tol: the solver stops at ‖g − (F + λI)x‖ ≤ residual_tol · ‖g‖
    :param ent_coef: weight of the entropy in the surrogate objective, per nat
    :param sub_sampling_factor: F is averaged over every k-th state only; gradient and line search see all
        (Schulman et al., 2015, appendix C)
    :raises ValueError: for a value that cannot work
    """

    max_kl: float = 1e-2
    cg_iters: int = 10
    cg_damping: float = 1e-2
    backtrack_coeff: float = 0.8
    backtrack_iters: int = 15
    accept_ratio: float = 0.1
    residual_tol: float = 1e-10
    ent_coef: float = 0.0
    sub_sampling_factor: int = 1

    def __post_init__(self) -> None:
        for field in RULES:
            check_setting(field, getattr(self, field))
