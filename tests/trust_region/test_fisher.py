import pytest
import torch as th

from sb3_minitrpo.trust_region.fisher import double_backward_product, fisher_product
from tests.trust_region.policies import FAMILIES, Problem, dense, make_problem, moved


def product_of(problem: Problem, make=fisher_product):
    params = list(moved(problem.policy, problem.states).values())
    dist = problem.policy.dist(problem.states)
    args = (params, len(problem.states)) if make is fisher_product else (params,)
    return make(dist, *args), sum(param.numel() for param in params)


def as_matrix(product, n: int, dtype: th.dtype) -> th.Tensor:
    return th.stack([product(e) for e in th.eye(n, dtype=dtype)], dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float64, 1e-6), (th.float32, 1e-3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_is_the_hessian_of_the_joint_kl(family, dtype, tolerance):
    F = as_matrix(*product_of(make_problem(family, dtype)), dtype)
    H = dense(make_problem(family)).fisher  # float64
    assert float((F - H).norm() / H.norm()) < tolerance
    assert float((F - F.T).norm() / F.norm()) < tolerance
    assert float(th.linalg.eigvalsh((F + F.T).double() / 2).min()) > -tolerance * float(F.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_is_linear_and_twice_the_same(family):
    product, n = product_of(make_problem(family))
    u, v = th.randn(2, n, dtype=th.float64)
    assert th.equal(product(v), product(v))
    assert th.allclose(product(2 * u - 3 * v), 2 * product(u) - 3 * product(v), atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_double_backward_agrees(family):
    problem = make_problem(family)
    (product, n), (other, _) = product_of(problem), product_of(problem, double_backward_product)
    v = th.randn(n, dtype=th.float64)
    assert th.allclose(product(v), other(v), atol=1e-12)


def test_needs_no_second_derivative_of_the_network():
    """The second derivative of this activation is wrong on purpose; the product does not see it."""

    class CubeWithoutCurvature(th.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 3 * x.detach() ** 2 * grad

    problem = make_problem("normal")
    right = problem.policy
    wrong = make_problem("normal").policy
    right.net[1].forward = lambda x: x**3
    wrong.net[1].forward = CubeWithoutCurvature.apply
    assert th.equal(right.dist(problem.states).mean, wrong.dist(problem.states).mean)
    (product, n), (other, _) = product_of(problem), product_of(problem._replace(policy=wrong))
    v = th.randn(n, dtype=th.float64)
    assert th.allclose(product(v), other(v), atol=1e-12)


def test_a_family_without_a_kl_is_an_error_with_a_remedy():
    problem = make_problem("normal")
    mixture = th.distributions.MixtureSameFamily(
        th.distributions.Categorical(logits=th.zeros(40, 2)),
        th.distributions.Normal(problem.policy.dist(problem.states).mean, th.ones(2)),
    )
    with pytest.raises(ValueError, match=r"MixtureSameFamily.*register_kl"):
        fisher_product(mixture, list(problem.policy.parameters()), 40)
