import pytest
import torch as th
from torch import nn

from sb3_minitrpo import flat_grad, flat_params, set_flat_params


@pytest.fixture
def net() -> nn.Module:
    th.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[1].requires_grad_(False)
    return net


def test_all_three_mean_the_same_parameters_in_the_same_order(net):
    flat = flat_params(net)
    assert flat.shape == (3 * 4 + 4 + 4 * 2 + 2,)  # the frozen layer is not among them
    weights = th.arange(float(len(flat)))
    loss = (th.cat([net[0].weight.view(-1), net[0].bias, net[2].weight.view(-1), net[2].bias]) * weights).sum()
    assert th.equal(flat_grad(loss, net), weights)
    frozen = net[1].weight.clone()
    set_flat_params(net, weights)
    assert th.equal(flat_params(net), weights)
    assert th.equal(net[0].weight.view(-1), weights[:12])
    assert th.equal(net[1].weight, frozen)


def test_a_list_of_parameters_will_do(net):
    assert th.equal(flat_params(net.parameters()), flat_params(net))
    assert th.equal(flat_params([net[2].bias]), net[2].bias)


def test_flat_params_is_a_copy(net):
    flat = flat_params(net)
    before = flat.clone()
    net[0].weight.data.add_(1.0)
    assert th.equal(flat, before)


def test_parameters_do_not_become_views_of_the_vector(net):
    """Else an optimizer's in-place step would change the saved parameters."""
    saved = flat_params(net)
    before = saved.clone()
    set_flat_params(net, saved)
    net(th.ones(1, 3)).sum().backward()
    th.optim.SGD(net.parameters(), lr=1.0).step()
    assert not th.equal(flat_params(net), before)
    assert th.equal(saved, before)


@pytest.mark.parametrize("size", [0, 25, 27])
def test_a_vector_of_the_wrong_size_is_refused_whole(net, size):
    before = flat_params(net)
    with pytest.raises(ValueError, match="26"):
        set_flat_params(net, th.zeros(size))
    assert th.equal(flat_params(net), before)


def test_the_gradient_is_zero_where_nothing_depends(net):
    grad = flat_grad(net[2].bias.sum(), net)
    assert th.equal(grad, th.cat([th.zeros(24), th.ones(2)]))
    assert all(param.grad is None for param in net.parameters())


def test_create_graph_keeps_the_graph_whatever_retain_graph_says():
    """The sketch of the step in circulation passes both, loses the graph, and its first product crashes."""
    x = th.tensor([1.0, 2.0], requires_grad=True)
    grad = flat_grad((x**3).sum(), [x], create_graph=True, retain_graph=False)
    product = flat_grad(grad.dot(th.tensor([1.0, 10.0])), [x], retain_graph=True)
    assert th.equal(product, th.tensor([6.0, 120.0]))  # 6x v
    assert th.equal(product, flat_grad(grad.dot(th.tensor([1.0, 10.0])), [x]))
