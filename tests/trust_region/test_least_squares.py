import copy

import pytest
import torch as th
from torch import nn

from sb3_minitrpo import flat_params
from sb3_minitrpo.trust_region.least_squares import DAMPING_RANGE, adapted, gauss_newton_steps


def make_problem(dtype: th.dtype = th.float64, hidden: int = 6):
    th.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1)).to(dtype)
    states = th.randn(50, 3, dtype=th.float64)
    return network, states.to(dtype), (states.sum(1) ** 2).to(dtype)


def fit(network, states, targets, **kwargs):
    return gauss_newton_steps(network, network, states, targets, list(network.parameters()), **kwargs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float64, 1e-6), (th.float32, 1e-3)])
def test_a_step_is_that_of_dense_algebra(dtype, tolerance):
    network, states, targets = make_problem()
    params = dict(network.named_parameters())
    jacobian = th.func.jacrev(lambda p: th.func.functional_call(network, p, (states,)).flatten())(
        {name: param.detach() for name, param in params.items()}
    )
    J = th.cat([jacobian[name].reshape(50, -1) for name in params], dim=1)
    error = (network(states).flatten() - targets).detach()
    damping = 0.1
    G, gradient = J.T @ J / 50, J.T @ error / 50
    step = -th.linalg.solve(G + damping * th.eye(len(G), dtype=th.float64), gradient)
    predicted = -gradient @ step - 0.5 * step @ G @ step
    loss = 0.5 * error.square().mean()

    network, states, targets = make_problem(dtype)
    before = flat_params(network)
    info = fit(network, states, targets, damping=damping, n_steps=1, cg_iters=100)
    taken = (flat_params(network) - before).double()
    assert info.steps == 1
    assert float((taken - step).norm() / step.norm()) < tolerance
    new_loss = 0.5 * (network(states).flatten() - targets).detach().square().mean()
    assert info.loss == pytest.approx(2 * new_loss.item(), rel=1e-5)
    assert info.damping == adapted(damping, float((loss - new_loss) / predicted))


def test_a_linear_model_is_solved_in_one_step():
    """Without damping to speak of, the step ends at the least squares solution."""
    th.manual_seed(0)
    network = nn.Linear(3, 1).double()
    states, targets = th.randn(50, 3, dtype=th.float64), th.randn(50, dtype=th.float64)
    info = fit(network, states, targets, damping=1e-6, n_steps=1, cg_iters=10)
    design = th.cat([states, th.ones(50, 1, dtype=th.float64)], dim=1)
    best = th.linalg.lstsq(design, targets[:, None]).solution.flatten()
    assert th.allclose(flat_params(network), best, atol=1e-4)
    assert info.loss == pytest.approx((design @ best - targets).square().mean().item(), rel=1e-6)


def test_the_loss_never_rises():
    network, states, targets = make_problem(th.float32, hidden=32)
    loss = (network(states).flatten() - targets).square().mean().item()
    damping = 1e-3
    for _ in range(10):
        info = fit(network, states, targets, damping=damping)
        assert info.loss <= loss + 1e-6
        loss, damping = info.loss, info.damping
    assert loss < 0.05 * targets.var().item()


def test_a_step_that_does_not_lower_the_loss_is_not_taken():
    """Targets that V meets already, but for a gradient that is wrong on purpose."""

    class WrongSign(th.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return -grad

    network, states, targets = make_problem()
    before = flat_params(network)
    info = gauss_newton_steps(
        network, lambda s: WrongSign.apply(network(s)), states, targets, list(network.parameters()), damping=1.0
    )
    assert info.steps == 0
    assert info.damping == 1e4
    assert th.equal(flat_params(network), before)


def test_an_interruption_leaves_the_parameters_as_they_were():
    network, states, targets = make_problem()
    before = flat_params(network)
    calls = []

    def predict(states):
        calls.append(1)
        if len(calls) > 1 and not th.is_grad_enabled():
            raise KeyboardInterrupt
        return network(states)

    with pytest.raises(KeyboardInterrupt):
        gauss_newton_steps(network, predict, states, targets, list(network.parameters()))
    assert th.equal(flat_params(network), before)


@pytest.mark.parametrize("scale", [1e-20, 1e15, 1e30, 3e38])
def test_no_number_that_is_not_finite_is_left_behind(scale):
    network, states, targets = make_problem(th.float32)
    for _ in range(5):
        fit(network, states, scale * targets.sign())
        assert bool(flat_params(network).isfinite().all())


def test_is_in_evaluation_mode_and_leaves_others_alone():
    th.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1))
    statistics = copy.deepcopy(dict(network.named_buffers()))
    last = list(network[3].parameters())
    first = flat_params(network[0])
    states, targets = th.randn(50, 3), th.randn(50)
    state = th.get_rng_state()
    info = gauss_newton_steps(network, network, states, targets, last)
    assert info.steps > 0
    assert network.training
    assert network[2].training
    assert th.equal(flat_params(network[0]), first)
    assert all(th.equal(value, statistics[name]) for name, value in network.named_buffers())
    assert th.equal(state, th.get_rng_state())


def test_nothing_to_fit_is_no_error():
    network, states, targets = make_problem()
    assert gauss_newton_steps(network, network, states, targets, []).steps == 0


def test_damping_follows_the_ratio_and_stays_in_its_range():
    assert [adapted(1.0, ratio) for ratio in (1.0, 0.5, 0.1, -1.0, float("nan"))] == [1 / 3, 1.0, 3.0, 10.0, 10.0]
    assert adapted(DAMPING_RANGE[0], 1.0) == DAMPING_RANGE[0]
    assert adapted(DAMPING_RANGE[1], -1.0) == DAMPING_RANGE[1]
