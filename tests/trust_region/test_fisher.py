import pytest
import torch as th
from torch import nn

from sb3_minitrpo.trust_region.fisher import (
    double_backward_product,
    fisher_product,
    has_forward_mode,
    jacobian_by_forward_mode,
    jacobian_by_reverse_mode,
)
from sb3_minitrpo.trust_region.joint import fisher_blocks
from tests.trust_region.policies import FAMILIES, Problem, dense, make_problem, moved


def product_of(problem: Problem, make=fisher_product):
    policy, states = problem[:2]
    params = list(moved(policy, states).values())
    dist = policy.dist(states)
    product = fisher_product(policy, policy.dist, states, dist, params) if make is fisher_product else make(dist, params)
    return product, sum(param.numel() for param in params)


def outputs_of(policy: nn.Module):
    return lambda states: [block.z for block in fisher_blocks(policy.dist(states))]


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


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("beta", "tanh_normal")])
def test_forward_mode_agrees_with_reverse_mode(family):
    policy, states, *_ = make_problem(family)
    params = list(moved(policy, states).values())
    v = th.randn(sum(param.numel() for param in params), dtype=th.float64)
    reverse = jacobian_by_reverse_mode([z for z in outputs_of(policy)(states) if z.requires_grad], params)(v)
    forward = jacobian_by_forward_mode(policy, outputs_of(policy), states, params)(v)
    assert len(forward) == len(reverse)
    assert all(th.allclose(a, b, atol=1e-12) for a, b in zip(forward, reverse, strict=True))


class Pixels(nn.Module):
    """Convolutions, a layer under two names, and an activation that may lack a forward derivative."""

    def __init__(self, activation):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3).double()
        self.head = nn.Linear(3 * 4, 3).double()
        self.same_head = self.head
        self.activation = activation

    def dist(self, states):
        x = self.activation(self.conv(states["image"])).flatten(1)
        return th.distributions.Categorical(logits=self.same_head(x) + states["bias"])


class Square(th.autograd.Function):
    """Without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


@pytest.mark.parametrize(("activation", "forward_mode"), [(th.tanh, True), (Square.apply, False)])
def test_convolutions_take_forward_mode_if_they_can(activation, forward_mode, monkeypatch):
    th.manual_seed(0)
    policy = Pixels(activation)
    states = {"image": th.randn(9, 2, 4, 4, dtype=th.float64), "bias": th.randn(9, 3, dtype=th.float64)}
    params = list(policy.parameters())
    args = (policy, policy.dist, states, policy.dist(states), params)
    assert has_forward_mode(policy, outputs_of(policy), states, params) == forward_mode
    product = fisher_product(*args)
    monkeypatch.setattr("sb3_minitrpo.trust_region.fisher.has_convolutions", lambda policy: False)
    v = th.randn(sum(param.numel() for param in params), dtype=th.float64)
    assert th.allclose(product(v), fisher_product(*args)(v), atol=1e-12)
    assert th.equal(product(v), product(v))
    after = list(policy.parameters())
    assert all(param is before and param.grad is None for param, before in zip(after, params, strict=True))


@pytest.mark.parametrize("captured", ["weight", "both"])
def test_forward_mode_is_not_trusted_where_lent_parameters_do_not_arrive(captured):
    """A policy may keep references of its own to its parameters."""

    class Captured(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 3).double()
            self.own = [self.conv.weight, self.conv.bias]

        def dist(self, states):
            bias = self.own[1] if captured == "both" else self.conv.bias
            return th.distributions.Categorical(logits=th.conv1d(states, self.own[0], bias).sum(2))

    th.manual_seed(0)
    policy, states = Captured(), th.randn(5, 2, 6, dtype=th.float64)
    assert not has_forward_mode(policy, outputs_of(policy), states, list(policy.parameters()))


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
        fisher_product(problem.policy, problem.policy.dist, problem.states, mixture, list(problem.policy.parameters()))
