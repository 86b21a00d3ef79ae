"""Regression by damped Gauss-Newton steps, on the same solver and products as the policy's step."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_minitrpo.trust_region.averages import Average, average_here
from sb3_minitrpo.trust_region.conjugate_gradient import solve
from sb3_minitrpo.trust_region.fisher import Product, gauss_newton_product
from sb3_minitrpo.trust_region.joint import Block
from sb3_minitrpo.trust_region.modes import evaluation_mode
from sb3_minitrpo.trust_region.parameters import flat_params, flatten, set_flat_params
from sb3_minitrpo.trust_region.states import States

INITIAL_DAMPING = 1.0
DAMPING_RANGE = (1e-6, 1e6)


class RegressionInfo(NamedTuple):
    """
    What :func:`gauss_newton_steps` did.

    :param loss: mean (V − R)² at the end
    :param damping: μ for the next call
    :param steps: how many steps were taken; the others would not have lowered the loss
    """

    loss: float
    damping: float
    steps: int


def gauss_newton_steps(
    network: nn.Module,
    predict: Callable[[States], th.Tensor],
    states: States,
    targets: th.Tensor,
    params: Sequence[th.Tensor],
    damping: float = INITIAL_DAMPING,
    n_steps: int = 4,
    cg_iters: int = 10,
    average: Average = average_here,
) -> RegressionInfo:
    """
    Lower ℓ(φ) = ½ mean (V(s) − R)² by ``n_steps`` steps x, each from products alone:

        (G + μI) x = −∇ℓ,   G = mean JᵀJ,   J = ∂V/∂φ

    A step is taken if it lowers the loss. μ follows the ratio of the actual decrease to that of the quadratic model,
    −∇ℓᵀx − ½ xᵀGx: down where the model is good, up where it is not.

    Source: Levenberg (1944), Marquardt (1963); the rule for μ is that of Nocedal & Wright, *Numerical Optimization*,
    algorithm 4.1, in the form of a damping. ``network`` is in evaluation mode meanwhile, so that a loss is a function of
    the parameters and nothing else. No number that is not finite is written for good.

    :param network: the module that holds φ
    :param predict: states ↦ V, of ``n`` elements, by way of ``network``
    :param states: a batch of ``n`` states
    :param targets: R, shape ``(n,)``
    :param params: φ, all of which V depends on; with none, nothing is done
    :param damping: μ to begin with
    :param n_steps: how many steps to try
    :param cg_iters: the largest number of products per step
    :param average: see :class:`~sb3_minitrpo.trust_region.updater.TRPOUpdater`
    """
    n = len(targets)

    def residual() -> th.Tensor:
        return predict(states).flatten() - targets

    def mean_loss(error: th.Tensor) -> float:
        return float(average(0.5 * error.detach().double().square().mean(), n))

    taken = 0
    with evaluation_mode(network), th.enable_grad():
        for _ in range(n_steps if params else 0):
            error = residual()
            loss = mean_loss(error)
            gradient = average(flatten(th.autograd.grad(error, params, error.detach() / n, retain_graph=True)), n)
            G = gauss_newton_product(network, lambda s: [predict(s).flatten()], states, [Block(error, _identity)], params)
            solution = solve(damped(G, damping, average, n), -gradient, cg_iters)
            x, Ax = solution.x.double(), solution.Ax.double()
            predicted = float(-gradient.double().dot(x) - 0.5 * x.dot(Ax - damping * x))
            if not 0.0 < predicted < math.inf:
                break

            before, ratio = flat_params(params), math.nan
            try:
                set_flat_params(params, before + solution.x)
                with th.no_grad():
                    ratio = (loss - mean_loss(residual())) / predicted
            finally:
                if not ratio > 0.0:  # also if it is not a number, or an error came in between
                    set_flat_params(params, before)
            taken += ratio > 0.0
            damping = adapted(damping, ratio)
        with th.no_grad():
            return RegressionInfo(2.0 * mean_loss(residual()), damping, taken)


def damped(G: Product, damping: float, average: Average, n: int) -> Product:
    return lambda v: average(G(v), n) + damping * v


def adapted(damping: float, ratio: float) -> float:
    """μ after a step whose actual decrease was ``ratio`` of the model's."""
    if ratio > 0.75:
        damping /= 3.0
    elif not ratio > 0.25:
        damping *= 3.0 if ratio > 0.0 else 10.0
    return min(max(damping, DAMPING_RANGE[0]), DAMPING_RANGE[1])


def _identity(u: th.Tensor) -> th.Tensor:
    return u
