"""Ax = b, from products with A alone."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch as th


class CGSolution(NamedTuple):
    """
    What :func:`solve` found.

    :param x: the solution, shape ``(n,)``
    :param Ax: A x, known from the residual without a further product, shape ``(n,)``
    :param iterations: number of products with A
    :param residual: ‖b − A x‖ / ‖b‖, as the recurrence has it
    :param outcome: ``"converged"``, ``"max_iterations"``, ``"zero_rhs"``, ``"nonpositive_curvature"`` or
        ``"nonfinite_product"``; after the last two, ``x`` is what was reached before
    """

    x: th.Tensor
    Ax: th.Tensor
    iterations: int
    residual: float
    outcome: str


@th.no_grad()
def solve(Avp: Callable[[th.Tensor], th.Tensor], b: th.Tensor, nsteps: int = 10, residual_tol: float = 1e-10) -> CGSolution:
    """
    Solve A x = b for a symmetric positive definite A by conjugate gradients, from x = 0.

    Source: Hestenes & Stiefel (1952); Nocedal & Wright, *Numerical Optimization*, algorithm 5.2. The answer to c·b is c
    times the answer to b, for any c > 0 that the numbers can hold: b is brought to length one first, and the tolerance
    is relative. No random number is drawn.

    :param Avp: v ↦ A v, shape ``(n,)`` to ``(n,)``
    :param b: right-hand side, shape ``(n,)``
    :param nsteps: the largest number of products
    :param residual_tol: stop once ‖b − A x‖ ≤ residual_tol · ‖b‖
    :return: the solution and how it was reached
    """
    scale = float(th.linalg.vector_norm(b, dtype=th.float64))
    x = th.zeros_like(b)
    if scale == 0.0:
        return CGSolution(x, x, 0, 0.0, "zero_rhs")
    b = b / scale

    r = b.clone()  # residual b − A x
    p = r  # search direction
    rr = float(r.dot(r))
    iterations, outcome = 0, "max_iterations"
    while iterations < nsteps:
        Ap = Avp(p)
        iterations += 1
        pAp = float(p.dot(Ap))
        if not math.isfinite(pAp):
            outcome = "nonfinite_product"
            break
        if pAp <= 0.0:
            outcome = "nonpositive_curvature"
            break
        alpha = rr / pAp
        x = x + alpha * p
        r = r - alpha * Ap
        rr_new = float(r.dot(r))
        if math.sqrt(rr_new) <= residual_tol:
            rr, outcome = rr_new, "converged"
            break
        p = r + (rr_new / rr) * p
        rr = rr_new
    return CGSolution(scale * x, scale * (b - r), iterations, math.sqrt(rr), outcome)


def conjugate_gradients(
    Avp: Callable[[th.Tensor], th.Tensor], b: th.Tensor, nsteps: int = 10, residual_tol: float = 1e-10
) -> th.Tensor:
    """
    The x of A x = b, for those who need no more than that; :func:`solve` has the parameters and tells the rest.

    :return: shape ``(n,)``
    """
    return solve(Avp, b, nsteps, residual_tol).x
