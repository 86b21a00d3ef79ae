import pytest
import torch as th

from sb3_minitrpo import conjugate_gradients
from sb3_minitrpo.trust_region.conjugate_gradient import solve


def spd(n: int, dtype: th.dtype = th.float64) -> th.Tensor:
    th.manual_seed(n)
    A = th.randn(n, n, dtype=dtype)
    return A @ A.T / n + 0.1 * th.eye(n, dtype=dtype)


def relative(a: th.Tensor, b: th.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float64, 1e-6), (th.float32, 1e-3)])
@pytest.mark.parametrize("n", [1, 5, 30])
def test_agrees_with_a_dense_solve(n, dtype, tolerance):
    A, b = spd(n, dtype), th.ones(n, dtype=dtype)
    x = conjugate_gradients(lambda v: A @ v, b, nsteps=3 * n)
    assert relative(x, th.linalg.solve(A.double(), b.double())) < tolerance
    assert x.dtype == dtype


def test_a_hand_derived_first_iterate():
    """A = diag(1, 3), b = (1, 1): α = bᵀb / bᵀAb = 2/4."""
    found = solve(lambda v: v * th.tensor([1.0, 3.0]), th.ones(2), nsteps=1)
    assert th.allclose(found.x, th.tensor([0.5, 0.5]))
    assert th.allclose(found.Ax, th.tensor([0.5, 1.5]))
    assert found.residual == pytest.approx(0.5)  # b − Ax = (0.5, −0.5)
    assert (found.iterations, found.outcome) == (1, "max_iterations")


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e25])
def test_the_answer_scales_with_the_right_hand_side(scale):
    """No absolute tolerance, no 1e-10 in a denominator, no square that underflows in float32."""
    A, b = spd(8, th.float32), th.linspace(-1, 1, 8)
    x, iterations = [solve(lambda v: A @ v, factor * b, nsteps=6)[:3:2] for factor in (1.0, scale)]
    assert relative(iterations[0] / scale, x[0]) < 1e-4
    assert iterations[1] == x[1]


def test_stops_on_the_relative_residual_and_says_so():
    A, b = spd(30), th.ones(30, dtype=th.float64)
    found = solve(lambda v: A @ v, b, nsteps=100, residual_tol=1e-2)
    assert found.outcome == "converged"
    assert found.iterations < 30
    assert found.residual <= 1e-2
    assert found.residual == pytest.approx(relative(A @ found.x, b), rel=1e-6)
    one_less = solve(lambda v: A @ v, b, nsteps=found.iterations - 1, residual_tol=1e-2)
    assert one_less.residual > 1e-2


def test_counts_one_product_per_iteration_and_knows_ax_without_another():
    A, b = spd(20), th.ones(20, dtype=th.float64)
    calls = []
    found = solve(lambda v: calls.append(1) or A @ v, b, nsteps=7)
    assert len(calls) == found.iterations == 7
    assert relative(found.Ax, A @ found.x) < 1e-12


def test_zero_right_hand_side_needs_no_product():
    found = solve(lambda v: pytest.fail("a product with nothing to solve"), th.zeros(3))
    assert th.equal(found.x, th.zeros(3))
    assert (found.iterations, found.outcome) == (0, "zero_rhs")


def test_nonpositive_curvature_ends_with_what_there_is():
    found = solve(lambda v: v * th.tensor([1.0, -1.0]), th.tensor([1.0, 0.5]), nsteps=10)
    assert found.outcome == "nonpositive_curvature"
    assert found.iterations == 2
    assert bool(found.x.isfinite().all())
    assert bool(found.x.any())


def test_a_product_that_is_not_finite_ends_with_what_there_is():
    products = iter([th.tensor([1.0, 2.0]), th.tensor([float("nan"), 0.0])])
    found = solve(lambda v: next(products), th.ones(2), nsteps=10)
    assert found.outcome == "nonfinite_product"
    assert bool(found.x.isfinite().all())
    assert bool(found.x.any())


def test_draws_no_random_number_and_leaves_b_alone():
    A, b = spd(5), th.ones(5, dtype=th.float64)
    state = th.get_rng_state()
    first, second = (conjugate_gradients(lambda v: A @ v, b) for _ in range(2))
    assert th.equal(first, second)
    assert th.equal(state, th.get_rng_state())
    assert th.equal(b, th.ones(5, dtype=th.float64))
