import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.nn import functional as F

from sb3_minitrpo.distributions import action_distribution
from sb3_minitrpo.numpy_mlp import regression_gradient
from sb3_minitrpo.numpy_policy import fast_fisher_product, flat, numpy_policy
from sb3_minitrpo.trust_region.fisher import fisher_product

ACTION_SPACES = {
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "box_matrix": spaces.Box(-1.0, 1.0, (2, 2)),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 4, 3]),
    "multi_binary": spaces.MultiBinary(3),
}


def make_policy(
    action_space: str = "box", shape: tuple[int, ...] = (5,), cls=ActorCriticPolicy, **kwargs
) -> ActorCriticPolicy:
    th.manual_seed(0)
    observations = spaces.Box(-np.inf, np.inf, shape)
    policy = cls(observations, ACTION_SPACES[action_space], lambda _: 1e-3, **kwargs)
    with th.no_grad():
        for param in policy.parameters():  # the heads start near zero: give them something to say
            param.add_(0.3 * th.randn_like(param))
    return policy


@pytest.mark.parametrize("kwargs", [{}, {"activation_fn": nn.ReLU, "net_arch": [8]}, {"activation_fn": nn.Sigmoid},
                                    {"net_arch": []}, {"share_features_extractor": False}])  # fmt: skip
@pytest.mark.parametrize("action_space", ACTION_SPACES)
def test_values_and_log_probabilities_are_those_of_torch(action_space, kwargs):
    policy = make_policy(action_space, **kwargs)
    fast = numpy_policy(policy)
    observations = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    actions, z = fast.act(observations, fast.head.noise(1, 50)[0])
    values, log_probs = fast.evaluate(observations, z, actions)
    with th.no_grad():
        expected_values, expected_log_probs, _ = policy.evaluate_actions(th.as_tensor(observations), th.as_tensor(actions))
        torch_actions, torch_values, torch_log_probs = policy(th.as_tensor(observations))
    assert th.allclose(values, expected_values, atol=1e-5)
    assert th.allclose(log_probs, expected_log_probs, atol=1e-5)
    assert actions.reshape(torch_actions.shape).dtype == torch_actions.numpy().dtype
    for ours, theirs in ((values, torch_values), (log_probs, torch_log_probs)):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("action_space", ["discrete", "multi_discrete", "multi_binary"])
def test_discrete_actions_have_the_distribution_of_the_policy(action_space):
    """Counts of whole actions in one state against their probabilities: a χ² test at a fixed seed."""
    policy = make_policy(action_space)
    with th.no_grad():
        for param in policy.action_net.parameters():
            param.mul_(0.3)  # no action so rare that it does not occur
    fast = numpy_policy(policy)
    n = 20_000
    observation = np.ones((1, 5), dtype=np.float32)
    observations = observation.repeat(n, axis=0)
    actions, z = fast.act(observations, fast.head.noise(1, n)[0])
    _, log_probs = fast.evaluate(observations, z, actions)
    kinds, first, counts = np.unique(actions.reshape(n, -1), axis=0, return_index=True, return_counts=True)
    probs = log_probs.numpy()[first].astype(float)
    expected = n * np.exp(probs)
    assert expected.sum() == pytest.approx(n, rel=1e-4)  # every action occurred
    assert stats.chisquare(counts, expected * n / expected.sum()).pvalue > 0.01
    assert len(kinds) == {"discrete": 4, "multi_discrete": 24, "multi_binary": 8}[action_space]


def test_gaussian_actions_have_the_distribution_of_the_policy():
    policy = make_policy()
    fast = numpy_policy(policy)
    observation = np.ones((1, 5), dtype=np.float32)
    actions, _ = fast.act(observation.repeat(20_000, axis=0), fast.head.noise(1, 20_000)[0])
    dist = policy.get_distribution(th.as_tensor(observation)).distribution
    for i in range(3):
        mean, std = dist.mean[0, i].item(), dist.stddev[0, i].item()
        assert stats.kstest(actions[:, i], stats.norm(mean, std).cdf).pvalue > 0.01
    assert np.abs(np.corrcoef(actions.T) - np.eye(3)).max() < 0.03


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parameters_that_are_not_finite_do_not_act(bad):
    fast = numpy_policy(make_policy(activation_fn=nn.ReLU))
    with pytest.raises(ValueError, match="not finite"):
        fast.act(np.full((1, 5), bad, dtype=np.float32), fast.head.noise(1, 1)[0])


def test_noise_comes_from_torchs_generator():
    fast = numpy_policy(make_policy())
    th.manual_seed(3)
    first = fast.head.noise(4, 2)
    th.manual_seed(3)
    assert np.array_equal(first, fast.head.noise(4, 2))
    assert first.shape == (4, 2, 3)


def test_weights_are_shared_and_a_replaced_one_is_noticed():
    policy = make_policy()
    fast = numpy_policy(policy)
    observation = np.ones((1, 5), dtype=np.float32)
    policy.value_net.bias.data += 1.0
    assert fast.is_current(policy)
    with th.no_grad():
        expected = policy.predict_values(th.as_tensor(observation))
    actions, z = fast.act(observation, fast.head.noise(1, 1)[0])
    assert th.allclose(fast.evaluate(observation, z, actions)[0], expected)
    policy.value_net.bias.data = th.zeros(1)
    assert not fast.is_current(policy)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("net_arch", [[], [7], [8, 6]])
def test_the_critics_gradient_is_that_of_torch(activation, net_arch):
    policy = make_policy(activation_fn=activation, net_arch=net_arch)
    x, targets = th.randn(32, 5), th.randn(32)
    loss = F.mse_loss(policy.predict_values(x).flatten(), targets)
    loss.backward()
    expected = {name: param.grad for name, param in policy.named_parameters() if param.grad is not None}
    policy.zero_grad()
    ours = regression_gradient(numpy_policy(policy).critic, x.numpy(), targets.numpy())
    assert ours == pytest.approx(loss.item(), rel=1e-5)
    grads = {name: param.grad for name, param in policy.named_parameters() if param.grad is not None}
    assert grads.keys() == expected.keys()
    assert all(th.allclose(grads[name], expected[name], atol=1e-5) for name in grads)


@pytest.mark.parametrize("net_arch", [[], [7], [8, 6]])
@pytest.mark.parametrize("action_space", ACTION_SPACES)
def test_the_fisher_product_is_that_of_torch(action_space, net_arch):
    policy = make_policy(action_space, net_arch=net_arch, activation_fn=nn.Tanh)
    states = th.randn(40, 5)

    def both(params):
        dist = action_distribution(policy, states)
        args = (policy, lambda states: action_distribution(policy, states), states, dist, params)
        v = th.randn(sum(param.numel() for param in params))
        return fast_fisher_product(*args)(v), fisher_product(*args)(v)

    actor = [param for name, param in policy.named_parameters() if "value" not in name]
    ours, theirs = both(actor)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    policy.action_net.bias.requires_grad_(False)  # a frozen parameter is the general product's business
    ours, theirs = both([param for param in actor if param.requires_grad])
    assert th.equal(ours, theirs)


def test_observations_are_flattened_as_the_extractor_does():
    observations = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(flat(observations), FlattenExtractor(spaces.Box(0, 1, (3, 4)))(th.as_tensor(observations)).numpy())
    assert flat(observations).dtype == np.float32


class OtherForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        return super().forward(obs, deterministic)


class OtherExtractor(FlattenExtractor):
    pass


def shadow_method(policy):
    policy.predict_values = lambda obs: th.zeros(len(obs), 1)


def hook_layer(policy):
    policy.action_net.register_forward_hook(lambda *_: None)


def hook_gradient(policy):
    policy.value_net.weight.register_hook(lambda grad: 0.0 * grad)


def hook_backward(policy):
    policy.value_net.register_full_backward_hook(lambda *_: None)


def shadow_layer(policy):
    policy.value_net.forward = lambda x: x


def double(policy):
    policy.double()


def weight_norm(policy):
    nn.utils.parametrizations.weight_norm(policy.action_net)


def dropout(policy):
    policy.mlp_extractor.policy_net.append(nn.Dropout())


@pytest.mark.parametrize(
    "change", [shadow_method, hook_layer, hook_gradient, hook_backward, shadow_layer, double, weight_norm, dropout]
)
def test_a_policy_that_was_changed_is_not_bypassed(change):
    policy = make_policy()
    assert numpy_policy(policy) is not None
    change(policy)
    assert numpy_policy(policy) is None


@pytest.mark.parametrize("kwargs", [
    {"cls": OtherForward},
    {"features_extractor_class": OtherExtractor},
    {"activation_fn": nn.ELU},
    {"activation_fn": lambda: nn.LeakyReLU(0.3)},
    {"use_sde": True},
])  # fmt: skip
def test_a_policy_of_other_parts_is_not_bypassed(kwargs):
    assert numpy_policy(make_policy(**kwargs)) is None


def test_images_and_one_hot_observations_are_not_bypassed():
    images = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
    for space, cls in ((images, ActorCriticPolicy), (images, ActorCriticCnnPolicy), (spaces.Discrete(3), ActorCriticPolicy)):
        assert numpy_policy(cls(space, ACTION_SPACES["box"], lambda _: 1e-3)) is None
