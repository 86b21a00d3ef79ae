import itertools
import math

import pytest
import torch as th
from torch.distributions import Bernoulli, Categorical, Independent, LogNormal, Normal

from sb3_minitrpo import MultiCategorical
from sb3_minitrpo.trust_region import joint
from tests.trust_region.policies import FAMILIES, Policy, make_problem, per_state


def test_kl_of_a_gaussian_is_old_from_new_summed_over_dimensions():
    """KL(N(0, 1) ‖ N(1, 2²)) = log 2 + (1 + 1)/8 − 1/2 by hand; the other way round it would be 2 − log 2."""
    old, new = Normal(th.zeros(4, 3), th.ones(4, 3)), Normal(th.ones(4, 3), 2 * th.ones(4, 3))
    by_hand = 3 * (math.log(2) + 2 / 8 - 1 / 2)
    for wrap in (lambda d: d, lambda d: Independent(d, 1)):
        assert th.allclose(joint.kl(wrap(old), wrap(new)), th.full((4,), by_hand))


@pytest.mark.parametrize("family", ["multi_categorical", "independent_categorical", "bernoulli", "categorical_logits"])
def test_discrete_families_agree_with_enumeration(family):
    """Log-probability, KL and entropy of the whole action, by running through all actions."""
    old, new = (make_problem(family, seed=seed).policy.dist(th.ones(1, 3, dtype=th.float64)) for seed in (0, 1))
    choices = {"multi_categorical": [2, 3], "independent_categorical": [3, 3], "bernoulli": [2, 2], "categorical_logits": [3]}
    actions = [th.tensor([action]) for action in itertools.product(*map(range, choices[family]))]
    if family == "categorical_logits":
        actions = [action[:, 0] for action in actions]
    if family == "bernoulli":
        actions = [action.double() for action in actions]
    log_p, log_q = (th.stack([joint.log_prob(dist, action) for action in actions]) for dist in (old, new))
    assert log_p.exp().sum().item() == pytest.approx(1.0)
    assert joint.kl(old, new).item() == pytest.approx((log_p.exp() * (log_p - log_q)).sum().item())
    assert joint.entropy(old).item() == pytest.approx(-(log_p.exp() * log_p).sum().item())


def test_entropy_without_a_closed_form_is_none():
    assert joint.entropy(make_problem("tanh_normal").policy.dist(th.ones(1, 3, dtype=th.float64))) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_snapshot_does_not_move_with_the_policy(family):
    """``log_std.expand_as(mu).detach()`` is a view of the live parameter; a snapshot is not."""
    policy, states, actions, *_ = make_problem(family)
    dist = policy.dist(states)
    old = joint.snapshot(dist)
    before = per_state(old.log_prob(actions)).clone()
    assert th.equal(before, per_state(dist.log_prob(actions)))
    with th.no_grad():
        for param in policy.parameters():
            param.add_(0.5)
    assert th.equal(per_state(old.log_prob(actions)), before)
    assert not before.requires_grad
    assert bool((joint.kl(old, policy.dist(states)) > 0).all())


def test_a_detached_view_would_have_moved():
    """The trap itself, so that the test above is known to be able to fail."""
    std = th.ones(2, requires_grad=True)
    live = Normal(th.zeros(4, 2), std.expand(4, 2))
    view, own = live.scale.detach(), joint.snapshot(live).scale
    with th.no_grad():
        std.add_(1.0)
    assert th.equal(view, 2 * th.ones(4, 2))
    assert th.equal(own, th.ones(4, 2))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("beta", "tanh_normal")])
def test_blocks_are_the_hessian_of_kl_in_the_parameters(family):
    """M of one state, block by block, against the dense Hessian of KL(z₀ ‖ z) in z at z₀, with the rest held."""
    z0 = th.randn(1, FAMILIES[family][0], dtype=th.float64)
    log_std = th.randn(2, dtype=th.float64)

    def kl_to(z: th.Tensor) -> th.Tensor:
        old, new = (FAMILIES[family][1](x, log_std) for x in (z0, z))
        return joint.kl(old, new).sum()

    def through_blocks(v: th.Tensor) -> th.Tensor:
        z = z0.clone().requires_grad_()
        blocks = [block for block in joint.fisher_blocks(FAMILIES[family][1](z, log_std)) if block.z.requires_grad]
        outputs = tuple(block.z for block in blocks)
        J = [th.autograd.grad(out.flatten()[i], z, retain_graph=True)[0] for out in outputs for i in range(out.numel())]
        Jv = (th.stack([row.flatten() for row in J]) @ v).split([out.numel() for out in outputs])
        MJv = [block.metric(x.view_as(block.z)) for block, x in zip(blocks, Jv, strict=True)]
        return th.autograd.grad(outputs, z, MJv)[0].flatten()

    H = th.autograd.functional.hessian(kl_to, z0).flatten(2).flatten(0, 1)
    M = th.stack([through_blocks(e) for e in th.eye(z0.numel(), dtype=th.float64)], dim=1)
    assert th.allclose(M, H.view_as(M), atol=1e-10)


def test_an_unknown_family_has_no_blocks():
    assert joint.fisher_blocks(LogNormal(th.zeros(1), th.ones(1))) is None
    assert joint.fisher_blocks(Independent(LogNormal(th.zeros(1, 2), th.ones(1, 2)), 1)) is None
    assert joint.fisher_blocks(Bernoulli(logits=th.zeros(1, 2))) is not None


def test_multi_categorical_samples_whole_actions():
    th.manual_seed(0)
    dist = MultiCategorical([Categorical(probs=th.tensor([[0.0, 1.0]])), Categorical(probs=th.tensor([[0.0, 0.0, 1.0]]))])
    assert th.equal(dist.sample(), th.tensor([[1, 2]]))
    assert dist.log_prob(th.tensor([[1, 2]])).shape == (1,)
    assert isinstance(Policy(*FAMILIES["multi_categorical"]).dist(th.ones(2, 3)), MultiCategorical)
